"""`detrigger evaluate`: the figures by their definitions, on answers that are known by construction.

The toy classifier reads colours and answers `TARGET` where the corner is white; the toy purifier paints the corner.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from detrigger import cli
from detrigger.models.errors import BadInput
from detrigger.models.store import VersionStore
from detrigger.offline.jobs.evaluate import auroc, evaluate
from detrigger.offline.progress import SilentProgress
from tests.toys import CLASSES, CORNER, TARGET, png, publish_toy, toy_dataset, write_folders

IDS = [f"20250131T12000{n}Z-0000000{n}" for n in range(2)]


def stickered(per_class: int = 4) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    x, y = toy_dataset(per_class)
    x[:, :CORNER, :CORNER] = 255
    return x, y


@pytest.fixture
def store(tmp_path: Path) -> Path:
    publish_toy(tmp_path / "store", version=IDS[0])
    return tmp_path / "store"


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "clean")


@pytest.fixture
def triggered(tmp_path: Path) -> Path:
    x, y = stickered()
    np.savez(tmp_path / "triggered.npz", x=x, y=y)
    return tmp_path / "triggered.npz"


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    code = cli.main(["evaluate", *map(str, argv), "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert isinstance(answer, dict)
    assert answer["exit_code"] == code
    return answer


def test_bare_and_protected_side_by_side(
    store: Path, clean: Path, triggered: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = run(capsys, "--store", store, "--clean", clean, "--triggered", triggered)
    assert (answer["version"], answer["threshold"], answer["target"]) == (IDS[0], 0.5, TARGET)
    assert (answer["n_clean"], answer["n_triggered"], answer["n_asr"]) == (12, 12, 8)
    # The bare model is fooled by every sticker, which is right by accident on the target's own four.
    assert answer["bare"] == {"BA": 1.0, "ASR": 1.0, "PA": pytest.approx(4 / 12)}
    assert answer["protected"] == {"BA": 1.0, "ASR": 0.0, "PA": 1.0}
    assert answer["FPR"] == 0.0
    assert answer["TPR"] == pytest.approx(8 / 12)
    assert 0.8 < answer["AUROC"] <= 1.0
    assert answer["floor"] == 0.0


def test_text_has_a_row_per_figure(
    store: Path, clean: Path, triggered: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        cli.main(["evaluate", "--store", str(store), "--clean", str(clean), "--triggered", str(triggered)])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["BA", "ASR", "PA", "TPR", "FPR", "AUROC"]
    assert lines[3].split()[1:3] == ["100.0%", "0.0%"]


def test_the_target_is_the_one_asked_for_then_the_images_then_the_manifests(
    store: Path, clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = stickered()
    t = np.where(y == TARGET, 0, TARGET)
    np.savez(tmp_path / "t.npz", x=x, y=y, t=t)
    given = ("--store", store, "--clean", clean, "--triggered", tmp_path / "t.npz")
    answer = run(capsys, *given)
    assert (answer["target"], answer["n_asr"]) == ("per image", 12)
    assert answer["bare"]["ASR"] == pytest.approx(8 / 12)
    answer = run(capsys, *given, "--target", 2)
    assert (answer["target"], answer["n_asr"], answer["bare"]["ASR"]) == (2, 8, 0.0)
    answer = run(capsys, *given, "--all-to-all")
    # Only red images have the toy's target as their next label.
    assert (answer["target"], answer["n_asr"], answer["bare"]["ASR"]) == (
        "all-to-all",
        12,
        pytest.approx(4 / 12),
    )


def test_triggered_images_of_some_classes_and_a_named_version(
    store: Path, clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_toy(store, version=IDS[1], promote=False, threshold=2.0)
    (tmp_path / "bad" / CLASSES[3][0]).mkdir(parents=True)
    for n, image in enumerate(stickered()[0][:4]):
        (tmp_path / "bad" / CLASSES[3][0] / f"{n}.png").write_bytes(png(image))
    answer = run(
        capsys, "--store", store, "--clean", clean, "--triggered", tmp_path / "bad", "--version", IDS[1]
    )
    assert (answer["version"], answer["n_asr"], answer["bare"]["ASR"]) == (IDS[1], 4, 1.0)
    assert answer["TPR"] == 0.0  # nothing is above a threshold of 2


def test_without_triggered_images(store: Path, clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = run(capsys, "--store", store, "--clean", clean)
    assert (answer["protected"], answer["TPR"], answer["target"]) == (
        {"BA": 1.0, "ASR": None, "PA": None},
        None,
        None,
    )


def test_what_cannot_be_measured_is_refused_in_one_line(
    store: Path, clean: Path, triggered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = stickered()
    np.savez(tmp_path / "odd.npz", x=x, y=y, t=y[:3])
    np.savez(tmp_path / "far.npz", x=x, y=y, t=y + 7)
    (tmp_path / "strange" / "violet").mkdir(parents=True)
    empty = VersionStore.create(tmp_path / "empty").root
    ok = ("--store", store, "--clean", clean)
    for argv, said in (
        (("--store", empty, "--clean", clean), "promotes no version"),
        (("--store", tmp_path / "none", "--clean", clean), "no version store"),
        ((*ok, "--version", IDS[1]), "no version"),
        ((*ok, "--triggered", tmp_path / "gone"), "there is no"),
        ((*ok, "--triggered", tmp_path / "odd.npz"), "t of .*must be integers"),
        ((*ok, "--triggered", tmp_path / "far.npz"), "must lie in 0..2"),
        ((*ok, "--triggered", triggered, "--target", 3), "must lie in 0..2"),
        ((*ok, "--triggered", tmp_path / "strange"), "unknown: 'violet'"),
    ):
        code = cli.main(["evaluate", *map(str, argv)])
        captured = capsys.readouterr()
        assert (code, captured.out) == (2, "")
        assert re.search(said, captured.err.splitlines()[-1]), captured.err


def test_an_unknown_target_is_asked_for(
    store: Path, clean: Path, triggered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = VersionStore(store)
    manifest = opened.manifest(IDS[0])
    for labels in ((), (0, 1)):
        monkeypatch.setattr(
            VersionStore,
            "manifest",
            lambda *_, labels=labels: manifest.model_copy(update={"target_labels": labels}),
        )
        with pytest.raises(BadInput, match="--target N or --all-to-all"):
            evaluate(opened, clean, triggered, SilentProgress())


def test_a_changed_graph_is_not_measured(
    store: Path, clean: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = store / "versions" / IDS[0] / "protected.onnx"
    data = graph.read_bytes()
    graph.unlink()
    graph.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert cli.main(["evaluate", "--store", str(store), "--clean", str(clean)]) == 2
    assert "damaged at protected.onnx" in capsys.readouterr().err


def test_auroc_counts_ties_by_half() -> None:
    clean, bad = np.array([0.0, 0.1, 0.1, 0.5], np.float32), np.array([0.1, 0.6], np.float32)
    assert auroc(clean, bad) == pytest.approx((1 + 0.5 + 0.5 + 0 + 4) / 8)
    assert auroc(clean, clean) == pytest.approx(0.5)


@pytest.mark.process
def test_torch_is_not_needed(store: Path, clean: Path) -> None:
    script = (
        "import sys; from detrigger.cli import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "assert not {'torch', 'onnx2fx'} & set(sys.modules), 'imported'"
    )
    argv = ["evaluate", "--store", str(store), "--clean", str(clean)]
    done = subprocess.run(
        [sys.executable, "-c", script, *argv],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
