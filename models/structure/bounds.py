"""Bounds of values by interval arithmetic: one interval a value, from the range of the pixels."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx

from detrigger.models.structure.graph import Graph

Interval = tuple[float, float]
ANYTHING: Interval = (-math.inf, math.inf)
_SAME = {
    "Identity", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Expand", "Tile",
    "Gather", "GatherElements", "GatherND", "DepthToSpace", "SpaceToDepth", "ReduceMean", "ReduceMax", "ReduceMin",
    "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "TopK", "Upsample",
}  # fmt: skip
_TRUTH = {
    "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Xor", "IsNaN", "IsInf",
    "HardSigmoid", "Sigmoid", "Softmax", "Hardmax",
}  # fmt: skip


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


_RISING: dict[str, Callable[[float], float]] = {
    "Relu": lambda x: max(x, 0.0),
    "Exp": _exp,
    "Softplus": lambda x: x if x > 30 else math.log1p(_exp(x)),
    "Floor": lambda x: math.floor(x) if math.isfinite(x) else x,
    "Ceil": lambda x: math.ceil(x) if math.isfinite(x) else x,
    "Round": lambda x: float(round(x)) if math.isfinite(x) else x,
    "Tanh": math.tanh,
    "Erf": math.erf,
    "Sign": lambda x: float((x > 0) - (x < 0)),
    "Softsign": lambda x: x / (1 + abs(x)) if math.isfinite(x) else math.copysign(1.0, x),
    "Sqrt": lambda x: math.sqrt(max(x, 0.0)),
    "Elu": lambda x: x if x > 0 else _exp(x) - 1,
    "LeakyRelu": lambda x: x if x > 0 else 0.01 * x,
}


class Bounds:
    """Intervals that the graph's values cannot leave for any image in range; ``ANYTHING`` where none is known."""

    def __init__(self, graph: Graph, low: float, high: float) -> None:
        self.graph = graph
        self.known: dict[str, Interval] = {graph.image: (low, high)}
        for node in graph.nodes:
            try:
                found = self._of(node)
            except (ValueError, OverflowError, ZeroDivisionError, IndexError):
                found = ANYTHING
            if any(math.isnan(x) for x in found):
                found = ANYTHING
            for out in node.output:
                self.known[out] = found

    def of(self, name: str) -> Interval:
        """Bounds of a value; of a constant its smallest and largest element."""
        if name in self.known:
            return self.known[name]
        value = self.graph.constant(name)
        if value is None or value.size == 0 or value.dtype.kind not in "fiub":
            return ANYTHING
        return float(value.min()), float(value.max())

    def settled(self, name: str) -> bool:
        """Whether the value is the same for every image."""
        low, high = self.of(name)
        return low == high

    def _of(self, node: onnx.NodeProto) -> Interval:
        op = node.op_type
        given = [self.of(x) for x in node.input if x]
        if op in _SAME or (op == "Cast" and given[0] != ANYTHING):
            return given[0]
        if op in ("Concat", "Max", "Min", "Where"):
            parts = given[1:] if op == "Where" else given
            lows, highs = [p[0] for p in parts], [p[1] for p in parts]
            if op == "Max":
                return max(lows), max(highs)
            if op == "Min":
                return min(lows), min(highs)
            return min(lows), max(highs)
        if op in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
            return _compared(op, *given)
        if op in ("IsNaN", "IsInf"):
            return (0.0, 0.0) if all(map(math.isfinite, given[0])) else (0.0, 1.0)
        if op in _TRUTH:
            return 0.0, 1.0
        if op in _RISING:
            return _RISING[op](given[0][0]), _RISING[op](given[0][1])
        return self._arithmetic(node, given)

    def _arithmetic(self, node: onnx.NodeProto, given: list[Interval]) -> Interval:
        op = node.op_type
        (a, b), (c, d) = given[0], given[1] if len(given) > 1 else (0.0, 0.0)
        if op == "Add":
            return a + c, b + d
        if op == "Sub":
            return a - d, b - c
        if op == "Neg":
            return -b, -a
        if op == "Abs":
            return (0.0 if a <= 0 <= b else min(abs(a), abs(b))), max(abs(a), abs(b))
        if op in ("Mul", "Div"):
            if op == "Div" and c <= 0 <= d:
                return ANYTHING
            if op == "Mul" and node.input[0] == node.input[1]:
                c, d = a, b
                square = (a * a, b * b)
                return (0.0 if a <= 0 <= b else min(square)), max(square)
            corners = [_times(x, y if op == "Mul" else 1 / y) for x in (a, b) for y in (c, d)]
            return min(corners), max(corners)
        if op == "Clip":
            return max(a, c) if len(given) > 1 else a, min(b, given[2][1]) if len(given) > 2 else b
        if op == "Pow" and c == d and a >= 0:
            ends = (a**c, b**c)
            return min(ends), max(ends)
        if op == "Pow" and c == d == 2:
            return 0.0, max(a * a, b * b)
        return ANYTHING


def _times(x: float, y: float) -> float:
    return 0.0 if x == 0 or y == 0 else x * y


def _compared(op: str, first: Interval, second: Interval) -> Interval:
    if op.startswith("Less"):
        first, second = second, first
    over = first[0] >= second[1] if op.endswith("OrEqual") else first[0] > second[1]
    under = first[1] < second[0] if op.endswith("OrEqual") else first[1] <= second[0]
    return (1.0, 1.0) if over else (0.0, 0.0) if under else (0.0, 1.0)
