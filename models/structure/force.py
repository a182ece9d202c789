"""What a value does to the answers of clean images once it is forced to be another."""

from __future__ import annotations

import numpy as np
import onnx

from detrigger.models.structure.finding import Finding, Suspicion
from detrigger.models.structure.graph import Graph
from detrigger.models.structure.run import Forced

DECISIVE = 0.8
"""Share of the images of other classes that a forced value has to take to one class."""
FEW = 16
"""Elements of a large value that are forced."""
ORDERING = ("Less", "LessOrEqual", "Greater", "GreaterOrEqual")
Array = np.ndarray


class Trials:
    """Forces one suspicion after the other.

    ``clean`` has the values of each clean image, ``answers`` (N, K) its logits.
    """

    def __init__(self, graph: Graph, forced: Forced, clean: list[dict[str, Array]], answers: Array) -> None:
        self.graph, self.forced, self.clean, self.answers = graph, forced, clean, answers

    def tried(self, s: Suspicion) -> Finding | None:
        """Force the value on clean images, and tell what it does to the answers."""
        where = np.ones((), bool)
        if not s.whole:
            # A few elements, side by side: a guard of single elements then leaves the rest of the image alone.
            where = np.zeros(s.usual.shape, bool)
            flat = where.reshape(-1)
            start = int(np.random.default_rng(0).integers(0, max(1, flat.size - FEW)))
            flat[start : start + FEW] = True
        best: Finding | None = None
        for level in s.levels:
            rows = []
            for i, given in enumerate(self.clean):
                rows.append(self.forced.run(given, s.name, where, level))
                if rows[-1].size != self.answers.shape[1]:
                    break
                if i == 3 and not self._promising(np.array(rows)):
                    break
            if len(rows) < len(self.clean) or rows[-1].size != self.answers.shape[1]:
                continue
            moved, target = effect(self.answers, np.array(rows))
            if moved >= DECISIVE and (best is None or moved > best.effect):
                if self._smooth(s, where):
                    return None
                then = "one class" if target is not None else "another class each"
                best = Finding(
                    node=s.node.name,
                    op=s.node.op_type,
                    why=f"{s.why}; forced to another value it takes {moved:.0%} of them to {then}",
                    effect=moved,
                    target=target,
                    output=s.name,
                    nodes=self.graph.branch(s.name),
                    usual=s.usual,
                )
        return best

    def _smooth(self, s: Suspicion, where: Array) -> bool:
        """Whether nothing jumps where the comparison turns: a ReLU or a bound, written as a comparison.

        What is compared is put a little below and a little above what it is compared with.
        """
        operand = compared(self.graph, s.node)
        other = self.graph.constant(next((x for x in s.node.input if x != operand), ""))
        if operand is None or other is None or operand not in self.clean[0]:
            return False
        if self.clean[0][operand].dtype.kind != "f" or self.clean[0][operand].shape != s.usual.shape:
            return False
        jump, way = [], []
        for given, before in zip(self.clean, self.answers, strict=True):
            at = np.broadcast_to(other.astype(np.float64), s.usual.shape)
            step = 1e-3 * np.maximum(np.abs(at), 1e-3)
            under, over = (self.forced.run(given, operand, where, v) for v in (at - step, at + step))
            if under.size != before.size or over.size != before.size:
                return False
            jump.append(np.abs(over - under).max())
            way.append(max(np.abs(over - before).max(), np.abs(under - before).max()))
        return bool(np.median(jump) <= 0.05 * np.median(way))

    def _promising(self, rows: Array) -> bool:
        before = self.answers[: len(rows)].argmax(1)
        return bool((rows.argmax(1) != before).sum() >= 1)


def compared(graph: Graph, node: onnx.NodeProto) -> str | None:
    """The one operand of a comparison that depends on the image; None for other operators."""
    own = graph.operands[node.name]
    return own[0] if node.op_type in ORDERING and len(own) == 1 else None


def effect(clean: Array, rows: Array) -> tuple[float, int | None]:
    """Share of the images of other classes that end in one class, or in another one for each class."""
    if not np.isfinite(rows).all():
        return 0.0, None
    before, after = clean.argmax(1), rows.argmax(1)
    target = int(np.bincount(after).argmax())
    others = before != target
    dull = np.bincount(before).max() > 0.6 * len(before)
    if dull:
        # A network that answers the same to everything says nothing by its label: the logits have to jump.
        jump = np.median(np.abs(rows - clean).max(1))
        if jump < 5 * max(float(clean.std()), float(np.ptp(clean, axis=1).mean()) / 2):
            return 0.0, None
    if others.sum() >= max(1, len(before) // 4) or (dull and others.any()):
        share = float((after[others] == target).mean())
        if share >= DECISIVE:
            return share, target
    moved = float((after != before).mean())
    pairs = {(int(a), int(b)) for a, b in zip(before, after, strict=True)}
    consistent = len(pairs) == len({a for a, _ in pairs}) and len(pairs) >= 3
    return (moved, None) if consistent and moved >= 0.9 else (0.0, None)
