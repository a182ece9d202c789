"""Few classes: what a trigger costs is compared with what it costs on innocent networks.

Where a suspect has fewer than ``FEWEST_CLASSES`` classes, no population of classes says what one should cost, and an
innocent network may be led to one of two labels at half the price of the other. So the price has a fixed measure beside
it, ``USUAL``: what the cheapest class of innocent networks of several architectures costs in that family. Where another
class of the suspect itself costs less, that is the measure:

    gap(t) = log2( min(USUAL, price of the cheapest other class) / price(t) )     in bits, as with many classes

Price and bars mean what they mean there (``verdict.py``), but doubt begins earlier, at ``NEAR``. What is cheaper than
usual for several classes alike is doubt, not evidence. Few classes leave time for several tries at each of them, of
which the cheapest that works counts: a single one sometimes misses what is there. A family that ends near the measure
searches on from there.

Ordinary changes do not accuse anybody here. With two labels most images that lose theirs get the other one. A
change that leads nearly every image to one label is doubt at the most.

Limitations: a network that is often wrong is led anywhere cheaply. One that is weaker than those that ``USUAL`` comes
from may be accused, and a trigger that costs as much as a way that innocent networks have is not told from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from detrigger.offline.inputs.split import CleanImages
from detrigger.offline.steps.budget import Budget
from detrigger.offline.steps.invert import ANY_OTHER, Effort, InversionResult, invert
from detrigger.offline.steps.screen import allows_second_look, fits, images_seen
from detrigger.offline.steps.starts import start
from detrigger.offline.steps.verdict import GAP_CERTAIN, FamilyScreen, price
from detrigger.offline.triggers.base import TriggerBank
from detrigger.offline.types import Answer

USUAL = {
    "spot": 0.0125,
    "patch": 0.014,
    "blend": 0.06,
    "sine": 0.15,
    "warp": 1.6,
    "tone": 0.1,
    "kernel": 1.2,
}
"""Costs below those of innocent networks (docs/experiments.md, Few classes). Other families accuse nobody."""
TRIES = 8
"""Candidates that all classes share, two each at least."""
WORKS = 0.8
"""Success from which on a try counts by its cost alone."""
LOOK_AGAIN = -0.6
"""Gap, in bits, from which on a family searches on, as short searches end at twice of what a target costs."""
NEAR, DOUBT = 0.2, 0.8
"""A gap of ``NEAR`` bits counts as ``DOUBT``, which is between inconclusive and evidence. So does what is as much
cheaper than usual for two classes alike, and an ordinary change that leads ``CHANGED`` of the images to one label. Some
targets cost hardly less than the cheapest class of an innocent network (docs/experiments.md, Few classes)."""
CHANGED = 0.95


def tries_each(n_classes: int) -> int:
    """Candidates towards each of so many classes."""
    return max(2, round(TRIES / n_classes))


def screen_few(
    answer: Answer,
    n_classes: int,
    images: CleanImages,
    effort: Effort,
    families: Sequence[type[TriggerBank]],
    budget: Budget | None = None,
) -> list[FamilyScreen]:
    """Every family's cheapest try at every class, and one at ``ANY_OTHER``, with gaps as above.

    Families that no longer fit into the ``budget`` are left out, and longer searches before these.
    """
    budget = budget or Budget()
    device = images.train[0].device
    targets = torch.tensor([*range(n_classes)] * tries_each(n_classes) + [ANY_OTHER], device=device)

    def work(family: type[TriggerBank]) -> float:
        return images_seen(family, len(targets) - 1, images, effort)

    screens = []
    for i, family in enumerate(families):
        if not fits(family, work(family), budget, first=i == 0):
            continue
        began = budget.now()
        bank = start(answer, family, targets, images, effort)
        result = cheapest_tries(invert(answer, bank, targets, images, effort))
        usual = USUAL.get(family.family)
        gap = gaps_of_few(result, usual)
        doubtful = LOOK_AGAIN <= float(gap.max()) < GAP_CERTAIN and usual is not None
        budget.pace.add(budget.now() - began, work(family))
        with budget.keeping(budget.pace.seconds(sum(map(work, families[i + 1 :])))):
            again = doubtful and allows_second_look(family, 2 * work(family), budget)
        if again:
            result = searched_on(answer, result, images, effort)
            gap = gaps_of_few(result, usual)
        screens.append(FamilyScreen(family, result, gap))
    return screens


def searched_on(
    answer: Answer, result: InversionResult, images: CleanImages, effort: Effort
) -> InversionResult:
    """The same candidates after twice as many further steps, each as it was where that brought nothing."""
    start = result.bank.pick(torch.arange(len(result.targets))).requires_grad_(True)
    longer = replace(effort, steps=2 * effort.steps, advance=lambda: None)
    later = invert(answer, start, result.targets, images, longer)
    worse = price_of(later) > price_of(result)
    where = worse.nonzero().flatten()
    later.bank.put(where, result.bank.pick(where))
    success = torch.where(worse, result.success, later.success)
    return InversionResult(later.bank, result.targets, success, torch.where(worse, result.cost, later.cost))


def price_of(result: InversionResult) -> Tensor:
    """(n,) cost of success; what does not work is dearer than all that does."""
    return torch.where(result.success >= WORKS, price(result.cost, result.success), torch.inf)


def cheapest_tries(result: InversionResult) -> InversionResult:
    """For every target the cheapest try that works; where none does, the most successful."""
    worst = result.cost.max() + 1
    order = torch.where(result.success >= WORKS, result.cost, worst + 1 - result.success)
    aims = list(dict.fromkeys(result.targets.tolist()))
    best = torch.stack([order.where(result.targets == aim, torch.inf).argmin() for aim in aims])
    return InversionResult(
        result.bank.pick(best), result.targets[best], result.success[best], result.cost[best]
    )


def gaps_of_few(result: InversionResult, usual: float | None) -> Tensor:
    """(n,) bits by which each candidate is cheaper than ``usual`` and than the cheapest class beside it.

    What is cheaper than usual, but not than another class, is doubt at the most. What does not work has no gap.
    """
    if usual is None:
        return torch.zeros_like(result.cost)
    works, aimed = result.success >= WORKS, result.targets != ANY_OTHER
    bits = price(result.cost, result.success).log2()
    alone = math.log2(usual) - bits
    gap = []
    for i in range(len(bits)):
        others = aimed & works & (torch.arange(len(bits), device=bits.device) != i)
        gap.append(torch.where(others, bits, math.log2(usual)).min().clamp_max(math.log2(usual)) - bits[i])
    found = torch.maximum(torch.stack(gap), alone.clamp_max(DOUBT))
    found = torch.where(found >= NEAR, found.clamp_min(DOUBT), found)
    return torch.where(works, found, found.clamp_max(0.0))


def gaps_of_changes(share: Tensor) -> Tensor:
    """(K,) gaps for the shares (K,) of images that ordinary changes lead to each class: ``DOUBT`` at most."""
    return torch.where(share >= CHANGED, DOUBT, 0.0)
