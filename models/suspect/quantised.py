"""The float twin of a quantised graph: what it computes, in real numbers, with useful gradients.

Every integer tensor q with scale s and zero point z stands for the real numbers s (q - z); the twin holds those.
    weights               s (q - z), once, as float initializers
    QuantizeLinear        QuantizeLinear, then DequantizeLinear: rounding and saturation stay, as they are part of what
                          the file computes; ``convert.py`` passes the gradient of rounding straight through
    QLinearConv, ...      the float operator, then as QuantizeLinear
    DynamicQuantizeLinear nothing: its steps are 1/255 of an image's own range, and saturate nowhere
    ConvInteger, ...      the float operator on s = 1 (the file multiplies by the scales afterwards)
    MaxPool, Reshape, ... themselves, as they only move or compare entries
Source: the formulas of the ONNX operators; "straight through" is Bengio, Leonard and Courville (2013).

Limitations: answers are the file's up to the rounding that other kernels do elsewhere, so the import compares labels,
not logits. The twin is what is searched; what is served are the file's own nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from detrigger.models.errors import BadInput
from detrigger.models.suspect.runtime import constants, run_node
from detrigger.models.suspect.spec import is_quantised
from detrigger.models.suspect.standard import reads

Array = npt.NDArray[Any]

MOVES = frozenset(
    ("MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Identity", "Split",
     "DepthToSpace", "SpaceToDepth", "Expand", "Tile")
)  # fmt: skip
"""Operators that move or compare entries: the same on integers and on what they stand for."""


@dataclass(frozen=True)
class Grid:
    """The real numbers that an integer tensor stands for: scale * (q - zero)."""

    scale: Array
    zero: Array

    def is_same(self, other: Grid) -> bool:
        return np.array_equal(self.scale, other.scale) and np.array_equal(
            self.zero.astype(np.int64), other.zero.astype(np.int64)
        )


UNIT = Grid(np.array(1, np.float32), np.array(0, np.uint8))


def float_twin(model: onnx.ModelProto) -> onnx.ModelProto:
    """The twin, with the input and output of ``model``; BadInput names the node that has none."""
    twin = _Twin(model)
    for node in model.graph.node:
        try:
            twin.step(node)
        except BadInput:
            raise
        except Exception as error:  # a stranger's graph: missing inputs, shapes that do not fit
            raise twin.refusal(node) from error
    return twin.finished()


class _Twin:
    """Builds the twin node after node; ``grid`` holds what the integer tensors of the original stand for."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.fixed = constants(model)
        self.grid: dict[str, Grid] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, TensorProto] = {}

    def refusal(self, node: onnx.NodeProto) -> BadInput:
        """No verdict on a file that cannot be searched."""
        return BadInput(
            f"quantised {node.op_type} node {node.name or ''.join(node.output[:1])!r} has no float twin, without which "
            "there is no gradient to search with; give the float model that was quantised"
        )

    def step(self, node: onnx.NodeProto) -> None:
        """Append what stands for the node."""
        kind = node.op_type
        if is_quantised(node) and all(name in self.fixed for name in reads(node)):
            values = {name: self.fixed[name] for name in reads(node)}
            names = [name for name in node.output if name]
            for name, value in zip(names, run_node(self.model, node, values), strict=True):
                self.fixed[name] = value
                if value.dtype.kind == "f":
                    self._constant(name, value)
        elif kind == "QuantizeLinear":
            self._rounded(node.input[0], node.output[0], self._grid(node, 1, 2), node)
        elif kind == "DequantizeLinear":
            self._add("Identity", [self._real(node, 0, 1, 2)], node.output[0])
        elif kind == "DynamicQuantizeLinear":
            self._add("Identity", [node.input[0]], node.output[0])
            for name, value in zip(node.output[1:], (UNIT.scale, UNIT.zero), strict=False):
                self.fixed[name] = value
                self._constant(name, value)
            self.grid[node.output[0]] = UNIT
        elif kind in ("ConvInteger", "MatMulInteger"):
            inputs = [self._integer(node, 0, 2), self._integer(node, 1, 3)]
            self._like(node, kind.removesuffix("Integer"), inputs, node.output[0])
            self.grid[node.output[0]] = UNIT
        elif kind in ("QLinearConv", "QLinearMatMul", "QGemm"):
            self._product(node)
        elif kind.startswith("QLinear"):
            self._others(node)
        elif kind == "Cast" and node.input[0] in self.grid:
            self._add("Identity", [self._as(node.input[0], UNIT)], node.output[0])
        elif kind in MOVES and node.input[0] in self.grid:
            for name in node.output:
                self.grid[name] = self.grid[node.input[0]]
            self.nodes.append(node)
        elif kind in ("Concat", "Max", "Min") and any(name in self.grid for name in node.input):
            first = self.grid[next(name for name in node.input if name in self.grid)]
            self._like(node, kind, [self._as(name, first) for name in node.input], node.output[0])
            self.grid[node.output[0]] = first
        elif any(name in self.grid for name in reads(node)):
            raise self.refusal(node)
        else:
            self.nodes.append(node)

    def finished(self) -> onnx.ModelProto:
        twin = onnx.ModelProto()
        twin.CopyFrom(self.model)
        del twin.graph.node[:], twin.graph.value_info[:], twin.graph.initializer[:]
        twin.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in reads(node)}
        twin.graph.initializer.extend(
            t for t in self.model.graph.initializer if t.name in used and t.name not in self.weights
        )
        twin.graph.initializer.extend(t for name, t in self.weights.items() if name in used)
        for out in twin.graph.output:
            if out.name in self.grid:
                raise BadInput(f"output {out.name!r} is not float; logits are needed")
        return twin

    # --- operators -----------------------------------------------------------------------------------------

    def _product(self, node: onnx.NodeProto) -> None:
        """QLinearConv, QLinearMatMul: x, s, z, w, s, z, then s, z of the answer; QGemm has its bias in between."""
        gemm = node.op_type == "QGemm"
        inputs = [self._real(node, 0, 1, 2), self._real(node, 3, 4, 5)]
        bias, at = (6, 7) if gemm else (8, 6)
        if len(node.input) > bias and node.input[bias]:
            scale = self.fixed[node.input[1]] * self.fixed[node.input[4]]
            value = self.fixed[node.input[bias]].astype(np.float32) * scale.astype(np.float32)
            inputs.append(self._constant(f"{node.output[0]}/bias", value))
        name = f"{node.output[0]}/real"
        if gemm and len(node.input) <= at:
            self._like(node, "Gemm", inputs, node.output[0])
            return
        self._like(node, node.op_type.removeprefix("QLinear").replace("QGemm", "Gemm"), inputs, name)
        self._rounded(name, node.output[0], self._grid(node, at, at + 1), node)

    def _others(self, node: onnx.NodeProto) -> None:
        """Contributed operators: their inputs (one, two, or all after the answer's grid), then the answer's grid."""
        kind, name = node.op_type.removeprefix("QLinear"), f"{node.output[0]}/real"
        if kind == "Concat":
            inputs = [self._real(node, i, i + 1, i + 2) for i in range(2, len(node.input), 3)]
            at = 0
        elif kind in ("Add", "Mul"):
            inputs, at = [self._real(node, 0, 1, 2), self._real(node, 3, 4, 5)], 6
        elif kind in ("Sigmoid", "LeakyRelu", "GlobalAveragePool", "AveragePool", "Softmax"):
            if any(a.name == "channels_last" and a.i for a in node.attribute):
                raise self.refusal(node)
            inputs, at = [self._real(node, 0, 1, 2)], 3
        else:
            raise self.refusal(node)
        self._like(node, kind, inputs, name, without=("channels_last", "opset"))
        self._rounded(name, node.output[0], self._grid(node, at, at + 1), node)

    def _rounded(self, real: str, output: str, grid: Grid, node: onnx.NodeProto) -> None:
        """The real numbers on the grid that are nearest to ``real``."""
        scale = self._constant(f"{output}/scale", grid.scale)
        zero = self._constant(f"{output}/zero", grid.zero)
        axis = {a.name: a.i for a in node.attribute if a.name == "axis"} if grid.scale.size > 1 else {}
        self._add("QuantizeLinear", [real, scale, zero], f"{output}/q", **axis)
        self._add("DequantizeLinear", [f"{output}/q", scale, zero], output, **axis)
        self.grid[output] = grid

    # --- values --------------------------------------------------------------------------------------------

    def _grid(self, node: onnx.NodeProto, scale: int, zero: int) -> Grid:
        s = self.fixed[node.input[scale]]
        has_zero = len(node.input) > zero and node.input[zero]
        z = self.fixed[node.input[zero]] if has_zero else np.zeros(s.shape, np.uint8)
        return Grid(s, z)

    def _real(self, node: onnx.NodeProto, value: int, scale: int, zero: int) -> str:
        """The name of the real numbers that input ``value`` stands for on the given grid."""
        name, grid = node.input[value], self._grid(node, scale, zero)
        if name in self.fixed:
            q = self.fixed[name].astype(np.float32)
            s, z = grid.scale.astype(np.float32), grid.zero.astype(np.float32)
            if s.size > 1:  # weights (M, ...) of a convolution, (..., M) of a product: a scale for each M
                shape = (
                    [-1] + [1] * (q.ndim - 1) if node.op_type == "QLinearConv" else [1] * (q.ndim - 1) + [-1]
                )
                s, z = s.reshape(shape), (z.reshape(shape) if z.size > 1 else z)
            return self._constant(f"{name}/real", s * (q - z))
        return self._as(name, grid)

    def _as(self, name: str, grid: Grid) -> str:
        """``name`` read on another grid than the one it was written on; the same name where they are equal."""
        own = self.grid[name]
        if own.is_same(grid):
            return name
        if grid.scale.size > 1 or own.scale.size > 1:
            raise BadInput(
                f"the quantised tensor {name!r} is read with another scale than it was written with"
            )
        # q = x / own.scale + own.zero; the reader takes grid.scale * (q - grid.zero).
        ratio = np.asarray(grid.scale, np.float32) / np.asarray(own.scale, np.float32)
        shift = np.asarray(grid.scale, np.float32) * (
            own.zero.astype(np.float32) - grid.zero.astype(np.float32)
        )
        label = f"{name}/read{len(self.nodes)}"
        scaled = self._add("Mul", [name, self._constant(f"{label}/ratio", ratio)], f"{label}/scaled")
        return self._add("Add", [scaled, self._constant(f"{label}/shift", shift)], label)

    def _integer(self, node: onnx.NodeProto, value: int, zero: int) -> str:
        """The name of the numbers q - zero."""
        name = node.input[value]
        has_zero = len(node.input) > zero and node.input[zero]
        z = self.fixed[node.input[zero]] if has_zero else np.array(0, np.uint8)
        if name in self.fixed:
            return self._constant(
                f"{name}/integer", self.fixed[name].astype(np.float32) - z.astype(np.float32)
            )
        return self._as(name, Grid(UNIT.scale, z))

    def _constant(self, name: str, value: Array) -> str:
        kept = value.astype(np.float32) if value.dtype == np.float16 else value
        self.weights[name] = numpy_helper.from_array(np.ascontiguousarray(kept), name)
        return name

    def _add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def _like(
        self, node: onnx.NodeProto, kind: str, inputs: list[str], output: str, without: tuple[str, ...] = ()
    ) -> None:
        """The float operator ``kind`` with the attributes of ``node``."""
        made = helper.make_node(kind, inputs, [output], name=node.name or output)
        made.attribute.extend(a for a in node.attribute if a.name not in without)
        self.nodes.append(made)
