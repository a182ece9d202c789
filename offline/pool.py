"""The growing pool of inverted triggers that the purifier trains on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from offline.compute import Compute
from offline.triggers import synthetic
from offline.triggers.base import Jitter, TriggerBank

NEWEST_WEIGHT = 3.0
"""How much likelier a bank of the newest round is drawn than an older one."""
BACKGROUND_WEIGHT = 0.25
"""The same for what did not stand out, beside what did."""
BANKS_A_BATCH = 3


@dataclass(frozen=True)
class Entry:
    """A bank of the pool; ``roams`` if it works anywhere on the image, ``background`` if it is no evidence."""

    bank: TriggerBank
    roams: bool = False
    background: bool = False


class Pool:
    """Banks of triggers, oldest first; nothing ever leaves, or the purifier would forget it."""

    def __init__(self, compute: Compute) -> None:
        self.entries: list[Entry] = []
        self._newest = 0
        self._compute = compute

    def add_round(self, entries: list[Entry]) -> None:
        """Put in what one round of inversion found."""
        self._newest = len(self.entries)
        self.entries += entries

    def _weight(self, i: int) -> float:
        if self.entries[i].background:
            return BACKGROUND_WEIGHT
        return NEWEST_WEIGHT if i >= self._newest else 1.0

    @torch.no_grad()
    def trigger(self, x: Tensor) -> Tensor:
        """Put a trigger on every image (N, C, H, W): half from the pool, weakened and moved, half synthetic."""
        g = self._compute.generator
        inverted = len(x) // 2
        weights = torch.tensor([self._weight(i) for i in range(len(self.entries))])
        parts = []
        for part in x[:inverted].chunk(BANKS_A_BATCH):
            i = int(torch.multinomial(weights, 1, generator=g))
            entry, side = self.entries[i], x.shape[-1]
            which = self._compute.randint(len(entry.bank), len(part))
            reach = side // 2 if entry.roams else max(1, side // 16)
            parts.append(entry.bank(part, which, Jitter.draw(len(part), reach, g)))
        parts.append(synthetic.draw(x[inverted:].cpu(), g).to(x.device))
        return torch.cat(parts)
