"""Blend: a faint image over the whole picture, x' = (1 - a) x + a p (Chen et al. 2017); also SIG's stripes."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from detrigger.offline.triggers.base import Jitter, Kind, TriggerBank, shift, upsample
from detrigger.offline.triggers.synthetic import blends


class BlendBank(TriggerBank):
    """A full image p, grown from a k x k grid so that smooth triggers are found and pixel noise is not.

    Cost is the weight a; p is free in [0, 1].
    """

    family: ClassVar[str] = "blend"
    unit: ClassVar[str] = "weight of the picture"
    resembling: ClassVar[tuple[Kind, ...]] = (blends,)
    overlaid: ClassVar[bool] = True
    max_training_cost: ClassVar[float] = 0.2
    learning_rate: ClassVar[float] = 0.1
    grid: ClassVar[int] = 16

    def __init__(self, weight: Tensor, pattern: Tensor, size: tuple[int, int]) -> None:
        super().__init__()
        self.weight, self.pattern, self.size = nn.Parameter(weight), nn.Parameter(pattern), size

    @classmethod
    def start(cls, n: int, shape: tuple[int, int, int], seed: int) -> Self:
        g = torch.Generator().manual_seed(seed)
        k = (min(cls.grid, shape[1]), min(cls.grid, shape[2]))
        return cls(torch.full((n,), -1.5), 0.5 * torch.randn(n, shape[0], *k, generator=g), shape[1:])

    def pick(self, indices: Tensor) -> Self:
        other = super().pick(indices)
        other.size = self.size
        return other

    def forward(self, x: Tensor, which: Tensor, jitter: Jitter | None = None) -> Tensor:
        weight = self.weight.sigmoid()[which].view(-1, 1, 1, 1)
        pattern = upsample(self.pattern, self.size).sigmoid()[which]
        if jitter is not None:
            weight = weight * jitter.strength.view(-1, 1, 1, 1)
            pattern = shift(pattern, jitter.offsets)
        return x + weight * (pattern - x)

    def cost(self) -> Tensor:
        return self.weight.sigmoid()
