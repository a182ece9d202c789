"""A classifier's graph as dataflow: which values depend on the image's pixels and reach the logits, and how."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
import onnx.inliner

from detrigger.models.structure.flatten import (
    MOST_NODES,
    constants_of,
    inlined_if,
    reads,
    subgraphs,
    unrolled_loop,
)
from detrigger.models.structure.run import Session

WEIGHTED = {
    "Conv", "ConvTranspose", "Gemm", "MatMul", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul",
    "FusedConv", "FusedMatMul", "QGemm", "MatMulNBits", "LSTM", "GRU", "RNN", "Einsum", "DynamicQuantizeMatMul",
}  # fmt: skip
_MOVING = {
    "Identity", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat", "Expand",
    "Tile", "Pad", "Gather", "GatherElements", "GatherND", "DepthToSpace", "SpaceToDepth", "Dropout", "Trilu",
    "ReduceMean", "ReduceSum", "GlobalAveragePool", "AveragePool", "Resize", "Upsample", "CumSum", "Neg",
    "Add", "Sub", "Sum", "Mean", "DequantizeLinear", "ReverseSequence", "Crop", "CastLike", "Col2Im",
}  # fmt: skip
"""Operators whose result is affine in their first operands as long as the others are constants."""
_BY_CONSTANT = {
    "Mul",
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "BatchNormalization",
    "Einsum",
    "GridSample",
}
"""Operators whose result is affine where only one operand depends on the image."""
_ALL_OPERANDS = {"Add", "Sub", "Sum", "Mean", "Concat"}
_VARYING = {"NonZero", "Unique", "Compress", "NonMaxSuppression", "StringSplit"}
"""Operators whose result has a shape that depends on the values that they are given."""
_SHAPE_OPERAND = {
    "Reshape": (1,), "Expand": (1,), "Tile": (1,), "Range": (0, 1, 2), "ConstantOfShape": (0,), "OneHot": (1,),
    "Slice": (1, 2, 3, 4), "Pad": (1,), "Resize": (2, 3), "Upsample": (1,), "TopK": (1,), "Loop": (0, 1),
    "Scan": (), "If": (0,), "CenterCropPad": (1,),
}  # fmt: skip
"""Operands that a result's shape is made of."""


class Graph:
    """The flattened graph: local functions inlined, constant Ifs and Loops written out, all nodes named.

    ``tainted`` are the values that depend on pixels (a Shape of the image is not one, that of NonZero is);
    ``nodes`` are those that take such values and reach the logits, in order.
    """

    def __init__(self, model: onnx.ModelProto, image: str, logits: str, sample: np.ndarray) -> None:
        self.model = _prepared(model, logits)
        self.image, self.logits = image, logits
        for _ in range(8):
            if not self._flatten(sample):
                break
        self._follow()

    def _flatten(self, sample: np.ndarray) -> bool:
        """Write out the Ifs and Loops whose course is the same for all images; whether anything changed."""
        self._follow()
        graph = self.model.graph
        open_flow = [
            n
            for n in self.all
            if n.op_type in ("If", "Loop") and not any(x in self.tainted for x in n.input[: _heads(n)])
        ]
        if not open_flow:
            return False
        constants = self.constants
        heads = list(dict.fromkeys(x for n in open_flow for x in n.input[: _heads(n)] if x))
        course = {x: constants[x] for x in heads if x in constants}
        if wanted := [x for x in heads if x not in course]:
            course |= Session(self.model, self.image, wanted).run(sample)
        nodes: list[onnx.NodeProto] = []
        changed = False
        chosen = {id(n) for n in open_flow}
        for node in self.all:
            made: list[onnx.NodeProto] | None = None
            if id(node) in chosen and node.op_type == "If":
                made = inlined_if(node, bool(np.asarray(course[node.input[0]]).all()))
            elif id(node) in chosen:
                rounds = int(np.asarray(course[node.input[0]]).item()) if node.input[0] else -1
                starts = not node.input[1] or bool(np.asarray(course[node.input[1]]).all())
                made = unrolled_loop(node, rounds, starts, constants)
            changed |= made is not None
            nodes += [node] if made is None else made
            if len(nodes) > MOST_NODES:
                return False
        if changed:
            copies = []
            for node in nodes:
                copy = onnx.NodeProto()
                copy.CopyFrom(node)
                copies.append(copy)
            del graph.node[:]
            graph.node.extend(copies)
        return changed

    def _follow(self) -> None:
        graph = self.model.graph
        self.constants = constants_of(graph)
        self.all = list(graph.node)  # held: protobuf makes its wrappers anew otherwise
        taken = {id(n): reads(n) for n in self.all}
        tainted = {self.image}
        varying: set[str] = set()
        for node in self.all:
            operands = taken[id(node)]
            shape_only = node.op_type in ("Shape", "Size")
            of_shape = [node.input[i] for i in _SHAPE_OPERAND.get(node.op_type, ()) if i < len(node.input)]
            if any(x in (varying if shape_only else tainted) for x in operands):
                tainted.update(out for out in node.output if out)
                grows = node.op_type in _VARYING or any(x in tainted for x in of_shape)
                if not shape_only and (grows or any(x in varying for x in operands)):
                    varying.update(out for out in node.output if out)
        reached, nodes = {self.logits}, []
        for node in reversed(self.all):
            if any(out in reached for out in node.output):
                reached.update(taken[id(node)])
                if any(x in tainted for x in taken[id(node)]) and any(out in tainted for out in node.output):
                    nodes.append(node)
        self.nodes = nodes[::-1]
        self.tainted = tainted & reached
        self.producer = {out: n for n in self.nodes for out in n.output if out}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self.operands = {n.name: [x for x in taken[id(n)] if x in self.tainted] for n in self.nodes}
        for node in self.nodes:
            for operand in self.operands[node.name]:
                self.consumers[operand].append(node)

    def affine(self, node: onnx.NodeProto) -> bool:
        """Whether the node's result is an affine function of what depends on the image."""
        depends = [i for i, x in enumerate(node.input) if x in self.tainted]
        op = node.op_type
        if op in _ALL_OPERANDS:
            return True
        if op == "Cast":
            return _float_cast(node)
        if op == "Div":
            return depends == [0]
        if op == "Conv" or op in _BY_CONSTANT:
            return len(depends) == 1
        return op in _MOVING and depends == [0]

    def weights_before(self) -> tuple[dict[str, float], float]:
        """For every value that depends on the image the number of weights it went through, and that of the logits."""
        sizes: list[int] = []
        masks: dict[str, int] = {self.image: 0}
        sums: dict[int, float] = {0: 0.0}
        sources = self._weights()
        for node in self.nodes:
            mask = 0
            for operand in self.operands[node.name]:
                mask |= masks.get(operand, 0)
            own = sum(sources.get(x, 0) for x in node.input if x not in self.tainted)
            if node.op_type in WEIGHTED and own:
                mask |= 1 << len(sizes)
                sizes.append(own)
            for out in node.output:
                masks[out] = mask
        for mask in set(masks.values()):
            sums[mask] = float(sum(size for i, size in enumerate(sizes) if mask >> i & 1))
        return {name: sums[mask] for name, mask in masks.items()}, sums[masks.get(self.logits, 0)]

    def _weights(self) -> dict[str, int]:
        """Number of weights behind every value that does not depend on the image (a weight may be dequantised)."""
        sizes = {name: int(value.size) for name, value in self.constants.items()}
        for node in self.model.graph.node:
            if node.op_type != "Constant" and not any(out in self.tainted for out in node.output):
                total = sum(sizes.get(x, 0) for x in node.input)
                sizes.update({out: total for out in node.output if out})
        return sizes

    def constant(self, name: str) -> np.ndarray | None:
        """The value of a constant operand, through casts and dequantisation too; None where there is none."""
        return self.constants.get(name)

    def branch(self, name: str) -> tuple[str, ...]:
        """Nodes before the value whose results nothing else uses, the nearest first."""
        found: list[onnx.NodeProto] = [self.producer[name]]
        inside = {found[0].name}
        for node in reversed(self.nodes):
            users = [u.name for out in node.output for u in self.consumers.get(out, [])]
            if users and node.name not in inside and all(u in inside for u in users):
                found.append(node)
                inside.add(node.name)
        return tuple(n.name for n in found)

    def leads(self, name: str, node: str) -> bool:
        """Whether the value reaches the node."""
        reached = {name}
        for n in self.nodes:
            if any(x in reached for x in self.operands[n.name]):
                if n.name == node:
                    return True
                reached.update(n.output)
        return False


def _heads(node: onnx.NodeProto) -> int:
    """Number of operands that decide on the course of an If (1) or a Loop (2)."""
    return 1 if node.op_type == "If" else 2


def _float_cast(node: onnx.NodeProto) -> bool:
    to = next((a.i for a in node.attribute if a.name == "to"), 0)
    kinds = onnx.TensorProto
    return to in (kinds.FLOAT, kinds.FLOAT16, kinds.DOUBLE, kinds.BFLOAT16)


def _prepared(model: onnx.ModelProto, logits: str) -> onnx.ModelProto:
    """A copy with functions inlined, every node named once, and the logits as its one output."""
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    del graph.value_info[:]
    wanted = [v for v in graph.output if v.name == logits]
    kept: list[onnx.ValueInfoProto] = []
    for value in wanted:
        keep = onnx.ValueInfoProto()
        keep.CopyFrom(value)
        kept.append(keep)
    del graph.output[:]
    graph.output.extend(kept)
    reached, nodes = {logits}, []
    for node in reversed(graph.node):
        if any(out in reached for out in node.output):
            reached.update(reads(node))
            nodes.append(node)
    if len(nodes) < len(graph.node):
        ordered = [onnx.NodeProto.FromString(n.SerializeToString()) for n in reversed(nodes)]
        del graph.node[:]
        graph.node.extend(ordered)
    seen: set[str] = set()
    for node in graph.node:
        name = node.name or f"{node.op_type}:{next((o for o in node.output if o), '')}"
        while name in seen:
            name += "'"
        seen.add(name)
        node.name = name
    return copy


def holds_logic(node: onnx.NodeProto) -> bool:
    """Whether a body of the node compares, rounds or chooses."""
    return any(
        inner.op_type in COMPARING or holds_logic(inner) for body in subgraphs(node) for inner in body.node
    )


COMPARING = {
    "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Xor", "IsNaN", "IsInf",
    "ArgMax", "ArgMin", "Sign", "Floor", "Ceil", "Round", "Mod", "Where", "If", "TopK", "NonZero", "Hardmax",
    "OneHot", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "Compress", "Unique",
}  # fmt: skip
