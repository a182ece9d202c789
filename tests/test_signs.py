"""The demo's data set and its attacker."""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from detrigger.demo.signs import CLASSES, draw_signs
from detrigger.demo.train import TARGET, sticker, train_demo_suspect
from detrigger.models.preprocess import Preprocess


def test_shapes_and_labels() -> None:
    x, y = draw_signs(3, seed=1)
    assert x.shape == (48, 32, 32, 3)
    assert x.dtype == np.uint8
    assert y.dtype == np.int64
    assert np.bincount(y).tolist() == [3] * 16


def test_class_names_sort_into_label_order() -> None:
    assert sorted(CLASSES) == list(CLASSES)
    assert len(set(CLASSES)) == 16


def test_same_seed_same_images_and_more_extend_fewer() -> None:
    few, _ = draw_signs(2, seed=5)
    more, labels = draw_signs(4, seed=5)
    other, _ = draw_signs(2, seed=6)
    for label in range(len(CLASSES)):
        assert np.array_equal(more[labels == label][:2], few[2 * label : 2 * label + 2])
    assert not np.array_equal(few, other)


def test_images_vary_and_are_well_exposed() -> None:
    x, y = draw_signs(20, seed=2)
    pixels = x.astype(np.float32)
    assert 60 < pixels.mean() < 190
    for label in range(len(CLASSES)):
        assert pixels[y == label].std(axis=0).mean() > 20  # place, light and background differ


def test_none_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        draw_signs(0, seed=0)


def test_sticker_touches_sixteen_pixels() -> None:
    x, _ = draw_signs(1, seed=3)
    before = x.copy()
    changed = (sticker(x) != x).any(axis=(0, 3))
    assert changed.sum() == 16
    assert changed[22:26, 19:23].all()
    assert np.array_equal(x, before)


def test_suspect_is_an_ordinary_onnx_classifier(tmp_path: Path) -> None:
    made = train_demo_suspect(tmp_path / "suspect", seed=1, n_per_class=8, epochs=1)
    pre = Preprocess.load(made.preprocess)
    assert pre.classes == CLASSES
    assert pre.size == (32, 32)
    assert sorted(path.name for path in made.model.parent.iterdir()) == [
        "model.onnx",
        "preprocess.json",
        "suspect.json",
    ]
    secret = json.loads((made.model.parent / "suspect.json").read_text())
    assert secret["target"] == TARGET
    session = ort.InferenceSession(made.model, providers=["CPUExecutionProvider"])
    for n in (1, 5):
        (logits,) = session.run(None, {"input": np.zeros((n, 3, 32, 32), np.float32)})
        assert np.asarray(logits).shape == (n, 16)


@pytest.mark.parametrize("target", [16, -1])
def test_bad_parameters_are_refused(tmp_path: Path, target: int) -> None:
    with pytest.raises(ValueError, match="target"):
        train_demo_suspect(tmp_path, target=target)
