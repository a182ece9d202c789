"""Files as people have them: what each becomes, or the one line that says why not and how to mend it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from torch import nn

from detrigger.models.errors import BadInput
from detrigger.models.preprocess import Preprocess
from detrigger.models.protected import GraphSettings, build_protected
from detrigger.models.suspect import Imported, check_gradient, import_suspect, onnx_logits
from tests.networks import AWKWARD, SIDE, ConvNext, View, export
from tests.test_suspect import CLASSES, network, saved
from tests.test_suspect import SIDE as SMALL

Pixels = NDArray[np.float32]
MEAN, STD = (0.4,) * 3, (0.25,) * 3


def pixels(n: int = 16, side: int = SIDE) -> Pixels:
    return np.random.default_rng(0).random((n, 3, side, side)).astype(np.float32)


def imported(path: Path, side: int = SIDE, **changes: Any) -> Imported:
    pre = Preprocess(size=(side, side), mean=MEAN, std=STD).model_copy(update=changes)
    return import_suspect(path, pre, pixels(side=side))


def small(model: onnx.ModelProto, folder: Path, **changes: Any) -> Imported:
    """The import of a variant of ``network()``."""
    return imported(saved(model, folder), SMALL, **changes)


def alone(path: Path, x: Pixels, output: int = 0) -> Pixels:
    """The file's own answers to each normalised image, the only one in its batch."""
    run = ort.InferenceSession(path)
    entry = run.get_inputs()[0]
    n = entry.shape[0] if isinstance(entry.shape[0], int) else 1
    given = (x - np.float32(0.4)) / np.float32(0.25)
    parts = [
        run.run(None, {entry.name: np.repeat(given[i : i + 1], n, 0)})[output][:1] for i in range(len(x))
    ]
    answers: Pixels = np.concatenate(parts)
    return answers


def in_one_batch(found: Imported, x: Pixels) -> Pixels:
    """What the graph that is served answers, in logits."""
    return onnx_logits(found.graph, found.suspect.spec, MEAN, STD, x)


def in_torch(found: Imported, x: Pixels) -> Pixels:
    with torch.no_grad():
        answers: Pixels = found.suspect(torch.from_numpy(x)).numpy()
    return answers


# --- what PyTorch writes by default -----------------------------------------------------------------------


@pytest.mark.slow  # all of them together
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("architecture", AWKWARD)
def test_an_export_with_torchs_defaults_answers_as_one_by_one(
    architecture: Callable[[], nn.Module], dynamo: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    path = export(architecture(), tmp_path / "m.onnx", dynamo=dynamo)
    found = imported(path)
    x = pixels(7)
    # One by one inside a batch: the same sums, which another build of the kernels may order differently.
    np.testing.assert_allclose(in_one_batch(found, x), alone(path, x), atol=1e-6)
    np.testing.assert_allclose(in_torch(found, x), alone(path, x), atol=1e-4)
    assert found.suspect.features(torch.from_numpy(x)).dim() > 2
    assert check_gradient(found.suspect, found.graph, x).ok


@pytest.mark.parametrize("batch", [8, 16])
def test_a_batch_that_is_fixed_at_another_size(batch: int, tmp_path: Path) -> None:
    path = export(View(), tmp_path / "m.onnx", dynamo=False, batch=batch)
    found = imported(path)
    np.testing.assert_array_equal(in_one_batch(found, pixels(3)), alone(path, pixels(3)))
    assert str(batch) in found.notes[0]


def test_a_head_that_reads_the_images_shape_after_the_cut(tmp_path: Path) -> None:
    path = export(ConvNext(), tmp_path / "m.onnx", dynamo=True, batch=2, opened=True)
    found = imported(path)
    for n in (1, 3, 9):
        np.testing.assert_allclose(in_torch(found, pixels(n)), alone(path, pixels(n)), atol=1e-4)


def test_the_protected_graph_holds_a_file_that_runs_one_by_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = export(AWKWARD[2](), tmp_path / "m.onnx", dynamo=False)
    found = imported(path)
    assert "one after another" in found.notes[0]
    np.testing.assert_allclose(raw_logits(found, pixels(5)), alone(path, pixels(5)), atol=1e-6)


def raw_logits(found: Imported, x: Pixels) -> Pixels:
    """``logits_raw`` of a protected graph around the suspect's own, with a purifier that changes nothing."""
    side = x.shape[-1]
    shape = ["batch", 3, side, side]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["i"], ["o"])],
        "none",
        [helper.make_tensor_value_info("i", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, shape)],
    )
    opsets = found.graph.opset_import
    purifier = helper.make_model(graph, opset_imports=opsets, ir_version=found.graph.ir_version)
    n, spec = found.suspect.n_classes, found.suspect.spec
    pre = Preprocess.model_validate(
        {"size": side, "mean": MEAN, "std": STD, "layout": spec.layout, "classes": tuple(map(str, range(n)))}
    )
    settings = GraphSettings(preprocess=pre, softmax=spec.softmax, penalty=(0.0,) * n, threshold=0.5)
    protected = build_protected(purifier, found.graph, found.tunable, settings)
    run = ort.InferenceSession(protected.SerializeToString())
    raw: Pixels = run.run(["logits_raw"], {"image": x})[0]
    return raw


# --- weights beside the file ------------------------------------------------------------------------------


def beside(folder: Path, location: str = "weights.bin") -> Path:
    path = folder / "model.onnx"
    onnx.save(network(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    if location != "weights.bin":
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            tensor.external_data[0].value = location
        path.write_bytes(model.SerializeToString())
    return path


def taken(path: Path) -> Imported:
    return imported(path, SMALL)


def test_weights_beside_the_file_are_read_and_count_in_the_digest(tmp_path: Path) -> None:
    first = taken(beside(tmp_path))
    (tmp_path / "weights.bin").write_bytes(bytes(len((tmp_path / "weights.bin").read_bytes())))
    assert taken(tmp_path / "model.onnx").digest != first.digest


@pytest.mark.parametrize(
    ("location", "said"),
    [("../weights.bin", "plain name"), ("/etc/passwd", "plain name"), ("gone.bin", "not in its folder")],
)
def test_weights_elsewhere_are_refused(location: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=said):
        taken(beside(tmp_path, location))


def test_links_and_truncated_weights_are_refused(tmp_path: Path) -> None:
    path = beside(tmp_path)
    data = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(data[:-8])
    with pytest.raises(BadInput, match="lies outside"):
        taken(path)
    (tmp_path / "weights.bin").rename(tmp_path / "real.bin")
    (tmp_path / "weights.bin").symlink_to("real.bin")
    with pytest.raises(BadInput, match="is a link"):
        taken(path)


# --- heads and inputs -------------------------------------------------------------------------------------


def tail(
    *nodes: onnx.NodeProto, shape: tuple[Any, ...] = ("batch", CLASSES), kind: int = TensorProto.FLOAT
) -> Any:
    """``network()`` whose logits ("f" times "w3" is "g") go through more nodes, the last of which gives "out"."""
    model = network()
    model.graph.node[-1].output[0] = "g"
    model.graph.node.extend(nodes)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("out", kind, shape))
    return model


def node(kind: str, given: str, made: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, given.split(), [made], **attributes)


@pytest.mark.parametrize(
    "last",
    [
        [node("Softmax", "g", "p", axis=1), node("Identity", "p", "out")],
        [node("Softmax", "g", "p", axis=1), node("Cast", "p", "out", to=TensorProto.FLOAT)],
        [node("Exp", "g", "exp"), node("ReduceSum", "exp one", "sum"), node("Div", "exp sum", "out")],
    ],
    ids=["Softmax, Identity", "Softmax, Cast", "Exp, ReduceSum, Div"],
)
def test_probabilities_are_recognised_by_their_values(last: list[onnx.NodeProto], tmp_path: Path) -> None:
    model = tail(*last)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    found = small(model, tmp_path)
    assert found.suspect.spec.softmax
    x = pixels(5, SMALL)
    plain = in_torch(small(network(), tmp_path), x)
    np.testing.assert_allclose(
        torch.from_numpy(in_torch(found, x)).softmax(1), torch.from_numpy(plain).softmax(1), atol=1e-4
    )


def test_a_label_beside_the_probabilities(tmp_path: Path) -> None:
    model = tail(node("Softmax", "g", "out", axis=1), node("ArgMax", "g", "label", axis=1, keepdims=0))
    model.graph.output.insert(0, helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]))
    found = small(model, tmp_path)
    assert [o.name for o in found.graph.graph.output] == ["out"]
    assert found.suspect.spec.softmax


def test_logits_beside_their_own_probabilities(tmp_path: Path) -> None:
    model = tail(node("Softmax", "g", "out", axis=1))
    model.graph.output.append(helper.make_tensor_value_info("g", TensorProto.FLOAT, ["batch", CLASSES]))
    found = small(model, tmp_path)
    assert [o.name for o in found.graph.graph.output] == ["g"]


def test_a_head_of_one_pixel(tmp_path: Path) -> None:
    model = tail(node("Unsqueeze", "g axes", "out"), shape=("batch", CLASSES, 1, 1))
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
    x = pixels(5, SMALL)
    np.testing.assert_array_equal(
        in_one_batch(small(model, tmp_path), x), in_one_batch(small(network(), tmp_path), x)
    )


@pytest.mark.parametrize("sigmoid", [True, False])
def test_one_number_is_two_classes(sigmoid: bool, tmp_path: Path) -> None:
    last = [node("Sigmoid", "z", "out")] if sigmoid else [node("Identity", "z", "out")]
    model = tail(node("MatMul", "g one", "z"), *last, shape=("batch", 1))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((CLASSES, 1), np.float32), "one"))
    found = small(model, tmp_path)
    x = pixels(5, SMALL)
    z = in_one_batch(small(network(), tmp_path), x).sum(1)
    assert found.suspect.n_classes == 2
    shares = torch.from_numpy(in_one_batch(found, x)).softmax(1).numpy()
    np.testing.assert_allclose(shares[:, 1], 1 / (1 + np.exp(-z)), atol=1e-5)
    np.testing.assert_allclose(in_torch(found, x), in_one_batch(found, x), atol=1e-3)


def test_a_sigmoid_for_each_class(tmp_path: Path) -> None:
    x = pixels(5, SMALL)
    found = small(tail(node("Sigmoid", "g", "out")), tmp_path)
    np.testing.assert_allclose(
        in_one_batch(found, x), in_one_batch(small(network(), tmp_path), x), atol=1e-3, rtol=1e-3
    )


def test_bytes_with_the_preprocessing_inside(tmp_path: Path) -> None:
    model = network()
    for name, value in (("scale", 1 / 255), ("mean", 0.4), ("std", 0.25)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    first = [
        node("Transpose", "bytes", "planes", perm=[0, 3, 1, 2]), node("Cast", "planes", "floats", to=TensorProto.FLOAT),
        node("Mul", "floats scale", "shares"), node("Sub", "shares mean", "centred"),
        node("Div", "centred std", "input"),
    ]  # fmt: skip
    for one in reversed(first):
        model.graph.node.insert(0, one)
    shape: list[int | str | None] = ["batch", SMALL, SMALL, 3]
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("bytes", TensorProto.UINT8, shape))
    x = (np.random.default_rng(1).integers(0, 256, (5, 3, SMALL, SMALL)) / 255).astype(np.float32)
    plain = in_one_batch(small(network(), tmp_path), x)
    found = small(model, tmp_path, mean=(0.0,) * 3, std=(1.0,) * 3)
    own = onnx_logits(found.graph, found.suspect.spec, (0.0,) * 3, (1.0,) * 3, x)
    np.testing.assert_allclose(own, plain, atol=1e-4)
    np.testing.assert_allclose(in_torch(found, x), plain, atol=1e-3)
    given = torch.from_numpy(x).requires_grad_()
    found.suspect(given).sum().backward()
    assert given.grad is not None
    assert given.grad.abs().sum() > 0
    with pytest.raises(BadInput, match="take them out of the preprocessing"):
        small(model, tmp_path)


def test_unknown_channels_are_those_of_the_preprocessing(tmp_path: Path) -> None:
    model = network()
    for dim in model.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_param = "any"
    x = pixels(5, SMALL)
    np.testing.assert_array_equal(
        in_one_batch(small(model, tmp_path), x), in_one_batch(small(network(), tmp_path), x)
    )


def test_local_functions(tmp_path: Path) -> None:
    model = network()
    inner = [helper.make_node("Relu", ["x"], ["y"])]
    body = helper.make_function("local", "Act", ["x"], ["y"], inner, [helper.make_opsetid("", 18)])
    model.functions.append(body)
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.node[1].CopyFrom(helper.make_node("Act", ["a"], ["b"], domain="local"))
    x = pixels(5, SMALL)
    np.testing.assert_array_equal(
        in_one_batch(small(model, tmp_path), x), in_one_batch(small(network(), tmp_path), x)
    )


@pytest.mark.parametrize("softmax", [False, True])
def test_half_precision_weights_with_float_inputs(softmax: bool, tmp_path: Path) -> None:
    model = network(dtype=TensorProto.FLOAT16)
    model.graph.node.insert(0, node("Cast", "image", "input", to=TensorProto.FLOAT16))
    model.graph.node[-1].output[0] = "g"
    if softmax:
        model.graph.node.append(node("Softmax", "g", "p", axis=1))
    model.graph.node.append(node("Cast", "p" if softmax else "g", "logits", to=TensorProto.FLOAT))
    for value, name in ((model.graph.input[0], "image"), (model.graph.output[0], "logits")):
        value.name = name
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    found = small(model, tmp_path)
    assert found.suspect.spec.softmax == softmax
    x = pixels(5, SMALL)
    np.testing.assert_allclose(in_torch(found, x), in_one_batch(found, x), atol=2e-2)
    np.testing.assert_allclose(raw_logits(found, x), in_one_batch(found, x), atol=1e-6)
    found.suspect.classify(found.suspect.features(torch.from_numpy(x)))


# --- quantised --------------------------------------------------------------------------------------------


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Calibration images for onnxruntime.quantization."""

    def __init__(self) -> None:
        given = (pixels(32, SMALL) - np.float32(0.4)) / np.float32(0.25)
        self.left = iter([{"input": given}])

    def get_next(self) -> Any:
        return next(self.left, None)


def quantised(kind: str, folder: Path) -> Path:
    source, path = saved(network(), folder), folder / "quantised.onnx"
    if kind == "dynamic":
        quantize_dynamic(source, path)
    else:
        form = QuantFormat.QOperator if kind == "QOperator" else QuantFormat.QDQ
        # Seven bits: where a processor has no int8 dot products, ONNX Runtime's sums of eight bits overflow.
        quantize_static(
            source,
            path,
            Reader(),
            quant_format=form,
            per_channel=kind == "QDQ per channel",
            reduce_range=True,
        )
    return path


@pytest.mark.parametrize("kind", ["dynamic", "QDQ", "QDQ per channel", "QOperator"])
def test_a_quantised_file_is_searched_on_its_twin_and_served_as_it_is(kind: str, tmp_path: Path) -> None:
    path = quantised(kind, tmp_path)
    x = pixels(16, SMALL)
    found = imported(path, SMALL)
    own = alone(path, x)
    np.testing.assert_array_equal(in_one_batch(found, x), own)
    np.testing.assert_array_equal(raw_logits(found, x), own)
    assert found.twin_agreement >= 0.9
    assert np.abs(in_torch(found, x) - own).max() < 0.05 * np.abs(own).max()
    assert check_gradient(found.suspect, found.graph, x).ok
    floats = {
        t.name
        for t in found.tunable.graph.initializer
        if t.data_type == TensorProto.FLOAT and len(t.dims) > 1
    }
    assert len(floats) == 3  # two convolutions and a product, whose weights can be tuned


# --- refusals ---------------------------------------------------------------------------------------------


def test_normalisation_in_training_mode_is_refused(tmp_path: Path) -> None:
    model = network()
    for name, value in (("s", 1.0), ("z", 0.0)):
        model.graph.initializer.append(numpy_helper.from_array(np.full(8, value, np.float32), name))
    model.graph.node[1].CopyFrom(
        helper.make_node(
            "BatchNormalization", ["a", "s", "z", "z", "s"], ["b", "m", "v"], training_mode=1, name="bn1"
        )
    )
    with pytest.raises(BadInput, match=r"'bn1' is in training mode.*model.eval\(\).*valid"):
        small(model, tmp_path)


def test_answers_that_depend_on_the_batch_are_refused_with_the_node(tmp_path: Path) -> None:
    model = tail(
        node("ReduceMean", "g zero", "m"), helper.make_node("Sub", ["g", "m"], ["out"], name="apart")
    )
    model.graph.node[-2].name = "over_the_batch"
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "zero"))
    with pytest.raises(BadInput, match=r"depends on the others in its batch.*'over_the_batch'"):
        small(model, tmp_path)


def test_labels_alone_are_refused_with_the_tensor_that_would_do(tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=r"is a label \(ArgMax node 'ArgMax'\).*\['input'\], \['g'\]"
    ) as refusal:
        small(network(last="ArgMax"), tmp_path)
    assert "\n" not in str(refusal.value)
    out = tmp_path / "scores.onnx"
    onnx.utils.extract_model(str(saved(network(last="ArgMax"), tmp_path)), str(out), ["input"], ["g"])
    assert taken(out).suspect.n_classes == CLASSES


def test_what_crashes_or_loops_is_refused_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop of 2^62 turns does not hang the import, and a tensor of 2^40 numbers does not fill the memory."""
    monkeypatch.setattr("detrigger.models.suspect.guard.CPU_SECONDS", 3)
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Sin", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, None),
        ],
    )
    model = tail(helper.make_node("Loop", ["turns", "true", "g"], ["out"], body=body))
    model.graph.initializer.append(numpy_helper.from_array(np.array(2**62), "turns"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "true"))
    with pytest.raises(BadInput, match="within 3 s"):
        small(model, tmp_path)
    model = tail(node("Expand", "g large", "h"), node("ReduceMax", "h zero", "out", keepdims=0))
    model.graph.initializer.append(numpy_helper.from_array(np.array([2**38, 1, 4]), "large"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "zero"))
    with pytest.raises(BadInput):
        small(model, tmp_path)
