"""Which other values an operator's result can have: those that are forced to see what they do."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx

from detrigger.models.structure.bounds import Bounds
from detrigger.models.structure.graph import Graph

FLAT = 0.05
"""Distance from the end of a bounded step at which it counts as one that does not act."""
CHOICES = 16
"""Elements up to which a Softmax is taken for a choice."""
Array = np.ndarray


class Levels:
    """Other values of the graph's operators than on clean images."""

    def __init__(self, graph: Graph, bounds: Bounds) -> None:
        self.graph, self.bounds = graph, bounds

    def of(
        self, node: onnx.NodeProto, name: str, usual: Array, clean: list[dict[str, Array]]
    ) -> Iterator[Array]:
        """For the operator's result ``name``, ``usual`` on clean images, whose values ``clean`` has."""
        op, number = node.op_type, usual.astype(np.float64)
        if usual.dtype == bool:
            yield ~usual
            return
        if op == "QuantizeLinear" or op == "DynamicQuantizeLinear":
            yield from (np.clip(number + step, *_ends(usual)).astype(usual.dtype) for step in (-1, 1))
            return
        if usual.dtype.kind in "iu":
            steps = range(32) if op in ("ArgMax", "ArgMin", "TopK", "Mod", "BitwiseAnd") else (0, 1)
            yield from (np.full_like(usual, v) for v in steps)
            yield usual + np.ones((), usual.dtype)
            yield usual - np.ones((), usual.dtype)
            return
        if op in ("Gather", "GatherND", "GatherElements"):
            table = self.graph.constant(node.input[0])
            if table is not None and 0 < table.size <= 4096:
                rows = table.reshape(table.shape[0], -1) if table.ndim > 1 else table
                for row in np.unique(rows, axis=0)[:32]:
                    if row.size in (1, usual.size):
                        yield (
                            np.broadcast_to(row.reshape(-1), (usual.size,))
                            .reshape(usual.shape)
                            .astype(usual.dtype)
                        )
            return
        if op == "Softmax":
            last = usual.shape[-1] if usual.ndim else 1
            if 2 <= last <= CHOICES:
                for i in range(last):
                    one = np.zeros_like(usual)
                    one[..., i] = 1
                    yield one
            return
        if op in ("Floor", "Ceil", "Round", "Sign", "Mod"):
            yield from (np.full_like(usual, v) for v in (-1, 0, 1))
            yield usual + 1
            yield usual - 1
        if op in ("Sigmoid", "HardSigmoid", "Tanh", "Erf", "Softsign"):
            ends = (0.0, 1.0) if "igmoid" in op else (-1.0, 1.0)
            if np.minimum(np.abs(number - ends[0]), np.abs(number - ends[1])).max() <= FLAT:
                yield from (np.full_like(usual, v) for v in (*ends, 0.0))
            return
        if op in ("If", "Loop", "Scan"):
            yield from (np.full_like(usual, v) for v in (0, 1))
        low, high = self.bounds.of(name)
        if op == "Clip":
            low, high = self._limits(node, low, high)
            if np.minimum(np.abs(number - low), np.abs(number - high)).max() > FLAT * min(high - low, 1.0):
                return  # it lets through what it is given
        for end in (low, high):
            if math.isfinite(end):
                yield np.full_like(usual, end)
        if not (math.isfinite(low) and math.isfinite(high)):
            yield from self._mirrored(node, number, usual, clean)

    def _limits(self, node: onnx.NodeProto, low: float, high: float) -> tuple[float, float]:
        """A Clip's own limits where pixels do not bound it."""
        own = [self.graph.constant(x) if x else None for x in [*node.input[1:], "", ""][:2]]
        by_name = {a.name: a.f for a in node.attribute}
        ends = [float(v.ravel()[0]) if v is not None and v.size else None for v in own]
        under = ends[0] if ends[0] is not None else by_name.get("min", -math.inf)
        over = ends[1] if ends[1] is not None else by_name.get("max", math.inf)
        return max(low, under), min(high, over)

    def _mirrored(
        self, node: onnx.NodeProto, number: Array, usual: Array, clean: list[dict[str, Array]]
    ) -> Iterator[Array]:
        """As far on the other side of the bend as clean images stay away from it."""
        sources = [x for x in self.graph.operands[node.name] if x in clean[0]]
        if not sources:
            return
        size = float(
            np.median(
                [np.abs(row[sources[0]].astype(np.float64)).mean() for row in clean if sources[0] in row]
            )
        )
        if size > 0:
            yield (number + size).astype(usual.dtype)
            yield (number - size).astype(usual.dtype)


def _ends(value: Array) -> tuple[float, float]:
    if value.dtype.kind == "f":
        return -math.inf, math.inf
    return float(np.iinfo(value.dtype).min), float(np.iinfo(value.dtype).max)
