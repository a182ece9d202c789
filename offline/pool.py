"""The growing pool of inverted triggers that the purifier trains on."""

from __future__ import annotations

import torch
from torch import Tensor

from offline.compute import Compute
from offline.triggers import synthetic
from offline.triggers.base import Jitter, TriggerBank

NEWEST_WEIGHT = 3.0
"""How much likelier a bank of the newest round is drawn than an older one."""
BANKS_A_BATCH = 3


class Pool:
    """Banks of triggers, oldest first; nothing ever leaves, or the purifier would forget it."""

    def __init__(self, compute: Compute) -> None:
        self.banks: list[TriggerBank] = []
        self._roaming: list[bool] = []
        self._newest = 0
        self._compute = compute

    def add_round(self, banks: list[TriggerBank], roaming: list[bool]) -> None:
        """Put in what one round of inversion found; ``roaming`` says which banks work anywhere on the image."""
        self._newest = len(self.banks)
        self.banks += banks
        self._roaming += roaming

    @torch.no_grad()
    def trigger(self, x: Tensor) -> Tensor:
        """Put a trigger on every image (N, C, H, W): half from the pool, weakened and moved, half synthetic."""
        g = self._compute.generator
        inverted = len(x) // 2
        weights = torch.ones(len(self.banks))
        weights[self._newest :] = NEWEST_WEIGHT
        parts = []
        for part in x[:inverted].chunk(BANKS_A_BATCH):
            i = int(torch.multinomial(weights, 1, generator=g))
            bank, side = self.banks[i], x.shape[-1]
            which = self._compute.randint(len(bank), len(part))
            reach = side // 2 if self._roaming[i] else max(1, side // 16)
            parts.append(bank(part, which, Jitter.draw(len(part), reach, g)))
        parts.append(synthetic.draw(x[inverted:].cpu(), g).to(x.device))
        return torch.cat(parts)
