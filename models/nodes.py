"""Nodes of an ONNX graph under construction, and names kept apart: what ``protected.py`` composes with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Nodes:
    """Nodes and constants under construction; values are known by name, which ``prefix`` keeps apart."""

    prefix: str = ""
    nodes: list[NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(value, self.prefix + name))
        return self.prefix + name

    def add(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        output = self.prefix + name
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"detrigger/{output}", **attributes))
        return output

    def insert(self, model: onnx.ModelProto, given: str) -> str:
        """Append the nodes of a model with one input, which is ``given``; the name of its output."""
        weights = {t.name for t in model.graph.initializer}
        entry = next(i.name for i in model.graph.input if i.name not in weights)
        self.nodes.append(helper.make_node("Identity", [given], [entry], name=f"detrigger/{entry}"))
        self.nodes.extend(model.graph.node)
        self.constants.extend(model.graph.initializer)
        answer: str = model.graph.output[0].name
        return answer

    def flag_score(self, lost: str, name: str) -> str:
        """Append s / (1 + s), (N,), of what is ``lost`` (N, 1)."""
        more = self.add("Add", [lost, self.constant("unit", np.array(1.0, np.float32))], "one_more")
        flat = self.constant("flat", np.array([-1], np.int64))
        return self.add("Reshape", [self.add("Div", [lost, more], "ratio"), flat], name)

    def body(self, outputs: list[str]) -> GraphProto:
        """All of it as the body of a branch, with these outputs, named without the prefix, of floats."""
        infos = [
            helper.make_tensor_value_info(self.prefix + name, TensorProto.FLOAT, None) for name in outputs
        ]
        return helper.make_graph(self.nodes, self.prefix + "body", [], infos, self.constants)


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
