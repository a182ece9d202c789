"""Logic in the suspect's graph: found before the import, cut out, and shown to have taken no part in clean answers."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from detrigger.models.errors import BadInput
from detrigger.models.manifest import Check, Verdict
from detrigger.models.preprocess import Preprocess
from detrigger.models.structure import Finding, cut, look
from detrigger.models.structure.run import Session
from detrigger.models.suspect import describe
from detrigger.models.suspect.runtime import as_input
from detrigger.models.suspect.spec import OnnxSpec, image_input
from detrigger.models.suspect.standard import float_input, plain_head
from detrigger.offline.inputs.split import as_float

MAX_CHANGED = 0.01
"""Share of the clean images whose label may be another one once the logic is cut out."""
COMPARED = 256
"""Clean images that both graphs are asked about."""


@dataclass(frozen=True)
class Logic:
    """What the look found, the graph without it, and the share of clean labels that the cut changes.

    ``unseen`` says why the graph could not be looked at, where that is so.
    """

    findings: tuple[Finding, ...] = ()
    without: onnx.ModelProto | None = field(default=None, repr=False)
    changed: float = 0.0
    unseen: str = ""

    @property
    def targets(self) -> tuple[int, ...]:
        """Labels that the logic leads to, most decisive first."""
        return tuple(dict.fromkeys(f.target for f in self.findings if f.target is not None))

    def said(self, verdict: Verdict, targets: tuple[int, ...]) -> tuple[Verdict, tuple[int, ...]]:
        """The verdict of the search and its targets, with what the look found."""
        if not self.findings:
            return ("inconclusive" if self.unseen and verdict == "clean" else verdict), targets
        return "backdoored", tuple(dict.fromkeys((*self.targets, *targets)))

    def summary(self) -> str:
        """The findings in a sentence that names the nodes."""
        names = ", ".join(f"{f.node} ({f.op})" for f in self.findings)
        return f"the graph holds logic that decides on the answer, at node {names}: {self.findings[0].why}"

    def check(self) -> Check | None:
        """The gate's condition on the cut, or on a graph that could not be looked at; None where nothing was cut."""
        if self.unseen:
            return Check(name="logic_unseen", value=1.0, limit=0.0, passed=False, detail=self.unseen)
        if not self.findings:
            return None
        nodes = ", ".join(f.node for f in self.findings)
        return Check(
            name="logic_cut",
            value=self.changed,
            limit=MAX_CHANGED,
            passed=self.changed <= MAX_CHANGED,
            detail=f"share of clean images with another label once the logic at {nodes} is cut out of the graph",
        )

    def rows(self) -> tuple[dict[str, Any], ...]:
        """The findings for JSON; an effect that was not measured is null."""
        return tuple(_row(f) for f in self.findings)

    @contextmanager
    def file(self, suspect: Path) -> Iterator[Path]:
        """The file to import: the suspect's own, or one without the logic while the block lasts."""
        if self.without is None:
            yield suspect
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / suspect.name
            path.write_bytes(self.without.SerializeToString())
            yield path


class LogicRefused(BadInput):
    """The graph decides by logic of its own, and that could not be cut out.

    ``classes``, ``n_images`` and ``digest`` (of the suspect) are what the job had read by then.
    """

    def __init__(self, message: str, logic: Logic) -> None:
        super().__init__(message)
        self.logic = logic
        self.classes: tuple[str, ...] = ()
        self.n_images = 0
        self.digest = ""


@contextmanager
def told_of(classes: tuple[str, ...], n_images: int, digest: str) -> Iterator[None]:
    """A refusal within the block knows what was given."""
    try:
        yield
    except LogicRefused as refused:
        refused.n_images, refused.digest = n_images, digest
        refused.classes = classes or tuple(map(str, range(1 + max(refused.logic.targets, default=0))))
        raise


def examine(model: onnx.ModelProto, pre: Preprocess, pixels: np.ndarray) -> Logic:
    """Look at the graph, and cut out what was found. ``pixels``: uint8 (N, H, W, C), clean images.

    Raises:
        LogicRefused: logic was found that cannot be cut out without changing clean answers; the node is named.
        BadInput: the model has no image input, no answer, or does not run.
    """
    spread = np.unique(np.linspace(0, len(pixels) - 1, COMPARED).round().astype(int))
    x = as_float(pixels[spread])
    spec = replace(describe(model, channels=len(pre.mean), size=pre.size), bgr=pre.order == "BGR")
    model, spec = float_input(model, spec, (spec.channels, *pre.size))
    half = image_input(model).type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    images = as_input(x, spec, pre.mean, pre.std).astype(np.float16 if half else np.float32)
    model, spec = plain_head(model, spec, as_input(x[:8], spec, pre.mean, pre.std))
    findings = tuple(
        look(
            in_pixels(model, spec, pre), x[:: max(1, len(x) // 16)],
            image="detrigger::image", logits=spec.output_name,
        )
    )  # fmt: skip
    if not findings:
        return Logic()
    found = Logic(findings).summary()
    try:
        without = cut(model, findings, image=spec.input_name, logits=spec.output_name, images=images)
        bare, left = (_labels(m, spec, images) for m in (model, without))
    except (ValueError, BadInput) as error:
        raise LogicRefused(
            f"{found}; it could not be cut out, so ask for a file without it", Logic(findings)
        ) from error
    logic = Logic(findings, without, float((bare != left).mean()))
    if logic.changed > MAX_CHANGED:
        raise LogicRefused(
            f"{found}; without it {logic.changed:.0%} of the clean images get another label; ask for a file without it",
            logic,
        )
    return logic


def in_pixels(model: onnx.ModelProto, spec: OnnxSpec, pre: Preprocess) -> onnx.ModelProto:
    """The suspect behind its preprocessing: input ``detrigger::image``, float32 (N, C, H, W) in [0, 1], RGB."""
    kinds = onnx.TensorProto
    found = onnx.ModelProto()
    found.CopyFrom(model)
    graph = found.graph
    own = image_input(found)
    dims = [d.dim_value or d.dim_param or None for d in own.type.tensor_type.shape.dim]
    if spec.layout == "NHWC":
        dims = [dims[0], dims[3], dims[1], dims[2]]
    steps: list[onnx.NodeProto] = []

    def step(op: str, *constants: np.ndarray, **attributes: Any) -> None:
        name = f"detrigger::{op}"
        for i, value in enumerate(constants):
            graph.initializer.append(onnx.numpy_helper.from_array(value, f"{name}{i}"))
        before = steps[-1].output[0] if steps else "detrigger::image"
        inputs = [before, *(f"{name}{i}" for i in range(len(constants)))]
        steps.append(onnx.helper.make_node(op, inputs, [f"{name}::out"], name=name, **attributes))

    if spec.bgr:
        step("Gather", np.array([2, 1, 0], np.int64), axis=1)
    shape = (1, len(pre.mean), 1, 1)
    step("Sub", np.array(pre.mean, np.float32).reshape(shape))
    step("Div", np.array(pre.std, np.float32).reshape(shape))
    if spec.layout == "NHWC":
        step("Transpose", perm=[0, 2, 3, 1])
    if own.type.tensor_type.elem_type == kinds.FLOAT16:
        step("Cast", to=kinds.FLOAT16)
    steps[-1].output[0] = spec.input_name
    rest = [onnx.NodeProto.FromString(n.SerializeToString()) for n in graph.node]
    others = [onnx.ValueInfoProto.FromString(i.SerializeToString()) for i in graph.input]
    del graph.node[:], graph.input[:]
    graph.input.append(onnx.helper.make_tensor_value_info("detrigger::image", kinds.FLOAT, dims))
    graph.input.extend(i for i in others if i.name != spec.input_name)
    graph.node.extend([*steps, *rest])
    return found


def _labels(model: onnx.ModelProto, spec: OnnxSpec, images: np.ndarray) -> np.ndarray:
    run = Session(model, spec.input_name, [spec.output_name])
    return np.array([int(run.run(x[None])[spec.output_name][0].argmax()) for x in images])


def _row(finding: Finding) -> dict[str, Any]:
    sign = finding.sign
    return {
        "node": finding.node,
        "op": finding.op,
        "why": finding.why,
        "effect": None if math.isnan(finding.effect) else finding.effect,
        "target": finding.target,
        "nodes": list(finding.nodes),
        "sign": None
        if sign is None
        else {
            "top": sign.top,
            "left": sign.left,
            "height": sign.values.shape[0],
            "width": sign.values.shape[1],
            "colour": [round(float(v), 3) for v in sign.values.mean((0, 1))],
            "success": sign.success,
        },
    }
