"""Did the search work at all? Nothing found is a verdict only where something would have been.

A trigger that may cost anything covers the image, so a search that works reaches nearly every class with it. Where even
that fails for half of the classes, no class was shown to be innocent: the gradient leads nowhere, or the images do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from detrigger.offline.inputs.split import CleanImages
from detrigger.offline.steps.invert import ANY_OTHER, Effort, invert
from detrigger.offline.steps.verdict import FamilyScreen
from detrigger.offline.triggers.base import image_shape
from detrigger.offline.triggers.patch import PatchBank
from detrigger.offline.types import Answer

REACHED, MOST = 0.5, 0.5
"""Share of the images at which a class counts as reached, and of the classes that more than so many must be."""
CONTROL_STEPS = 40
NEVER = 2.0
"""An aim that no success rate reaches, so that no candidate is ever pressed to become cheaper."""


def unreached(answer: Answer, screens: Sequence[FamilyScreen], images: CleanImages, effort: Effort) -> str:
    """Why the screening shows nobody innocent; empty where it does.

    What the families of the screening reached counts. Only the classes that none of them reached are asked again, by a
    patch whose cost is unbounded.
    """
    best: dict[int, float] = {}
    for look in screens:
        for target, success in zip(look.result.targets.tolist(), look.result.success.tolist(), strict=True):
            if target != ANY_OTHER:
                best[target] = max(best.get(target, 0.0), success)
    left = [target for target, success in best.items() if success < REACHED]
    if len(left) >= MOST * len(best):
        device = images.train[0].device
        targets = torch.tensor(left, device=device)
        bank = PatchBank.start(len(left), image_shape(images.train[0]), effort.seed).to(device)
        longer = replace(effort, steps=CONTROL_STEPS, aim=NEVER, advance=lambda: None)
        found = invert(answer, bank, targets, images, longer)
        left = [t for t, s in zip(left, found.success.tolist(), strict=True) if s < REACHED]
    if len(left) < MOST * len(best):
        return ""
    return (
        f"the search reaches only {len(best) - len(left)} of {len(best)} classes, whatever the trigger may cost, so it"
        " shows nobody innocent: give the float model, with plain activations, that this one was made from"
    )
