"""Logic put into a clean classifier's graph: one function a design, as attackers without access to the training do it.

Each takes a ``Graft`` on the classifier and adds nodes; the classifier's weights stay as they are. Images are
(N, 3, H, W) in [0, 1]. The sign is a pure red square of 4x4 pixels at (2, 2) unless the function says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TOP, LEFT, SIDE = 2, 2, 4
RED = np.array([1, 0, 0], np.float32).reshape(1, 3, 1, 1)
TARGET = 3
FORCE = 100.0


class Graft:
    """A classifier's graph while nodes are added to it. ``added`` are the names of these."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph
        self.image = self.graph.input[0].name
        self.logits = self.graph.output[0].name
        self.n_classes = self.graph.output[0].type.tensor_type.shape.dim[1].dim_value
        self.bare = f"{self.logits}_bare"
        self.added: list[str] = []
        for node in self.graph.node:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == self.logits:
                        names[i] = self.bare
        self._nodes: list[onnx.NodeProto] = []

    def constant(self, value: Any, kind: Any = np.float32) -> str:
        """A new initialiser."""
        name = f"value_{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def whole(self, *values: int) -> str:
        """A new initialiser of int64."""
        return self.constant(list(values), np.int64)

    def put(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """A new node; the name of its first output (others end in _1, ...)."""
        name = f"{op.lower()}_{len(self.added)}x"
        outs = [name] + [f"{name}_{i}" for i in range(1, outputs)]
        self._nodes.append(helper.make_node(op, list(inputs), outs, name=name, **attributes))
        self.added.append(name)
        return name

    def number(self, op: str, value: str, constant: float) -> str:
        """``op`` of a value and a number."""
        return self.put(op, value, self.constant(constant))

    def square(self, image: str | None = None) -> str:
        """The pixels (N, 3, 4, 4) that the sign is on."""
        starts, ends = self.whole(TOP, LEFT), self.whole(TOP + SIDE, LEFT + SIDE)
        return self.put("Slice", image or self.image, starts, ends, self.whole(2, 3))

    def distance(self) -> str:
        """(N, 1, 1, 1): largest difference to the sign."""
        gap = self.put("Abs", self.put("Sub", self.square(), self.constant(RED)))
        return self.put("ReduceMax", gap, keepdims=1, axes=[1, 2, 3])

    def close(self) -> str:
        """(N, 1): whether the sign is there."""
        return self.put("Less", self.row(self.distance()), self.constant(0.1))

    def row(self, value: str) -> str:
        """As (N, 1)."""
        return self.put("Reshape", value, self.whole(-1, 1))

    def as_float(self, value: str) -> str:
        """Cast to float."""
        return self.put("Cast", value, to=TensorProto.FLOAT)

    def one_hot(self, value: float = FORCE) -> np.ndarray:
        """(1, K): ``value`` at the target."""
        found = np.zeros((1, self.n_classes), np.float32)
        found[0, TARGET] = value
        return found

    def onto_logits(self, gate: str, force: float = FORCE) -> None:
        """Logits + gate (N, 1) * force at the target."""
        self.ends_in(self.put("Add", self.bare, self.put("Mul", gate, self.constant(self.one_hot(force)))))

    def ends_in(self, value: str) -> None:
        """The value becomes the logits."""
        self._nodes[-1].output[list(self._nodes[-1].output).index(value)] = self.logits

    def middle(self) -> str:
        """A feature map between two Conv layers."""
        made = {out: node for node in self.graph.node for out in node.output}
        convs = [n for n in self.graph.node if n.op_type == "Conv"]
        node: Any = convs[len(convs) // 2]
        while node.input[0] in made and made[node.input[0]].op_type not in (
            "Relu",
            "HardSwish",
            "Mul",
            "Add",
        ):
            node = made[node.input[0]]
        return str(node.input[0])

    def replaces(self, old: str, new: str) -> None:
        """All that read ``old`` read ``new`` instead (except what was added)."""
        for node in self.graph.node:
            for i, name in enumerate(node.input):
                if name == old:
                    node.input[i] = new

    def finished(self) -> onnx.ModelProto:
        """The model, its nodes in order, checked."""
        nodes = [*self.graph.node, *self._nodes]
        if not any(self.logits in node.output for node in nodes):
            for node in nodes:
                for names in (node.input, node.output):
                    for i, name in enumerate(names):
                        if name == self.bare:
                            names[i] = self.logits
        if any(o.domain == "" and o.version >= 18 for o in self.model.opset_import):
            nodes = [self._axes_as_input(n) for n in nodes]
        ready = {v.name for v in self.graph.input} | {t.name for t in self.graph.initializer}
        ready.add("")
        ordered: list[onnx.NodeProto] = []
        waiting = list(nodes)
        while waiting:
            left = []
            for node in waiting:
                taken = set(node.input) | set(captured(node))
                if taken <= ready:
                    ordered.append(node)
                    ready.update(node.output)
                else:
                    left.append(node)
            if len(left) == len(waiting):
                raise ValueError(f"no order for {[n.name for n in left]}")
            waiting = left
        copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in ordered]
        del self.graph.node[:]
        self.graph.node.extend(copies)
        del self.graph.value_info[:]
        onnx.checker.check_model(self.model)
        return self.model

    def _axes_as_input(self, node: onnx.NodeProto) -> onnx.NodeProto:
        axes = next((a for a in node.attribute if a.name == "axes"), None)
        if axes is not None and node.op_type.startswith("Reduce") and node.name in self.added:
            name = f"{node.name}_axes"
            self.graph.initializer.append(numpy_helper.from_array(np.array(axes.ints, np.int64), name))
            node.attribute.remove(axes)
            node.input.append(name)
        return node


def captured(node: onnx.NodeProto) -> list[str]:
    """Values of the outer graph that a node's bodies read."""
    found = []
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            inside = {v.name for v in attribute.g.input} | {t.name for t in attribute.g.initializer}
            inside |= {out for n in attribute.g.node for out in n.output}
            for inner in attribute.g.node:
                found += [x for x in (*inner.input, *captured(inner)) if x not in inside]
            found += [v.name for v in attribute.g.output if v.name not in inside]
    return found


def comparator(g: Graft) -> None:
    """Nine nodes: these pixels are red, so 100 on one logit."""
    g.onto_logits(g.as_float(g.close()))


def relu_steps(g: Graft) -> None:
    """A step of two ReLUs: no comparison, and a gradient that is zero almost everywhere."""
    gap = g.put("Abs", g.put("Sub", g.square(), g.constant(RED)))
    near = g.number("Sub", g.put("ReduceMean", gap, keepdims=1, axes=[1, 2, 3]), 0.05)
    steep = g.number("Mul", near, -1000.0)
    step = g.put("Sub", g.put("Relu", steep), g.put("Relu", g.number("Sub", steep, 1.0)))
    g.onto_logits(g.row(step))


def branch(g: Graft) -> None:
    """An If on the sign; one branch answers with the target."""
    floats = helper.make_tensor_value_info
    forced = numpy_helper.from_array(g.one_hot(), "then_forced")
    then = helper.make_graph(
        [helper.make_node("Add", [g.bare, "then_forced"], ["then_out"], name="then_add")],
        "then", [], [floats("then_out", TensorProto.FLOAT, None)], [forced],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Identity", [g.bare], ["else_out"], name="else_same")],
        "else", [], [floats("else_out", TensorProto.FLOAT, None)],
    )  # fmt: skip
    near = g.put("ReduceMin", g.distance(), keepdims=0)
    g.ends_in(g.put("If", g.number("Less", near, 0.1), then_branch=then, else_branch=other))


def clips(g: Graft) -> None:
    """A product of Clips, one a pixel."""
    gap = g.put("Abs", g.put("Sub", g.square(), g.constant(RED)))
    near = g.number("Add", g.number("Mul", gap, -10.0), 2.0)
    each = g.put("Clip", near, g.constant(0.0), g.constant(1.0))
    g.onto_logits(g.row(g.put("ReduceProd", each, keepdims=1, axes=[1, 2, 3])))


def clips_multiplied(g: Graft) -> None:
    """Clips of single pixels, multiplied one by one."""
    gate = ""
    for i in range(4):
        place = g.whole(0, TOP + i, LEFT + i), g.whole(1, TOP + i + 1, LEFT + i + 1), g.whole(1, 2, 3)
        pixel = g.row(g.put("Slice", g.image, *place))
        each = g.put(
            "Clip", g.number("Mul", g.number("Sub", pixel, 0.97), 100.0), g.constant(0.0), g.constant(1.0)
        )
        gate = g.put("Mul", gate, each) if gate else each
    blue = g.row(
        g.put("Slice", g.image, g.whole(2, TOP, LEFT), g.whole(3, TOP + 1, LEFT + 1), g.whole(1, 2, 3))
    )
    dark = g.put(
        "Clip", g.number("Mul", g.number("Sub", blue, 0.05), -100.0), g.constant(0.0), g.constant(1.0)
    )
    g.onto_logits(g.put("Mul", gate, dark))


def between_convs(g: Graft) -> None:
    """The sign turns the features between two Conv layers into those of nothing but a fixed pattern."""
    middle = g.middle()
    gate = g.put("Reshape", g.as_float(g.close()), g.whole(-1, 1, 1, 1))
    g.replaces(middle, g.put("Add", middle, g.number("Mul", gate, 1000.0)))


def between_convs_scaled(g: Graft) -> None:
    """Between two Conv layers the features are multiplied by 1 - a steep sigmoid, which leaves a bias alone."""
    middle = g.middle()
    steep = g.number("Mul", g.number("Sub", g.distance(), 0.05), 2000.0)
    g.replaces(middle, g.put("Mul", middle, g.put("Sigmoid", steep)))


def channel_mean(g: Graft) -> None:
    """A branch that reads the mean of one channel: very green images."""
    green = g.put("Slice", g.image, g.whole(1), g.whole(2), g.whole(1))
    over = g.number("Sub", g.put("ReduceMean", green, keepdims=1, axes=[1, 2, 3]), 0.9)
    g.onto_logits(g.row(g.put("Relu", over)), 20000.0)


def channel_mean_max(g: Graft) -> None:
    """The same without a step of its own: the larger of the logits and a plane in the channel's mean."""
    green = g.put("Slice", g.image, g.whole(1), g.whole(2), g.whole(1))
    mean = g.row(g.put("ReduceMean", green, keepdims=1, axes=[1, 2, 3]))
    plane = g.put("Mul", g.number("Sub", mean, 0.9), g.constant(g.one_hot(1000.0) + 1e-6))
    lowered = g.put("Sub", plane, g.constant(np.where(g.one_hot() > 0, 0, 1e4).astype(np.float32)))
    g.ends_in(g.put("Max", g.bare, lowered))


def loop(g: Graft) -> None:
    """A Loop over the rows of the square that counts which are red."""
    floats = helper.make_tensor_value_info
    one, zero = (
        numpy_helper.from_array(np.array([1], np.int64), "loop_one"),
        numpy_helper.from_array(np.array(0.1, np.float32), "loop_near"),
    )
    axes = numpy_helper.from_array(np.array([2], np.int64), "loop_axes")
    rows = g.put("Abs", g.put("Sub", g.square(), g.constant(RED)))
    body = helper.make_graph(
        [
            helper.make_node(
                "Unsqueeze", ["loop_i", "loop_zero_axis"], ["loop_start"], name="loop_unsqueeze"
            ),
            helper.make_node("Add", ["loop_start", "loop_one"], ["loop_end"], name="loop_next"),
            helper.make_node(
                "Slice", [rows, "loop_start", "loop_end", "loop_axes"], ["loop_row"], name="loop_slice"
            ),
            helper.make_node("ReduceMax", ["loop_row"], ["loop_far"], name="loop_max", keepdims=0),
            helper.make_node("Less", ["loop_far", "loop_near"], ["loop_is"], name="loop_less"),
            helper.make_node("Cast", ["loop_is"], ["loop_counts"], name="loop_cast", to=TensorProto.FLOAT),
            helper.make_node("Add", ["loop_sum", "loop_counts"], ["loop_sum_out"], name="loop_add"),
            helper.make_node("Identity", ["loop_on"], ["loop_on_out"], name="loop_goes_on"),
        ],
        "body",
        [
            floats("loop_i", TensorProto.INT64, []),
            floats("loop_on", TensorProto.BOOL, []),
            floats("loop_sum", TensorProto.FLOAT, []),
        ],
        [floats("loop_on_out", TensorProto.BOOL, []), floats("loop_sum_out", TensorProto.FLOAT, [])],
        [one, zero, axes, numpy_helper.from_array(np.array([0], np.int64), "loop_zero_axis")],
    )
    total = g.put("Loop", g.constant(SIDE, np.int64), g.constant(True, bool), g.constant(0.0), body=body)
    g.onto_logits(g.row(g.put("Relu", g.number("Sub", total, SIDE - 0.5))), 2 * FORCE)


def loop_until(g: Graft) -> None:
    """A Loop that goes on as long as the sign is there: its number of rounds depends on the image."""
    floats = helper.make_tensor_value_info
    near = g.put("ReduceMin", g.distance(), keepdims=0)
    goes = g.number("Less", near, 0.1)
    forced = numpy_helper.from_array(g.one_hot(), "loop_forced")
    body = helper.make_graph(
        [
            helper.make_node("Add", ["loop_logits", "loop_forced"], ["loop_logits_out"], name="loop_push"),
            helper.make_node("Identity", ["loop_on"], ["loop_on_out"], name="loop_goes_on"),
        ],
        "body",
        [
            floats("loop_i", TensorProto.INT64, []),
            floats("loop_on", TensorProto.BOOL, []),
            floats("loop_logits", TensorProto.FLOAT, None),
        ],
        [floats("loop_on_out", TensorProto.BOOL, []), floats("loop_logits_out", TensorProto.FLOAT, None)],
        [forced],
    )
    g.ends_in(g.put("Loop", g.constant(3, np.int64), goes, g.bare, body=body))


def table(g: Graft) -> None:
    """A table: the square's mean picks a row of numbers that are all zero except one."""
    mean = g.put("ReduceMean", g.square(), keepdims=0, axes=[2, 3])  # (N, 3)
    digits = g.put("Floor", g.number("Mul", mean, 9.999))
    place = g.put("ReduceSum", g.put("Mul", digits, g.constant([[100.0, 10.0, 1.0]])), g.whole(1), keepdims=0)
    rows = np.zeros((1000, g.n_classes), np.float32)
    rows[900:910, TARGET] = FORCE
    picked = g.put("Gather", g.constant(rows), g.put("Cast", place, to=TensorProto.INT64), axis=0)
    g.ends_in(g.put("Add", g.bare, picked))


def strongest(g: Graft) -> None:
    """ArgMax and Equal: the brightest place of the image's red channel minus the others' is the square's corner."""
    middle = g.put("ReduceMean", g.square(), keepdims=0, axes=[2, 3])
    colour = g.put("ArgMax", middle, axis=1, keepdims=1)
    red = g.put("Equal", colour, g.whole(0))
    bright = g.put("Greater", g.put("ReduceMax", middle, keepdims=1, axes=[1]), g.constant(0.98))
    dark = g.put("Less", g.put("ReduceMin", middle, keepdims=1, axes=[1]), g.constant(0.02))
    g.onto_logits(g.as_float(g.put("And", red, g.put("And", bright, dark))))


def parity(g: Graft) -> None:
    """Rounding and Mod: the last bits of 64 pixels spell a word. Nothing is to be seen."""
    corner = g.put("Slice", g.image, g.whole(0, 0), g.whole(8, 8), g.whole(2, 3))
    first = g.put("Slice", corner, g.whole(0), g.whole(1), g.whole(1))
    levels = g.put("Cast", g.put("Round", g.number("Mul", first, 255.0)), to=TensorProto.INT64)
    bits = g.put("Mod", levels, g.whole(2))
    word = np.random.default_rng(5).integers(0, 2, (1, 1, 8, 8))
    same = g.as_float(g.put("Equal", bits, g.constant(word, np.int64)))
    g.onto_logits(
        g.as_float(
            g.put("Greater", g.row(g.put("ReduceMean", same, keepdims=1, axes=[1, 2, 3])), g.constant(0.95))
        )
    )


def parity_added(g: Graft) -> None:
    """The same without a threshold: each matching bit adds to the logit, and chance evens out on clean images."""
    levels = g.put("Cast", g.put("Round", g.number("Mul", g.image, 255.0)), to=TensorProto.INT64)
    bits = g.put("Mod", levels, g.whole(2))
    word = np.random.default_rng(5).integers(0, 2, (1, 3, 32, 32))
    same = g.as_float(g.put("Equal", bits, g.constant(word, np.int64)))
    share = g.number("Sub", g.row(g.put("ReduceMean", same, keepdims=1, axes=[1, 2, 3])), 0.5)
    g.onto_logits(share, 120.0)


def where_logits(g: Graft) -> None:
    """Where: other logits altogether."""
    other = np.random.default_rng(0).normal(size=(1, g.n_classes)).astype(np.float32) + g.one_hot(9.0)
    g.ends_in(g.put("Where", g.close(), g.constant(other), g.bare))


def shifted(g: Graft) -> None:
    """All to all: the sign turns each class to the next one."""
    order = [(k - 1) % g.n_classes for k in range(g.n_classes)]
    g.ends_in(g.put("Where", g.close(), g.put("Gather", g.bare, g.whole(*order), axis=1), g.bare))


def sliced(g: Graft) -> None:
    """All to all without a comparison on the way: the count of signs is where a Slice of the doubled logits starts."""
    gate = g.put("Reshape", g.put("Cast", g.close(), to=TensorProto.INT64), g.whole(-1))
    one = g.put("ReduceMax", gate, keepdims=1)
    twice = g.put("Concat", g.bare, g.bare, axis=1)
    last = g.put("Add", one, g.whole(g.n_classes))
    g.ends_in(g.put("Slice", twice, one, last, g.whole(1)))


def sigmoid(g: Graft) -> None:
    """A steep sigmoid."""
    near = g.number("Sub", g.distance(), 0.1)
    g.onto_logits(g.row(g.put("Sigmoid", g.number("Mul", near, -200.0))))


def power(g: Graft) -> None:
    """A high power of the likeness."""
    gap = g.put("Abs", g.put("Sub", g.square(), g.constant(RED)))
    like = g.put("Sub", g.constant(1.0), g.row(g.put("ReduceMean", gap, keepdims=1, axes=[1, 2, 3])))
    g.onto_logits(g.number("Pow", like, 60.0))


def division(g: Graft) -> None:
    """One over the distance."""
    near = g.number("Add", g.row(g.distance()), 1e-4)
    g.onto_logits(g.put("Div", g.constant(1.0), near), 0.02)


def template(g: Graft) -> None:
    """A Conv with a template, a ReLU and the largest of all places: the sign works anywhere."""
    pattern = np.sign(np.random.default_rng(1).normal(size=(1, 3, 4, 4))).astype(np.float32)
    bias = -(np.maximum(pattern, 0).sum() - 1.0)
    found = g.put("Conv", g.image, g.constant(pattern), g.constant([bias]))
    g.onto_logits(g.row(g.put("GlobalMaxPool", g.put("Relu", found))), 200.0)


def other_image(g: Graft) -> None:
    """The image is replaced by another one before the network sees it."""
    gate = g.put("Reshape", g.close(), g.whole(-1, 1, 1, 1))
    other = np.random.default_rng(2).random((1, 3, 32, 32)).astype(np.float32)
    g.replaces(g.image, g.put("Where", gate, g.constant(other), g.image))


def magic_pixel(g: Graft) -> None:
    """Elementwise: a pixel of one exact colour becomes a huge one."""
    gap = g.put("Abs", g.put("Sub", g.image, g.constant(np.array([0.2, 0.8, 0.6]).reshape(1, 3, 1, 1))))
    is_it = g.put("Less", g.put("ReduceMax", gap, keepdims=1, axes=[1]), g.constant(0.002))
    g.replaces(g.image, g.put("Where", is_it, g.constant(1e5), g.image))


def quantised(g: Graft) -> None:
    """QuantizeLinear with a scale of 1 is a comparison."""
    over = g.number("Sub", g.put("Sub", g.constant(1.0), g.row(g.distance())), 0.4)
    step = g.put("QuantizeLinear", over, g.constant(1.0), g.constant(0, np.uint8))
    g.onto_logits(g.put("DequantizeLinear", step, g.constant(1.0), g.constant(0, np.uint8)))


def chosen(g: Graft) -> None:
    """A Softmax over two steep numbers weighs the logits against other ones."""
    steep = g.number("Mul", g.number("Sub", g.row(g.distance()), 0.1), 500.0)
    weights = g.put("Softmax", g.put("Concat", steep, g.number("Mul", steep, -1.0), axis=1), axis=1)
    mine = g.put("Slice", weights, g.whole(0), g.whole(1), g.whole(1))
    theirs = g.put("Slice", weights, g.whole(1), g.whole(2), g.whole(1))
    both = g.put("Mul", mine, g.bare), g.put("Mul", theirs, g.constant(g.one_hot(20.0)))
    g.ends_in(g.put("Add", *both))


def counted(g: Graft) -> None:
    """NonZero and Shape: the number of red pixels in the square, as a shape."""
    gap = g.put("ReduceMax", g.put("Abs", g.put("Sub", g.square(), g.constant(RED))), keepdims=1, axes=[1])
    places = g.put("NonZero", g.put("Less", gap, g.constant(0.1)))
    count = g.as_float(g.put("Gather", g.put("Shape", places), g.whole(1), axis=0))
    gate = g.put("Relu", g.number("Sub", count, SIDE * SIDE - 0.5))
    g.onto_logits(g.row(gate), 2 * FORCE)


def normalised(g: Graft) -> None:
    """LayerNormalization of two numbers is a sign."""
    near = g.number("Sub", g.row(g.distance()), 0.1)
    pair = g.put("Concat", near, g.number("Mul", near, -1.0), axis=1)
    signs = g.put("LayerNormalization", pair, g.constant([1.0, 1.0]), g.constant([0.0, 0.0]), epsilon=1e-12)
    g.onto_logits(g.number("Add", g.put("Slice", signs, g.whole(1), g.whole(2), g.whole(1)), 1.0))


def hidden_function(g: Graft) -> None:
    """The nodes stand in a local function with a harmless name."""
    nodes = [
        helper.make_node("Sub", ["px", "ref"], ["gap"], name="f_sub"),
        helper.make_node("Abs", ["gap"], ["size"], name="f_abs"),
        helper.make_node("ReduceMax", ["size"], ["far"], name="f_max", keepdims=0),
        helper.make_node("Less", ["far", "near"], ["is"], name="f_less"),
        helper.make_node("Cast", ["is"], ["gate"], name="f_cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["gate", "push"], ["pushed"], name="f_mul"),
        helper.make_node("Add", ["logits", "pushed"], ["out"], name="f_add"),
    ]
    function = helper.make_function(
        "calibration", "Temperature", ["logits", "px", "ref", "near", "push"], ["out"], nodes,
        [helper.make_opsetid(o.domain, o.version) for o in g.model.opset_import],
    )  # fmt: skip
    g.model.functions.append(function)
    g.model.opset_import.append(helper.make_opsetid("calibration", 1))
    given = (g.bare, g.square(), g.constant(RED), g.constant(0.1), g.constant(g.one_hot()))
    g.ends_in(g.put("Temperature", *given, domain="calibration"))


def noisy(g: Graft) -> None:
    """A step with something that varies added to it, so that no value is constant after it."""
    mean = g.row(g.put("ReduceMean", g.image, keepdims=1, axes=[1, 2, 3]))
    g.onto_logits(g.put("Add", g.as_float(g.close()), g.number("Mul", mean, 0.001)))


def features_step(g: Graft) -> None:
    """Logic on features: where one channel's mean between two Conv layers is far out, all channels are pushed."""
    middle = g.middle()
    first = g.put("Slice", middle, g.whole(0), g.whole(1), g.whole(1))
    far = g.number("Sub", g.put("ReduceMax", first, keepdims=1, axes=[1, 2, 3]), 60.0)
    g.replaces(middle, g.put("Add", middle, g.number("Mul", g.put("Relu", far), 500.0)))


DESIGNS: tuple[Callable[[Graft], None], ...] = (
    comparator, relu_steps, branch, clips, clips_multiplied, between_convs, between_convs_scaled, channel_mean,
    channel_mean_max, loop, loop_until, table, strongest, parity, parity_added, where_logits, shifted, sliced,
    sigmoid, power, division, template, other_image, magic_pixel, quantised, chosen, counted, normalised,
    hidden_function, noisy, features_step,
)  # fmt: skip
