"""Import of a suspect: what is read is exactly what ONNX Runtime runs, and what is refused says why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx2fx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from detrigger.models.errors import BadInput
from detrigger.models.preprocess import Preprocess
from detrigger.models.suspect import Suspect, describe, file, import_suspect, read_onnx, session

SIDE, CLASSES = 12, 4


def network(
    channels: int = 3,
    *,
    layout: str = "NCHW",
    batch: str | int = "batch",
    last: str = "",
    operator: str = "Relu",
    rank: int = 4,
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """Conv, activation, conv with stride, activation, mean pooling, linear layer."""
    rng = np.random.default_rng(1)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        kind = np.float16 if dtype == TensorProto.FLOAT16 else np.float32
        return numpy_helper.from_array((rng.standard_normal(shape) * 0.3).astype(kind), name)

    weights = [weight("w1", 8, channels, 3, 3), weight("w2", 8, 8, 3, 3), weight("w3", 8, CLASSES)]
    nodes: list[onnx.NodeProto] = []
    x = "input"
    if layout == "NHWC":
        nodes.append(helper.make_node("Transpose", [x], ["nchw"], perm=[0, 3, 1, 2]))
        x = "nchw"
    nodes += [
        helper.make_node("Conv", [x, "w1"], ["a"], pads=[1, 1, 1, 1], name="conv1"),
        helper.make_node(operator, ["a"], ["b"], name="act1"),
        helper.make_node("Conv", ["b", "w2"], ["c"], strides=[2, 2], name="conv2"),
        helper.make_node("Relu", ["c"], ["d"], name="act2"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("MatMul", ["f", "w3"], ["logits" if not last else "g"]),
    ]
    out_type, out_shape = dtype, [batch, CLASSES]
    if last == "ArgMax":
        nodes.append(helper.make_node("ArgMax", ["g"], ["logits"], axis=1, keepdims=0))
        out_type, out_shape = TensorProto.INT64, [batch]
    elif last:
        nodes.append(helper.make_node(last, ["g"], ["logits"], axis=1))
    shape = [batch, channels, SIDE, SIDE] if layout == "NCHW" else [batch, SIDE, SIDE, channels]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("input", dtype, shape[:rank])],
        [helper.make_tensor_value_info("logits", out_type, out_shape)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def take(path: Path, channels: int = 3, feature_node: str | None = None, **changes: Any) -> Suspect:
    pre = Preprocess(size=(SIDE, SIDE), mean=(0.4,) * channels, std=(0.25,) * channels)
    pre = pre.model_copy(update=changes)
    return import_suspect(path, pre, images(channels), feature_node).suspect


def images(channels: int = 3) -> Any:
    return np.random.default_rng(2).random((8, channels, SIDE, SIDE)).astype(np.float32)


def reference(path: Path, x: Any, channels: int = 3, *, nhwc: bool = False) -> Any:
    run = session(onnx.load(path))
    given = (x - np.float32(0.4)) / np.float32(0.25)
    given = given.transpose(0, 2, 3, 1) if nhwc else given
    return np.concatenate([run.run(None, {"input": given[i : i + 1]})[0] for i in range(len(x))])


@pytest.mark.parametrize(
    ("channels", "layout", "batch"),
    [(3, "NCHW", "batch"), (1, "NCHW", "batch"), (3, "NHWC", "n"), (3, "NCHW", 1)],
)
def test_answers_are_those_of_onnx_runtime(
    tmp_path: Path, channels: int, layout: str, batch: str | int
) -> None:
    path = saved(network(channels, layout=layout, batch=batch), tmp_path)
    suspect = take(path, channels)
    x = images(channels)
    mine = suspect(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(mine, reference(path, x, nhwc=layout == "NHWC"), atol=1e-4)


def test_the_cut_is_the_last_activation_before_pooling(tmp_path: Path) -> None:
    suspect = take(saved(network(), tmp_path))
    assert suspect.cut == "act2"
    x = torch.from_numpy(images())
    features = suspect.features(x)
    assert features.shape[1:] == (8, 5, 5)
    torch.testing.assert_close(suspect.classify(features), suspect(x))


def test_the_cut_can_be_named_and_a_wrong_name_lists_others(tmp_path: Path) -> None:
    path = saved(network(), tmp_path)
    assert take(path, feature_node="act1").features(torch.zeros(1, 3, SIDE, SIDE)).shape[2:] == (SIDE, SIDE)
    with pytest.raises(BadInput, match=r"no node 'nowhere'.*act2"):
        take(path, feature_node="nowhere")


def test_probabilities_become_logits_again(tmp_path: Path) -> None:
    plain = take(saved(network(), tmp_path))
    x = torch.from_numpy(images())
    soft = take(saved(network(last="Softmax"), tmp_path))
    assert soft.spec.softmax
    torch.testing.assert_close(soft(x).log_softmax(1), plain(x).log_softmax(1), atol=1e-4, rtol=1e-4)


def test_half_precision_weights(tmp_path: Path) -> None:
    assert take(saved(network(dtype=TensorProto.FLOAT16), tmp_path)).spec.float16


def test_gradients_reach_the_image_and_no_weight(tmp_path: Path) -> None:
    suspect = take(saved(network(), tmp_path))
    x = torch.from_numpy(images()).requires_grad_()
    suspect(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in suspect.parameters())


def test_training_mode_changes_nothing(tmp_path: Path) -> None:
    suspect = take(saved(network(), tmp_path))
    before = {k: v.clone() for k, v in suspect.state_dict().items()}
    suspect.train()
    assert not any(m.training for m in suspect.modules())
    suspect(torch.from_numpy(images()))
    for name, value in suspect.state_dict().items():
        torch.testing.assert_close(value, before[name])


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (network(rank=3), "image batch"),
        (network(channels=5), "1 or 3 channels"),
        (network(last="ArgMax"), "logits are needed"),
        (network(operator="Strange"), "Strange"),
        (network(dtype=TensorProto.DOUBLE), "float image batch"),
        (network(batch=2**31 - 1), "batches of 2147483647 images and no others"),
    ],
    ids=["no batch", "five channels", "labels", "operator", "double", "a batch of billions"],
)
def test_what_is_no_image_classifier_is_refused(tmp_path: Path, model: onnx.ModelProto, said: str) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        take(saved(model, tmp_path))
    assert "\n" not in str(caught.value)


def test_an_operator_without_translation_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_model: onnx.ModelProto) -> None:
        raise onnx2fx.UnsupportedOpError("Strange", opset_version=18)

    monkeypatch.setattr(onnx2fx, "convert", refuse)
    with pytest.raises(BadInput, match="operator Strange"):
        take(saved(network(), tmp_path))


def test_an_import_that_differs_is_refused_with_the_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detrigger.models.suspect.spec.TOLERANCE", -1.0)
    with pytest.raises(BadInput, match=r"differs from ONNX Runtime by [0-9.e-]+"):
        take(saved(network(), tmp_path))


@pytest.mark.parametrize("keep", [0, 7, 0.5, 0.98])
def test_damaged_files_are_refused(tmp_path: Path, keep: float) -> None:
    path = saved(network(), tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep) if keep > 1 else int(len(data) * keep)])
    with pytest.raises(BadInput, match=r"ONNX"):
        take(path)


def test_garbage_missing_and_large_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    garbage = tmp_path / "model.onnx"
    garbage.write_bytes(bytes(range(256)) * 8)
    with pytest.raises(BadInput):
        read_onnx(garbage)
    with pytest.raises(BadInput, match="give the path"):
        read_onnx(tmp_path / "nothing.onnx")
    path = saved(network(), tmp_path)
    monkeypatch.setattr(file, "MAX_BYTES", 100)
    with pytest.raises(BadInput, match="bytes"):
        read_onnx(path)


def test_sizes_and_channels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = saved(network(), tmp_path)
    with pytest.raises(BadInput, match=r"12x12.*16x16"):
        take(path, size=(16, 16))
    with pytest.raises(BadInput, match="3 channels"):
        take(path, mean=(0.0,), std=(1.0,))


@pytest.mark.skipif(sys.platform != "linux", reason="only there an import is tried first")
def test_a_limit_of_the_users_own_is_no_hindrance(tmp_path: Path) -> None:
    # A process of its own: a fork of this one would hang in torch's threads.
    code = (
        "import resource, sys; from pathlib import Path; from tests.test_suspect import take;"
        "resource.setrlimit(resource.RLIMIT_CPU, (100, 100)); take(Path(sys.argv[1]))"
    )
    path = saved(network(), tmp_path)
    subprocess.run([sys.executable, "-c", code, path], cwd=Path(__file__).parents[1], timeout=180, check=True)


def test_several_inputs_are_refused() -> None:
    model = network()
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["batch", 1]))
    with pytest.raises(BadInput, match="2 inputs"):
        describe(model)


def test_one_of_several_outputs_has_to_be_the_answer(tmp_path: Path) -> None:
    model = network()
    model.graph.output.append(helper.make_tensor_value_info("d", TensorProto.FLOAT, ["batch", 8, 5, 5]))
    assert take(saved(model, tmp_path)).n_classes == CLASSES
    model.graph.output.append(helper.make_tensor_value_info("f", TensorProto.FLOAT, ["batch", 8]))
    with pytest.raises(BadInput, match=r"2 outputs \('logits' \(4,\), 'f' \(8,\)\).*extract_model"):
        take(saved(model, tmp_path))


def test_a_constant_that_is_smaller_than_its_shape_is_refused(tmp_path: Path) -> None:
    """In a file whose quantised weights have to be read."""
    model = network()
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(0.05, np.float32), "q"),
            numpy_helper.from_array(np.array(128, np.uint8), "o"),
        ]
    )
    model.graph.node[1].CopyFrom(helper.make_node("QuantizeLinear", ["a", "q", "o"], ["aq"]))
    model.graph.node.insert(2, helper.make_node("DequantizeLinear", ["aq", "q", "o"], ["b"]))
    unused = numpy_helper.from_array(np.zeros(576, np.uint8), "unused")
    unused.dims[:] = [8, 1, 3, 3]
    model.graph.initializer.append(unused)
    with pytest.raises(BadInput, match="constant unused is not what its shape says"):
        take(saved(model, tmp_path))
