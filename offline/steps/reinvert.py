"""Inversion again: near what was found, refined on the suspect, and through the defence while it learns.

What an attacker can still do through the purifier is what the purifier has to learn next (the paper's alternation).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detrigger.offline.compute import Compute
from detrigger.offline.inputs.profile import Profile
from detrigger.offline.inputs.split import CleanImages
from detrigger.offline.steps.invert import Effort, invert, success_rates
from detrigger.offline.steps.pool import Entry
from detrigger.offline.steps.verdict import Evidence
from detrigger.offline.triggers.base import TriggerBank, image_shape
from detrigger.offline.triggers.generator import GeneratorBank
from detrigger.offline.types import Answer

WORKS = 0.5
"""Success from which a trigger counts as one."""
CAP = 3.5
"""A new trigger may cost this many times the one that gave the class away."""
CHANGE_STRENGTH = 1.5
"""How much more than in the catalogue an ordinary change may be made of an image that the defence is trained on."""
INPUT_AWARE = 0.5
"""A generator's change beside that of the sticker which gave its target away: at 1 it finds adversarial noise."""


def restart(piece: Evidence, n: int, images: Tensor, compute: Compute, seed: int) -> TriggerBank:
    """``n`` candidates for one piece of evidence: half near the known trigger, half anew."""
    bank = type(piece.bank).start(n, image_shape(images), seed).to(images.device)
    near = n // 2
    with torch.no_grad():
        for fresh, known in zip(bank.parameters(), piece.bank.parameters(), strict=True):
            noise = torch.randn(fresh[:near].shape, generator=compute.generator).to(fresh.device)
            fresh[:near] = known + (0.3 * noise if fresh.dim() > 1 else 0.0)
        for fixed, known_fixed in zip(bank.buffers(), piece.bank.buffers(), strict=True):
            fixed[:] = known_fixed
    return bank


def shared_restarts(profile: Profile, leads: int) -> int:
    """Candidates for each of so many leads: one has all, and more share them, but no further than two."""
    return profile.restarts // max(1, min(leads, 2))


def refine(
    answer: Answer, piece: Evidence, restarts: int, images: CleanImages, effort: Effort
) -> tuple[Evidence, TriggerBank]:
    """Spend more time where something stood out: the evidence with its cheapest trigger, and all that was found.

    With a cap the trigger is what was found within it, whether it works or not.
    """
    train = images.train[0]
    targets = torch.full((restarts,), piece.target, device=train.device)
    bank = restart(piece, restarts, train, images.compute, effort.seed)
    result = invert(answer, bank, targets, images, effort)
    works = result.success >= 0.9 * result.success.max()
    best = int(torch.where(works, result.cost, torch.inf).argmin())
    capped, success, cost = effort.cap is not None, float(result.success[best]), float(result.cost[best])
    if capped or (success >= WORKS and cost < piece.cost):
        bank = result.bank.pick(torch.tensor([best]))
        piece = replace(piece, cost=min(cost, piece.cost), success=success, bank=bank)
    return replace(piece, works_anywhere=_works_anywhere(answer, piece, images)), result.bank


def _works_anywhere(answer: Answer, piece: Evidence, images: CleanImages) -> bool:
    """Whether the trigger keeps at least half of its success when it is put anywhere on the image."""
    target = torch.tensor([piece.target], device=images.train[0].device)
    return float(success_rates(answer, piece.bank, target, images, anywhere=True)) >= 0.5 * piece.success


@dataclass(frozen=True, kw_only=True)
class Refresh:
    """One round of inversion through the defence: see ``Effort``; ``resisted`` are the keys that are left out."""

    profile: Profile
    steps: int
    seed: int
    aim: float
    advance: Callable[[int], None]
    resisted: Collection[str] = ()


def invert_again(
    answer: Answer, leads: Sequence[Evidence], images: CleanImages, refresh: Refresh
) -> tuple[list[Entry], dict[str, float]]:
    """Invert every lead again through ``answer``: half the restarts near the known trigger, half anew.

    Several leads share the restarts.

    A sticker says that the trigger's place depends on the image. So may its shape (input-aware attacks): for its target
    a generator is inverted as well, whose change has ``INPUT_AWARE`` times the sticker's root mean square.

    Returns what was found, banks with their strongest candidate first, and by family:target the best success on
    held-out images.
    """
    entries: list[Entry] = []
    left: dict[str, float] = {}
    profile, train = refresh.profile, images.train[0]
    restarts = shared_restarts(profile, len(leads))
    for piece in leads:
        for family in _families(piece):
            key = f"{family}:{piece.target}"
            if key in refresh.resisted:
                refresh.advance(refresh.steps)
                continue
            if not piece.bank.learned:
                targets = torch.full((len(piece.bank),), piece.target, device=train.device)
                left[key] = float(success_rates(answer, piece.bank, targets, images).max())
                entries.append(Entry(piece.bank, strongest=CHANGE_STRENGTH))
                refresh.advance(refresh.steps)
                continue
            if family == piece.family:
                bank = restart(piece, restarts, train, images.compute, refresh.seed)
                images_each, works_anywhere = profile.images_each, piece.works_anywhere
                cap = min(CAP * piece.cost, bank.max_training_cost)
            else:
                cap = INPUT_AWARE * visibility(piece.bank, images.held_out[0][:64])
                bank = GeneratorBank.start(1, image_shape(train), refresh.seed, cap).to(train.device)
                images_each, works_anywhere = profile.restarts * profile.images_each, False
            targets = torch.full((len(bank),), piece.target, device=train.device)
            effort = Effort(
                steps=refresh.steps,
                images_each=images_each,
                aim=refresh.aim,
                cap=cap,
                advance=lambda: refresh.advance(1),
            )
            result = invert(answer, bank, targets, images, effort)
            strongest_first = result.bank.pick(result.success.argsort(descending=True, stable=True))
            entries.append(Entry(strongest_first, works_anywhere))
            left[key] = max(float(result.success.max()), left.get(key, 0.0))
    return entries, left


def inversions(leads: Sequence[Evidence]) -> int:
    """How many inversions ``invert_again`` runs."""
    return sum(len(_families(piece)) for piece in leads)


def _families(piece: Evidence) -> list[str]:
    """What a piece of evidence is inverted again as."""
    return [piece.family, *([GeneratorBank.family] if piece.bank.input_aware else [])]


@torch.no_grad()
def visibility(bank: TriggerBank, images: Tensor) -> float:
    """Root mean square of what the first candidate changes of ``images`` (N, C, H, W), in [0, 1] units."""
    which = torch.zeros(len(images), dtype=torch.long, device=images.device)
    return float((bank(images, which) - images).pow(2).mean().sqrt())
