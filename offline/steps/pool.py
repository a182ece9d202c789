"""The growing pool of inverted triggers that the purifier trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detrigger.offline.compute import Compute
from detrigger.offline.inputs.profile import PARTS, Part
from detrigger.offline.triggers import synthetic
from detrigger.offline.triggers.base import Jitter, TriggerBank
from detrigger.offline.triggers.generator import GeneratorBank

NEWEST_WEIGHT = 3.0
"""How much likelier a bank of the newest round is drawn than an older one."""
BACKGROUND_WEIGHT = 0.25
"""The same for what did not stand out, beside what did."""
BANKS_A_BATCH = 3


@dataclass(frozen=True)
class Entry:
    """A bank of the pool; ``works_anywhere`` if it works anywhere on the image, ``background`` if it is not evidence.

    Copies are up to ``strongest`` times as strong as found.
    """

    bank: TriggerBank
    works_anywhere: bool = False
    background: bool = False
    strongest: float = 1.0


class Pool:
    """Banks of triggers, oldest first; nothing ever leaves, or the purifier would forget it."""

    def __init__(
        self,
        compute: Compute,
        synthetic_weights: Sequence[float] | None = None,
        parts: frozenset[Part] = PARTS,
    ) -> None:
        """``synthetic_weights``: how often each of ``synthetic.KINDS`` is drawn, where it is not as usual."""
        self.entries: list[Entry] = []
        self._newest = 0
        self._compute, self._parts = compute, parts
        self._weights = None if synthetic_weights is None else torch.tensor(synthetic_weights)

    def add_round(self, entries: list[Entry]) -> None:
        """Put in what one round of inversion found."""
        self._newest = len(self.entries)
        self.entries += [
            entry
            for entry in entries
            if "generator" in self._parts or not isinstance(entry.bank, GeneratorBank)
        ]

    def _weight(self, i: int) -> float:
        if self.entries[i].background:
            return BACKGROUND_WEIGHT
        return NEWEST_WEIGHT if i >= self._newest else 1.0

    @torch.no_grad()
    def trigger(self, x: Tensor) -> Tensor:
        """Put a trigger on every image (N, C, H, W): half varied ones of the pool, half synthetic."""
        g = self._compute.generator
        inverted = len(x) // 2 if "inverted" in self._parts else 0
        weights = torch.tensor([self._weight(i) for i in range(len(self.entries))])
        parts = []
        for part in x[:inverted].chunk(BANKS_A_BATCH):
            i = int(torch.multinomial(weights, 1, generator=g))
            entry, side = self.entries[i], x.shape[-1]
            which = self._compute.randint(len(entry.bank), len(part))
            reach = side // 2 if entry.works_anywhere else max(1, side // 16)
            strongest = entry.strongest if "copies as found" in self._parts else None
            triggered = entry.bank(part, which, Jitter.draw(len(part), reach, g, strongest))
            if entry.bank.overlaid and "random on top" in self._parts:
                half = len(part) // 2
                (kind,) = entry.bank.resembling
                triggered[:half] = kind(triggered[:half].cpu(), g).to(x.device)
            parts.append(triggered)
        rest = x[inverted:]
        if "synthetic" in self._parts:
            rest = synthetic.draw(rest.cpu(), g, self._weights).to(x.device)
        parts.append(rest)
        return torch.cat(parts)
