"""Rules that make passes cheap change how a graph runs, and none of its answers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from detrigger.models.suspect.cheap import cheapen, in_float32
from detrigger.models.suspect.convert import to_fx


def clipping(low: float | None, high: float | None, *, learned: bool = False) -> onnx.ModelProto:
    """An image, clipped; with ``learned`` the upper limit depends on the image."""
    constants = [
        numpy_helper.from_array(np.array(limit, np.float32), name)
        for name, limit in (("low", low), ("high", high))
        if limit is not None
    ]
    names = ["x", "low" if low is not None else "", "high" if high is not None else ""]
    nodes = []
    if learned:
        nodes.append(helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0))
        names[2] = "mean"
    nodes.append(helper.make_node("Clip", names, ["y"]))
    shape: list[str | int | None] = ["N", 3, 4, 4]
    graph = helper.make_graph(
        nodes,
        "clip",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-1.0, 1.0), (0.0, None), (None, 2.0), (2.0, 1.0)])
def test_clips_answer_as_they_did(low: float | None, high: float | None) -> None:
    graph = to_fx(clipping(low, high))
    x = torch.linspace(-8, 8, 3 * 48).view(3, 3, 4, 4)
    expected = x.clamp(low, high) if low is None or high is None or low < high else torch.full_like(x, high)
    torch.testing.assert_close(graph(x), expected, rtol=0, atol=0)
    assert not any(node.target is torch.clamp and "Tensor" in str(node.kwargs) for node in graph.graph.nodes)
    assert any(node.target is F.hardtanh for node in graph.graph.nodes) is (
        low is not None and high is not None and low < high
    )


def test_a_limit_that_depends_on_the_image_stays() -> None:
    graph = to_fx(clipping(0.0, None, learned=True))
    x = torch.rand(1, 3, 4, 4) + 1
    torch.testing.assert_close(graph(x), x.clamp(0.0, float(x.mean())))
    assert cheapen(graph)(x).shape == x.shape


def test_a_strided_depthwise_convolution_keeps_its_precision() -> None:
    seen: list[torch.dtype] = []

    def conv(x: Tensor, weight: Tensor) -> Tensor:
        seen.append(x.dtype)
        return F.conv2d(x, weight, groups=4, stride=2)

    x, weight = torch.rand(2, 4, 8, 8).bfloat16(), torch.rand(4, 1, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        out = in_float32(conv)(x, weight)
    assert seen == [torch.float32]
    assert out.dtype == torch.float32
