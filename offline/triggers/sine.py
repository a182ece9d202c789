"""Sine: stripes over the whole picture, x' = x + a sin(2 pi (f . u) + phase) (SIG, Barni et al. 2019, eq. 1)."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from detrigger.offline.triggers.base import Jitter, Kind, TriggerBank
from detrigger.offline.triggers.synthetic import sines

FREQUENCIES = torch.tensor(
    [
        (f * math.sin(k * math.pi / 4), f * math.cos(k * math.pi / 4))
        for k in range(4)
        for f in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12)
    ]
)
"""(44, 2) cycles down and across an image that the inversion may start from."""
FIRST_AMPLITUDE = 0.15


class SineBank(TriggerBank):
    """One sinusoid, with an amplitude of its own in every channel. Cost is their root mean square.

    The answer is not a smooth function of the frequency, so that an inversion finds the one that it starts at:
    ``candidates`` are all that it may start from, and the best of them for a target is a good start.
    """

    family: ClassVar[str] = "sine"
    unit: ClassVar[str] = "amplitude, root mean square over channels"
    resembling: ClassVar[tuple[Kind, ...]] = (sines,)
    overlaid: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 0.02
    max_evidence_cost: ClassVar[float] = 0.15
    """Above SIG's own stripes, below what led to a class of a clean suspect (docs/experiments.md, Screen)."""
    gap_scale: ClassVar[float] = 1.25
    """Clean suspects react to some stripes as to a trigger (docs/experiments.md, Screen)."""

    def __init__(self, frequency: Tensor, phase: Tensor, amplitude: Tensor, size: tuple[int, int]) -> None:
        super().__init__()
        self.frequency, self.phase = nn.Parameter(frequency), nn.Parameter(phase)
        self.amplitude, self.size = nn.Parameter(amplitude), size

    @classmethod
    def start(cls, n: int, shape: tuple[int, int, int], seed: int) -> Self:
        g = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(FREQUENCIES), (n,), generator=g)
        phase = 2 * math.pi * torch.rand(n, generator=g)
        return cls(FREQUENCIES[chosen], phase, torch.full((n, shape[0]), FIRST_AMPLITUDE), shape[1:])

    @classmethod
    def candidates(cls, shape: tuple[int, int, int]) -> Self:
        n = len(FREQUENCIES)
        return cls(FREQUENCIES, torch.zeros(n), torch.full((n, shape[0]), FIRST_AMPLITUDE), shape[1:])

    def pick(self, indices: Tensor) -> Self:
        other = super().pick(indices)
        other.size = self.size
        return other

    def forward(self, x: Tensor, which: Tensor, jitter: Jitter | None = None) -> Tensor:
        h, w = self.size
        rows = torch.arange(h, device=x.device).view(1, h, 1) / h
        columns = torch.arange(w, device=x.device).view(1, 1, w) / w
        frequency, phase = self.frequency[which], self.phase[which].view(-1, 1, 1)
        amplitude = self.amplitude[which][:, :, None, None]
        if jitter is not None:
            rows = rows - jitter.offsets[:, :1, None].to(x) / h
            columns = columns - jitter.offsets[:, 1:, None].to(x) / w
            amplitude = amplitude * jitter.strength.to(x).view(-1, 1, 1, 1)
        along = frequency[:, :1, None] * rows + frequency[:, 1:, None] * columns
        return (x + amplitude * (2 * math.pi * along + phase).sin()[:, None]).clamp(0, 1)

    def cost(self) -> Tensor:
        return self.amplitude.pow(2).mean(1).add(1e-8).sqrt()
