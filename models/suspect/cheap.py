"""Rules that make passes through an imported graph cheap; its answers stay the same.

* A ``Clip`` with constant limits becomes ``hardtanh``. ``clamp`` with limits in tensors spends more time on masks and
  comparisons than the convolutions take, forward and backward.
* A strided depthwise convolution stays in float32 on a CPU. Its backward pass in bfloat16 is many times slower.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx


def cheapen(graph: fx.GraphModule) -> fx.GraphModule:
    """Apply the rules above, in place."""
    for node in list(graph.graph.nodes):
        if node.target is torch.clamp:
            _clip(graph, node)
        elif node.meta.get("onnx_op_type") == "Conv" and _strided_depthwise(node):
            node.target = in_float32(node.target)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _clip(graph: fx.GraphModule, node: fx.Node) -> None:
    """Limits as numbers where they are constants of one element."""
    limits = [_number(graph, node.kwargs.get(side)) for side in ("min", "max")]
    if any(limit is ... for limit in limits):
        return
    low, high = limits
    if low is not None and high is not None and low < high:
        node.target, node.args, node.kwargs = F.hardtanh, (node.args[0], low, high), {}
    else:
        node.kwargs = {"min": low, "max": high}


def _number(graph: fx.GraphModule, value: Any) -> Any:
    """A limit as a float or None; ``...`` where it is not a constant number."""
    if value is None or isinstance(value, int | float):
        return value
    constant = _constant(graph, value)
    return float(constant) if constant is not None and constant.numel() == 1 else ...


def _constant(graph: fx.GraphModule, node: Any) -> Tensor | None:
    """The tensor that a node always has, if no image reaches it."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "get_attr":
        value = getattr(graph, str(node.target), None)
        return value if isinstance(value, Tensor) else None
    if node.op != "call_function" or len(node.all_input_nodes) != 1:
        return None
    inner = _constant(graph, node.all_input_nodes[0])
    if inner is None or inner.numel() != 1:
        return None
    function: Callable[..., Any] = node.target  # type: ignore[assignment]
    value = function(*fx.map_arg(node.args, lambda _: inner), **fx.map_arg(node.kwargs, lambda _: inner))
    return value if isinstance(value, Tensor) else None


def _strided_depthwise(node: fx.Node) -> bool:
    strides, groups = node.args[3], node.args[5]
    return isinstance(groups, int) and groups > 1 and isinstance(strides, list | tuple) and max(strides) > 1


def in_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function without reduced precision where its first argument lies on a CPU."""

    def run(x: Tensor, *rest: Any) -> Tensor:
        if x.device.type != "cpu":
            return function(x, *rest)
        with torch.autocast("cpu", enabled=False):
            return function(x.float(), *rest)

    return run
