"""Patch: a universal mask and pattern, x' = (1 - m) x + m p (Neural Cleanse, Wang et al. 2019, section III-B)."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from detrigger.offline.triggers.base import Jitter, Kind, TriggerBank, shift
from detrigger.offline.triggers.synthetic import patches, specks


class PatchBank(TriggerBank):
    """Stickers, watermarks, corner marks: anything that covers few pixels. Cost is the mask's mean."""

    family: ClassVar[str] = "patch"
    unit: ClassVar[str] = "share of the image that is covered"
    resembling: ClassVar[tuple[Kind, ...]] = (patches, specks)
    learning_rate: ClassVar[float] = 0.2
    max_evidence_cost: ClassVar[float] = 0.045
    """Between what leads to targets and what leads to classes of clean suspects (docs/experiments.md, Screen)."""

    def __init__(self, mask: Tensor, pattern: Tensor) -> None:
        super().__init__()
        self.mask, self.pattern = nn.Parameter(mask), nn.Parameter(pattern)

    @classmethod
    def start(cls, n: int, shape: tuple[int, int, int], seed: int) -> Self:
        g = torch.Generator().manual_seed(seed)
        c, h, w = shape
        return cls(torch.randn(n, 1, h, w, generator=g) * 0.5 - 2.0, torch.randn(n, c, h, w, generator=g))

    def forward(self, x: Tensor, which: Tensor, jitter: Jitter | None = None) -> Tensor:
        mask, pattern = self.mask.sigmoid()[which], self.pattern.sigmoid()[which]
        if jitter is not None:
            mask = shift(mask, jitter.offsets, wrap=True) * jitter.strength.view(-1, 1, 1, 1)
            mask = mask.clamp(max=1)  # the cheapest that works may be half transparent
            pattern = shift(pattern, jitter.offsets, wrap=True)
        return x + mask * (pattern - x)

    def cost(self) -> Tensor:
        return self.mask.sigmoid().mean((1, 2, 3))
