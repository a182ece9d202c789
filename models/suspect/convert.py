"""ONNX to torch.fx: ``onnx2fx``, and a table of our own for what it lacks or does otherwise than ONNX Runtime."""

from __future__ import annotations

from typing import Any, cast

import onnx
import onnx2fx
import torch
from onnx2fx.utils.attributes import get_attribute
from onnx2fx.utils.dtype import onnx_dtype_to_torch
from torch import Tensor, fx

from detrigger.models.errors import BadInput
from detrigger.models.suspect.cheap import cheapen
from detrigger.models.suspect.file import first_line


def to_fx(model: onnx.ModelProto) -> fx.GraphModule:
    """The graph as a float32 torch.fx module; BadInput for an operator without translation, by name."""
    try:
        graph: fx.GraphModule = onnx2fx.convert(model)
    except onnx2fx.UnsupportedOpError as error:
        node = next((n for n in model.graph.node if n.op_type == error.op_type), None)
        where = f" (node {node.name!r})" if node is not None and node.name else ""
        raise BadInput(
            f"operator {error.op_type} of the model is not supported{where}: {first_line(error)}"
        ) from error
    except Exception as error:  # the importer walks a stranger's file: whatever it raises is a refusal
        raise BadInput(f"the model could not be imported: {first_line(error)}") from error
    return cheapen(graph.float())


class _Rounded(torch.autograd.Function):
    """Rounding to even whose gradient is that of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004 - autograd's signature
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ARG004 - autograd's signature
        return grads[0]


def _along(value: Tensor, x: Tensor, axis: int) -> Tensor:
    """One number for each entry of ``axis`` in a shape that multiplies x."""
    if value.numel() == 1:
        return value.reshape(())
    shape = [1] * x.dim()
    shape[axis] = -1
    return value.reshape(shape)


def _quantize(x: Tensor, scale: Tensor, zero: Tensor, axis: int, low: int, high: int) -> Tensor:
    """The integers as float numbers, so that gradients reach x."""
    rounded = cast(Tensor, _Rounded.apply(x / _along(scale, x, axis)))  # type: ignore[no-untyped-call]
    return (rounded + _along(zero.float(), x, axis)).clamp(low, high)


def _dequantize(q: Tensor, scale: Tensor, zero: Tensor, axis: int) -> Tensor:
    return (q - _along(zero.float(), q, axis)) * _along(scale, q, axis)


def _quantize_linear(builder: Any, node: onnx.NodeProto) -> fx.Node:
    kind = builder.initializer_map[node.input[2]].dtype
    limits = torch.iinfo(kind)
    inputs = tuple(builder.get_value(name) for name in node.input)
    made: fx.Node = builder.call_function(
        _quantize, args=(*inputs, get_attribute(node, "axis", 1), limits.min, limits.max)
    )
    return made


def _dequantize_linear(builder: Any, node: onnx.NodeProto) -> fx.Node:
    inputs = tuple(builder.get_value(name) for name in node.input)
    made: fx.Node = builder.call_function(_dequantize, args=(*inputs, get_attribute(node, "axis", 1)))
    return made


def _to(x: Tensor, kind: torch.dtype) -> Tensor:
    return x.to(kind)


def _cast(builder: Any, node: onnx.NodeProto) -> fx.Node:
    """Every float type is float32 here: the file's half precision is a matter of its speed."""
    kind = onnx_dtype_to_torch(get_attribute(node, "to"))
    if kind is None:
        raise onnx2fx.UnsupportedOpError("Cast", opset_version=builder.opset_version)
    kind = torch.float32 if kind.is_floating_point else kind
    made: fx.Node = builder.call_function(_to, args=(builder.get_value(node.input[0]), kind))
    return made


def _take(x: Tensor, places: Tensor, axis: int) -> Tensor:
    axis = axis % x.dim()
    flat = places.long().flatten()
    taken = x.index_select(axis, torch.where(flat < 0, flat + x.shape[axis], flat))
    return taken.reshape((*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]))


def _gather(builder: Any, node: onnx.NodeProto) -> fx.Node:
    """With places counted from the end as well (``x[:, -1]``)."""
    inputs = tuple(builder.get_value(name) for name in node.input)
    made: fx.Node = builder.call_function(_take, args=(*inputs, get_attribute(node, "axis", 0)))
    return made


for _name, _handler in (
    ("Gather", _gather),
    ("QuantizeLinear", _quantize_linear),
    ("DequantizeLinear", _dequantize_linear),
    ("Cast", _cast),
):
    onnx2fx.register_op(_name, _handler)
