"""Spot: a small square at one place, x' = (1 - m) x + m p; BadNets' corner, wherever it is."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor

from detrigger.offline.triggers.base import Kind
from detrigger.offline.triggers.sticker import StickerBank
from detrigger.offline.triggers.synthetic import patches, specks


class SpotBank(StickerBank):
    """Patches that are looked for place by place.

    The mask of ``PatchBank`` starts all over the image, and on some networks it ends in scattered noise that costs far
    more than the corner sticker that was there. A square that stands on the sticker from the start finds it in a few
    steps, so every place is tried for every class (docs/experiments.md, Screen).
    """

    family: ClassVar[str] = "spot"
    resembling: ClassVar[tuple[Kind, ...]] = (patches, specks)
    learning_rate: ClassVar[float] = 0.3
    success_is_evidence: ClassVar[bool] = False
    tries_all_starts: ClassVar[bool] = True
    per_side: ClassVar[int] = 6  # places along each side of the image

    def __init__(self, mask: Tensor, pattern: Tensor, size: tuple[int, int], place: Tensor) -> None:
        super().__init__(mask, pattern, size)
        self.register_buffer("place", place)

    @classmethod
    def start(cls, n: int, shape: tuple[int, int, int], seed: int) -> Self:
        sticker = StickerBank.start(n, shape, seed)
        rows, columns = _places(sticker, cls.per_side)
        g = torch.Generator().manual_seed(seed)
        place = torch.stack(
            [
                rows[torch.randint(len(rows), (n,), generator=g)],
                columns[torch.randint(len(columns), (n,), generator=g)],
            ],
            1,
        )
        return cls(sticker.mask.detach(), sticker.pattern.detach(), sticker.size, place)

    @classmethod
    def candidates(cls, shape: tuple[int, int, int]) -> Self:
        rows, columns = _places(StickerBank.start(1, shape, 0), cls.per_side)
        place = torch.cartesian_prod(rows, columns)
        sticker = StickerBank.start(len(place), shape, 0)
        return cls(sticker.mask.detach(), sticker.pattern.detach(), sticker.size, place)

    def places(self, x: Tensor, which: Tensor) -> Tensor:  # noqa: ARG002 - the same for all images
        return self.get_buffer("place")[which]


def _places(sticker: StickerBank, per_side: int) -> list[Tensor]:
    """Evenly spread rows, and columns, of the upper left corner."""
    room = (side - part for side, part in zip(sticker.size, sticker.mask.shape[2:], strict=True))
    return [torch.linspace(0, most, min(per_side, most + 1)).round().long() for most in room]
