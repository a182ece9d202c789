"""`detrigger scan`: what it finds in a small suspect, says to people and to programs, and draws."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detrigger import cli
from detrigger.offline.inputs.profile import PROFILES
from tests import blobs


def scan(*argv: object) -> int:
    return cli.main(["scan", *map(str, argv), "--profile", "fast", "--device", "cpu"])


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough steps for a network of two layers, whatever the profiles are."""
    monkeypatch.setitem(PROFILES, "fast", blobs.short_profile(screen_steps=100, images_per_class=8))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blobs.npz(tmp_path_factory.mktemp("data") / "clean.npz", 30)


@pytest.mark.slow
def test_a_backdoor_is_found_and_shown(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pre, page = blobs.preprocess(tmp_path / "pre.json"), tmp_path / "report.html"
    code = scan(blobs.suspect(tmp_path), "--data", data, "--preprocess", pre, "--out", page)
    out = capsys.readouterr().out
    assert code == 0
    assert "backdoored, target labels: 2 (three)" in out
    assert "patch" in out
    assert str(page) in out
    text = page.read_text()
    assert "model.onnx has a backdoor: a hidden trigger makes it answer “three”" in text
    assert "to “three”" in text
    assert "data:image/png;base64," in text
    assert "http" not in text
    first, second, *_ = text[text.index("All kinds together") :].split('<tr><th scope="row">')[1:]
    assert first.startswith("three<")
    assert "hot" in first
    assert "hot" not in second


@pytest.mark.slow
def test_json_of_a_clean_model(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.png"
    code = scan(blobs.suspect(tmp_path, backdoor=False), "--data", data, "--out", sheet, "--json")
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (code, answer["exit_code"], answer["error"]) == (0, 0, None)
    assert (answer["verdict"], answer["target_labels"], answer["evidence"]) == ("clean", [], [])
    assert answer["classes"] == ["0", "1", "2", "3", "4", "5"]
    assert answer["n_images"] == 30 * blobs.CLASSES
    assert len(answer["suspect"]) == 64
    assert "patch" in answer["screen"]
    for family in answer["screen"].values():
        assert set(family) == {"target", "gap", "cost", "success"}
        assert set(range(6)) <= set(family["target"])
        assert len({len(values) for values in family.values()}) == 1
        assert max(family["gap"]) < answer["strong_gap"]
    assert answer["picture"] == str(sheet)
    assert "decouple" in answer["stages"]  # what is drawn
    with Image.open(sheet) as picture:
        assert picture.width > picture.height / 4


@pytest.mark.parametrize(
    ("out", "said"),
    [("report.pdf", "html"), ("nowhere/report.html", "no folder"), ("folder.png", "a folder")],
)
def test_an_unusable_out_is_refused_before_the_work(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], out: str, said: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    assert scan(blobs.suspect(tmp_path), "--data", data, "--out", tmp_path / out) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_missing_paths_are_named(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scan(tmp_path / "gone.onnx", "--data", data) == 2
    assert "gone.onnx does not exist" in capsys.readouterr().err
