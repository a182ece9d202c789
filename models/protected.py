"""The protected graph: purifier, suspect and its repaired copy in one self-contained ONNX model (no torch here).

    image (N,C,H,W) in [0,1] ──────────────────► mean/std ──► the suspect's own nodes ──────────────► logits_raw
      └──► purifier ──► purified ──────────────► mean/std ──► the same nodes, repaired weights ─────► answers
    lost       = max(0, log p(. | image) - log p(. | purified))
    sure       = p(. | image)^CONFIDENCE
    said       = log p(. | image) - log p(. | purified), within SAY
    logits     = answers - penalty * sure * lost + (1 - sure of the label) * said, the last where the label is trusted
    flag_score = s / (1 + s), s = lost * p(. | image)^SURE, of the label, divided by GROUNDS where it is not asked

The label is argmax logits_raw; p(. | image) is the suspect's, p(. | purified) its repaired copy's, from its answers
alone; ``offline/steps/penalty.py`` says why. Nodes are copied, not exported again, so the suspect's answers are the
original's. They run twice on N images, not once on 2N (docs/experiments.md, Serving).

Asked are images whose label is suspected, as only they can be a success of a backdoor that leads there; where none is
suspected, all are. With ``if_flagged`` the logits of images that are not flagged are the suspect's own.
With ``only`` the rest of the graph sees no others: they keep the suspect's logits and a score of 0,
and purified is the image itself. It stands in one branch of an If then, which runs where any image is asked:

    rows = NonZero(asked)    the same nodes on image[rows], logits_raw[rows]    scattered back to their rows
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from detrigger.models.errors import BadInput
from detrigger.models.nodes import Nodes, prefixed
from detrigger.models.preprocess import Preprocess

OPSET = 18
CONFIDENCE = 8
"""The power of the suspect's confidence in the penalty and in its doubt."""
SAY = 1.0
"""By how much a doubtful suspect's own answer may raise or lower a label's log-probability."""
SURE = 3
"""The power of the suspect's confidence in the flag score."""
GROUNDS = 4.0
"""How many times as much of its log-probability a label that is not suspected has to lose for the same score."""
SCHEMA = "1"
THRESHOLD = "flag_threshold"
"""The constant that holds the flag threshold where the graph itself needs it."""


@dataclass(frozen=True, kw_only=True)
class GraphSettings:
    """What the graph holds beside its models.

    Attributes:
        preprocess: the suspect's mean, std and order of channels, its layout as found at import, and its classes.
        softmax: whether the suspect ends in probabilities.
        penalty: of each class, 0 for those that are not suspected (``offline/steps/penalty.py``).
        threshold: flag threshold, written into the metadata.
        suspected: the labels whose images are asked; none for all.
        only: whether purifier and copy see no others.
        if_flagged: whether images that are not flagged get the suspect's own logits; not beside ``suspected``.
    """

    preprocess: Preprocess
    softmax: bool
    penalty: Sequence[float]
    threshold: float
    suspected: Collection[int] = ()
    only: bool = False
    if_flagged: bool = False


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
    n_classes = len(settings.preprocess.classes)
    purify = onnx.compose.add_prefix(purifier, "purifier/")
    defence = _Defence(purify, prefixed(repaired, "repaired/"), settings)
    raw = prefixed(suspect, "suspect/")
    whole = Nodes()
    log_p = _classify(whole, raw, "image", "logits_raw", settings)
    label = whole.add("ArgMax", ["logits_raw"], "label_raw", axis=1, keepdims=1)
    seen = _Seen("image", "logits_raw", log_p, label)
    if settings.if_flagged:
        whole.flag_score(_defend(whole, defence, seen, "opinion"), "flag_score")
        limit = whole.constant(THRESHOLD, np.array(settings.threshold, np.float32))
        flagged = whole.add("Greater", ["flag_score", limit], "flagged")
        column = whole.add(
            "Unsqueeze", [flagged, whole.constant("last", np.array([1], np.int64))], "flagged_column"
        )
        whole.add("Where", [column, "opinion", "logits_raw"], "logits")
    elif not settings.suspected:
        whole.flag_score(_defend(whole, defence, seen), "flag_score")
    else:
        among = np.isin(np.arange(n_classes), list(settings.suspected))
        if settings.only:
            mask = whole.constant("suspected", among.astype(np.float32))
            asked = whole.add("Gather", [mask, label], "asked")
            _defend_asked(whole, defence, seen, asked)
        else:
            grounds = _defend(whole, defence, seen)
            counts = whole.constant("counts", np.where(among, 1, 1 / GROUNDS).astype(np.float32))
            weight = whole.add("Gather", [counts, label], "counts_as")
            whole.flag_score(whole.add("Mul", [grounds, weight], "grounds_weighed"), "flag_score")

    shape = [d.dim_value for d in purify.graph.input[0].type.tensor_type.shape.dim][1:]
    graph = helper.make_graph(
        whole.nodes,
        "detrigger_protected",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *shape])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", n_classes]),
            helper.make_tensor_value_info("logits_raw", TensorProto.FLOAT, ["batch", n_classes]),
            helper.make_tensor_value_info("purified", TensorProto.FLOAT, ["batch", *shape]),
            helper.make_tensor_value_info("flag_score", TensorProto.FLOAT, ["batch"]),
        ],
        whole.constants,
    )
    models = (purify, raw, defence.repaired)
    opsets = {o.domain: o.version for m in models for o in m.opset_import}
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in opsets.items()],
        functions=[function for m in models for function in m.functions],
        ir_version=min(max(purify.ir_version, suspect.ir_version), 10),
        producer_name="detrigger",
    )
    for key, value in (
        ("detrigger.flag_threshold", repr(settings.threshold)),
        ("detrigger.classes", json.dumps(settings.preprocess.classes)),
        ("detrigger.version_schema", SCHEMA),
    ):
        model.metadata_props.add(key=key, value=value)
    strip_traces(model)
    onnx.checker.check_model(model)
    return model


def set_threshold(protected: onnx.ModelProto, threshold: float) -> None:
    """Write the calibrated flag threshold into the graph's metadata, and to where the graph itself needs it."""
    for prop in protected.metadata_props:
        if prop.key == "detrigger.flag_threshold":
            prop.value = repr(threshold)
    for constant in protected.graph.initializer:
        if constant.name == THRESHOLD:
            constant.CopyFrom(numpy_helper.from_array(np.array(threshold, np.float32), THRESHOLD))


@dataclass(frozen=True)
class _Defence:
    """The purifier and what classifies behind it, each with its prefix, and the settings of the graph."""

    purifier: onnx.ModelProto
    repaired: onnx.ModelProto
    settings: GraphSettings


@dataclass(frozen=True)
class _Seen:
    """Names of what the defence starts from: images, the suspect's logits and their logarithms, its labels (N, 1)."""

    image: str
    logits: str
    log_p: str
    label: str


def _classify(
    graph: Nodes, classifier: onnx.ModelProto, given: str, logits: str, settings: GraphSettings
) -> str:
    """Append a classifier, from the images ``given`` to their ``logits``; the name of their logarithms."""
    pre = settings.preprocess
    weights = {t.name for t in classifier.graph.initializer}
    entry = next(i for i in classifier.graph.input if i.name not in weights)
    half = entry.type.tensor_type.elem_type == TensorProto.FLOAT16
    channel = (1, -1, 1, 1)
    if pre.order == "BGR":
        turned = graph.constant(f"{logits}_bgr", np.array([2, 1, 0], np.int64))
        given = graph.add("Gather", [given, turned], f"{logits}_turned", axis=1)
    if any(pre.mean):
        centre = graph.constant(f"{logits}_mean", np.array(pre.mean, np.float32).reshape(channel))
        given = graph.add("Sub", [given, centre], f"{logits}_centred")
    if any(s != 1 for s in pre.std):
        scale = graph.constant(f"{logits}_std", np.array(pre.std, np.float32).reshape(channel))
        given = graph.add("Div", [given, scale], f"{logits}_scaled")
    if pre.layout == "NHWC":
        given = graph.add("Transpose", [given], f"{logits}_nhwc", perm=[0, 2, 3, 1])
    if half:
        given = graph.add("Cast", [given], f"{logits}_half", to=TensorProto.FLOAT16)
    answer = graph.insert(classifier, given)
    if half:
        answer = graph.add("Cast", [answer], f"{logits}_single", to=TensorProto.FLOAT)
    if settings.softmax:
        tiny = graph.constant(f"{logits}_tiny", np.array(1e-12, np.float32))
        answer = graph.add("Log", [graph.add("Clip", [answer, tiny], f"{logits}_floored")], f"{logits}_logs")
    rows = graph.constant(f"{logits}_rows", np.array([-1, len(pre.classes)], np.int64))
    return graph.add("LogSoftmax", [graph.add("Reshape", [answer, rows], logits)], f"{logits}_logp", axis=1)


def _defend(graph: Nodes, defence: _Defence, seen: _Seen, answer: str = "logits") -> str:
    """Append purifier, copy and weighing of what is ``seen``: ``purified`` and ``answer``; the name of the score s."""
    cleaned = graph.insert(defence.purifier, seen.image)
    purified = graph.add("Identity", [cleaned], "purified")
    log_q = _classify(graph, defence.repaired, purified, "answers", defence.settings)
    penalty = np.asarray(defence.settings.penalty, np.float32)
    change = graph.add("Sub", [seen.log_p, log_q], "change")
    lost = graph.add("Relu", [change], "lost")
    power = graph.constant("confidence", np.array(CONFIDENCE, np.float32))
    sure = graph.add("Exp", [graph.add("Mul", [seen.log_p, power], "raised")], "sure")
    costly = graph.add("Mul", [sure, graph.constant("penalty", penalty)], "costly")
    held = graph.add("Mul", [lost, costly], "held_against")
    penalised = graph.add("Sub", [graph.prefix + "answers", held], "penalised")
    one = graph.constant("one", np.array(1.0, np.float32))
    sure_of = graph.add("GatherElements", [sure, seen.label], "sure_of_label", axis=1)
    trust = graph.add("Gather", [graph.constant("trusted", trusted(penalty)), seen.label], "may_say")
    doubt = graph.add("Mul", [graph.add("Sub", [one, sure_of], "unsure"), trust], "doubt")
    least, most = (
        graph.constant(name, np.array(v, np.float32)) for name, v in (("least", -SAY), ("most", SAY))
    )
    says = graph.add("Mul", [doubt, graph.add("Clip", [change, least, most], "said")], "says")
    graph.add("Add", [penalised, says], answer)
    lost_of, log_p_of = (
        graph.add("GatherElements", [values, seen.label], f"{name}_of_label", axis=1)
        for name, values in (("lost", lost), ("log_p", seen.log_p))
    )
    surely = graph.add(
        "Mul", [log_p_of, graph.constant("surely", np.array(SURE, np.float32))], "raised_of_label"
    )
    return graph.add("Mul", [lost_of, graph.add("Exp", [surely], "surely_of_label")], "grounds")


def _defend_asked(graph: Nodes, defence: _Defence, seen: _Seen, asked: str) -> None:
    """Append the same for the ``asked`` images alone, in a branch, as few operators take an empty batch."""
    flat = graph.add("Reshape", [asked, graph.constant("column", np.array([-1], np.int64))], "asked_flat")
    most = graph.add("ReduceMax", [flat], "asked_most", keepdims=0)
    some = graph.add("Cast", [most], "asked_some", to=TensorProto.BOOL)

    branch = Nodes("asked/")
    found = branch.add("NonZero", [flat], "found")
    places = branch.add("Transpose", [found], "places", perm=[1, 0])
    rows = branch.add("Reshape", [found, branch.constant("list", np.array([-1], np.int64))], "rows")
    theirs = _Seen(
        *(branch.add("Gather", [name, rows], f"of_{what}", axis=0) for what, name in vars(seen).items())
    )
    grounds = _defend(branch, defence, theirs)
    answers = (f"{branch.prefix}logits", f"{branch.prefix}purified", branch.flag_score(grounds, "flag_score"))
    without = {"logits": seen.logits, "purified": seen.image, "flag_score": flat}
    nobody = Nodes("unasked/")
    for (output, left), answer in zip(without.items(), answers, strict=True):
        branch.add("ScatterND", [left, places, answer], f"all_{output}")
        nobody.add("Identity", [left], f"all_{output}")
    bodies = {
        f"{kind}_branch": part.body([f"all_{o}" for o in without])
        for kind, part in (("then", branch), ("else", nobody))
    }
    graph.nodes.append(helper.make_node("If", [some], [*without], name="detrigger/asked_or_not", **bodies))
