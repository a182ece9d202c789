"""Which classes look like targets: every family inverts every class, and the outliers are evidence.

A backdoor is a shortcut: to its target leads a trigger that is far cheaper than those to the other classes
(Neural Cleanse, section III-C). The measure is the logarithm of the cost, its distance from the median over the
classes in units of the median absolute deviation. A family that does not fit the trigger shows nothing, so all
families are asked: a warp stands out in no other family than the warps.

Limits. With fewer than ``FEWEST`` classes there is no population to stand out from, and the verdict is
"inconclusive" rather than "clean". A trigger that sends each class to another one (all-to-all) has no single
target and does not stand out here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.manifest import Verdict
from offline.compute import Compute
from offline.invert import Answer, Found, invert
from offline.triggers import UNIVERSAL
from offline.triggers.base import TriggerBank, image_shape

STRONG, WEAK = -3.5, -2.75
"""z below STRONG is evidence; between the two a second look is taken; what stays there is inconclusive."""
FEWEST = 6
RESTARTS = 4
PER_RESTART = 12
"""Candidates that a piece of evidence is inverted with again, and images that each sees in a step."""
_LEAST_SPREAD = 0.1  # of log cost; a smaller spread would turn chance into outliers


@dataclass(frozen=True)
class Screened:
    """One family's look at all classes: ``z`` (K,), negative where a class is cheap to reach."""

    family: type[TriggerBank]
    found: Found
    z: Tensor

    def cheapest(self, n: int) -> Tensor:
        """The n classes that stand out most, most suspicious first."""
        return self.z.argsort()[:n]


@dataclass(frozen=True)
class Evidence:
    """One class that one family reaches far too cheaply, and the trigger that does it."""

    target: int
    z: float
    cost: float
    success: float
    bank: TriggerBank

    @property
    def family(self) -> str:
        """Name of the family that found it."""
        return self.bank.family


def screen(
    answer: Answer,
    n_classes: int,
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    compute: Compute,
    *,
    steps: int,
    per_class: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> list[Screened]:
    """Invert all classes in one batch, family by family; families with a doubtful result are asked twice."""
    shape = image_shape(train[0])
    targets = torch.arange(n_classes, device=train[0].device)

    def look(family: type[TriggerBank], steps: int, seed: int) -> Screened:
        bank = family.start(n_classes, shape, seed).to(train[0].device)
        found = invert(
            answer, bank, targets, train, held_out, compute,
            steps=steps, per_candidate=per_class, advance=advance,
        )  # fmt: skip
        return Screened(family, found, outlyingness(found.cost, found.success))

    results = []
    for family in UNIVERSAL:
        first = look(family, steps, seed)
        if STRONG < first.z.min() <= WEAK:
            first = look(family, steps * 2, seed + 1)
        results.append(first)
    return results


def outlyingness(cost: Tensor, success: Tensor) -> Tensor:
    """(n,) robust z of log cost; a candidate that works on less than half of the images never stands out.

    Failing candidates stay in the population with the cost that they reached, which is below what they would need:
    this errs towards no evidence.
    """
    logs = cost.log()
    centre = logs.median()
    spread = (1.4826 * (logs - centre).abs().median()).clamp_min(_LEAST_SPREAD)
    z = (logs - centre) / spread
    return torch.where(success >= 0.5, z, z.clamp_min(0.0))


def evidence(results: Sequence[Screened], below: float = STRONG) -> list[Evidence]:
    """Everything that stands out, strongest first."""
    seen = [
        Evidence(
            target=target,
            z=float(result.z[target]),
            cost=float(result.found.cost[target]),
            success=float(result.found.success[target]),
            bank=result.found.bank.pick(torch.tensor([target])),
        )
        for result in results
        for target in (result.z <= below).nonzero().flatten().tolist()
    ]
    return sorted(seen, key=lambda e: e.z)


def restart(piece: Evidence, images: Tensor, compute: Compute, seed: int) -> TriggerBank:
    """``RESTARTS`` candidates for one piece of evidence: half near the known trigger, half anew."""
    bank = type(piece.bank).start(RESTARTS, image_shape(images), seed).to(images.device)
    near = RESTARTS // 2
    with torch.no_grad():
        for fresh, known in zip(bank.parameters(), piece.bank.parameters(), strict=True):
            noise = torch.randn(fresh[:near].shape, generator=compute.generator).to(fresh.device)
            fresh[:near] = known + (0.3 * noise if fresh.dim() > 1 else 0.0)
    return bank


def refine(
    answer: Answer,
    piece: Evidence,
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    compute: Compute,
    *,
    steps: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Evidence, TriggerBank]:
    """Spend more time where something stood out: the evidence with its cheapest trigger, and all that was found."""
    targets = torch.full((RESTARTS,), piece.target, device=train[0].device)
    found = invert(
        answer, restart(piece, train[0], compute, seed), targets, train, held_out, compute,
        steps=steps, per_candidate=PER_RESTART, advance=advance,
    )  # fmt: skip
    works = found.success >= 0.9 * found.success.max()
    best = int(torch.where(works, found.cost, torch.inf).argmin())
    if float(found.success[best]) < 0.5 or float(found.cost[best]) >= piece.cost:
        return piece, found.bank
    sharper = replace(
        piece,
        cost=float(found.cost[best]),
        success=float(found.success[best]),
        bank=found.bank.pick(torch.tensor([best])),
    )
    return sharper, found.bank


def verdict(results: Sequence[Screened], n_classes: int) -> tuple[Verdict, tuple[int, ...]]:
    """What the screening says of the suspect, and the target labels, most suspicious first."""
    strong = evidence(results)
    if strong and n_classes >= FEWEST:
        return "backdoored", tuple(dict.fromkeys(e.target for e in strong))
    if n_classes < FEWEST or evidence(results, WEAK):
        return "inconclusive", ()
    return "clean", ()
