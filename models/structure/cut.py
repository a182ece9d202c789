"""Logic cut out of a graph: its decisions are held at what they are on clean images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from detrigger.models.structure.finding import Finding
from detrigger.models.structure.flatten import reads
from detrigger.models.structure.graph import Graph
from detrigger.models.structure.run import Session

MOST_STEPS = 40
"""Nodes that a cut moves along towards the logits."""


def cut(
    model: onnx.ModelProto, findings: Sequence[Finding], *, image: str, logits: str, images: np.ndarray
) -> onnx.ModelProto:
    """A copy of the model, flattened, in which the findings' decisions are constants; nothing else is changed.

    The cut is made as near to the logits as values are the same on all clean ``images`` (as the graph takes them), so
    that nothing of the logic is left. The copy has the logits as its one output. Whoever uses it has to compare its
    answers with the model's.

    Raises:
        ValueError: a finding has no usual value to hold its decision at (a Loop that was not measured).
    """
    graph = Graph(model, image, logits, images[:1])
    for finding in findings:
        if finding.usual is None:
            raise ValueError(f"node {finding.node} has no usual value")
        name, value = _moved(graph, finding.output, finding.usual, images)
        for node in graph.model.graph.node:
            for i, out in enumerate(node.output):
                if out == name:
                    node.output[i] = f"{name}::cut"
        tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
        graph.model.graph.initializer.append(tensor)
    settled = Graph(graph.model, image, logits, images[:1]).model  # an If on the decision is none any more
    _tidy(settled)
    return settled


def _moved(graph: Graph, name: str, usual: np.ndarray, images: np.ndarray) -> tuple[str, np.ndarray]:
    """The last value on the way to the logits that is as constant as the decision, and what it is."""
    way: list[str] = []
    current = name
    while len(way) < MOST_STEPS:
        users = graph.consumers.get(current, [])
        if len(users) != 1 or len(users[0].output) != 1 or users[0].op_type in ("If", "Loop", "Scan"):
            break
        current = users[0].output[0]
        way.append(current)
    if not way:
        return name, usual
    run = Session(graph.model, graph.image, way)
    rows = [run.run(x[None]) for x in images[:8]]
    found = name, usual
    for step in way:
        values = [row[step] for row in rows if step in row]
        if len(values) < len(rows) or step == graph.logits or values[0].dtype.kind not in "fiub":
            break
        if any(v.shape != values[0].shape or not np.allclose(v, values[0], 1e-4, 1e-6) for v in values):
            break
        found = step, values[0]
    return found


def _tidy(model: onnx.ModelProto) -> None:
    """Without the nodes and constants that nothing reads."""
    wanted = {v.name for v in model.graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(list(model.graph.node)):
        if any(out in wanted for out in node.output):
            wanted.update(reads(node))
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
    tensors = [
        onnx.TensorProto.FromString(t.SerializeToString())
        for t in model.graph.initializer
        if t.name in wanted
    ]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(reversed(kept))
    model.graph.initializer.extend(tensors)
