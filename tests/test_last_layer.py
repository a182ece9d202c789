"""Which row of the last layer stands out, however the layer is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from detrigger.offline.steps.last_layer import standing_out
from tests import blobs

K, WIDTH, TARGET = 7, 32, 4


def model(op: str, rows: np.ndarray) -> onnx.ModelProto:
    """One linear layer as this operator."""
    shape: list[str | int | None]
    weights, shape = rows.T, ["n", WIDTH]
    if op == "Conv":
        weights, shape = rows[:, :, None, None], ["n", WIDTH, 1, 1]
    node = helper.make_node(op.split(",")[0], ["x", "w"], ["y"])
    if op == "Gemm, transposed":
        weights = rows
        node.attribute.append(helper.make_attribute("transB", 1))
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ascontiguousarray(weights, np.float32), "w")],
    )
    return helper.make_model(graph)


def rows(plus: float) -> np.ndarray:
    found = np.random.default_rng(0).normal(0, 0.1, (K, WIDTH))
    found[TARGET] += plus
    return found


@pytest.mark.parametrize("op", ["Gemm", "Gemm, transposed", "MatMul", "Conv"])
def test_the_row_with_larger_weights_is_named(op: str) -> None:
    found = standing_out(model(op, rows(0.2)), K)
    assert found is not None
    assert (found[0], found[1] > 5) == (TARGET, True)


def test_without_one_nothing_stands_out_far() -> None:
    found = standing_out(model("Gemm", rows(0.0)), K)
    assert found is not None
    assert found[1] < 3.5


def test_a_layer_of_other_labels_says_nothing(tmp_path: Path) -> None:
    assert standing_out(model("Gemm", rows(0.2)), K + 1) is None
    hidden = onnx.load(blobs.suspect(tmp_path))
    del hidden.graph.initializer[:]
    assert standing_out(hidden, blobs.CLASSES) is None
