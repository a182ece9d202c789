"""The protected graph: purifier, suspect and its repaired copy in one self-contained ONNX model (no torch here).

    image (N,C,H,W) in [0,1] ──────────────────► mean/std ──► the suspect's own nodes ──────────────► logits_raw
      └──► purifier ──► purified ──────────────► mean/std ──► the same nodes, repaired weights ─────► answers
    lost       = max(0, log p(. | image) - log p(. | purified))
    sure       = p(. | image)^CONFIDENCE
    said       = log p(. | image) - log p(. | purified), within SAY
    logits     = answers - penalty * sure * lost + (1 - sure of the label) * said, the last where the label is trusted
    flag_score = s / (1 + s), s = lost of the label

The label is argmax logits_raw; p(. | image) is the suspect's, p(. | purified) its repaired copy's, from its answers
alone; ``offline/steps/penalty.py`` says why. Nodes are copied, not exported again, so the suspect's answers are the
original's. They run twice on N images, not once on 2N (docs/experiments.md, Serving).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from detrigger.models.errors import BadInput
from detrigger.models.preprocess import Preprocess

OPSET = 18
CONFIDENCE = 8
"""The power of the suspect's confidence in the penalty and in its doubt."""
SAY = 1.0
"""By how much a doubtful suspect's own answer may raise or lower a label's log-probability."""
SCHEMA = "1"


@dataclass(frozen=True, kw_only=True)
class GraphSettings:
    """What the graph holds beside its models.

    Attributes:
        preprocess: the suspect's mean, std and order of channels, its layout as found at import, and its classes.
        softmax: whether the suspect ends in probabilities.
        penalty: of each class, 0 for those that are not suspected (``offline/steps/penalty.py``).
        threshold: flag threshold, written into the metadata.
    """

    preprocess: Preprocess
    softmax: bool
    penalty: Sequence[float]
    threshold: float


def trusted(penalty: Sequence[float] | NDArray[np.float32]) -> NDArray[np.float32]:
    """Of each label (K,) 1 where others have a penalty and it has none, else 0."""
    c = np.asarray(penalty, np.float32)
    found: NDArray[np.float32] = ((c == 0) & c.any()).astype(np.float32)
    return found


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


def strip_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove, in place, what exporters note beside the computation: folders, source lines, stack traces.

    They tell where a file was made, and the same weights made elsewhere would have another digest.
    """
    model.ClearField("doc_string")
    pending: list[Any] = [model.graph, *model.functions]
    while pending:
        part = pending.pop()
        values = (part.input, part.output, part.initializer) if isinstance(part, onnx.GraphProto) else ()
        for noted in (part, *part.value_info, *part.node, *itertools.chain(*values)):
            noted.ClearField("doc_string")
            noted.ClearField("metadata_props")
        for attribute in itertools.chain(*(node.attribute for node in part.node)):
            attribute.ClearField("doc_string")
            pending += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
    return model


def prefixed(model: onnx.ModelProto, prefix: str) -> onnx.ModelProto:
    """The model with ``prefix`` before all its names; ``onnx.compose`` does not reach into the bodies of loops."""
    bodies = [a.g for node in model.graph.node for a in node.attribute if a.HasField("g")]
    if not bodies:
        plain: onnx.ModelProto = onnx.compose.add_prefix(model, prefix)
        return plain
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    pending: list[Any] = [copy.graph]
    while pending:
        graph = pending.pop()
        for named in (*graph.input, *graph.output, *graph.value_info, *graph.initializer, *graph.node):
            named.name = prefix + named.name if named.name else ""
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = [prefix + name if name else "" for name in names]
            for attribute in node.attribute:
                pending += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
    return copy


def build_protected(
    purifier: onnx.ModelProto,
    suspect: onnx.ModelProto,
    repaired: onnx.ModelProto,
    settings: GraphSettings,
) -> onnx.ModelProto:
    """Compose the graph above. Its images are RGB or grey, whatever the suspect takes.

    Args:
        purifier: input and output (N, C, H, W) in [0, 1], open batch.
        suspect: with an open batch; all models in the same opset (``raise_opset``).
        repaired: the suspect with other weights, or the suspect itself where none could be tuned.
        settings: how images go in and answers come out.
    """
    pre, n_classes = settings.preprocess, len(settings.preprocess.classes)
    purify = onnx.compose.add_prefix(purifier, "purifier/")
    purifier_in, purifier_out = purify.graph.input[0], purify.graph.output[0]
    nodes: list[NodeProto] = []
    constants: list[TensorProto] = []
    channel = (1, -1, 1, 1)

    def constant(name: str, value: NDArray[Any]) -> str:
        constants.append(numpy_helper.from_array(value, name))
        return name

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=f"detrigger/{output}", **attributes))
        return output

    def classify(classifier: onnx.ModelProto, name: str, given: str, logits: str) -> onnx.ModelProto:
        """Append the classifier's nodes, from the images ``given`` to their ``logits``."""
        own = prefixed(classifier, f"{name}/")
        weights = {t.name for t in own.graph.initializer}
        entry = next(i for i in own.graph.input if i.name not in weights)
        half = entry.type.tensor_type.elem_type == TensorProto.FLOAT16
        if pre.order == "BGR":
            turned = constant(f"{name}_bgr", np.array([2, 1, 0], np.int64))
            given = add("Gather", [given, turned], f"{name}_turned", axis=1)
        if any(pre.mean):
            centre = constant(f"{name}_mean", np.array(pre.mean, np.float32).reshape(channel))
            given = add("Sub", [given, centre], f"{name}_centred")
        if any(s != 1 for s in pre.std):
            scale = constant(f"{name}_std", np.array(pre.std, np.float32).reshape(channel))
            given = add("Div", [given, scale], f"{name}_scaled")
        if pre.layout == "NHWC":
            given = add("Transpose", [given], f"{name}_nhwc", perm=[0, 2, 3, 1])
        if half:
            given = add("Cast", [given], f"{name}_half", to=TensorProto.FLOAT16)
        add("Identity", [given], entry.name)
        nodes.extend(own.graph.node)
        answer = own.graph.output[0].name
        if half:
            answer = add("Cast", [answer], f"{name}_single", to=TensorProto.FLOAT)
        if settings.softmax:
            tiny = constant(f"{name}_tiny", np.array(1e-12, np.float32))
            answer = add("Log", [add("Clip", [answer, tiny], f"{name}_floored")], f"{name}_logs")
        add("Reshape", [answer, rows], logits)
        add("LogSoftmax", [logits], f"{logits}_logp", axis=1)
        return own

    rows = constant("rows", np.array([-1, n_classes], np.int64))
    raw = classify(suspect, "suspect", "image", "logits_raw")
    add("Identity", ["image"], purifier_in.name)
    nodes.extend(purify.graph.node)
    add("Identity", [purifier_out.name], "purified")
    final = classify(repaired, "repaired", "purified", "answers")
    one = constant("one", np.array(1.0, np.float32))
    change = add("Sub", ["logits_raw_logp", "answers_logp"], "change")
    lost = add("Relu", [change], "lost")
    power = constant("confidence", np.array(CONFIDENCE, np.float32))
    sure = add("Exp", [add("Mul", ["logits_raw_logp", power], "raised")], "sure")
    costly = add("Mul", [sure, constant("penalty", np.array(settings.penalty, np.float32))], "costly")
    held = add("Mul", [lost, costly], "held_against")
    penalised = add("Sub", ["answers", held], "penalised")
    label = add("ArgMax", ["logits_raw"], "label_raw", axis=1, keepdims=1)
    unsure = add("Sub", [one, add("GatherElements", [sure, label], "sure_of_label", axis=1)], "unsure")
    doubt = add(
        "Mul",
        [unsure, add("Gather", [constant("trusted", trusted(settings.penalty)), label], "may_say")],
        "doubt",
    )
    least, most = (constant(name, np.array(v, np.float32)) for name, v in (("least", -SAY), ("most", SAY)))
    says = add("Mul", [doubt, add("Clip", [change, least, most], "said")], "says")
    add("Add", [penalised, says], "logits")
    own = add("GatherElements", [lost, label], "lost_of_label", axis=1)
    more = add("Add", [own, one], "one_more")
    ratio = add("Div", [own, more], "ratio")
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
        [*purify.graph.initializer, *raw.graph.initializer, *final.graph.initializer, *constants],
    )
    opsets = {o.domain: o.version for m in (purify, raw, final) for o in m.opset_import}
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in opsets.items()],
        functions=[*purify.functions, *raw.functions, *final.functions],
        ir_version=min(max(purify.ir_version, suspect.ir_version), 10),
        producer_name="detrigger",
    )
    for key, value in (
        ("detrigger.flag_threshold", repr(settings.threshold)),
        ("detrigger.classes", json.dumps(pre.classes)),
        ("detrigger.version_schema", SCHEMA),
    ):
        model.metadata_props.add(key=key, value=value)
    strip_traces(model)
    onnx.checker.check_model(model)
    return model
