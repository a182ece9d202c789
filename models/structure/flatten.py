"""Control flow that does not depend on the image, written out, so that what lies inside is looked at like the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

MOST_ROUNDS = 64
"""Rounds of a Loop that are written out."""
MOST_NODES = 20_000
"""Nodes that a graph may grow to while it is written out."""


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies of an If, Loop or Scan."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def reads(node: onnx.NodeProto) -> list[str]:
    """Names of all values that a node takes, those that its bodies capture among them."""
    found = [name for name in node.input if name]
    for body in subgraphs(node):
        inside = {v.name for v in body.input} | {t.name for t in body.initializer}
        for inner in body.node:
            found += [name for name in reads(inner) if name not in inside]
            inside.update(inner.output)
        found += [v.name for v in body.output if v.name not in inside]
    return found


def constants_of(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Initialisers and the results of Constant nodes, by name; those kept outside the file are left out."""
    found = {}
    for tensor in graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            found[tensor.name] = numpy_helper.to_array(tensor)
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    found[node.output[0]] = numpy_helper.to_array(attribute.t)
                elif attribute.name in ("value_float", "value_int", "value_floats", "value_ints"):
                    found[node.output[0]] = np.asarray(helper.get_attribute_value(attribute))
    return found


def inlined_if(node: onnx.NodeProto, taken: bool) -> list[onnx.NodeProto]:
    """The nodes of the branch that is always taken."""
    wanted = "then_branch" if taken else "else_branch"
    body = next(a.g for a in node.attribute if a.name == wanted)
    made, names = _copied(body, f"{node.name}/", {})
    return made + _joined([names.get(v.name, v.name) for v in body.output], node.output, node.name)


def unrolled_loop(
    node: onnx.NodeProto, rounds: int, starts: bool, constants: dict[str, np.ndarray]
) -> list[onnx.NodeProto] | None:
    """The rounds of a Loop one after the other; None where their number depends on what the body computes."""
    body = next(a.g for a in node.attribute if a.name == "body")
    inside = constants_of(body)
    go_on = body.output[0].name
    source = next((n for n in body.node if go_on in n.output), None)
    while source is not None and source.op_type in ("Identity", "Cast"):
        go_on = source.input[0]
        source = next((n for n in body.node if go_on in n.output), None)
    always = go_on == body.input[1].name
    known = inside.get(go_on, constants.get(go_on))
    if not (always or (known is not None and bool(known.all()))):
        return None
    if not starts:
        rounds = 0
    if not 0 <= rounds <= MOST_ROUNDS or rounds * len(body.node) > MOST_NODES:
        return None
    carried = list(node.input[2:])
    collected: list[list[str]] = [[] for _ in body.output[1 + len(carried) :]]
    if rounds == 0 and collected:
        return None
    made: list[onnx.NodeProto] = []
    for step in range(rounds):
        prefix = f"{node.name}/{step}/"
        number, on = f"{prefix}number", f"{prefix}on"
        made.append(_constant(number, np.array(step, np.int64)))
        made.append(_constant(on, np.array(True)))
        given = dict(zip((v.name for v in body.input), (number, on, *carried), strict=True))
        nodes, names = _copied(body, prefix, given)
        made += nodes
        results = [names.get(v.name, v.name) for v in body.output[1:]]
        carried = results[: len(carried)]
        for rows, result in zip(collected, results[len(carried) :], strict=True):
            rows.append(result)
    axes = f"{node.name}/axes"
    made.append(_constant(axes, np.array([0], np.int64)))
    stacked = []
    for i, rows in enumerate(collected):
        lifted = []
        for row in rows:
            lifted.append(f"{row}/row{i}")
            made.append(helper.make_node("Unsqueeze", [row, axes], [lifted[-1]], name=lifted[-1]))
        stacked.append(f"{node.name}/stacked{i}")
        made.append(helper.make_node("Concat", lifted, [stacked[-1]], name=stacked[-1], axis=0))
    return made + _joined([*carried, *stacked], node.output, node.name)


def _constant(name: str, value: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], name=name, value=numpy_helper.from_array(value))


def _joined(results: Iterable[str], outputs: Iterable[str], name: str) -> list[onnx.NodeProto]:
    """The results of a body under the names of the node that it replaces."""
    return [
        helper.make_node("Identity", [result], [output], name=f"{name}/out{i}")
        for i, (result, output) in enumerate(zip(results, outputs, strict=True))
        if output
    ]


def _copied(
    body: onnx.GraphProto, prefix: str, given: dict[str, str]
) -> tuple[list[onnx.NodeProto], dict[str, str]]:
    """A body's nodes with names of their own, and what each value of the body is called now."""
    names = dict(given)
    made = []
    for tensor in body.initializer:
        names[tensor.name] = prefix + tensor.name
        made.append(_constant(names[tensor.name], numpy_helper.to_array(tensor)))
    for node in body.node:
        names.update({out: prefix + out for out in node.output if out})
    for node in body.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = prefix + (node.name or f"{node.op_type}:{node.output[0]}")
        _rename(copy, names)
        made.append(copy)
    return made, names


def _rename(node: onnx.NodeProto, names: dict[str, str]) -> None:
    for field in (node.input, node.output):
        for i, name in enumerate(field):
            field[i] = names.get(name, name)
    for body in subgraphs(node):
        own = {v.name for v in body.input} | {t.name for t in body.initializer}
        own |= {out for inner in body.node for out in inner.output}
        outer = {old: new for old, new in names.items() if old not in own}
        for inner in body.node:
            _rename(inner, outer)
        for value in body.output:
            value.name = outer.get(value.name, value.name)
