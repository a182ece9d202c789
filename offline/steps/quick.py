"""A quick look: what shows a plain backdoor within seconds, and never that there is none.

Three looks, each of a fixed number of passes. Ordinary changes are put on a few images (``changes.py``). Squares at
places all over the image learn for a few steps to spoil the answers, whatever they become; at a trigger's place they
all become one label. Faint pictures learn towards every class under a cap that leads nowhere without a backdoor. What
leads many images to one label, and hardly any to the others, is tried again on images that it was not made from. Where
all of that finds nothing and a row of the last layer stands out (``last_layer.py``), a warp is tried to that label.

Limitations: a trigger that needs a longer search than this is not found. The shares that count were set by hand on few
networks, and high, so that innocent ones are not accused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detrigger.offline.inputs.split import CleanImages
from detrigger.offline.steps.changes import gap_of, led_to, screen_changes
from detrigger.offline.steps.invert import ANY_OTHER, Effort, InversionResult, invert, success_rates
from detrigger.offline.steps.screen import MOST_CLASSES
from detrigger.offline.steps.verdict import FEWEST_CLASSES, Evidence, FamilyScreen
from detrigger.offline.triggers.base import TriggerBank, image_shape
from detrigger.offline.triggers.blend import BlendBank
from detrigger.offline.triggers.change import ChangeBank
from detrigger.offline.triggers.spot import SpotBank
from detrigger.offline.triggers.warp import WarpBank
from detrigger.offline.types import Answer

FEW = 16
"""Images that the first looks judge by."""
CAPS: dict[type[TriggerBank], float] = {SpotBank: 0.02, BlendBank: 0.12, WarpBank: 0.5}
"""Costs that a trigger may reach in the second look (the first: docs/experiments.md, Screen). A cap gives way a little,
up to ``TOLERATED`` times."""
TOLERATED = 1.25
AGAIN_STEPS, AGAIN_IMAGES = 20, 8
"""Steps of the second look, and images in each."""
STEPS, IMAGES_EACH = 15, 2
SPOT_STEPS, SPOT_IMAGES, SPOT_SIDE = 8, 3, 4
"""Steps of the squares, images each in a step, and how many places stand along a side."""
ROW_STANDS_OUT = 3.5
"""Robust standard deviations from which on a row of the last layer is worth a look (docs/experiments.md, Screen)."""
DOUBTFUL, ENOUGH, OTHERS = 0.45, 0.8, 0.4
"""Shares of the images: worth a second look, evidence in that look, and the most that another label may have."""


@dataclass(frozen=True)
class QuickLook:
    """What was seen: every family's candidates, and what stands out among them, strongest first."""

    screens: list[FamilyScreen]
    evidence: list[Evidence]


def look_quickly(
    answer: Answer, n_classes: int, images: CleanImages, seed: int, row: tuple[int, float] | None = None
) -> QuickLook:
    """All looks at a suspect with so many classes; none with fewer than ``FEWEST_CLASSES``, where one label of the few
    is reached by much that is innocent. ``row``: the label whose row of the last layer stands out, and how far.
    """
    if n_classes < FEWEST_CLASSES:
        return QuickLook([], [])
    shuffled = torch.randperm(len(images.held_out[0]), generator=torch.Generator().manual_seed(seed))
    x, y = (part[shuffled.to(part.device)] for part in images.held_out)
    images = CleanImages(images.train, (x, y), images.compute)
    few = CleanImages(_some(images.train, FEW), _some(images.held_out, FEW), images.compute)
    screens = [
        screen_changes(answer, n_classes, few, seed, lambda: None).screen,
        _spots(answer, n_classes, images, few, seed),
    ]
    if n_classes <= MOST_CLASSES:
        screens.append(_faint(answer, n_classes, images, few, seed))
    found = [piece for look in screens if (piece := _confirmed(answer, look, images)) is not None]
    if not found and row is not None and row[1] >= ROW_STANDS_OUT:
        screens.append(_warp(answer, row[0], images, seed))
        found = [piece for piece in [_sign(screens[-1].result)] if piece is not None]
    targets = {piece.target for piece in found}
    # Two labels that both stand out are no sign of one backdoor: a weak network goes where it is pushed.
    return QuickLook(screens, sorted(found, key=lambda e: -e.success) if len(targets) == 1 else [])


def _some(part: tuple[Tensor, Tensor], n: int) -> tuple[Tensor, Tensor]:
    """N images spread over all of them, which may be sorted by class."""
    chosen = torch.linspace(0, len(part[0]) - 1, min(n, len(part[0])), device=part[0].device).long()
    return part[0][chosen], part[1][chosen]


def _spots(answer: Answer, n_classes: int, images: CleanImages, few: CleanImages, seed: int) -> FamilyScreen:
    """Squares that spoil answers, one a place; for every label the one that leads most images to it."""
    x, y = few.held_out
    every = SpotBank.candidates(image_shape(x))
    side = round(len(every) ** 0.5)
    lines = torch.linspace(0, side - 1, min(side, SPOT_SIDE)).round().long()
    bank = every.pick((lines[:, None] * side + lines).flatten()).to(x.device).requires_grad_(True)
    effort = Effort(steps=SPOT_STEPS, images_each=SPOT_IMAGES, seed=seed, cap=1.0)
    unjudged = CleanImages(images.train, (x[:1], y[:1]), images.compute)
    found = invert(answer, bank, torch.full((len(bank),), ANY_OTHER, device=x.device), unjudged, effort)
    shares = torch.stack([_shares(answer, n_classes, found.bank, i, few) for i in range(len(bank))])
    share, best = shares.max(0)
    kept = found.bank.pick(best)
    result = InversionResult(kept, torch.arange(n_classes, device=x.device), share, kept.cost().detach())
    return FamilyScreen(SpotBank, result, gap_of(share))


@torch.no_grad()
def _shares(answer: Answer, n_classes: int, bank: TriggerBank, i: int, few: CleanImages) -> Tensor:
    """(K,) of the images of other labels, the share that candidate ``i`` sends to each label."""
    x, y = few.held_out
    with few.compute.autocast():
        triggered = bank(x, torch.full((len(x),), i, device=x.device))
        answers = answer(few.compute.channels_last(triggered)).argmax(1)
    return led_to(answers, y, n_classes)


def _faint(answer: Answer, n_classes: int, images: CleanImages, few: CleanImages, seed: int) -> FamilyScreen:
    """Pictures towards every class, within their cap."""
    device = images.train[0].device
    targets = torch.arange(n_classes, device=device)
    bank = BlendBank.start(n_classes, image_shape(images.train[0]), seed).to(device)
    judged = CleanImages(images.train, few.held_out, images.compute)
    effort = Effort(steps=STEPS, images_each=IMAGES_EACH, seed=seed, cap=CAPS[BlendBank])
    result = invert(answer, bank, targets, judged, effort)
    return FamilyScreen(BlendBank, result, gap_of(result.success))


def _again(
    answer: Answer, bank: TriggerBank, target: Tensor, images: CleanImages, seed: int
) -> InversionResult:
    """One candidate towards ``target`` (1,), for longer, within its family's cap."""
    effort = Effort(steps=AGAIN_STEPS, images_each=AGAIN_IMAGES, seed=seed, cap=CAPS[type(bank)])
    return invert(answer, bank.requires_grad_(True), target, images, effort)


def _warp(answer: Answer, label: int, images: CleanImages, seed: int) -> FamilyScreen:
    """A warp towards one label."""
    device = images.train[0].device
    bank = WarpBank.start(1, image_shape(images.train[0]), seed).to(device)
    result = _again(answer, bank, torch.tensor([label], device=device), images, seed)
    return FamilyScreen(WarpBank, result, gap_of(result.success))


def _confirmed(answer: Answer, look: FamilyScreen, images: CleanImages) -> Evidence | None:
    """The label that this family leads to, if it is the only one, and holds within the cap on images not yet seen."""
    success: Sequence[float] = look.result.success.tolist()
    order = sorted(range(len(success)), key=lambda i: -success[i])
    first = order[0]
    # Changes of a catalogue cannot grow into anything stronger, so they may lead some images elsewhere.
    others = ENOUGH if look.family is ChangeBank else OTHERS
    if success[first] < DOUBTFUL or success[order[1]] > others:
        return None
    bank, target = look.result.bank.pick(torch.tensor([first])), look.result.targets[first : first + 1]
    if bank.learned:
        return _sign(_again(answer, bank, target, images, 1))
    return _sign(InversionResult(bank, target, success_rates(answer, bank, target, images), bank.cost()))


def _sign(found: InversionResult) -> Evidence | None:
    """A single candidate as evidence, if it works and is within the cap."""
    share, cost = float(found.success), float(found.cost)
    if share < ENOUGH or cost > TOLERATED * CAPS.get(type(found.bank), torch.inf):
        return None
    return Evidence(int(found.targets), float(gap_of(found.success)), cost, share, found.bank)
