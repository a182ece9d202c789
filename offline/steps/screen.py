"""Every family inverts every class; what is reached too cheaply stands out.

A family with a doubtful result is asked twice. With more than ``MOST_CLASSES`` classes only that many are inverted, so
that the cost does not grow with their number. Half are those that the triggers towards ``ANY_OTHER`` end in, the others
are drawn at random as the population to stand out from.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from detrigger.offline.inputs.split import CleanImages
from detrigger.offline.steps.budget import Budget
from detrigger.offline.steps.invert import ANY_OTHER, Effort, InversionResult, invert
from detrigger.offline.steps.starts import images_to_start, start
from detrigger.offline.steps.verdict import (
    GAP_CERTAIN,
    GAP_EVIDENCE,
    GAP_SECOND_LOOK,
    FamilyScreen,
    gaps,
)
from detrigger.offline.triggers import UNIVERSAL
from detrigger.offline.triggers.base import TriggerBank, image_shape
from detrigger.offline.types import Answer

MOST_CLASSES = 48
ENOUGH_IMAGES, AT_ONCE = 3, 0.8
"""Images from which on a step tells so much of a candidate that it is pressed at once, and the share of the steps that
is enough then (docs/experiments.md, Screen). With fewer it ends as one that works no more."""
UNCONFIRMED = 0.95
"""Gap, in bits, below evidence, but enough to be inverted again."""
FEWER = 0.6
"""Share of the images of a step where a target is certain (docs/experiments.md, Screen)."""


def screen(
    answer: Answer,
    n_classes: int,
    images: CleanImages,
    effort: Effort,
    families: Sequence[type[TriggerBank]] = UNIVERSAL,
    known: Collection[int] = (),
    budget: Budget | None = None,
) -> list[FamilyScreen]:
    """Invert all classes in one batch, family by family; families with a doubtful result are asked twice.

    ``known`` are targets that are certain already. Once there is one, further families see ``FEWER`` images a step and
    are asked twice only for what is evidence already: beside a certain target another one has to be plain
    (``verdict.suspected``).

    Their gaps are the mean of both answers: chance rarely makes the same class cheap twice, a trigger does. For a
    target that another family has already found strong, the better answer counts. That it is a target is settled, and
    the purifier has to know how else it can be reached.

    ``effort.images_each`` is what a candidate sees in a step with at most ten classes; with more it falls to two, and
    ``effort.steps`` should be ``stretched``.

    Families that no longer fit into the ``budget`` are left out, and second looks before these. What no second look has
    confirmed counts as ``UNCONFIRMED`` at most.
    """
    budget = budget or Budget()
    device = images.train[0].device
    shown = max(2, min(effort.images_each, round(10 * effort.images_each / n_classes)))
    usual = replace(effort, images_each=shown)
    if shown >= ENOUGH_IMAGES:
        usual = replace(usual, steps=round(AT_ONCE * effort.steps), at_once=True)
    fewer = replace(usual, images_each=min(shown, max(ENOUGH_IMAGES, round(FEWER * shown))))

    def inverted(family: type[TriggerBank], targets: Tensor, effort: Effort) -> InversionResult:
        bank = start(answer, family, targets, images, effort)
        return invert(answer, bank, targets, images, effort)

    def look(family: type[TriggerBank], targets: Tensor, effort: Effort) -> FamilyScreen:
        result = inverted(family, targets, effort)
        bits = gaps(result.cost, result.success, targets, family.success_is_evidence, result.bank.max_cost())
        return FamilyScreen(family, result, bits / family.gap_scale)

    def work(family: type[TriggerBank]) -> float:
        return images_seen(family, min(n_classes, MOST_CLASSES), images, usual)

    screens = []
    any_other = torch.full((1,), ANY_OTHER, device=device)
    certain = set(known)
    strong: set[int] = set()
    for i, family in enumerate(families):
        if not fits(family, work(family), budget, first=i == 0):
            continue
        began = budget.now()
        classes = torch.arange(n_classes, device=device)
        own = fewer if certain else usual
        if n_classes > MOST_CLASSES:
            untargeted = inverted(family, any_other.repeat(4), own)
            classes = _nominated(untargeted, answer, images, n_classes)
        targets = torch.cat([classes, any_other])
        seen = look(family, targets, own)
        unknown = [gap for t, gap in seen.by_target() if t not in certain]
        budget.pace.add(budget.now() - began, work(family))
        if (GAP_EVIDENCE if certain else GAP_SECOND_LOOK) <= max(unknown) < GAP_CERTAIN:
            longer = replace(usual, steps=usual.steps * 2, seed=effort.seed + 1)
            with budget.keeping(budget.pace.seconds(sum(map(work, families[i + 1 :])))):
                again = allows_second_look(family, 2 * work(family), budget)
            seen = (
                both_looks(seen, look(family, targets, longer), strong)
                if again
                else unconfirmed(seen, certain)
            )
        seen = seen.credible()  # only now: a trigger that is not found yet costs more than it will
        certain |= {t for t, gap in seen.by_target() if gap >= GAP_CERTAIN}
        strong |= {t for t, gap in seen.by_target() if gap >= GAP_EVIDENCE}
        screens.append(seen)
    return screens


def images_seen(family: type[TriggerBank], targets: int, images: CleanImages, effort: Effort) -> float:
    """Images that go through the suspect with their gradient where a family looks at so many target labels."""
    own = effort.steps * effort.images_each * (targets + 1)
    return float(own + images_to_start(family, targets, image_shape(images.train[0])))


def fits(family: type[TriggerBank], work: float, budget: Budget, *, first: bool) -> bool:
    """Whether a family fits into the budget; BadInput where not even the first one does."""
    if first:
        budget.demand("a search", budget.pace.seconds(work))
        return True
    return budget.allows(f"the family {family.family}", budget.pace.seconds(work))


def allows_second_look(family: type[TriggerBank], work: float, budget: Budget) -> bool:
    """Whether a second look fits into the budget."""
    return budget.allows(f"a second look at the family {family.family}", budget.pace.seconds(work))


def unconfirmed(seen: FamilyScreen, certain: Collection[int]) -> FamilyScreen:
    """A look that had no second one: what is neither certain by itself nor in ``certain`` is doubtful at the most."""
    settled = torch.tensor([t in certain for t in seen.result.targets.tolist()], device=seen.gap.device)
    settled |= seen.gap >= GAP_CERTAIN
    return replace(seen, gap=torch.where(settled, seen.gap, seen.gap.clamp_max(UNCONFIRMED)))


def stretched(steps: int, n_classes: int) -> int:
    """Steps of the screening. Where a step sees fewer images of a class there are more steps, at most twice as many.

    Measured: docs/experiments.md, Screen.
    """
    return round(steps * min(2.0, max(1.0, n_classes / 10)))


def both_looks(first: FamilyScreen, longer: FamilyScreen, strong: set[int]) -> FamilyScreen:
    """The longer look with the mean gaps of both; for targets in ``strong`` the better look's candidate and gap."""
    result, gap = longer.result, (first.gap + longer.gap) / 2
    for i, target in enumerate(result.targets.tolist()):
        if target not in strong:
            continue
        gap[i] = longer.gap[i]
        if first.gap[i] > longer.gap[i]:
            gap[i] = first.gap[i]
            result.bank.put(torch.tensor([i]), first.result.bank.pick(torch.tensor([i])))
            result.success[i], result.cost[i] = first.result.success[i], first.result.cost[i]
    return replace(longer, gap=gap)


@torch.no_grad()
def _nominated(result: InversionResult, answer: Answer, images: CleanImages, n_classes: int) -> Tensor:
    """(MOST_CLASSES,) labels: half of them where triggers without a target end, the others at random."""
    x, labels = (part[:128] for part in images.held_out)
    compute, votes = images.compute, torch.zeros(n_classes)
    for i in range(len(result.targets)):
        with compute.autocast():
            triggered = result.bank(x, torch.full((len(x),), i, device=x.device))
            answers = answer(compute.channels_last(triggered))
        wrong = answers.argmax(1)[answers.argmax(1) != labels]
        votes += torch.bincount(wrong.cpu(), minlength=n_classes)
    chance = torch.rand(n_classes, generator=compute.generator)
    most = (votes + 0.5 * chance).argsort(descending=True)[: MOST_CLASSES // 2]
    chance[most] = 2.0
    return chance.argsort(descending=True)[:MOST_CLASSES].to(x.device)
