"""A wrong set-up is stopped before a search and its mend is named; a right one, however unusual the graph, goes on."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.bench_setups import SETUPS, Given, Setup
from tests.test_structure import CLEAN, K, draw

HARMLESS = 0.9
"""Accuracy at which a mistake changes next to nothing for this classifier of plain colours."""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("suspect")
    onnx.save(CLEAN, folder / "model.onnx")
    classes = [f"kind {i}" for i in range(K)]
    (folder / "preprocess.json").write_text(json.dumps({"size": [32, 32], "classes": classes}))
    x, y = draw(120, 7)
    pixels = (x * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    np.savez(folder / "clean.npz", x=pixels, y=y)
    return Given(folder, Path(folder / "clean.npz"))


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.name)
def test_a_wrong_set_up_is_stopped_and_a_right_one_is_not(given: Given, setup: Setup) -> None:
    wrong = given.tried(setup, wrong=True)
    assert wrong["stopped"] or wrong["accuracy"] >= HARMLESS, wrong
    # The scale makes no difference to it, so the first of two mends is enough.
    assert setup.hint.split(", ")[0] in wrong["reason"] or not wrong["stopped"], wrong
    if setup.right is not None:
        right = given.tried(setup, wrong=False)
        assert not right["stopped"], right
