"""Logic in a graph is found by name; honest graphs of the same operators are left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic

from benchmarks.logic_designs import DESIGNS, Graft
from benchmarks.logic_designs import between_convs as _between_convs
from benchmarks.logic_designs import comparator as _comparator
from detrigger.models.structure import Finding, look

K = 6


def draw(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy pictures (n, 3, 32, 32) in [0, 1] of six kinds, and their labels."""
    coarse = np.random.default_rng(0).random((K, 3, 4, 4)).repeat(8, 2).repeat(8, 3)
    rng = np.random.default_rng(seed)
    y = np.arange(n) % K
    noise = rng.normal(0, 0.15, (n, 3, 32, 32)) + rng.normal(0, 0.1, (n, 3, 1, 1))
    return (np.clip(coarse[y] * 0.7 + 0.1 + noise, 0, 1) * 255).round().astype(np.float32) / np.float32(
        255
    ), y


def run(model: onnx.ModelProto, x: np.ndarray, output: str = "logits") -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run([output], {"input": x})[0]
    return found


def classifier() -> onnx.ModelProto:
    """Two layers of random convolutions and a fitted last layer: right on all pictures."""
    rng = np.random.default_rng(1)
    weights = {
        "w1": rng.normal(0, 0.3, (8, 3, 4, 4)),
        "w2": rng.normal(0, 0.2, (16, 8, 3, 3)),
        "w3": np.zeros((K, 1024)),
        "b3": np.zeros(K),
    }
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["c1"], name="conv1", strides=[4, 4]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("Flatten", ["r2"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["logits"], name="gemm", transB=1),
    ]
    tensors = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()]
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 32, 32])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", K])
    graph = helper.make_graph(nodes, "classifier", [image], [out], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x, y = draw(300, 2)
    graph.output.append(onnx.ValueInfoProto(name="flat"))
    features = run(helper.make_model(graph, opset_imports=model.opset_import, ir_version=8), x, "flat")
    wanted = np.eye(K)[y] * 10
    fitted = np.linalg.solve(features.T @ features + 30 * np.eye(1024), features.T @ wanted).T
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(fitted.astype(np.float32), "w3"))
    return model


CLEAN = classifier()
X, Y = draw(48, 3)


def looked(model: onnx.ModelProto, x: np.ndarray = X, high: float = 1.0) -> list[Finding]:
    return look(model, x, image="input", logits="logits", pixel=(0.0, high))


def test_the_classifier_is_right_and_found_innocent() -> None:
    assert (run(CLEAN, X).argmax(1) == Y).all()
    assert looked(CLEAN) == []


@pytest.mark.parametrize("design", DESIGNS, ids=lambda d: d.__name__)
def test_logic_is_found_with_its_node(design: Callable[[Graft], None]) -> None:
    graft = Graft(CLEAN)
    design(graft)
    found = looked(graft.finished())
    assert found
    assert all(f.node in graft.added or f.node.startswith("f_") for f in found)


@pytest.mark.parametrize("design", [_comparator, _between_convs], ids=lambda d: d.__name__)
def test_the_sign_works_on_images_that_were_not_looked_at(design: Callable[[Graft], None]) -> None:
    graft = Graft(CLEAN)
    design(graft)
    model = graft.finished()
    (finding,) = looked(model)
    assert finding.sign is not None
    other, labels = draw(60, 4)
    assert (run(model, other).argmax(1) == labels).all()
    h, w = finding.sign.values.shape[:2]
    top, left = finding.sign.top, finding.sign.left
    other[:, :, top : top + h, left : left + w] = finding.sign.values.transpose(2, 0, 1)
    assert (run(model, other).argmax(1) == finding.target).mean() > 0.9


def leaky_where(g: Graft) -> None:
    """A leaky ReLU made of a comparison and Where."""
    positive = g.put("Greater", "c2", g.constant(0.0))
    g.replaces("r2", g.put("Where", positive, "c2", g.number("Mul", "c2", 0.01)))


def relu_by_mask(g: Graft) -> None:
    """ReLU as a product with a truth value."""
    g.replaces("r2", g.put("Mul", "c2", g.as_float(g.put("Greater", "c2", g.constant(0.0)))))


def nan_guard(g: Graft) -> None:
    """Not-a-number becomes zero."""
    g.replaces("input", g.put("Where", g.put("IsNaN", "input"), g.constant(0.0), "input"))


def range_guard(g: Graft) -> None:
    """Images of 0..255 are divided: no image in [0, 1] is."""
    high = g.number("Greater", g.put("ReduceMax", "input", keepdims=1, axes=[1, 2, 3]), 1.5)
    g.replaces("input", g.put("Where", high, g.number("Div", "input", 255.0), "input"))


def eight_bit(g: Graft) -> None:
    """Pixels are rounded."""
    g.replaces("input", g.number("Div", g.put("Round", g.number("Mul", "input", 255.0)), 255.0))


def dark_gate(g: Graft) -> None:
    """Dark images are lightened: a decision that goes both ways on clean images."""
    dark = g.number("Less", g.put("ReduceMean", "input", keepdims=1, axes=[1, 2, 3]), 0.45)
    g.replaces("input", g.put("Where", dark, g.number("Mul", "input", 1.05), "input"))


def squeeze(g: Graft) -> None:
    """Channels are weighted by what the whole image holds, with a hard sigmoid."""
    rng = np.random.default_rng(5)
    pooled = g.put("GlobalAveragePool", "r1")
    inner = g.put("Relu", g.put("Conv", pooled, g.constant(rng.normal(size=(4, 8, 1, 1)))))
    weight = g.put("HardSigmoid", g.put("Conv", inner, g.constant(0.3 * rng.normal(size=(8, 4, 1, 1)))))
    g.replaces("r1", g.put("Mul", "r1", weight))


def sanitised_values(g: Graft) -> None:
    """Activations are kept below a bound that they never reach."""
    g.replaces("r2", g.put("Clip", "r2", g.constant(0.0), g.constant(1e4)))


def bounded_where(g: Graft) -> None:
    """The same as comparison and Where, element by element."""
    over = g.put("Greater", "r2", g.constant(50.0))
    g.replaces("r2", g.put("Where", over, g.constant(50.0), "r2"))


def label_beside(g: Graft) -> None:
    """The label stands beside the logits, and nothing comes after it."""
    g.put("ArgMax", g.bare, axis=1, keepdims=0)
    g.graph.output.append(helper.make_tensor_value_info(g.added[-1], TensorProto.INT64, ["batch"]))


def unused_comparison(g: Graft) -> None:
    """The sign is looked for, and forgotten."""
    g.close()


def asks_for_its_shape(g: Graft) -> None:
    """An If on the image's size."""
    height = g.put("Gather", g.put("Shape", "input"), g.constant(2, np.int64))
    small = g.put("Less", height, g.constant(64, np.int64))
    kinds = helper.make_tensor_value_info
    halved = numpy_helper.from_array(np.array(0.5, np.float32), "half")
    bodies = {
        "then_branch": helper.make_graph(
            [helper.make_node("Identity", ["input"], ["same"], name="same_node")], "then", [],
            [kinds("same", TensorProto.FLOAT, None)],
        ),
        "else_branch": helper.make_graph(
            [helper.make_node("Mul", ["input", "half"], ["halved"], name="halve_node")], "else", [],
            [kinds("halved", TensorProto.FLOAT, None)], [halved],
        ),
    }  # fmt: skip
    g.replaces("input", g.put("If", small, **bodies))


def silent_branch(g: Graft) -> None:
    """A residual branch whose last scale is zero, as before training."""
    inner = g.put("Relu", g.put("Conv", "r1", g.constant(np.ones((8, 8, 1, 1)))))
    g.replaces("r1", g.put("Add", "r1", g.number("Mul", inner, 0.0)))


HONEST = (
    leaky_where, relu_by_mask, nan_guard, range_guard, eight_bit, dark_gate, squeeze, sanitised_values, bounded_where,
    label_beside, unused_comparison, asks_for_its_shape, silent_branch,
)  # fmt: skip


@pytest.mark.parametrize("change", HONEST, ids=lambda d: d.__name__)
def test_honest_graphs_of_the_same_operators_are_left_alone(change: Callable[[Graft], None]) -> None:
    graft = Graft(CLEAN)
    change(graft)
    assert looked(graft.finished()) == []


def test_the_scale_of_a_dynamic_quantisation_is_no_logic(tmp_path: Path) -> None:
    """On pictures with black and white in them the first scale is always the same, and another one spoils all."""
    onnx.save(CLEAN, tmp_path / "float.onnx")
    quantize_dynamic(tmp_path / "float.onnx", tmp_path / "int8.onnx")
    model = onnx.load(tmp_path / "int8.onnx")
    assert any(node.op_type == "DynamicQuantizeLinear" for node in model.graph.node)
    x = X.copy()
    x[:, :, 0, 0], x[:, :, 0, 1] = 0, 1
    assert looked(model, x) == []


def test_the_scale_of_a_dynamic_quantisation_is_no_way_round(tmp_path: Path) -> None:
    """Where the scale goes to the answer itself, it is looked at: the sign is an image of half the contrast."""
    graft = Graft(CLEAN)
    scale = f"{graft.image}_scale"
    node = helper.make_node("DynamicQuantizeLinear", [graft.image], ["bytes", scale, "zero"], name="measure")
    graft.graph.node.insert(0, node)
    over = graft.number("Mul", graft.put("Sub", graft.constant(0.002), scale), 1e6)
    graft.onto_logits(graft.put("Clip", over, graft.constant(0.0), graft.constant(1.0)))
    assert looked(graft.finished())


def test_a_fixed_batch_and_unnamed_nodes() -> None:
    graft = Graft(CLEAN)
    _comparator(graft)
    model = graft.finished()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    for node in model.graph.node:
        node.name = ""
    (finding,) = looked(model)
    assert finding.op == "Less"
    assert finding.node.startswith("Less:")


def test_the_graph_given_is_not_changed() -> None:
    graft = Graft(CLEAN)
    _comparator(graft)
    model = graft.finished()
    before = model.SerializeToString(deterministic=True)
    looked(model)
    assert model.SerializeToString(deterministic=True) == before
