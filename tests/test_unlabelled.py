"""Images without classes: the suspect's own answers stand for them, and whoever reads the result is told."""

import html
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrigger.models.errors import BadInput
from detrigger.offline.compute import Compute
from detrigger.offline.inputs.data import UNLABELLED
from detrigger.offline.inputs.load import JobInputs, Options, load
from detrigger.offline.jobs.report import Pictures, render_scan
from detrigger.offline.jobs.results import ScanResult
from detrigger.offline.progress import SilentProgress
from tests import blobs


class Notes(SilentProgress):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def loaded(data: Path, tmp_path: Path, *, unlabelled: bool) -> tuple[JobInputs, list[str]]:
    progress = Notes()
    options = Options(
        suspect=blobs.suspect(tmp_path),
        data=data,
        preprocess=blobs.preprocess(tmp_path / "pre.json"),
        unlabelled=unlabelled,
    )
    return load(options, Compute("cpu", 0), progress), progress.said


def test_the_suspects_answers_stand_for_classes(tmp_path: Path) -> None:
    archive = blobs.npz(tmp_path / "clean.npz", 12)
    (folder := tmp_path / "photos").mkdir()
    for number, image in enumerate(np.load(archive)["x"]):
        Image.fromarray(image).save(folder / f"{number:04d}.png")
    with pytest.raises(BadInput, match="--unlabelled"):
        loaded(folder, tmp_path, unlabelled=False)
    found, said = loaded(folder, tmp_path, unlabelled=True)
    assert f"warning: {UNLABELLED}" in said
    assert not found.data.labelled
    # The blobs' classifier is right on nearly all clean images, so its answers are nearly their classes.
    known, said = loaded(archive, tmp_path, unlabelled=False)
    assert known.data.labelled
    assert not any("warning" in note for note in said)
    assert len(found.data) == len(known.data)
    assert (found.data.y == known.data.y).mean() > 0.9
    assert found.data.classes == known.data.classes


@pytest.mark.parametrize("labelled", [True, False])
def test_the_page_of_a_scan_says_what_was_not_seen(labelled: bool) -> None:
    result = ScanResult(
        verdict="clean", target_labels=(), evidence=(), screen={}, strong_gap=3.0, classes=("a", "b"),
        file_name="m.onnx", suspect="0" * 64, n_images=9, picture=None, seconds=1.0, labelled=labelled,
    )  # fmt: skip
    assert (UNLABELLED in html.unescape(render_scan(result, Pictures(())))) == (not labelled)
