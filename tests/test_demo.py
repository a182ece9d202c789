"""The demo: its parts quickly, and the whole of it once."""

import io
import json
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrigger.demo import run as demo
from detrigger.demo.signs import CLASSES, draw_signs
from detrigger.demo.story import Bare, Client, Figures, Tile, contact_sheet, measure, png
from detrigger.models.errors import BadInput, DetriggerError
from detrigger.models.preprocess import Preprocess
from detrigger.offline.inputs.data import load_dataset
from tests import toys
from tests.live import ROOT, live_server

GOOD = Figures(
    n_clean=320,
    n_triggered=300,
    ba_bare=1,
    ba=0.99,
    asr_bare=1,
    asr=0.01,
    pa_bare=0,
    pa=0.97,
    tpr=0.98,
    fpr=0.01,
)


def test_story_holds_only_where_the_bare_model_is_fooled_and_detrigger_is_not() -> None:
    assert GOOD.held
    assert not replace(GOOD, asr_bare=0.5).held
    assert not replace(GOOD, ba_bare=0.9).held
    assert not replace(GOOD, asr=0.06).held
    assert not replace(GOOD, ba=0.96).held
    assert not replace(GOOD, tpr=0.5).held


def test_an_earlier_demo_is_replaced_and_other_folders_are_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "demo-run"
    demo.fresh_folder(root)
    (root / "old").touch()
    demo.fresh_folder(root)
    assert not (root / "old").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").touch()
    with pytest.raises(BadInput, match="was not made by the demo"):
        demo.fresh_folder(mine)
    assert (mine / "thesis.txt").exists()


def test_another_port_where_the_wanted_one_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        wanted = taken.getsockname()[1]
        assert demo.free_port(wanted) not in (wanted, 0)


def test_folders_are_what_the_job_reads(tmp_path: Path) -> None:
    x, y = draw_signs(2, 1)
    demo.write_folders(tmp_path / "clean", x, y)
    loaded = load_dataset(tmp_path / "clean", Preprocess.plain(32, 32, 3))
    assert loaded.classes == CLASSES
    assert np.array_equal(loaded.x, x)
    assert np.array_equal(loaded.y, y)
    demo.write_folders(tmp_path / "some", x[y == 3], y[y == 3])
    assert [folder.name for folder in (tmp_path / "some").iterdir()] == [CLASSES[3]]


def test_a_service_that_does_not_start_is_told_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    demo.fresh_folder(demo.ROOT)
    with pytest.raises(DetriggerError, match="did not get ready"), demo.service(Path("no-store")):
        pass


def test_contact_sheet_fits_its_tiles() -> None:
    tile = Tile(np.zeros((32, 32, 3), np.uint8), "stop", "bare model, 99%", good=True)
    narrow = contact_sheet({"one": [tile] * 2}, "footer")
    wide = contact_sheet({"one": [tile] * 4, "two": [tile] * 4}, "footer")
    assert wide.width > narrow.width
    assert wide.height > narrow.height
    assert np.asarray(wide).std() > 10


@pytest.mark.process
def test_bare_and_served_answers_on_a_toy(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(toys.classifier_model())
    (tmp_path / "preprocess.json").write_text(toys.preprocess().model_dump_json())
    bare = Bare(tmp_path / "model.onnx", tmp_path / "preprocess.json")
    x, y = toys.toy_dataset(per_class=15)  # 45 images: more than one request
    triggered = np.stack([toys.toy_image(int(label), triggered=True, seed=n) for n, label in enumerate(y)])
    with live_server(tmp_path) as server:
        client = Client(server.url)
        before = client.metric("detrigger_flagged_images_total")
        figures = measure(bare, client, x, y, triggered, toys.TARGET)
        assert client.metric("detrigger_flagged_images_total") - before == 30
        assert figures.held
        assert figures.n_clean == 45
        assert figures.n_triggered == 30
        assert (figures.asr_bare, figures.asr, figures.pa, figures.tpr, figures.fpr) == (1, 0, 1, 1, 0)
        purified = client.answers(triggered[:3], purified=True).purified
        assert purified is not None
        assert purified.shape == (3, 8, 8, 3)
        with pytest.raises(DetriggerError, match="404"):
            Client(f"{server.url}/nowhere").answers(x[:1])


def test_png_is_lossless() -> None:
    x, _ = draw_signs(1, 1)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(x[0])))), x[0])


@pytest.mark.slow
@pytest.mark.process
def test_the_whole_demo(demo_run: Path) -> None:
    story = json.loads((demo_run / "story.json").read_text())
    assert story["asr_bare"] >= 0.95
    assert story["asr"] <= 0.05
    for folder, classes in (("test", len(CLASSES)), ("test-with-sticker", len(CLASSES) - 1)):
        # The documents' `evaluate` and curl take these.
        assert len(list((demo_run / folder).glob("*/*.png"))) == demo.TEST_PER_CLASS * classes
    with Image.open(demo_run / "sheet.png") as sheet:
        assert sheet.width > 800
