"""Few classes: what a trigger costs is compared with what it costs on innocent twins of the suspect.

Where a suspect has fewer than ``FEWEST_CLASSES`` classes, no population of classes says what one should cost, and an
innocent network may be led to one of two labels at half the price of the other. So every family inverts the same
targets on networks like the suspect that never saw a trigger (``twin.py``), with the same effort:

    gap(t) = log2( least price(t) on a twin / price(t) )     in bits, as with many classes

Price and bars mean what they mean there (``verdict.py``). Few classes leave time for several tries at each of them, of
which the cheapest that works counts: a single one sometimes misses what is there. Where a class stands out all networks
search on, and twins also from what was found on the suspect.

One label is accused at the most. A trigger has an opposite, which speaks against the target, and with few classes that
leads to another one nearly as cheaply. Where several stand out alike the verdict is in doubt.

Ordinary changes do not accuse anybody here. With two labels most images that lose theirs get the other one. A
change that leads nearly every image to one label is doubt at the most.

Limitations: a trigger that costs as much as a way that innocent networks have is not told from it. Of two backdoors one
is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from detrigger.offline.inputs.split import CleanImages
from detrigger.offline.steps.budget import Budget
from detrigger.offline.steps.invert import ANY_OTHER, Effort, InversionResult, invert, success_rates
from detrigger.offline.steps.screen import allows_second_look, fits, images_seen
from detrigger.offline.steps.starts import start
from detrigger.offline.steps.verdict import FamilyScreen, price
from detrigger.offline.triggers.base import TriggerBank
from detrigger.offline.types import Answer

T = TypeVar("T")
TRIES = 4
"""Candidates towards each class."""
WORKS = 0.8
"""Success from which on a try counts by its cost alone."""
HALF = 0.5
"""Success from which on a trigger of the suspect counts on a twin, at a price that rises with what is missing."""
LOOK_AGAIN = 0.4
"""Gap, in bits, from which on a family searches on (docs/experiments.md, Few classes)."""
DOUBT, CHANGED = 0.8, 0.95
"""The gap, between inconclusive and evidence, of labels that are not accused, and of an ordinary change that leads
``CHANGED`` of the images to one label."""
AHEAD = 0.3
"""Bits by which the label that is accused stands out more than all others."""


def screen_few(
    networks: Sequence[Answer],
    n_classes: int,
    images: CleanImages,
    effort: Effort,
    families: Sequence[type[TriggerBank]],
    budget: Budget | None = None,
) -> list[FamilyScreen]:
    """Every family's cheapest try at every class, and one at ``ANY_OTHER``, with gaps as above.

    ``networks`` are the suspect and its twins; without twins nothing stands out. Families that no longer fit into the
    ``budget`` are left out, and longer searches before these.
    """
    budget = budget or Budget()
    device = images.train[0].device
    targets = torch.tensor([*range(n_classes)] * TRIES + [ANY_OTHER], device=device)

    def work(family: type[TriggerBank]) -> float:
        return len(asked(networks, family)) * images_seen(family, len(targets) - 1, images, effort)

    screens = []
    for i, family in enumerate(families):
        if not fits(family, work(family), budget, first=i == 0):
            continue
        began = budget.now()
        found = []
        for network in asked(networks, family):
            bank = start(network, family, targets, images, effort)
            found.append(cheapest_tries(invert(network, bank, targets, images, effort)))
        gap = gaps_of_few(*found)
        budget.pace.add(budget.now() - began, work(family))
        with budget.keeping(budget.pace.seconds(sum(map(work, families[i + 1 :])))):
            again = float(gap.max()) >= LOOK_AGAIN and allows_second_look(family, 4 * work(family), budget)
        if again:
            found = [searched_on(*pair, images, effort) for pair in zip(networks, found, strict=True)]
            carried = [carried_on(twin, found[0], images, effort) for twin in networks[1:]]
            gap = gaps_of_few(*found, *carried)
        screens.append(FamilyScreen(family, found[0], gap / family.gap_scale).credible())
    return one_accused(screens)


def asked(networks: Sequence[T], family: type[TriggerBank]) -> Sequence[T]:
    """Those of the suspect and its twins that a family is tried on: where its cost says little, the suspect alone."""
    return networks[:1] if family.success_is_evidence else networks


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


def carried_on(
    answer: Answer, result: InversionResult, images: CleanImages, effort: Effort
) -> InversionResult:
    """The candidates as another network has them that searches on from there.

    Stripes above all have many places where a search ends, and a twin's own search may miss the cheap one. What leads
    less than ``HALF`` of the images there costs infinity.
    """
    success = success_rates(answer, result.bank, result.targets, images)
    there = searched_on(answer, replace(result, success=success), images, effort)
    return replace(there, cost=there.cost.where(there.success >= HALF, torch.inf))


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


def gaps_of_few(result: InversionResult, *usual: InversionResult) -> Tensor:
    """(n,) bits by which each candidate is cheaper than the cheapest of ``usual``, those of the twins.

    What does not work has no gap, nor has anything without twins.
    """
    if not usual:
        return torch.zeros_like(result.cost)
    least = torch.stack([price(twin.cost, twin.success) for twin in usual]).amin(0)
    gap = (least / price(result.cost, result.success)).log2()
    return torch.where(result.success >= WORKS, gap, gap.clamp_max(0.0))


def one_accused(screens: Sequence[FamilyScreen]) -> list[FamilyScreen]:
    """The same, where only the target that stands out most has gaps above ``DOUBT``, if it is ``AHEAD`` of all others.

    Which of several it is would be a guess otherwise.
    """
    highest: dict[int, float] = {}
    for look in screens:
        for target, gap in look.by_target():
            highest[target] = max(gap, highest.get(target, 0.0))
    first, *others = sorted(highest, key=lambda target: -highest[target])
    ahead = all(highest[first] - highest[other] >= AHEAD for other in others)
    found = []
    for look in screens:
        accused = (look.result.targets == first) & ahead
        found.append(replace(look, gap=torch.where(accused, look.gap, look.gap.clamp_max(DOUBT))))
    return found


def gaps_of_changes(share: Tensor) -> Tensor:
    """(K,) gaps for the shares (K,) of images that ordinary changes lead to each class: ``DOUBT`` at most."""
    return torch.where(share >= CHANGED, DOUBT, 0.0)
