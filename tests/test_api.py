"""`from detrigger import scan, protect, load`: light to import, and the same answers as the commands."""

import inspect
import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from PIL import Image

import detrigger
from detrigger.api import Publishing, Scanning, Settings
from detrigger.models.errors import BadInput, StoreError
from detrigger.offline.inputs.profile import PROFILES
from detrigger.offline.jobs.protect import ProtectOptions
from detrigger.offline.jobs.scan import ScanOptions
from detrigger.offline.triggers import UNIVERSAL
from tests import blobs
from tests.toys import CLASSES, TARGET, png, publish_toy, toy_image

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs/walkthrough.ipynb"


def test_importing_it_imports_nothing_large() -> None:
    code = "import detrigger, sys; print({'torch', 'onnx', 'onnxruntime', 'numpy', 'fastapi'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_a_loaded_version_answers_files_pillow_images_and_arrays_alike(tmp_path: Path) -> None:
    published = publish_toy(tmp_path / "store")
    bad, clean = toy_image(0, triggered=True), toy_image(0)
    (tmp_path / "x.png").write_bytes(png(bad))
    model = detrigger.load(tmp_path / "store")
    assert model.manifest.id == published.id
    *same, good = model.predict([str(tmp_path / "x.png"), Image.fromarray(bad), bad, clean])
    for answer in same:
        assert (answer.label, answer.raw_label, answer.flagged) == (CLASSES[3][0], CLASSES[3][TARGET], True)
        assert np.array_equal(answer.purified, same[0].purified)
        assert answer.purified.shape == bad.shape
    assert (good.label, good.raw_label, good.flagged) == (CLASSES[3][0], CLASSES[3][0], False)


def test_what_is_wrong_is_said_as_the_commands_say_it(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"the model .* does not exist"):
        detrigger.scan(tmp_path / "none.onnx", tmp_path)
    with pytest.raises(StoreError):
        detrigger.load(tmp_path / "nowhere")
    publish_toy(tmp_path / "store", promote=False)
    with pytest.raises(StoreError, match="promotes no version"):
        detrigger.load(tmp_path / "store")


def test_it_takes_by_name_what_the_commands_take_as_flags() -> None:
    for options, settings in ((ScanOptions, Scanning), (ProtectOptions, Publishing)):
        taken = set(inspect.get_annotations(Settings)) | set(inspect.get_annotations(settings))
        places = {"suspect", "data", "store", "out"}
        assert {it.name for it in fields(options)} - places == taken - {"verbose", "sign"}


@pytest.mark.slow
def test_the_notebook_runs_from_suspect_to_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # What hides in this suspect is a mark; the other families would take a minute.
    others = {family.family for family in UNIVERSAL} - {"spot", "patch"}
    monkeypatch.setitem(PROFILES, "fast", replace(blobs.short_profile(), unscreened=frozenset(others)))
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), names)  # noqa: S102 - our own file
    assert names["found"].verdict == "backdoored"  # type: ignore[attr-defined]
    answers = cast(
        "list[detrigger.Prediction]", names["answers"]
    )  # what so few steps are worth is no matter here
    assert {answer.raw_label for answer in answers} == {str(blobs.TARGET)}
    for name in ("scan.html", "purified.png"):
        assert (tmp_path / "walkthrough" / name).is_file()
