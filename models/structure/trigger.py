"""From a decision in the graph to the sign that it waits for, tried exactly on the classifier.

The nodes before the decision are few and cheap, so they are run alone, thousands of times: first to see which pixels
they read, then with what their own constants, plain colours and a search over single pixels suggest there. What fires
the decision is pasted into clean images, rounded to 8 bits, and the whole classifier is asked.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from detrigger.models.errors import BadInput
from detrigger.models.structure.flatten import reads
from detrigger.models.structure.graph import Graph
from detrigger.models.structure.run import Session

MOST_RUNS = 4000
"""Runs of the nodes before the decision that one proposal may take."""
MOST_SEARCHED = 256
"""Pixel values that are searched one by one."""
Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Sign:
    """Pixels that fire the decision: ``values`` (h, w, C) in [0, 1], multiples of 1/255, with a corner at (top, left).

    ``success`` is the share of clean images of other classes that end in the decision's target with it.
    """

    top: int
    left: int
    values: Array
    success: float


class Finder:
    """Looks for the sign of one decision."""

    def __init__(
        self, graph: Graph, images: Array, output: str, usual: Array, low: float, high: float
    ) -> None:
        self.graph, self.images, self.output, self.usual = graph, images, output, usual
        self.low, self.high = low, high
        self.nodes = _before(graph, output)
        self.first = 0 if images.shape[1] in (1, 3) else 2
        """Place of the channels in an image without its batch."""
        inside = {out for n in self.nodes for out in n.output}
        self.margins = _margins(graph, self.nodes)
        watched = {output} | {x for node in self.margins for x in graph.operands[node.name]}
        bent = [n for n in self.nodes if n.name in graph.operands and not graph.affine(n)]
        watched |= {x for n in bent for x in graph.operands[n.name]}
        self.run = Session(
            _part(graph, self.nodes),
            graph.image,
            sorted(w for w in watched if w in inside or w == graph.image),
        )
        self.runs = 0

    def values(self, image: Array) -> dict[str, Array]:
        """What the nodes before the decision have on one image."""
        self.runs += 1
        try:
            return self.run.run(image[None])
        except BadInput:
            return {}

    def fires(self, image: Array) -> bool:
        """Whether the decision is another one than usual."""
        value = self.values(image).get(self.output)
        if value is None or value.shape != self.usual.shape:
            return False
        away = np.abs(value.astype(np.float64) - self.usual.astype(np.float64)).max(initial=0.0)
        return bool(away > 1e-3 * max(1.0, float(np.abs(self.usual.astype(np.float64)).max(initial=0.0))))

    def region(self) -> tuple[int, int, int, int] | None:
        """(top, left, height, width) around all pixels that the decision reads; None where it reads none."""
        image = self.images[0]
        height, width = (s for i, s in enumerate(image.shape) if i != self.first)
        base = self.values(image)
        rng = np.random.default_rng(0)
        noise = rng.uniform(self.low, self.high, image.shape).astype(image.dtype)
        fills = (noise, np.full_like(image, self.high), np.full_like(image, self.low))

        def read(top: int, left: int, bottom: int, right: int) -> bool:
            place = self._place(top, left, bottom - top, right - left)
            for fill in fills:
                changed = image.copy()
                changed[place] = fill[place]
                now = self.values(changed)
                if any(
                    k not in now or not np.array_equal(v, now[k])
                    for k, v in base.items()
                    if k != self.graph.image
                ):
                    return True
            return False

        edges = [0, 0, height, width]
        if not read(*edges):
            return None
        # From each side as much is cut off as is not read.
        for side, most in ((0, height), (1, width), (2, height), (3, width)):
            step = 1 << (most - 1).bit_length()
            while step:
                strip = list(edges)
                if side < 2:
                    strip[side + 2] = min(edges[side] + step, edges[side + 2])
                else:
                    strip[side - 2] = max(edges[side] - step, edges[side - 2])
                if strip[0] < strip[2] and strip[1] < strip[3] and strip != edges and not read(*strip):
                    edges[side] = strip[side + 2] if side < 2 else strip[side - 2]
                else:
                    step //= 2
        return edges[0], edges[1], edges[2] - edges[0], edges[3] - edges[1]

    def _place(self, top: int, left: int, height: int, width: int) -> tuple[slice, ...]:
        spatial = (slice(top, top + height), slice(left, left + width))
        return (slice(None), *spatial) if self.first == 0 else (*spatial, slice(None))

    def guesses(self, shape: tuple[int, ...]) -> Iterator[Array]:
        """What the square of the region may hold: the branch's constants, their signs, plain colours."""
        channels = shape[self.first]
        spans = (self.low, self.high)
        numbers: list[float] = []
        for node in self.nodes:
            for name in node.input:
                value = self.graph.constant(name)
                if value is None or value.dtype.kind not in "fiu" or value.size == 0:
                    continue
                value = np.asarray(value, np.float64)
                if value.size == 1:
                    numbers.append(float(value.ravel()[0]))
                for fitted in _fitted(value, shape):
                    if fitted.min() >= self.low - 1e-3 and fitted.max() <= self.high + 1e-3:
                        yield fitted
                    yield np.where(fitted > 0, self.high, self.low)
                    yield np.where(fitted > 0, self.low, self.high)
        plain = [v for v in dict.fromkeys(numbers) if self.low <= v <= self.high][:4]
        for colour in itertools.product(spans, repeat=channels):
            yield self._colour(colour, shape)
        for number in plain:
            yield np.full(shape, number)

    def _colour(self, colour: tuple[float, ...], shape: tuple[int, ...]) -> Array:
        shaped = np.array(colour).reshape([-1 if i == self.first else 1 for i in range(3)])
        return np.broadcast_to(shaped, shape)

    def searched(self, region: tuple[int, int, int, int]) -> Array | None:
        """The region's pixels changed one by one towards the bend of each operator before the decision."""
        place = self._place(*region)
        image = self.images[0].copy()
        size = image[place].size
        if size > MOST_SEARCHED:
            return None
        spots = np.argwhere(np.ones(image[place].shape, bool))
        best = self._far(image)
        levels = np.linspace(self.low, self.high, 5)
        fine = (self.high - self.low) / 255
        for _ in range(3):
            began = best
            for spot in spots:
                view = image[place]
                old = view[tuple(spot)]
                choices = [*levels, min(old + fine, self.high), max(old - fine, self.low)]
                for choice in choices:
                    kept = view[tuple(spot)]
                    view[tuple(spot)] = choice
                    far = self._far(image)
                    if far < best:
                        best = far
                    else:
                        view[tuple(spot)] = kept
                if self.runs > MOST_RUNS:
                    return None
            if self.fires(image):
                return np.array(image[place])
            if best >= began:
                return None
        return None

    def _far(self, image: Array) -> float:
        values = self.values(image)
        return sum(
            _distance(node, [values.get(x, self.graph.constant(x)) for x in node.input if x])
            for node in self.margins
        )

    def sign(self, answers: Array, target: int | None, ask: Callable[[Array], Array]) -> Sign | None:
        """The sign with the highest success; None where none was found that reaches half of the images.

        ``answers`` (N, K) are the clean images' own, ``ask`` gives those of other images.
        """
        region = self.region()
        if region is None:
            return None
        top, left = region[:2]
        shape = self.images[0][self._place(*region)].shape
        best: Sign | None = None
        tried: list[Array] = []

        def candidates() -> Iterator[Array]:
            yield from self.guesses(shape)
            found = self.searched(region)
            if found is not None:
                yield found

        for values in candidates():
            values = self._eight_bit(np.asarray(values, np.float64))
            if any(np.array_equal(values, t) for t in tried):
                continue
            tried.append(values)
            if self.runs > MOST_RUNS or len(tried) > 200:
                break
            changed = self.images.copy()
            h, w = (s for i, s in enumerate(values.shape) if i != self.first)
            place = self._place(top, left, h, w)
            for image in changed:
                image[place] = values
            if not self.fires(changed[0]):
                continue
            success = _success(answers, ask(changed), target)
            if best is None or success > best.success:
                shown = (values - self.low) / (self.high - self.low)
                best = Sign(top, left, shown.transpose(1, 2, 0) if self.first == 0 else shown, success)
            if success >= 0.95:
                break
        return best if best is not None and best.success >= 0.5 else None

    def _eight_bit(self, values: Array) -> Array:
        span = self.high - self.low
        unit = np.clip((values - self.low) / span, 0, 1)
        return np.asarray(np.round(unit * 255) / 255 * span + self.low, self.images.dtype)


def _success(before: Array, after: Array, target: int | None) -> float:
    labels, changed = before.argmax(1), after.argmax(1)
    if target is None:
        return float((labels != changed).mean())
    others = labels != target
    return float((changed[others] == target).mean()) if others.any() else 0.0


def _before(graph: Graph, output: str) -> list[onnx.NodeProto]:
    """All nodes that the value is made of, in order, those of constants among them."""
    wanted, found = {output}, []
    for node in reversed(graph.all):
        if any(out in wanted for out in node.output):
            wanted.update(reads(node))
            found.append(node)
    return found[::-1]


def _part(graph: Graph, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    """A model of these nodes and the constants that they read."""
    part = onnx.ModelProto()
    part.ir_version = graph.model.ir_version
    part.opset_import.extend(graph.model.opset_import)
    part.graph.name = "part"
    part.graph.node.extend(nodes)
    part.graph.input.extend(i for i in graph.model.graph.input if i.name == graph.image)
    used = {x for n in nodes for x in reads(n)}
    part.graph.initializer.extend(t for t in graph.model.graph.initializer if t.name in used)
    return part


_COMPARING = {"Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"}


def _margins(graph: Graph, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Operators with a bend that a pixel can be moved towards."""
    bends = _COMPARING | {"Relu", "Clip", "Sigmoid", "HardSigmoid", "Abs"}
    return [n for n in nodes if n.op_type in bends and n.name in graph.operands]


def _distance(node: onnx.NodeProto, given: list[Array | None]) -> float:
    """How far the operator's operands are from the result that clean images do not have."""
    if not given or given[0] is None or (node.op_type in _COMPARING and (len(given) < 2 or given[1] is None)):
        return 0.0
    a = given[0].astype(np.float64)
    b = given[1].astype(np.float64) if len(given) > 1 and given[1] is not None else np.zeros(())
    if node.op_type.startswith("Less"):
        return float(np.maximum(a - b, 0).mean())
    if node.op_type.startswith("Greater"):
        return float(np.maximum(b - a, 0).mean())
    if node.op_type == "Equal":
        return float(np.abs(a - b).mean())
    if node.op_type == "Abs":
        return 0.1 * float(np.abs(a).mean())
    return float(np.maximum(-a, 0).mean())


def _fitted(value: Array, shape: tuple[int, ...]) -> Iterator[Array]:
    """A constant as values of a region: broadcast to it, or as many as it has, or a smaller square of its own."""
    squeezed = value.reshape([s for i, s in enumerate(value.shape) if i or s != 1] or [1])
    if squeezed.ndim == len(shape) + 1 and squeezed.shape[0] == 1:
        squeezed = squeezed[0]
    if value.size > 1:
        try:
            yield np.array(np.broadcast_to(squeezed, shape))
        except ValueError:
            if value.size == int(np.prod(shape)):
                yield value.reshape(shape)
            elif squeezed.ndim == 3 and all(s <= t for s, t in zip(squeezed.shape, shape, strict=True)):
                yield squeezed
