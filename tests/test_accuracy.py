"""What the suspect is right on is said first, and a wrong set-up gets no verdict but the mend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from detrigger import cli
from detrigger.models.preprocess import Preprocess
from detrigger.models.suspect import import_suspect
from detrigger.offline.compute import Compute
from detrigger.offline.inputs.data import Dataset
from detrigger.offline.inputs.split import as_float
from detrigger.offline.steps.accuracy import Accuracy, own_accuracy, stratified
from tests import blobs, toys

CLASSES = toys.CLASSES[3]


def measured(tmp_path: Path, x: NDArray[np.uint8], y: NDArray[np.int64]) -> Accuracy:
    """Of the toy classifier of colours, on images with these labels."""
    (tmp_path / "model.onnx").write_bytes(toys.classifier_model())
    pre = Preprocess.plain(toys.SIDE, toys.SIDE, 3)
    suspect = import_suspect(tmp_path / "model.onnx", pre, as_float(x[:8])).suspect
    return own_accuracy(suspect, Dataset(x, y, CLASSES, "0" * 64), Compute("cpu", 0))


def test_a_right_set_up_has_no_problem(tmp_path: Path) -> None:
    found = measured(tmp_path, *toys.toy_dataset(20))
    assert (found.overall, found.problem, found.better) == (1.0, "", None)
    assert found.per_class == dict.fromkeys(CLASSES, 1.0)
    assert "100.0% of 60 clean images" in found.in_words()


def test_swapped_channels_are_named(tmp_path: Path) -> None:
    x, y = toys.toy_dataset(20)
    found = measured(tmp_path, np.ascontiguousarray(x[..., ::-1]), y)
    assert found.overall == pytest.approx(1 / 3, abs=0.02)
    assert found.better is not None
    assert found.better.accuracy == 1.0
    assert "channels BGR it would be right on 100.0%" in found.problem


def test_class_folders_in_another_order_are_named(tmp_path: Path) -> None:
    x, y = toys.toy_dataset(20)
    # Light green images: in them a swap of channels says as little as any other reading.
    found = measured(tmp_path, x, (y + 1) % 3)
    assert found.overall == 0.0
    assert "100.0%" in found.problem
    swapped = measured(tmp_path, x, np.array([1, 0, 2])[y])
    assert f"{CLASSES[0]} is output 1, {CLASSES[1]} is output 0" in swapped.problem


def test_images_of_another_kind_are_refused_without_a_reading(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = np.repeat(rng.integers(0, 255, (300, 8, 8, 1), dtype=np.uint8), 3, axis=3)
    found = measured(tmp_path, x, rng.integers(0, 3, 300))
    assert found.better is None
    assert "at least 47% are needed" in found.problem


def test_every_class_has_its_share_of_those_that_are_tried() -> None:
    y = np.repeat(np.arange(5), [1000, 500, 30, 400, 3])
    chosen = stratified(y, 100)
    assert np.bincount(y[chosen]).tolist() == [20, 20, 20, 20, 3]
    assert stratified(y[:50], 100).tolist() == list(range(50))


def wrongly_ordered(tmp_path: Path) -> list[str]:
    """Arguments of a job whose class order is off by one."""
    x, y = blobs.images(10)
    np.savez(tmp_path / "clean.npz", x=x, y=(y + 1) % blobs.CLASSES)
    return [str(blobs.suspect(tmp_path)), "--data", str(tmp_path / "clean.npz"), "--device", "cpu"]


def test_scan_gives_no_verdict_on_a_wrong_set_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scan", *wrongly_ordered(tmp_path), "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (answer["verdict"], answer["target_labels"]) == ("inconclusive", [])
    assert "classes in the model's own order" in answer["reason"]
    assert answer["accuracy"]["overall"] == 0.0
    assert answer["accuracy"]["better"]["accuracy"] == 1.0


def test_protect_refuses_a_wrong_set_up_before_it_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    assert cli.main(["protect", *wrongly_ordered(tmp_path), "--store", str(store)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "it would be right on 100.0%" in said
    assert "--trust-setup" in said
    assert not list(store.glob("versions/*"))
