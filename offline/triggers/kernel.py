"""Kernel: one small convolution over the whole picture, x' = x + k * x (out of focus, sharpened, camera shake)."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrigger.offline.triggers.base import Jitter, TriggerBank

SIDE = 5
"""Of a kernel, in pixels."""


def convolved(x: Tensor, kernels: Tensor) -> Tensor:
    """Images (N, C, H, W), each convolved with its own of ``kernels`` (N, k, k), k odd, edges repeated.

    Pixel by pixel of the kernel, as a convolution with as many groups as images cannot be exported to ONNX.
    """
    (h, w), side = x.shape[2:], kernels.shape[1]
    framed = F.pad(x, [side // 2] * 4, mode="replicate")
    found = torch.zeros_like(x)
    for row in range(side):
        for column in range(side):
            near = framed[..., row : row + h, column : column + w]
            found = found + kernels[:, row, column].view(-1, 1, 1, 1) * near
    return found


class KernelBank(TriggerBank):
    """What looks at neighbours alone: blur, sharpening, edges.

    The change k sums to 0, so that even areas stay as they are, and is the same for all channels. Cost is half of its
    absolute sum, the largest change that it can make: 0.9 for the mean of 3 x 3 pixels.
    """

    family: ClassVar[str] = "kernel"
    learning_rate: ClassVar[float] = 0.02
    most: ClassVar[float] = 1.5
    plausible: ClassVar[float] = 1.5
    """Blurs of any width cost less than 1. What leads half of the images to a class of a clean suspect costs over 2."""

    def __init__(self, change: Tensor) -> None:
        super().__init__()
        self.change = nn.Parameter(change)

    @classmethod
    def start(cls, n: int, shape: tuple[int, int, int], seed: int) -> Self:  # noqa: ARG003 - the same for all sizes
        g = torch.Generator().manual_seed(seed)
        return cls(torch.randn(n, SIDE, SIDE, generator=g) * 0.02)

    def kernels(self) -> Tensor:
        """(n, SIDE, SIDE) that sum to 0."""
        return self.change - self.change.mean((1, 2), keepdim=True)

    def forward(self, x: Tensor, which: Tensor, jitter: Jitter | None = None) -> Tensor:
        kernels = self.kernels()[which]
        if jitter is not None:
            kernels = kernels * jitter.strength.to(x).view(-1, 1, 1)
        return (x + convolved(x, kernels)).clamp(0, 1)

    def cost(self) -> Tensor:
        return self.kernels().abs().sum((1, 2)) / 2
