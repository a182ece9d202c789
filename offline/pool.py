"""The growing pool of inverted triggers that the purifier trains on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detrigger.offline.compute import Compute
from detrigger.offline.invert import ANY, Answer
from detrigger.offline.triggers import synthetic
from detrigger.offline.triggers.base import Jitter, TriggerBank

NEWEST_WEIGHT = 3.0
"""How much likelier a bank of the newest round is drawn than an older one."""
BACKGROUND_WEIGHT = 0.25
"""The same for what did not stand out, beside what did."""
BANKS_A_BATCH = 3
PROBES = 640
"""Images that each kind of synthetic trigger is tried on."""
OVERLAID = ("blend", "sine", "warp")
"""Families of triggers over the whole image. Half of their copies get a random trigger of the same kind on top: the
attacker's is the one that was found and more, which the suspect did not need. Through a purifier that lets 14% of a
WaNet pass, inverted warps alone reached 8% and such pairs 10%; through better ones both reached about as much as the
attacker's."""
RESPONSE_WEIGHT = 10.0
"""A kind of synthetic trigger that sends every image to a suspected target is drawn this many times more often."""
RESEMBLANCE_WEIGHT = 1.0
"""The same for a kind that looks like evidence: a patch that is not the attacker's own seldom works, yet teaches."""


@dataclass(frozen=True)
class Entry:
    """A bank of the pool; ``roams`` if it works anywhere on the image, ``background`` if it is no evidence.

    Copies are up to ``strongest`` times as strong as found.
    """

    bank: TriggerBank
    roams: bool = False
    background: bool = False
    strongest: float = 1.0


class Pool:
    """Banks of triggers, oldest first; nothing ever leaves, or the purifier would forget it."""

    def __init__(self, compute: Compute, kinds: Sequence[float] | None = None) -> None:
        """``kinds``: how often each of ``synthetic.KINDS`` is drawn, where it is not as usual."""
        self.entries: list[Entry] = []
        self._newest = 0
        self._compute = compute
        self._kinds = None if kinds is None else torch.tensor(kinds)

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
        """Put a trigger on every image (N, C, H, W): half varied ones of the pool, half synthetic."""
        g = self._compute.generator
        inverted = len(x) // 2
        weights = torch.tensor([self._weight(i) for i in range(len(self.entries))])
        parts = []
        for part in x[:inverted].chunk(BANKS_A_BATCH):
            i = int(torch.multinomial(weights, 1, generator=g))
            entry, side = self.entries[i], x.shape[-1]
            which = self._compute.randint(len(entry.bank), len(part))
            reach = side // 2 if entry.roams else max(1, side // 16)
            triggered = entry.bank(part, which, Jitter.draw(len(part), reach, g, entry.strongest))
            if entry.bank.family in OVERLAID:
                half = len(part) // 2
                (kind,) = synthetic.RESEMBLING[entry.bank.family]
                triggered[:half] = kind(triggered[:half].cpu(), g).to(x.device)
            parts.append(triggered)
        parts.append(synthetic.draw(x[inverted:].cpu(), g, self._kinds).to(x.device))
        return torch.cat(parts)


def weights_of_kinds(responses: Sequence[float], families: Collection[str]) -> list[float]:
    """How often to draw each of ``synthetic.KINDS`` for a suspect with these ``responses`` and evidence families."""
    like = {kind for family in families for kind in synthetic.RESEMBLING[family]}
    return [
        usual * (1 + RESPONSE_WEIGHT * response + RESEMBLANCE_WEIGHT * (kind in like))
        for (kind, usual), response in zip(synthetic.KINDS.items(), responses, strict=True)
    ]


@torch.no_grad()
def responses(
    answer: Answer, targets: Collection[int], train: tuple[Tensor, Tensor], compute: Compute
) -> list[float]:
    """How the suspect responds to each of ``synthetic.KINDS``: 0 as to clean images, 1 with a target every time.

    The share of at most ``PROBES`` images of other classes that random triggers of the kind send to one of
    ``targets``, above the share that goes there without; of several targets the largest. Random warps sent a fifth of
    the images to the target of a WaNet suspect, a clean suspect sent at most 8% to any class.
    """
    images, labels = (part[:PROBES] for part in train)

    def answers(kind: synthetic.Kind | None) -> Tensor:
        # Kinds draw some of their parameters once a batch, so batches are small.
        parts = [part if kind is None else kind(part, compute.generator) for part in images.cpu().split(32)]
        with compute.autocast():
            return torch.cat([answer(compute.lay(part.to(images.device))).argmax(1) for part in parts])

    bare = answers(None)
    found = []
    for kind in synthetic.KINDS:
        with_trigger = answers(kind)
        gains = [0.0]
        for target in targets:
            others = labels != target
            if target != ANY and others.any():
                reached = (with_trigger == target).float() - (bare == target).float()
                gains.append(float(reached[others].mean()))
        found.append(max(gains))
    return found
