"""Classifiers that want other channels or another range, from the preprocess file to the protected graph."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from detrigger.models.networks import Purifier
from detrigger.models.preprocess import Preprocess
from detrigger.models.protected import OPSET, GraphSettings, build_protected, raise_opset
from detrigger.models.suspect import import_suspect, onnx_logits
from detrigger.offline.graph.to_onnx import run, to_onnx
from tests.test_suspect import CLASSES, SIDE, images, network, saved

MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)


def wanting(order: str, top: int, layout: str) -> onnx.ModelProto:
    """The same network behind nodes that undo another order and range of its channels."""
    model = network(layout=layout)
    graph, entry = model.graph, model.graph.input[0].name
    axis = 1 if layout == "NCHW" else 3
    given = "given"
    if order == "BGR":
        graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "order"))
        graph.node.insert(0, helper.make_node("Gather", [given, "order"], ["turned"], axis=axis))
        given = "turned"
    graph.initializer.append(numpy_helper.from_array(np.array(top, np.float32), "top"))
    graph.node.insert(1 if order == "BGR" else 0, helper.make_node("Div", [given, "top"], [entry]))
    value = helper.make_tensor_value_info(
        "given", TensorProto.FLOAT, [d.dim_value or "n" for d in graph.input[0].type.tensor_type.shape.dim]
    )
    graph.input[0].CopyFrom(value)
    return model


@pytest.fixture(scope="module")
def untrained() -> onnx.ModelProto:
    """A purifier that changes nothing."""
    purifier = Purifier(3, (SIDE, SIDE)).eval().requires_grad_(False)
    return to_onnx(purifier, (3, SIDE, SIDE), "purified", OPSET)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("top", [1, 255])
def test_order_and_range_reach_the_suspect_and_the_protected_graph(
    tmp_path: Path, untrained: onnx.ModelProto, layout: str, order: str, top: int
) -> None:
    turn = -1 if order == "BGR" else 1
    asked = {
        "layout": layout,
        "classes": tuple("abcd"),
        "size": SIDE,
        "mean": [value * top for value in MEAN[::turn]],
        "std": [value * top for value in STD[::turn]],
        "channels": order,
        "range": top,
    }
    pre = Preprocess.model_validate(asked)
    x = images()
    usual = Preprocess(size=(SIDE, SIDE), mean=MEAN, std=STD)
    plain = import_suspect(saved(network(layout=layout), tmp_path), usual, x)
    expected = onnx_logits(plain.graph, plain.suspect.spec, MEAN, STD, x)
    # Mean and std are subtracted before the graph turns its channels; what it divides by is 1 after `range`.
    path = saved(wanting(order, 1, layout), tmp_path)
    found = import_suspect(path, pre, x)
    np.testing.assert_allclose(
        onnx_logits(found.graph, found.suspect.spec, pre.mean, pre.std, x), expected, atol=1e-4
    )

    classifier = raise_opset(found.graph, OPSET)
    settings = GraphSettings(preprocess=pre, softmax=False, penalty=(0.0,) * CLASSES, threshold=0.5)
    protected = build_protected(untrained, classifier, classifier, settings)
    raw, purified = run(protected, x, ["logits_raw", "purified"])
    np.testing.assert_allclose(raw, expected, atol=1e-4)
    np.testing.assert_allclose(purified, x, atol=1e-3)  # an untrained purifier changes nothing, nor the order
    assert ("Gather" in {n.op_type for n in protected.graph.node if "turned" in n.output[0]}) == (
        order == "BGR"
    )


def test_a_graph_that_wants_bytes_gets_them(tmp_path: Path) -> None:
    x = images()
    pre = Preprocess.model_validate({"size": SIDE, "range": 255, "channels": "BGR"})
    plain = import_suspect(saved(network(), tmp_path), Preprocess.plain(SIDE, SIDE, 3), x)
    expected = onnx_logits(plain.graph, plain.suspect.spec, (0.0,) * 3, (1.0,) * 3, x)
    found = import_suspect(saved(wanting("BGR", 255, "NCHW"), tmp_path), pre, x)
    np.testing.assert_allclose(
        onnx_logits(found.graph, found.suspect.spec, pre.mean, pre.std, x), expected, atol=1e-4
    )
