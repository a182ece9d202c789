"""Sticker: a small square that works wherever it stands, x' = (1 - m) x + m p at a place of each image's own."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrigger.offline.triggers.base import Jitter, Kind, TriggerBank, shift
from detrigger.offline.triggers.synthetic import patches, scribbles, specks


class StickerBank(TriggerBank):
    """Patches at random places, which the mask of ``PatchBank`` smears over all of them.

    The place follows from the image, as if at random but the same every time, so that the trigger is a function of
    the image. Cost is the mask's mean over the whole image.
    """

    family: ClassVar[str] = "sticker"
    unit: ClassVar[str] = "share of the image that is covered"
    resembling: ClassVar[tuple[Kind, ...]] = (patches, specks, scribbles)
    input_aware: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 0.2
    success_is_evidence: ClassVar[bool] = True
    share: ClassVar[float] = 0.19  # of the image's sides

    def __init__(self, mask: Tensor, pattern: Tensor, size: tuple[int, int]) -> None:
        super().__init__()
        self.mask, self.pattern, self.size = nn.Parameter(mask), nn.Parameter(pattern), size

    @classmethod
    def start(cls, n: int, shape: tuple[int, int, int], seed: int) -> Self:
        g = torch.Generator().manual_seed(seed)
        c, h, w = shape
        rows, columns = (max(2, round(cls.share * side)) for side in (h, w))
        pattern = torch.randn(n, c, rows, columns, generator=g)
        return cls(torch.randn(n, 1, rows, columns, generator=g) * 0.5 + 1.0, pattern, (h, w))

    def pick(self, indices: Tensor) -> Self:
        other = super().pick(indices)
        other.size = self.size
        return other

    def places(self, x: Tensor, which: Tensor) -> Tensor:  # noqa: ARG002 - the spot needs it
        """(N, 2) rows and columns of the upper left corners."""
        digits = torch.stack([x.mean((1, 2, 3)), x[..., : x.shape[3] // 2].mean((1, 2, 3))], 1) * 9973.0
        room = [side - part + 1 for side, part in zip(self.size, self.mask.shape[2:], strict=True)]
        return ((digits - digits.floor()) * digits.new_tensor(room)).long()

    def forward(self, x: Tensor, which: Tensor, jitter: Jitter | None = None) -> Tensor:
        (h, w), (rows, columns) = self.size, self.mask.shape[2:]
        both = torch.cat([self.mask, self.pattern], 1)[which].sigmoid()
        both = F.pad(both, (0, w - columns, 0, h - rows))
        offsets = self.places(x, which)
        if jitter is not None:
            offsets = offsets + jitter.offsets.to(offsets)
        both = shift(both, offsets, wrap=True)
        mask, pattern = both[:, :1], both[:, 1:]
        if jitter is not None:
            mask = (mask * jitter.strength.to(mask).view(-1, 1, 1, 1)).clamp(max=1)
        return x + mask * (pattern - x)

    def cost(self) -> Tensor:
        return self.mask.sigmoid().mean((1, 2, 3)) * self.max_cost()

    def max_cost(self) -> float:
        rows, columns = self.mask.shape[2:]
        return float(rows * columns / (self.size[0] * self.size[1]))
