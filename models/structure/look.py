"""A look at the graph of a classifier before any search: logic that waits for a sign in the image.

A backdoor need not be in the weights. A few nodes that compare pixels and add 100 to one logit are one as well
(architectural backdoors; ShadowLogic), and no search by gradients finds them, as a comparison has none.

What gives such logic away is not its operators, which honest graphs hold too, but how it behaves:

1. Dormant. Somewhere the sign is decided on by an operator that is not an affine function (a comparison, a ReLU step, a
   product of Clips, a table), and on clean images its result is the same for all: the logic does not act on them, or
   accuracy would suffer. Values that vary from image to image are work, and are left alone.
2. Reachable. The result is not fixed by the range of the pixels (a guard against NaN, or against images of 0..255).
3. Decisive. Forced to another value that it can have, it takes nearly all clean images to one class, or each class to
   another one. A guard of single elements, or a dead neuron, moves little.

A value of one degree of freedom that reaches the late layers round most weights (the mean of a channel, a count of
matching bits) need not be dormant: what it has on other images is put into clean ones, with the same bar.

Limits. Logic that is trained or written into the weights of ordinary layers is not seen: that is what the search is
for. Nor is logic whose sign is on most of the clean images given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx

from detrigger.models.structure.bounds import Bounds
from detrigger.models.structure.finding import Finding, Suspicion
from detrigger.models.structure.flatten import reads
from detrigger.models.structure.force import Trials, compared
from detrigger.models.structure.graph import Graph, holds_logic
from detrigger.models.structure.levels import Levels
from detrigger.models.structure.run import Forced, Session
from detrigger.models.structure.sides import BYPASS, inside, one_degree, sides
from detrigger.models.structure.trigger import Finder

USUAL = 0.85
"""Share of the clean images on which a dormant value is the same."""
SMALL = 64
"""Elements for one image up to which a value is forced as a whole, not in a few places."""
MOST_FORCED = 48
IMAGES = 12
"""Clean images that are looked at."""

_INTEGER = ("ConvInteger", "MatMulInteger")
Array = np.ndarray


def look(
    model: onnx.ModelProto,
    images: Array,
    *,
    image: str,
    logits: str,
    pixel: tuple[float, float] = (0.0, 1.0),
) -> list[Finding]:
    """Find logic in a classifier's graph, the most decisive first.

    Args:
        model: the classifier, complete (weights inside).
        images: clean images as the graph takes them (N, ...), a dozen or more, of several classes.
        image, logits: names of the graph's input and of its output (N, K).
        pixel: the lowest and the highest value of a pixel as the graph takes it.

    Raises:
        BadInput: the graph does not load or run in ONNX Runtime.
    """
    graph = Graph(model, image, logits, images[:1])
    looking = _Look(graph, images[_spread(len(images))], *pixel)
    return [looking.with_sign(finding) for finding in looking.findings()]


def _spread(n: int) -> Array:
    """Places of a dozen images all over the set: sets are often sorted by class."""
    return np.unique(np.linspace(0, n - 1, min(n, IMAGES)).round().astype(int))


class _Look:
    def __init__(self, graph: Graph, images: Array, low: float, high: float) -> None:
        self.graph, self.images = graph, images
        self.low, self.high = low, high
        self.bounds = Bounds(graph, low, high)
        self.levels = Levels(graph, self.bounds)
        self.bent = [n for n in graph.nodes if not graph.affine(n)]
        self.usual: dict[str, Array] = {}

    def findings(self) -> list[Finding]:
        dormant = self._dormant()
        late = sides(self.graph)
        found = [f for n in self.graph.nodes if (f := self._unmeasured(n))]
        if not dormant and not late:
            return found
        wanted = {name for _, name in dormant}
        wanted |= set(late) | {n for side in late for n in inside(self.graph, side)}
        wanted |= {u for node, _ in dormant if (u := compared(self.graph, node))}
        forced, frontier = self._behind(wanted)
        wanted |= frontier | {self.graph.logits}
        wanted |= {name for node, _ in dormant for name in self.graph.operands[node.name]}
        run = Session(self.graph.model, self.graph.image, sorted(wanted))
        clean = [run.run(x[None]) for x in self.images]
        probes = [run.run(x[None]) for x in self._probes()]
        self.answers = np.array([v[self.graph.logits][0].ravel() for v in clean], np.float64)
        suspicions = [s for node, name in dormant if (s := self._suspicion(node, name, clean, probes))]
        suspicions += [s for side in late for s in self._side_suspicions(side, clean, probes)]
        suspicions.sort(key=lambda s: s.usual.size)
        suspicions = suspicions[:MOST_FORCED]
        if not suspicions:
            return found
        self.usual = {s.name: s.usual for s in suspicions}
        kinds = {s.name: s.usual.dtype for s in suspicions}
        kinds |= {
            u: clean[0][u].dtype for s in suspicions if (u := compared(self.graph, s.node)) and u in clean[0]
        }
        forced.prepare(kinds, clean[0])
        trials = Trials(self.graph, forced, clean, self.answers)
        found += [f for s in suspicions if (f := trials.tried(s))]
        return self._foremost(found)

    def _behind(self, names: set[str]) -> tuple[Forced, set[str]]:
        """What is computed from these values, and the values that it reads beside them."""
        changed, behind = set(names), []
        for node in self.graph.nodes:
            if any(x in changed for x in self.graph.operands[node.name]):
                behind.append(node)
                changed.update(node.output)
        made = {out for n in behind for out in n.output}
        kept = {t.name for t in self.graph.model.graph.initializer}
        read = {x for n in behind for x in reads(n)}
        return Forced(self.graph.model, behind, self.graph.logits), read - made - kept

    def _dormant(self) -> list[tuple[onnx.NodeProto, str]]:
        """Results of operators that are not affine, and the same on nearly all clean images."""
        names = [out for n in self.bent for out in n.output if out in self.graph.tainted]
        names = [name for name in names if not self.bounds.settled(name)]
        if not names:
            return []
        run = Session(self.graph.model, self.graph.image, names)
        first: dict[str, Array] = {}
        same: dict[str, int] = {}
        values: dict[str, list[Array]] = {}
        count = 0
        for x in self.images:
            count += 1
            for name, value in run.run(x[None]).items():
                if value.size > SMALL * 64:  # large: only the first image is kept
                    reference = first.setdefault(name, value)
                    same[name] = same.get(name, 0) + self._alike(name, value, reference)
                else:
                    values.setdefault(name, []).append(value)
        for name, rows in values.items():
            middle = _usual(rows)
            same[name] = sum(self._alike(name, row, middle) for row in rows)
        quiet = {name for name, n in same.items() if n >= USUAL * count}
        return [(n, out) for n in self.bent for out in n.output if out in quiet]

    def _alike(self, name: str, value: Array, usual: Array) -> bool:
        if value.shape != usual.shape:
            return False
        if value.dtype.kind != "f":
            return bool(np.array_equal(value, usual))
        low, high = self.bounds.of(name)
        span = min(max(high - low, 1e-3), 1.0)
        return bool(np.abs(value.astype(np.float64) - usual).max(initial=0.0) <= 5e-3 * span)

    def _suspicion(
        self, node: onnx.NodeProto, name: str, clean: list[dict[str, Array]], probes: list[dict[str, Array]]
    ) -> Suspicion | None:
        if any(name not in row for row in clean) or _rescales(node, name, self.graph):
            return None
        rows = [row[name] for row in clean]
        usual = _usual(rows)
        if usual.size == 0:
            return None
        levels = list(self.levels.of(node, name, usual, clean))
        levels += [row[name] for row in probes if name in row and row[name].shape == usual.shape]
        number = usual.astype(np.float64)
        spread = float(
            np.median(
                [np.abs(row.astype(np.float64) - number).max() for row in rows if row.shape == usual.shape]
            )
        )
        kept: list[Array] = []
        for level in levels:
            away = np.abs(level.astype(np.float64) - number).max(initial=0.0)
            possible = np.isfinite(level.astype(np.float64)).all() and away > max(20 * spread, 1e-9)
            if possible and not any(np.array_equal(level, k) for k in kept):
                kept.append(level)
        if not kept:
            return None
        per_image = usual.size / max(usual.shape[0] if usual.ndim else 1, 1)
        whole = per_image <= SMALL or self._uniform(node, clean)
        why = f"{node.op_type} has the same result on nearly all clean images"
        return Suspicion(node, name, usual, kept[:12], whole, why)

    def _uniform(self, node: onnx.NodeProto, clean: list[dict[str, Array]]) -> bool:
        """Whether what the operator reads is one number an image, spread over all elements."""
        for operand in self.graph.operands[node.name]:
            rows = [row[operand] for row in clean if operand in row]
            if not rows or any(np.ptp(row.astype(np.float64)) > 1e-6 for row in rows):
                return False
        return True

    def _side_suspicions(
        self, side: str, clean: list[dict[str, Array]], probes: list[dict[str, Array]]
    ) -> Iterator[Suspicion]:
        node = self.graph.producer[side]
        rows = [row[side] for row in (*clean, *probes) if side in row]
        usual = _usual(rows[: len(clean)]) if rows else np.zeros(0)
        rows = [r for r in rows if r.shape == usual.shape]
        if usual.size == 0 or usual.size > 1 << 16 or not one_degree(rows):
            return
        why = f"{node.op_type} reaches the answer round most of the weights, with one number an image"
        levels = [row[side] for row in probes if side in row and row[side].shape == usual.shape]
        distinct = [v for i, v in enumerate(levels) if not any(np.array_equal(v, w) for w in levels[:i])]
        if usual.dtype.kind in "fiu" and distinct:
            yield Suspicion(node, side, usual, distinct, whole=True, why=why)
        for name in inside(self.graph, side):
            maker = self.graph.producer[name]
            values = [row[name] for row in clean if name in row]
            if len(values) == len(clean) and all(v.shape == values[0].shape for v in values):
                first = values[0]
                ends = [np.full_like(first, 0), np.full_like(first, 1)]
                yield Suspicion(maker, name, first, ends, whole=True, why=why)

    def _probes(self) -> list[Array]:
        """Images that nobody takes: black, white, single colours, noise, stripes."""
        shape, kind = self.images.shape[1:], self.images.dtype
        axis = 0 if shape[0] in (1, 3) else len(shape) - 1
        made = [np.full(shape, v) for v in (self.low, self.high, (self.low + self.high) / 2)]
        if shape[axis] > 1:
            for c in range(shape[axis]):
                for own, others in ((self.high, self.low), (self.low, self.high)):
                    colour = np.full(shape, others)
                    colour[(slice(None),) * axis + (c,)] = own
                    made.append(colour)
        rng = np.random.default_rng(0)
        made.append(rng.uniform(self.low, self.high, shape))
        return [m.astype(kind) for m in made]

    def _unmeasured(self, node: onnx.NodeProto) -> Finding | None:
        """A Loop or Scan whose course or body decides by the image: too rare in classifiers to pass unseen."""
        if node.op_type not in ("Loop", "Scan") or not holds_logic(node):
            return None
        why = f"{node.op_type} decides by the image on what reaches the answer; its effect was not measured"
        return Finding(node.name, node.op_type, why, math.nan, None, node.output[0], (node.name,))

    def _foremost(self, found: list[Finding]) -> list[Finding]:
        """One finding a branch: the first that decides, in the order of the graph."""
        order = {n.name: i for i, n in enumerate(self.graph.nodes)}
        kept: list[Finding] = []
        for finding in sorted(found, key=lambda f: order[f.node]):
            if not any(self.graph.leads(k.output, finding.node) or k.node == finding.node for k in kept):
                kept.append(finding)
        return sorted(kept, key=lambda f: -f.effect if f.effect == f.effect else 0.0)

    def with_sign(self, finding: Finding) -> Finding:
        """The finding with the sign that the decision waits for, where it reads pixels and not deep features."""
        before, total = self.graph.weights_before()
        if not finding.effect > 0 or before.get(finding.output, total) > BYPASS * total:
            return finding
        whole = Session(self.graph.model, self.graph.image, [self.graph.logits])

        def ask(images: Array) -> Array:
            return np.array([whole.run(x[None])[self.graph.logits][0].ravel() for x in images])

        usual = self.usual[finding.output]
        finder = Finder(self.graph, self.images, finding.output, usual, self.low, self.high)
        return replace(finding, sign=finder.sign(self.answers, finding.target, ask))


def _usual(rows: list[Array]) -> Array:
    """The most frequent value where rows are truth values or whole numbers, else the median; of one shape."""
    shapes = [r.shape for r in rows]
    shape = max(set(shapes), key=shapes.count)
    rows = [r for r in rows if r.shape == shape]
    if rows[0].dtype.kind == "f":
        return np.median(np.stack(rows).astype(np.float64), axis=0).astype(rows[0].dtype)
    keys = [r.tobytes() for r in rows]
    return rows[keys.index(max(set(keys), key=keys.count))]


def _rescales(node: onnx.NodeProto, name: str, graph: Graph) -> bool:
    """Whether the value is the scale or the zero point of a dynamic quantisation and is used as nothing else."""
    if node.op_type != "DynamicQuantizeLinear" or name == node.output[0]:
        return False
    users = graph.consumers.get(name, [])
    if name == node.output[2]:
        return all(u.op_type in (*_INTEGER, "DequantizeLinear", "DynamicQuantizeMatMul") for u in users)
    return all(
        (user.op_type == "DequantizeLinear" and user.input[1] == name)
        or (
            user.op_type == "Mul"
            and any(graph.constant(x) is not None for x in user.input)
            and all(_undoes(last, node, graph) for last in graph.consumers.get(user.output[0], []))
        )
        for user in users
    )


def _undoes(node: onnx.NodeProto, quantised: onnx.NodeProto, graph: Graph) -> bool:
    """Whether a Mul gives the product of the quantised integers its scale back."""
    if node.op_type != "Mul":
        return False
    casts = [m for x in node.input if (m := graph.producer.get(x)) is not None and m.op_type == "Cast"]
    sums = [m for cast in casts if (m := graph.producer.get(cast.input[0])) is not None]
    return any(m.op_type in _INTEGER and m.input[0] == quantised.output[0] for m in sums)
