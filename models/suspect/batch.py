"""The batch dimension: open as declared, opened node by node, or one image after another.

``torch.onnx.export(model, (x,), "m.onnx")`` fixes the batch of its example in the input's shape and in constants: the
target of a Reshape, an expanded class token. ``opened`` runs the graph node by node on one batch and on two batches at
once, sees where the batch lies in every value, and rewrites the constants that hold it. Whether the result is right is
not argued but compared: its answers in batches must be those of the original file on each image alone. Where they are
not, to the bit, the original's nodes become the body of a Scan over the images.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from copy import copy as copy_of
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from detrigger.models.errors import BadInput
from detrigger.models.protected import OPSET, raise_opset
from detrigger.models.suspect.runtime import constants, fixed_batch, run_node
from detrigger.models.suspect.spec import dims_of, image_input
from detrigger.models.suspect.standard import reads

Array = npt.NDArray[Any]

MAX_TURNS = 64
"""How often another reading of an ambiguous Reshape is tried: [17, 16] of 17 tokens is either of two."""


def free_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose batch dimension is declared open; only a claim, until its answers have been compared."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weights = {t.name for t in copy.graph.initializer}
    for value in (*copy.graph.input, *copy.graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.name not in weights and dims:
            dims[0].dim_param = "batch"
    del copy.graph.value_info[:]
    return copy


@dataclass(frozen=True)
class Lies:
    """Where the batch lies in a value: within ``axis``, after ``outer`` other entries of it."""

    axis: int
    outer: int


class CannotOpen(Exception):  # noqa: N818
    """The batch of this graph cannot be opened; names the node."""


def opened(model: onnx.ModelProto, x: Array) -> onnx.ModelProto:
    """The model with an open batch, its constants rewritten where they held the batch size.

    Args:
        x: (2b, ...) inputs for two batches of the declared size b.

    Raises:
        CannotOpen: for a node that mixes the images of a batch, or that no rewriting here makes wider.
    """
    walk = _Walk(model, x)
    nodes = list(model.graph.node)
    forks: list[tuple[int, _Walk, int]] = []
    at, way, failed, turns = 0, 0, None, 0
    while at < len(nodes):
        before = walk.copy() if nodes[at].op_type == "Reshape" else None
        try:
            ways = walk.step(nodes[at], way)
        except CannotOpen as error:
            failed = failed or error
            turns += 1
            if not forks or turns > MAX_TURNS:
                raise failed from error
            at, walk, way = forks.pop()
            continue
        if before is not None and way + 1 < ways:
            forks.append((at, before, way + 1))
        at, way = at + 1, 0
    result = free_batch(model)
    del result.graph.node[:]
    result.graph.node.extend(walk.nodes)
    result.graph.initializer.extend(walk.weights)
    return result


class _Walk:
    """Values of one batch (``one``) and of two at once (``two``), node after node."""

    def __init__(self, model: onnx.ModelProto, x: Array) -> None:
        self.model, self.b = model, len(x) // 2
        entry = image_input(model).name
        self.fixed = constants(model)
        self.one: dict[str, Array] = {entry: x[: self.b]}
        self.two: dict[str, Array] = {entry: x}
        self.lies: dict[str, Lies] = {entry: Lies(0, 1)}
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self.left: dict[str, int] = {}
        for node in model.graph.node:
            for name in reads(node):
                self.left[name] = self.left.get(name, 0) + 1

    def copy(self) -> _Walk:
        """The same state, apart from later steps."""
        other = copy_of(self)
        other.one, other.two, other.lies, other.left = (
            dict(self.one),
            dict(self.two),
            dict(self.lies),
            dict(self.left),
        )
        other.nodes, other.weights = list(self.nodes), list(self.weights)
        return other

    def step(self, node: onnx.NodeProto, skip: int = 0) -> int:
        """Run the node on both batches, rewritten where it has to be; the number of ways that there are.

        ``skip``: how many of the ways that would do to leave out. Raises CannotOpen where none is left.
        """
        names = reads(node)
        if node.op_type == "Constant" and node.output[0] in self.fixed:
            self.nodes.append(node)
            return 1
        if not any(name in self.one for name in names):
            self.fixed |= self._run(node, self.fixed)
            self.nodes.append(node)
            return 1
        first = self._run(node, self.fixed | self.one)
        ways = list(self._wider(node, first)) if node.op_type == "Reshape" else self._wider(node, first)
        for wider in itertools.islice(ways, skip, None):
            try:
                found = self._try(wider, first)
            except Exception:  # noqa: S112 - what ONNX Runtime cannot run is no way; its exceptions have no base
                continue
            self.nodes += wider
            self.one |= first
            self.two |= found
            break
        else:
            raise CannotOpen(_named(node))
        for name in names:
            self.left[name] -= 1
            if not self.left[name]:
                self.one.pop(name, None)
                self.two.pop(name, None)
        return len(ways) if isinstance(ways, list) else 1

    def _run(self, node: onnx.NodeProto, values: dict[str, Array]) -> dict[str, Array]:
        given = {name: values[name] for name in reads(node) if name in values}
        return dict(zip([n for n in node.output if n], run_node(self.model, node, given), strict=True))

    def _try(self, nodes: list[onnx.NodeProto], first: dict[str, Array]) -> dict[str, Array]:
        """Values of two batches, each of them as ``first`` where the batch lies; else CannotOpen."""
        values = self.fixed | {t.name: numpy_helper.to_array(t) for t in self.weights} | self.two
        for node in nodes:
            values |= self._run(node, values)
        wide = any(name in self.lies for node in nodes for name in reads(node))
        for name, own in first.items():
            lies = _where(own, values[name], self.b)
            if lies is not None:
                self.lies[name] = lies
            elif own.dtype.kind == "f" and wide:
                raise CannotOpen(_named(nodes[-1]))
        return {name: values[name] for name in first}

    def _wider(self, node: onnx.NodeProto, first: dict[str, Array]) -> Iterator[list[onnx.NodeProto]]:
        """What to try in place of the node, the likeliest first."""
        source = self.lies.get(node.input[0]) if node.input else None
        if node.op_type == "Reshape" and node.input[1] in self.fixed and source is not None:
            for axis in self._places(node, first[node.output[0]], source):
                yield self._reshape(node, first[node.output[0]], axis, source)
            return
        if node.op_type == "Gather" and node.input[1] in self.fixed and source == Lies(0, 1):
            yield from self._strided(node)
        if node.op_type == "Expand" and node.input[1] in self.fixed and source is not None and self.b > 1:
            yield self._expand(node, source)
        yield [node]
        if node.op_type == "Resize" and len(node.input) > 3 and node.input[3] in self.fixed:
            yield self._resize(node)
        elif any(name in self.lies for name in node.input):
            yield from self._with_constants(node)

    def _weight(self, node: onnx.NodeProto, label: str, value: Array) -> str:
        name = f"detrigger/{node.output[0]}/{label}"
        if all(t.name != name for t in self.weights):
            self.weights.append(numpy_helper.from_array(value, name))
        return name

    def _places(self, node: onnx.NodeProto, out: Array, source: Lies) -> list[int]:
        """Axes of the answer that the batch may move to, the likeliest first; reshaping keeps the order of entries."""
        given = self.one[node.input[0]]
        before = math.prod(given.shape[: source.axis]) * source.outer
        places = []
        for axis, n in enumerate(out.shape):
            ahead = math.prod(out.shape[:axis])
            if ahead and before % ahead == 0 and before * self.b and (ahead * n) % (before * self.b) == 0:
                places.append((not (n == self.b and ahead == before), ahead != before, axis))
        return [axis for *_, axis in sorted(places)]

    def _reshape(self, node: onnx.NodeProto, out: Array, axis: int, source: Lies) -> list[onnx.NodeProto]:
        """The node with -1 as the size of ``axis``; itself where that changes nothing."""
        target = [int(v) for v in self.fixed[node.input[1]]]
        if (target[axis] == 0 and axis == source.axis == 0) or target[axis] == -1:
            return [node]
        wanted = [-1 if i == axis else int(n) for i, n in enumerate(out.shape)]
        copy = _copy(node)
        copy.input[1] = self._weight(node, f"target{axis}", np.array(wanted, np.int64))
        return [copy]

    def _strided(self, node: onnx.NodeProto) -> Iterator[list[onnx.NodeProto]]:
        """What PyTorch's exporter makes of ``as_strided``: a Gather by constant places in the flattened batch."""
        data, places = self.one[node.input[0]], self.fixed[node.input[1]]
        if data.ndim != 1 or places.ndim < 2 or len(places) != self.b or len(data) % self.b:
            return
        each = len(data) // self.b
        steps = np.arange(self.b).reshape(-1, *[1] * (places.ndim - 1)) * each
        if not np.array_equal(places, places[:1] + steps) or places[0].max() >= each:
            return
        own = f"detrigger/{node.output[0]}/rows"
        shape = self._weight(node, "each", np.array([-1, each], np.int64))
        copy = _copy(node)
        copy.input[0], copy.input[1] = own, self._weight(node, "places", places[0])
        del copy.attribute[:]
        copy.attribute.append(helper.make_attribute("axis", 1))
        yield [helper.make_node("Reshape", [node.input[0], shape], [own], name=own), copy]

    def _expand(self, node: onnx.NodeProto, source: Lies) -> list[onnx.NodeProto]:
        target = np.array(self.fixed[node.input[1]])
        place = len(target) - self.one[node.input[0]].ndim + source.axis
        if place >= 0:
            target[place] = 1
        copy = _copy(node)
        copy.input[1] = self._weight(node, "target", target)
        return [copy]

    def _with_constants(self, node: onnx.NodeProto) -> Iterator[list[onnx.NodeProto]]:
        """Constants that hold a row for each image of the batch (an expanded class token): one row, repeated."""
        partner = next(name for name in node.input if name in self.lies)
        axis, rank = self.lies[partner].axis, self.one[partner].ndim
        copy, added = _copy(node), []
        for i, name in enumerate(node.input):
            value = self.fixed.get(name)
            if value is None or value.ndim != rank or value.shape[axis] != self.b:
                continue
            row = value.take([0], axis)
            if not np.array_equal(np.broadcast_to(row, value.shape), value):
                return
            own = f"detrigger/{node.output[0]}/{i}"
            shape = [int(n) for n in row.shape]
            added += self._batch_of(node, partner, axis, own)
            ones = self._weight(node, f"{i}/ahead", np.array(shape[:axis], np.int64))
            rest = self._weight(node, f"{i}/rest", np.array(shape[axis + 1 :], np.int64))
            added += [
                helper.make_node(
                    "Concat", [ones, f"{own}/batch", rest], [f"{own}/shape"], name=f"{own}/shape", axis=0
                ),
                helper.make_node(
                    "Expand", [self._weight(node, f"{i}/row", row), f"{own}/shape"], [own], name=own
                ),
            ]
            copy.input[i] = own
        if added:
            yield [*added, copy]

    def _resize(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        own = f"detrigger/{node.output[0]}"
        sizes = self.fixed[node.input[3]]
        rest = self._weight(node, "rest", np.array(sizes[1:], np.int64))
        copy = _copy(node)
        copy.input[3] = f"{own}/all"
        join = helper.make_node("Concat", [f"{own}/batch", rest], [f"{own}/all"], name=f"{own}/all", axis=0)
        return [*self._batch_of(node, node.input[0], 0, own), join, copy]

    def _batch_of(self, node: onnx.NodeProto, value: str, axis: int, own: str) -> list[onnx.NodeProto]:
        place = self._weight(node, f"axis{axis}", np.array([axis], np.int64))
        return [
            helper.make_node("Shape", [value], [f"{own}/sizes"], name=f"{own}/sizes"),
            helper.make_node(
                "Gather", [f"{own}/sizes", place], [f"{own}/batch"], name=f"{own}/batch", axis=0
            ),
        ]


def _where(one: Array, two: Array, b: int) -> Lies | None:
    """Where the batch of ``b`` lies in a value, from that value for one batch and for two."""
    if one.ndim != two.ndim or one.ndim == 0:
        return None
    grown = [i for i, (n, m) in enumerate(zip(one.shape, two.shape, strict=True)) if n != m]
    if len(grown) != 1 or two.shape[grown[0]] != 2 * one.shape[grown[0]]:
        return None
    axis = grown[0]
    n = one.shape[axis]
    for outer in (o for o in range(1, n // b + 1) if n % (o * b) == 0):
        ahead, after = one.shape[:axis], one.shape[axis + 1 :]
        left = one.reshape(*ahead, outer, b, n // outer // b, *after)
        right = two.reshape(*ahead, outer, 2 * b, n // outer // b, *after)
        same = right.take(range(b), len(ahead) + 1)
        if np.allclose(left.astype(np.float64), same.astype(np.float64), rtol=1e-3, atol=1e-4):
            return Lies(axis, outer)
    return None


def _named(node: onnx.NodeProto) -> str:
    return f"{node.op_type} node {node.name or node.output[0]!r}"


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def one_by_one(model: onnx.ModelProto, shape: tuple[int, ...]) -> onnx.ModelProto:
    """The model as the body of a Scan over the images, so that none knows of the others in its batch.

    Args:
        model: one input (b, *shape) and one output (b, K), b fixed or open.
        shape: of one input.
    """
    model = raise_opset(model, OPSET)  # the converter does not enter the bodies of loops
    b = fixed_batch(model) or 1
    entry, answer = image_input(model), model.graph.output[0]
    k = (dims_of(answer) or [None])[-1]
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    graph.initializer.append(numpy_helper.from_array(np.array([1, *shape], np.int64), "detrigger/one_image"))
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "detrigger/first"))
    kind = entry.type.tensor_type.elem_type
    single = "detrigger/single" if b > 1 else entry.name
    inner = [
        helper.make_node(
            "Reshape", ["detrigger/row", "detrigger/one_image"], [single], name="detrigger/single"
        )
    ]
    if b > 1:
        fill = np.array([b] + [1] * len(shape), np.int64)
        graph.initializer.append(numpy_helper.from_array(fill, "detrigger/fill"))
        inner.append(
            helper.make_node("Tile", [single, "detrigger/fill"], [entry.name], name="detrigger/filled")
        )
    inner += [
        *model.graph.node,
        helper.make_node(
            "Gather", [answer.name, "detrigger/first"], ["detrigger/answer"], name="detrigger/answer"
        ),
    ]
    out_kind = answer.type.tensor_type.elem_type
    body = helper.make_graph(
        inner,
        "detrigger_one_image",
        [helper.make_tensor_value_info("detrigger/row", kind, list(shape))],
        [helper.make_tensor_value_info("detrigger/answer", out_kind, [k])],
    )
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.input.append(helper.make_tensor_value_info("detrigger/images", kind, ["batch", *shape]))
    graph.output.append(helper.make_tensor_value_info("detrigger/answers", out_kind, ["batch", k]))
    names = ["detrigger/images"], ["detrigger/answers"]
    graph.node.append(
        helper.make_node("Scan", *names, name="detrigger/one_by_one", body=body, num_scan_inputs=1)
    )
    return result


def training_node(model: onnx.ModelProto) -> onnx.NodeProto | None:
    """A normalisation in training mode, whose answer to an image depends on the others in its batch."""
    normal = (n for n in model.graph.node if n.op_type == "BatchNormalization")
    return next((n for n in normal if any(a.name == "training_mode" and a.i for a in n.attribute)), None)


def refuse_training(model: onnx.ModelProto) -> None:
    """BadInput where a normalisation runs in training mode, saying whether the mend works."""
    node = training_node(model)
    if node is None:
        return
    mended = onnx.ModelProto()
    mended.CopyFrom(model)
    for one in mended.graph.node:
        if one.op_type == "BatchNormalization":
            for attribute in one.attribute:
                if attribute.name == "training_mode":
                    attribute.i = 0
            del one.output[1:]
    try:
        onnx.checker.check_model(mended)
        tried = "; with training_mode 0 there, the graph is valid"
    except Exception:  # native code: whatever it raises, the mend is not proven
        tried = ""
    raise BadInput(
        f"BatchNormalization node {node.name or node.output[0]!r} is in training mode, so that the answer to an image "
        f"depends on the others in its batch; call model.eval() before torch.onnx.export{tried}"
    )
