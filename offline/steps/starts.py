"""Where an inversion starts: fresh, at the best of what the family knows, or at the best place of all."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from detrigger.offline.inputs.split import CleanImages
from detrigger.offline.steps.invert import (
    ANY_OTHER,
    Effort,
    add_gradient,
    draw,
    images_of_others,
    reached,
)
from detrigger.offline.triggers.base import TriggerBank, image_shape
from detrigger.offline.types import Answer

PROBES = 16
"""Images that each possible start is tried on."""
EXPLORED_STEPS, EXPLORED_ON, EXPLORED_AT_ONCE = (7, 5, 3), 3, 128
"""Steps that each possible start may learn for, one image in each, before one in ``EXPLORED_ON`` goes on (docs/
experiments.md, Screen); and how many images share a step."""
EXPLORED_FOR_ANY = 4
"""The images in each of these steps where the target is ``ANY_OTHER``."""


def start(
    answer: Answer, family: type[TriggerBank], targets: Tensor, images: CleanImages, effort: Effort
) -> TriggerBank:
    """A bank to invert, a candidate for each of ``targets`` (n,): the best of the family's own starts, or fresh.

    ``effort.advance`` is called ``steps_to_start`` times.
    """
    train, compute = images.train, images.compute
    shape = image_shape(train[0])
    known = family.candidates(shape)
    if known is None:
        return family.start(len(targets), shape, effort.seed).to(train[0].device)
    known = known.to(train[0].device)
    if family.tries_all_starts:
        return _explore(answer, known, targets, images, effort)
    chosen = compute.randint(len(train[0]), PROBES)
    x, labels = (part[chosen] for part in train)
    rates = []
    for i in range(len(known)):
        with torch.no_grad(), compute.autocast():
            logits = answer(compute.channels_last(known(x, torch.full((PROBES,), i, device=x.device))))
        hit = torch.stack([reached(logits, t, labels) & (labels != t) for t in targets])
        rates.append(hit.float().mean(1))
    best = torch.stack(rates).argmax(0)
    bank = known.pick(best)
    return bank.requires_grad_(True)


def steps_to_start(family: type[TriggerBank], targets: int, shape: tuple[int, int, int]) -> int:
    """Steps that ``start`` takes for so many target labels and ``ANY_OTHER``."""
    known = family.candidates(shape) if family.tries_all_starts else None
    if known is None:
        return 0
    return sum(
        steps * (-(-targets // _explored_together(left)) + 1) for steps, left in _explored_rounds(len(known))
    )


def images_to_start(family: type[TriggerBank], targets: int, shape: tuple[int, int, int]) -> int:
    """Images that these steps send through the suspect with their gradient."""
    known = family.candidates(shape) if family.tries_all_starts else None
    if known is None:
        return 0
    return sum(steps * left * (targets + EXPLORED_FOR_ANY) for steps, left in _explored_rounds(len(known)))


def _explored_rounds(starts: int) -> list[tuple[int, int]]:
    """Steps of each round, and how many starts of a target compete in it."""
    return [(steps, max(1, starts // EXPLORED_ON**r)) for r, steps in enumerate(EXPLORED_STEPS)]


def _explored_together(starts: int, images_each: int = 1) -> int:
    """Targets whose starts are explored in one batch."""
    return max(1, EXPLORED_AT_ONCE // (starts * images_each))


def _explore(
    answer: Answer, known: TriggerBank, targets: Tensor, images: CleanImages, effort: Effort
) -> TriggerBank:
    """For each of ``targets`` (n,) the start of ``known`` whose loss is lowest after a few steps, as it is then.

    Starts whose loss is high drop out after each round. All of a target see the same images, or luck with them would
    decide. Those towards ``ANY_OTHER`` see more, because whatever covers the object loses some labels.
    """
    n, device = len(targets), targets.device
    bank = known.pick(torch.arange(len(known), device=device).repeat(n))
    smooth = torch.zeros(n, len(known), device=device)
    for steps, left in _explored_rounds(len(known)):
        best = smooth.topk(left, largest=False).indices
        bank = bank.pick((best + smooth.shape[1] * torch.arange(n, device=device)[:, None]).flatten())
        smooth = smooth.gather(1, best)
        for asked, images_each in ((targets != ANY_OTHER, 1), (targets == ANY_OTHER, EXPLORED_FOR_ANY)):
            indices = asked.nonzero().squeeze(1)
            for part in indices.split(_explored_together(left, images_each)) if len(indices) else ():
                own = (part[:, None] * left + torch.arange(left, device=device)).flatten()
                racing = bank.pick(own).requires_grad_(True)
                own_effort = replace(effort, steps=steps, images_each=images_each)
                smooth[part] = _race(answer, racing, targets[part], smooth[part], images, own_effort)
                bank.put(own, racing)
    return bank.pick(smooth.argmin(1) + smooth.shape[1] * torch.arange(n, device=device)).requires_grad_(True)


def _race(
    answer: Answer, bank: TriggerBank, targets: Tensor, smooth: Tensor, images: CleanImages, effort: Effort
) -> Tensor:
    """(t, s) smoothed losses of the s starts of each of ``targets`` (t,) after one more round; ``bank`` learns."""
    starts, others = smooth.shape[1], images_of_others(targets, images.train[1])
    wanted = targets.repeat_interleave(starts)
    optimizer = torch.optim.Adam(bank.parameters(), lr=bank.learning_rate, betas=(0.5, 0.9))
    for _ in range(effort.steps):
        chosen = draw(others, effort.images_each, images.compute).repeat_interleave(starts, 0)
        optimizer.zero_grad(set_to_none=True)
        losses, _ = add_gradient(answer, bank, wanted, chosen, images)
        optimizer.step()
        smooth = 0.8 * smooth + 0.2 * losses.mean(1).view(-1, starts)
        effort.advance()
    return smooth
