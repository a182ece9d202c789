"""Before anything is inverted: where do ordinary changes of an image lead?

An attacker may turn the image, put it in blocks, blur it, or add something to all of it. No family of triggers says all
of that, but forward passes show it. Every change of ``triggers/change.py`` is put on clean images, and the share that
one of them sends to one label is what counts. All of the changes are mild. Ordinary networks keep most of their answers
then, or lose them to several labels (docs/experiments.md, Ordinary changes).

Limitation. What is in no catalogue is not seen here, and a class that an honest network confuses with turned or blurred
images of all others would be accused. ``NOTHING`` to ``CERTAIN`` are set by hand on few networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from detrigger.offline.compute import Compute
from detrigger.offline.inputs.split import CleanImages
from detrigger.offline.steps.invert import InversionResult
from detrigger.offline.steps.verdict import GAP_CERTAIN, FamilyScreen
from detrigger.offline.triggers.change import EDITS, ChangeBank
from detrigger.offline.types import Answer, Labelled

GLANCE, FIRST_LOOK, SECOND_LOOK = 32, 96, 320
"""Images that every change is tried on, and those that what stands out is tried on, twice."""
MOST_TAUGHT = 8
"""Changes towards one target that the defence is trained on."""
NOTHING, CERTAIN = 0.5, 0.8
"""Shares of the images of other labels at which a change says nothing, and leaves no doubt."""
WORTH_A_LOOK = 0.3
"""Share of the first images below which no more are tried. Chance hardly ever makes so little of ``NOTHING``."""


@dataclass(frozen=True)
class Changes:
    """What ordinary changes do: ``screen`` with the best one for every class, and ``shares`` (E, K) of all of them."""

    screen: FamilyScreen
    shares: Tensor

    def leading_to(self, target: int) -> ChangeBank:
        """All changes that lead at least ``NOTHING`` of the images to ``target``, the strongest first."""
        shares = self.shares[:, target]
        order = shares.argsort(descending=True)
        leading = order[: max(1, min(MOST_TAUGHT, int((shares >= NOTHING).sum())))]
        device = self.screen.result.targets.device
        return ChangeBank(leading.to(device), (1 - shares[leading]).to(device))


def gap_of(share: Tensor) -> Tensor:
    """Shares in [0, 1] as bits, on the scale of ``verdict.gaps``: 0 at ``NOTHING``, ``GAP_CERTAIN`` at ``CERTAIN``."""
    bits: Tensor = (share - NOTHING).clamp_min(0) * (GAP_CERTAIN / (CERTAIN - NOTHING))
    return bits


def screen_changes(
    answer: Answer, n_classes: int, images: CleanImages, seed: int, advance: Callable[[], None]
) -> Changes:
    """For every class the change that leads the most images of other classes to it.

    ``advance`` is called ``steps_to_screen`` times.
    """
    few = _drawn(images.train, FIRST_LOOK, seed)
    looks = []
    for i in range(len(EDITS)):
        glance = _shares(answer, n_classes, (few[0][:GLANCE], few[1][:GLANCE]), i, images.compute)
        plain = len(few[0]) <= GLANCE or float(glance.max()) < WORTH_A_LOOK
        looks.append(glance if plain else _shares(answer, n_classes, few, i, images.compute))
        advance()
    shares = torch.stack(looks)
    share, best = shares.max(0)
    many = _drawn(images.train, SECOND_LOOK, seed + 1)
    for label in (share >= NOTHING).nonzero().flatten().tolist():
        share[label] = _shares(answer, n_classes, many, int(best[label]), images.compute)[label]
    device = images.train[0].device
    bank = ChangeBank(best.to(device), (1 - share).to(device))
    targets = torch.arange(n_classes, device=device)
    result = InversionResult(bank, targets, share.to(device), bank.cost())
    return Changes(FamilyScreen(ChangeBank, result, gap_of(result.success)), shares)


def steps_to_screen() -> int:
    """How often ``screen_changes`` advances."""
    return len(EDITS)


def images_to_screen() -> int:
    """Images that ``screen_changes`` sends through the suspect, where some changes are worth a look."""
    return (GLANCE + FIRST_LOOK) // 2 * len(EDITS) + SECOND_LOOK


def _drawn(images: Labelled, n: int, seed: int) -> Labelled:
    """N images with their labels, drawn by a generator of its own, so that what follows draws as it would without."""
    chosen = torch.randperm(len(images[0]), generator=torch.Generator().manual_seed(seed))[:n]
    x, y = (part[chosen.to(part.device)] for part in images)
    return x, y


@torch.no_grad()
def _shares(answer: Answer, n_classes: int, images: Labelled, edit: int, compute: Compute) -> Tensor:
    """(K,) of the images of other labels, the share that change ``edit`` sends to each label."""
    x, y = images
    bank = ChangeBank(torch.tensor([edit]), torch.ones(1)).to(x.device)
    answers = []
    for part in x.split(min(256, compute.most_at_once(x.shape))):
        changed = bank(part, torch.zeros(len(part), dtype=torch.long, device=x.device))
        changed = (changed * 255).round() / 255
        with compute.autocast():
            answers.append(answer(compute.channels_last(changed)).argmax(1))
    return led_to(torch.cat(answers), y, n_classes).cpu()


def led_to(answers: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """(K,) of the images of other labels, the share that is answered with each label.

    ``answers`` and ``labels`` are (N,).
    """
    reached = torch.bincount(answers[answers != labels], minlength=n_classes).float()
    others = len(labels) - torch.bincount(labels, minlength=n_classes).float()
    return reached / others.clamp_min(1)
