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
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from detrigger.models.structure.bounds import Bounds
from detrigger.models.structure.flatten import reads
from detrigger.models.structure.graph import COMPARING, Graph, holds_logic
from detrigger.models.structure.run import Forced, Session
from detrigger.models.structure.trigger import Finder, Sign

USUAL = 0.85
"""Share of the clean images on which a dormant value is the same."""
DECISIVE = 0.8
"""Share of the images of other classes that a forced value has to take to one class."""
SMALL = 64
"""Elements for one image up to which a value is forced as a whole; of larger ones, ``FEW`` elements are."""
FEW = 16
MOST_FORCED = 48
FLAT = 0.05
"""Distance from the end of a bounded step at which it counts as one that does not act."""
IMAGES = 12
"""Clean images that are looked at."""
BYPASS, LATE = 0.1, 0.5
"""Shares of the weights that a way round them has at most behind it, and the way that it joins at least."""

_INTEGER = ("ConvInteger", "MatMulInteger")
ORDERING = ("Less", "LessOrEqual", "Greater", "GreaterOrEqual")
Array = np.ndarray


@dataclass(frozen=True)
class Finding:
    """Logic that decides on the answer.

    ``node``/``op`` name where the sign is decided on, ``nodes`` what lies between the image and there and is used by
    nothing else; ``effect`` is the share of clean images of other classes whose answer changes to ``target`` (None:
    to another one for each class) when the node's result ``output`` is forced, NaN where that was not measured;
    ``sign`` is what to put into an image so that it happens, tried on clean images, where such a thing was found.
    ``usual`` is the result that the node has on clean images.
    """

    node: str
    op: str
    why: str
    effect: float
    target: int | None
    output: str
    nodes: tuple[str, ...] = ()
    sign: Sign | None = None
    usual: Array | None = field(default=None, repr=False, compare=False)


def look(
    model: onnx.ModelProto,
    images: Array,
    *,
    image: str,
    logits: str,
    low: float,
    high: float,
    signs: bool = True,
) -> list[Finding]:
    """Find logic in a classifier's graph, the most decisive first.

    Args:
        model: the classifier, complete (weights inside).
        images: clean images as the graph takes them (N, ...), a dozen or more, of several classes.
        image, logits: names of the graph's input and of its output (N, K).
        low, high: the range of a pixel as the graph takes it (mean and std applied).
        signs: look for the sign of each finding, too.

    Raises:
        BadInput: the graph does not load or run in ONNX Runtime.
    """
    graph = Graph(model, image, logits, images[:1])
    looking = _Look(graph, images[_spread(len(images))], low, high)
    found = looking.findings()
    return [looking.with_sign(f) for f in found] if signs else found


def _spread(n: int) -> Array:
    """Places of a dozen images all over the set: sets are often sorted by class."""
    return np.unique(np.linspace(0, n - 1, min(n, IMAGES)).round().astype(int))


@dataclass
class _Suspicion:
    """A value to force: ``usual`` is what it is on clean images, ``levels`` what it might be."""

    node: onnx.NodeProto
    name: str
    usual: Array
    levels: list[Array]
    whole: bool
    why: str


class _Look:
    def __init__(self, graph: Graph, images: Array, low: float, high: float) -> None:
        self.graph, self.images = graph, images
        self.low, self.high = low, high
        self.bounds = Bounds(graph, low, high)
        self.bent = [n for n in graph.nodes if not graph.affine(n)]
        self.usual: dict[str, Array] = {}

    def findings(self) -> list[Finding]:
        dormant = self._dormant()
        sides = self._sides()
        found = [f for n in self.graph.nodes if (f := self._unmeasured(n))]
        if not dormant and not sides:
            return found
        wanted = {name for _, name in dormant}
        wanted |= set(sides) | {n for side in sides for n in self._inside(side)}
        wanted |= {u for node, _ in dormant if (u := self._compared(node))}
        forced, frontier = self._behind(wanted)
        wanted |= frontier | {self.graph.logits}
        wanted |= {name for node, _ in dormant for name in self.graph.operands[node.name]}
        run = Session(self.graph.model, self.graph.image, sorted(wanted))
        clean = [run.run(x[None]) for x in self.images]
        probes = [run.run(x[None]) for x in self._probes()]
        self.answers = np.array([v[self.graph.logits][0].ravel() for v in clean], np.float64)
        suspicions = [s for node, name in dormant if (s := self._suspicion(node, name, clean, probes))]
        suspicions += [s for side in sides for s in self._side_suspicions(side, clean, probes)]
        suspicions.sort(key=lambda s: s.usual.size)
        suspicions = suspicions[:MOST_FORCED]
        if not suspicions:
            return found
        self.usual = {s.name: s.usual for s in suspicions}
        kinds = {s.name: s.usual.dtype for s in suspicions}
        kinds |= {u: clean[0][u].dtype for s in suspicions if (u := self._compared(s.node)) and u in clean[0]}
        forced.prepare(kinds, clean[0])
        found += [f for s in suspicions if (f := self._tried(s, forced, clean))]
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
    ) -> _Suspicion | None:
        if any(name not in row for row in clean) or _rescales(node, name, self.graph):
            return None
        rows = [row[name] for row in clean]
        usual = _usual(rows)
        if usual.size == 0:
            return None
        levels = list(self._levels(node, name, usual, clean))
        levels += [row[name] for row in probes if name in row and row[name].shape == usual.shape]
        spread = float(
            np.median(
                [np.abs(_number(row) - _number(usual)).max() for row in rows if row.shape == usual.shape]
            )
        )
        kept: list[Array] = []
        for level in levels:
            away = np.abs(_number(level) - _number(usual)).max(initial=0.0)
            possible = np.isfinite(_number(level)).all() and away > max(20 * spread, 1e-9)
            if possible and not any(np.array_equal(level, k) for k in kept):
                kept.append(level)
        if not kept:
            return None
        per_image = usual.size / max(usual.shape[0] if usual.ndim else 1, 1)
        whole = per_image <= SMALL or self._uniform(node, clean)
        why = f"{node.op_type} has the same result on nearly all clean images"
        return _Suspicion(node, name, usual, kept[:12], whole, why)

    def _uniform(self, node: onnx.NodeProto, clean: list[dict[str, Array]]) -> bool:
        """Whether what the operator reads is one number an image, spread over all elements."""
        for operand in self.graph.operands[node.name]:
            rows = [row[operand] for row in clean if operand in row]
            if not rows or any(np.ptp(_number(row)) > 1e-6 for row in rows):
                return False
        return True

    def _levels(
        self, node: onnx.NodeProto, name: str, usual: Array, clean: list[dict[str, Array]]
    ) -> Iterator[Array]:
        """Other values that the operator's result can have."""
        op, number = node.op_type, _number(usual)
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
            if 2 <= last <= FEW:
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
            np.median([np.abs(_number(row[sources[0]])).mean() for row in clean if sources[0] in row])
        )
        if size > 0:
            yield (number + size).astype(usual.dtype)
            yield (number - size).astype(usual.dtype)

    def _sides(self) -> list[str]:
        """Values that join the way to the logits late, and have few of the weights behind them."""
        before, total = self.graph.weights_before()
        found = []
        for node in self.graph.nodes:
            operands = list(dict.fromkeys(self.graph.operands[node.name]))
            if len(operands) < 2 or total == 0:
                continue
            most = max(before[x] for x in operands)
            bends = node.op_type in (
                "Max",
                "Min",
                "Where",
                "PRelu",
                "Pow",
                "Mod",
                "If",
                "ScatterND",
                "ScatterElements",
            )
            for x in operands:
                late = before[x] <= BYPASS * total and most >= LATE * total
                early = bends and before[x] < most
                if (late or early) and x != self.graph.image and x not in found:
                    found.append(x)
        return found

    def _inside(self, side: str) -> list[str]:
        """Truth values and whole numbers that the side value is made of."""
        names, open_names = [], [side]
        seen = {side}
        while open_names and len(seen) < 400:
            name = open_names.pop()
            node = self.graph.producer.get(name)
            if node is None:
                continue
            if node.op_type in COMPARING and not self.graph.affine(node):
                names.append(name)
            for operand in self.graph.operands[node.name]:
                if operand not in seen:
                    seen.add(operand)
                    open_names.append(operand)
        return names[:8]

    def _side_suspicions(
        self, side: str, clean: list[dict[str, Array]], probes: list[dict[str, Array]]
    ) -> Iterator[_Suspicion]:
        node = self.graph.producer[side]
        rows = [row[side] for row in (*clean, *probes) if side in row]
        usual = _usual(rows[: len(clean)]) if rows else np.zeros(0)
        rows = [r for r in rows if r.shape == usual.shape]
        if usual.size == 0 or usual.size > 1 << 16 or not _one_degree(rows):
            return
        why = f"{node.op_type} reaches the answer round most of the weights, with one number an image"
        levels = [row[side] for row in probes if side in row and row[side].shape == usual.shape]
        distinct = [v for i, v in enumerate(levels) if not any(np.array_equal(v, w) for w in levels[:i])]
        if usual.dtype.kind in "fiu" and distinct:
            yield _Suspicion(node, side, usual, distinct, whole=True, why=why)
        for name in self._inside(side):
            maker = self.graph.producer[name]
            values = [row[name] for row in clean if name in row]
            if len(values) == len(clean) and all(v.shape == values[0].shape for v in values):
                first = values[0]
                ends = [np.full_like(first, 0), np.full_like(first, 1)]
                yield _Suspicion(maker, name, first, ends, whole=True, why=why)

    def _probes(self) -> list[Array]:
        """Images that nobody takes: black, white, single colours, noise, stripes."""
        shape, kind = self.images.shape[1:], self.images.dtype
        axis = 0 if shape[0] in (1, 3) else len(shape) - 1
        made = [np.full(shape, v) for v in (self.low, self.high, (self.low + self.high) / 2)]
        if shape[axis] > 1:
            for c in range(shape[axis]):
                for inside, outside in ((self.high, self.low), (self.low, self.high)):
                    colour = np.full(shape, outside)
                    colour[(slice(None),) * axis + (c,)] = inside
                    made.append(colour)
        rng = np.random.default_rng(0)
        made.append(rng.uniform(self.low, self.high, shape))
        return [m.astype(kind) for m in made]

    def _tried(self, s: _Suspicion, forced: Forced, clean: list[dict[str, Array]]) -> Finding | None:
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
            for i, given in enumerate(clean):
                rows.append(forced.run(given, s.name, where, level))
                if rows[-1].size != self.answers.shape[1]:
                    break
                if i == 3 and not self._promising(np.array(rows)):
                    break
            if len(rows) < len(self.images) or rows[-1].size != self.answers.shape[1]:
                continue
            effect, target = self._effect(np.array(rows))
            if effect >= DECISIVE and (best is None or effect > best.effect):
                if self._smooth(s, where, forced, clean):
                    return None
                then = "one class" if target is not None else "another class each"
                best = Finding(
                    node=s.node.name,
                    op=s.node.op_type,
                    why=f"{s.why}; forced to another value it takes {effect:.0%} of them to {then}",
                    effect=effect,
                    target=target,
                    output=s.name,
                    nodes=self._branch(s.name),
                    usual=s.usual,
                )
        return best

    def _compared(self, node: onnx.NodeProto) -> str | None:
        """The one operand of a comparison that depends on the image; None for other operators."""
        own = self.graph.operands[node.name]
        return own[0] if node.op_type in ORDERING and len(own) == 1 else None

    def _smooth(self, s: _Suspicion, where: Array, forced: Forced, clean: list[dict[str, Array]]) -> bool:
        """Whether nothing jumps where the comparison turns: a ReLU or a bound, written as a comparison.

        What is compared is put a little below and a little above what it is compared with.
        """
        operand = self._compared(s.node)
        other = self.graph.constant(next((x for x in s.node.input if x != operand), ""))
        if operand is None or other is None or operand not in clean[0] or clean[0][operand].dtype.kind != "f":
            return False
        if clean[0][operand].shape != s.usual.shape:
            return False
        jump, way = [], []
        for given, before in zip(clean, self.answers, strict=True):
            at = np.broadcast_to(other.astype(np.float64), s.usual.shape)
            step = 1e-3 * np.maximum(np.abs(at), 1e-3)
            under, over = (forced.run(given, operand, where, v) for v in (at - step, at + step))
            if under.size != before.size or over.size != before.size:
                return False
            jump.append(np.abs(over - under).max())
            way.append(max(np.abs(over - before).max(), np.abs(under - before).max()))
        return bool(np.median(jump) <= 0.05 * np.median(way))

    def _promising(self, rows: Array) -> bool:
        before = self.answers[: len(rows)].argmax(1)
        return bool((rows.argmax(1) != before).sum() >= 1)

    def _effect(self, rows: Array) -> tuple[float, int | None]:
        """Share of the images of other classes that end in one class, or in another one for each class."""
        clean = self.answers[: len(rows)]
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

    def _branch(self, name: str) -> tuple[str, ...]:
        """Nodes before the value whose results nothing else uses, the nearest first."""
        found: list[onnx.NodeProto] = [self.graph.producer[name]]
        inside = {found[0].name}
        for node in reversed(self.graph.nodes):
            users = [u.name for out in node.output for u in self.graph.consumers.get(out, [])]
            if users and node.name not in inside and all(u in inside for u in users):
                found.append(node)
                inside.add(node.name)
        return tuple(n.name for n in found)

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
            if not any(self._leads(k.output, finding.node) or k.node == finding.node for k in kept):
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

    def _leads(self, name: str, node: str) -> bool:
        """Whether the value reaches the node."""
        reached = {name}
        for n in self.graph.nodes:
            if any(x in reached for x in self.graph.operands[n.name]):
                if n.name == node:
                    return True
                reached.update(n.output)
        return False


def _ends(value: Array) -> tuple[float, float]:
    if value.dtype.kind == "f":
        return -math.inf, math.inf
    return float(np.iinfo(value.dtype).min), float(np.iinfo(value.dtype).max)


def _number(value: Array) -> Array:
    return value.astype(np.float64)


def _usual(rows: list[Array]) -> Array:
    """The most frequent value where rows are truth values or whole numbers, else the median; of one shape."""
    shapes = [r.shape for r in rows]
    shape = max(set(shapes), key=shapes.count)
    rows = [r for r in rows if r.shape == shape]
    if rows[0].dtype.kind == "f":
        return np.median(np.stack(rows).astype(np.float64), axis=0).astype(rows[0].dtype)
    keys = [r.tobytes() for r in rows]
    return rows[keys.index(max(set(keys), key=keys.count))]


def _one_degree(rows: list[Array]) -> bool:
    """Whether the value is one number an image, times a fixed pattern."""
    flat = np.stack([_number(r).ravel() for r in rows])
    if not np.isfinite(flat).all():
        return False
    flat = flat - flat[:1]
    if flat.shape[1] > 4096:
        flat = flat[:, np.random.default_rng(0).permutation(flat.shape[1])[:4096]]
    weights = np.linalg.svd(flat, compute_uv=False)
    return bool(weights[0] > 0 and (len(weights) == 1 or weights[1] <= 1e-3 * weights[0]))


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
