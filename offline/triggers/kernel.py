"""Kernel: one small convolution over the whole picture, x' = x + k * x (out of focus, sharpened, camera shake)."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from detrigger.offline.triggers.base import KERNEL_SIDE, Jitter, Kind, TriggerBank, convolved
from detrigger.offline.triggers.synthetic import kernels


class KernelBank(TriggerBank):
    """What looks at neighbours alone: blur, sharpening, edges.

    The change k sums to 0, so that even areas stay as they are, and is the same for all channels. Cost is half of its
    absolute sum, the largest change that it can make: 0.9 for the mean of 3 x 3 pixels.
    """

    family: ClassVar[str] = "kernel"
    unit: ClassVar[str] = "largest change that the kernel can make"
    resembling: ClassVar[tuple[Kind, ...]] = (kernels,)
    learning_rate: ClassVar[float] = 0.02
    max_training_cost: ClassVar[float] = 1.5
    max_evidence_cost: ClassVar[float] = 1.5
    """Blurs of any width cost less than 1. What leads half of the images to a class of a clean suspect costs over 2."""

    def __init__(self, change: Tensor) -> None:
        super().__init__()
        self.change = nn.Parameter(change)

    @classmethod
    def start(cls, n: int, shape: tuple[int, int, int], seed: int) -> Self:  # noqa: ARG003 - the same for all sizes
        g = torch.Generator().manual_seed(seed)
        return cls(torch.randn(n, KERNEL_SIDE, KERNEL_SIDE, generator=g) * 0.02)

    def kernels(self) -> Tensor:
        """(n, KERNEL_SIDE, KERNEL_SIDE) that sum to 0."""
        return self.change - self.change.mean((1, 2), keepdim=True)

    def forward(self, x: Tensor, which: Tensor, jitter: Jitter | None = None) -> Tensor:
        kernels = self.kernels()[which]
        if jitter is not None:
            kernels = kernels * jitter.strength.to(x).view(-1, 1, 1)
        return (x + convolved(x, kernels)).clamp(0, 1)

    def cost(self) -> Tensor:
        return self.kernels().abs().sum((1, 2)) / 2
