"""The protected graph: purifier and suspect in one self-contained ONNX model (no torch here).

    image (N,C,H,W) in [0,1] ──► purifier ──► purified ─┐
      └───────────────────────────────────────► concat ─┴─► mean/std ──► the suspect's own nodes ──► 2N logits
    logits = those of ``purified``, logits_raw = those of ``image``
    flag_score = s / (1 + s), s = max(0, log p(k | image) - log p(k | purified)), k = argmax logits_raw

The suspect runs once on a batch of 2N, which is faster than twice on N; its nodes are copied, not re-exported, so
its answers are the original's.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from models.errors import BadInput

OPSET = 18
SCHEMA = "1"


def raise_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model in a newer operator set, or BadInput where ONNX cannot convert it."""
    if default_opset(model) >= opset:
        return model
    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as error:  # the converter raises several unrelated types
        raise BadInput(
            f"the model uses opset {default_opset(model)} and cannot be converted to {opset}; export it with opset "
            f"{opset} or later"
        ) from error


def default_opset(model: onnx.ModelProto) -> int:
    """Version of the model's standard operators."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)


def build_protected(
    purifier: onnx.ModelProto,
    classifier: onnx.ModelProto,
    *,
    layout: str,
    softmax: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    n_classes: int,
    classes: tuple[str, ...],
    threshold: float,
) -> onnx.ModelProto:
    """Compose the graph above.

    Args:
        purifier: input and output (N, C, H, W) in [0, 1], open batch.
        classifier: the suspect with an open batch; both models in the same opset (``raise_opset``).
        layout, softmax: the suspect's, as found at import ("NCHW" or "NHWC"; true where it ends in probabilities).
        mean, std: its normalisation, one number a channel.
        threshold: flag threshold, written into the metadata.
    """
    purify = onnx.compose.add_prefix(purifier, "purifier/")
    classify = onnx.compose.add_prefix(classifier, "classifier/")
    weights = {t.name for t in classify.graph.initializer}
    entry = next(i for i in classify.graph.input if i.name not in weights)
    half = entry.type.tensor_type.elem_type == TensorProto.FLOAT16
    purifier_in, purifier_out = purify.graph.input[0], purify.graph.output[0]

    nodes: list[NodeProto] = []
    constants: list[TensorProto] = []

    def constant(name: str, value: NDArray[Any]) -> str:
        constants.append(numpy_helper.from_array(value, name))
        return name

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=f"detrigger/{output}", **attributes))
        return output

    add("Identity", ["image"], purifier_in.name)
    nodes.extend(purify.graph.node)
    add("Identity", [purifier_out.name], "purified")
    given = add("Concat", ["image", "purified"], "both", axis=0)
    channel = (1, -1, 1, 1)
    if any(mean):
        given = add("Sub", [given, constant("mean", np.array(mean, np.float32).reshape(channel))], "centred")
    if any(s != 1 for s in std):
        given = add("Div", [given, constant("std", np.array(std, np.float32).reshape(channel))], "scaled")
    if layout == "NHWC":
        given = add("Transpose", [given], "nhwc", perm=[0, 2, 3, 1])
    if half:
        given = add("Cast", [given], "half", to=TensorProto.FLOAT16)
    add("Identity", [given], entry.name)
    nodes.extend(classify.graph.node)
    answer = classify.graph.output[0].name
    if half:
        answer = add("Cast", [answer], "single", to=TensorProto.FLOAT)
    if softmax:
        floor = add("Clip", [answer, constant("tiny", np.array(1e-12, np.float32))], "floored")
        answer = add("Log", [floor], "log_probabilities")
    stacked = add("Reshape", [answer, constant("stack", np.array([2, -1, n_classes], np.int64))], "stacked")
    for index, name in enumerate(("logits_raw", "logits")):
        add("Gather", [stacked, constant(f"{name}_at", np.array(index, np.int64))], name, axis=0)
        add("LogSoftmax", [name], f"{name}_logp", axis=1)
    label = add("ArgMax", ["logits_raw"], "label_raw", axis=1, keepdims=1)
    before = add("GatherElements", ["logits_raw_logp", label], "before", axis=1)
    after = add("GatherElements", ["logits_logp", label], "after", axis=1)
    lost = add("Relu", [add("Sub", [before, after], "change")], "lost")
    more = add("Add", [lost, constant("one", np.array(1.0, np.float32))], "one_more")
    ratio = add("Div", [lost, more], "ratio")
    add("Reshape", [ratio, constant("flat", np.array([-1], np.int64))], "flag_score")

    shape = [d.dim_value for d in purifier_in.type.tensor_type.shape.dim][1:]
    graph = helper.make_graph(
        nodes,
        "detrigger_protected",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *shape])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", n_classes]),
            helper.make_tensor_value_info("logits_raw", TensorProto.FLOAT, ["batch", n_classes]),
            helper.make_tensor_value_info("purified", TensorProto.FLOAT, ["batch", *shape]),
            helper.make_tensor_value_info("flag_score", TensorProto.FLOAT, ["batch"]),
        ],
        [*purify.graph.initializer, *classify.graph.initializer, *constants],
    )
    opsets = {o.domain: o.version for m in (purify, classify) for o in m.opset_import}
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in opsets.items()],
        functions=[*purify.functions, *classify.functions],
        ir_version=min(max(purify.ir_version, classify.ir_version), 10),
        producer_name="detrigger",
    )
    for key, value in (
        ("detrigger.flag_threshold", repr(threshold)),
        ("detrigger.classes", json.dumps(list(classes))),
        ("detrigger.version_schema", SCHEMA),
    ):
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    return model
