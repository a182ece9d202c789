"""Tone: a curve of its own for every colour channel, x' = curve(x) (BppAttack's few grey levels, filters)."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from detrigger.offline.triggers.base import Jitter, Kind, TriggerBank
from detrigger.offline.triggers.synthetic import depths


class ToneBank(TriggerBank):
    """What looks at colours alone: coarse grey levels, tints, contrast, gamma.

    A curve has ``knots`` support points over [0, 1], linear between them. Cost is the root mean square of its
    difference from the identity.
    """

    family: ClassVar[str] = "tone"
    unit: ClassVar[str] = "change of the curves, root mean square"
    resembling: ClassVar[tuple[Kind, ...]] = (depths,)
    learning_rate: ClassVar[float] = 0.01
    knots: ClassVar[int] = 33

    def __init__(self, change: Tensor) -> None:
        super().__init__()
        self.change = nn.Parameter(change)

    @classmethod
    def start(cls, n: int, shape: tuple[int, int, int], seed: int) -> Self:
        g = torch.Generator().manual_seed(seed)
        return cls(torch.randn(n, shape[0], cls.knots, generator=g) * 0.02)

    def forward(self, x: Tensor, which: Tensor, jitter: Jitter | None = None) -> Tensor:
        n, c, h, w = x.shape
        place = x.detach().clamp(0, 1) * (self.knots - 1)
        low = place.floor().clamp(max=self.knots - 2)
        curve = self.change[which]
        below = curve.gather(2, low.long().view(n, c, -1)).view(n, c, h, w)
        above = curve.gather(2, low.long().view(n, c, -1) + 1).view(n, c, h, w)
        change = below + (place - low) * (above - below)
        if jitter is not None:
            change = change * jitter.strength.view(-1, 1, 1, 1)
        return (x + change).clamp(0, 1)

    def cost(self) -> Tensor:
        return self.change.pow(2).mean((1, 2)).sqrt()
