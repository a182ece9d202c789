"""Which classes look like targets, and what that says of the suspect.

A backdoor is a shortcut: to its target leads a trigger that is far cheaper than those to the other classes
(Neural Cleanse, section III-C). The measure is the gap, log2 of how much cheaper the class is than the lower quartile
of all classes: 1 bit is half its cost. Neural Cleanse divides by the median absolute deviation instead, which with
ten classes is a guess. A family that does not fit the trigger shows nothing, so all families are asked.

A trigger that sends each class to another one (all-to-all) has no single target. Beside the classes every family
therefore inverts towards ``ANY_OTHER`` label. Its gap is that to the cheapest class: without a backdoor the way out of
all classes is about as long as the way to the nearest one.

Limit. With fewer than ``FEWEST_CLASSES`` classes there is no population, and gaps are measured otherwise (``few.py``).
With fewer than ``FEW_IMAGES`` images the verdict is "inconclusive" already where something is doubtful.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detrigger.models.manifest import Verdict
from detrigger.offline.steps.invert import AIM, ANY_OTHER, InversionResult
from detrigger.offline.triggers.base import TriggerBank

GAP_EVIDENCE = 1.0
"""Bits. A larger gap is evidence of a backdoor (this and the next: docs/experiments.md, Screen)."""
GAP_INCONCLUSIVE = 0.7
"""A gap from here to ``GAP_EVIDENCE`` makes the verdict inconclusive."""
GAP_REINVERT = 0.85
"""From here on a target is inverted again through the defence."""
GAP_SECOND_LOOK, GAP_CERTAIN = 0.6, 2.0
"""Between these a second look is taken, unless the target is certain from another family; the mean counts."""
FAR_BELOW, FAR_BELOW_CERTAIN = 0.75, 1.5
"""Bits that a lone sign of another target may stand below the strongest one, and a certain one below a stronger one.
The first counts within a family, too: further below, a lone sign accuses nobody."""
FEWEST_CLASSES = 6
FEW_IMAGES = 200
"""Images that the candidates see. With fewer a backdoor stands out less."""


@dataclass(frozen=True)
class FamilyScreen:
    """One family's look at its candidates ``result``: ``gap`` (n,) in bits, positive where a target is cheap."""

    family: type[TriggerBank]
    result: InversionResult
    gap: Tensor

    def by_target(self) -> list[tuple[int, float]]:
        """Target and gap of every candidate."""
        return list(zip(self.result.targets.tolist(), self.gap.tolist(), strict=True))

    def credible(self) -> FamilyScreen:
        """The same with gaps of 0 where a candidate costs more than the family allows as evidence."""
        return replace(self, gap=self.gap.where(self.result.cost <= self.family.max_evidence_cost, 0.0))

    def cheapest(self, n: int) -> Tensor:
        """At most n candidates that an attacker might use, those that stand out most first."""
        order = self.gap.argsort(descending=True)
        return order[self.result.cost[order] <= self.family.max_training_cost][:n]


@dataclass(frozen=True)
class Evidence:
    """One target that one family reaches far too cheaply, and the trigger that does it."""

    target: int  # a label, or ANY_OTHER
    gap: float
    cost: float
    success: float
    bank: TriggerBank
    works_anywhere: bool = False  # it works at any place of the image

    @property
    def family(self) -> str:
        """Name of the family that found it."""
        return self.bank.family


def price(cost: Tensor, success: Tensor) -> Tensor:
    """(n,) cost of success: what ended short of ``AIM`` is cheap partly for that."""
    return cost * AIM / success.clamp(0.5, AIM)


def gaps(
    cost: Tensor,
    success: Tensor,
    targets: Tensor,
    success_is_evidence: bool = False,
    max_cost: float = torch.inf,
) -> Tensor:
    """(n,) bits by which each candidate is cheaper than the lower quartile of the classes.

    For ``ANY_OTHER`` it is the distance to the cheapest class. What counts is the price of success, cost * AIM /
    success and at most ``max_cost``: what ended short of ``AIM`` is cheap partly for that. Without it, stripes that
    send two thirds of the images to one class of a clean suspect stand out, and failures whose cost never rose hide
    what does. A candidate that works on less than half of the images never stands out. Where most classes fail,
    failures count with the cost that they reached, which errs towards no evidence. In a family where
    ``success_is_evidence`` they count as twice the dearest candidate, and success has to be plain.
    """
    aimed, works = targets != ANY_OTHER, success >= (0.8 if success_is_evidence else 0.5)
    prices = price(cost, success).clamp_max(max_cost)
    if success_is_evidence:
        prices = torch.where(works, prices, 2.2 * cost.max())
    elif works[aimed].float().mean() < 0.5:
        prices = torch.where(works, prices, cost)
    bits = prices.log2()
    usual = bits[aimed].quantile(0.25)
    cheapest = torch.where(aimed & works, bits, usual).min()
    gap = torch.where(aimed, usual, cheapest) - bits
    return torch.where(works, gap, gap.clamp_max(0.0))


def evidence(results: Sequence[FamilyScreen], above: float = GAP_EVIDENCE) -> list[Evidence]:
    """Everything that stands out, strongest first; of several candidates for one target the strongest."""
    seen: dict[tuple[str, int], Evidence] = {}
    for screened in results:
        for i in (screened.gap >= above).nonzero().flatten().tolist():
            piece = Evidence(
                target=int(screened.result.targets[i]),
                gap=float(screened.gap[i]),
                cost=float(screened.result.cost[i]),
                success=float(screened.result.success[i]),
                bank=screened.result.bank.pick(torch.tensor([i])),
            )
            known = seen.get((piece.family, piece.target))
            if known is None or piece.gap > known.gap:
                seen[piece.family, piece.target] = piece
    return sorted(seen.values(), key=lambda e: -e.gap)


def suspected(results: Sequence[FamilyScreen]) -> tuple[int, ...]:
    """The targets that stand out strongly, most suspicious first, ``ANY_OTHER`` among them.

    Beside a certain target another one has to be certain as well and not far below, or strong in two families. Or it
    has to be at least as cheap as the certain one in a family where that is strong. Less is not enough: single families
    lead suspects with a backdoor to second classes where nothing is hidden. Without a certain target, one with a single
    strong sign far below the strongest is left out for the same reason. Measured: docs/experiments.md, Screen.
    """
    strong = evidence(results)
    top = strong[0].gap if strong else 0.0
    certain = {e.target for e in strong if e.gap >= max(GAP_CERTAIN, top - FAR_BELOW_CERTAIN)}
    families = Counter(e.target for e in strong)
    level = {e.family: e.gap for e in strong if e.target in certain}
    return tuple(
        dict.fromkeys(
            e.target
            for e in strong
            if (not certain and e.gap >= top - FAR_BELOW)
            or e.target in certain
            or families[e.target] > 1
            or e.gap >= level.get(e.family, torch.inf)
        )
    )


def easily_led(results: Sequence[FamilyScreen]) -> tuple[int, ...]:
    """Those of the ``suspected`` that are defended, but not accused: nothing of their own speaks against them.

    Networks that are led easily have labels that a few pixels reach, hidden trigger or not. Such a label has one strong
    sign, in a family that finds another label far cheaper. Measured: docs/experiments.md, Screen.
    """
    strong, targets = evidence(results), suspected(results)
    families = Counter(e.target for e in strong)
    cheapest = {e.family: e.gap for e in reversed(strong)}
    return tuple(
        e.target
        for e in strong
        if e.target in targets and families[e.target] == 1 and e.gap < cheapest[e.family] - FAR_BELOW
    )


def verdict(results: Sequence[FamilyScreen], n_images: int) -> tuple[Verdict, tuple[int, ...]]:
    """What the screening with so many images says of the suspect, and the target labels, most suspicious first (none
    for all-to-all).
    """
    targets, led = suspected(results), easily_led(results)
    if targets:
        return "backdoored", tuple(t for t in targets if t != ANY_OTHER and t not in led)
    if evidence(results, GAP_SECOND_LOOK if n_images < FEW_IMAGES else GAP_INCONCLUSIVE):
        return "inconclusive", ()
    return "clean", ()
