"""Which training images get a trigger and another label.

    poison  x' = train trigger(x), label = target     (clean-label: only images that bear the target already)
    cover   x' = cover trigger(x), label = true label (the network must learn the exact trigger, not its traces)

At test time the trigger is the `trigger` of the backdoor, on images whose true label is not the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from torch import Generator, Tensor

from benchmarks.attacks import Trigger, to_8bit


class Role(IntEnum):
    """What a training image is used for."""

    CLEAN = 0
    POISON = 1
    COVER = 2


@dataclass(frozen=True)
class Backdoor:
    """One backdoor: triggers, target and shares of the training images (of all of them, in [0,1]).

    target: a label, or None for all-to-all, where label y becomes (y+1) % K. train_trigger and cover_trigger
    default to `trigger` and to the training trigger.
    """

    trigger: Trigger
    target: int | None
    poison_rate: float
    cover_rate: float = 0.0
    train_trigger: Trigger | None = None
    cover_trigger: Trigger | None = None
    clean_label: bool = False

    def apply(self, x: Tensor, role: Role, rng: Generator) -> Tensor:
        """Training images of one role, triggered, with 8 bits. x: (N,C,H,W) in [0,1]."""
        train = self.train_trigger or self.trigger
        triggers = {Role.POISON: train, Role.COVER: self.cover_trigger or train}
        return to_8bit(triggers[role](x, rng)) if role in triggers and len(x) else x


def target_labels(y: NDArray[np.int64], target: int | None, n_classes: int) -> NDArray[np.int64]:
    """The label that the attacker wants for each image: the target, or (y+1) % n_classes for all-to-all."""
    return (y + 1) % n_classes if target is None else np.full_like(y, target)


def assign(
    backdoor: Backdoor,
    y: NDArray[np.int64],
    n_classes: int,
    free: NDArray[np.bool_],
    rng: np.random.Generator,
) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Draw the role of every training image, and its label after poisoning.

    free: images that no other backdoor uses. A clean-label backdoor poisons only images of the target's own class, so
    that no label changes; any other only images of other classes. ValueError where too few are left.
    """
    wanted = target_labels(y, backdoor.target, n_classes)
    able = np.flatnonzero(free & ((y == wanted) == backdoor.clean_label))
    n_poison, n_cover = round(backdoor.poison_rate * len(y)), round(backdoor.cover_rate * len(y))
    if n_poison > len(able):
        raise ValueError(f"{n_poison} images to poison, but only {len(able)} can be")
    poison = rng.choice(able, n_poison, replace=False)
    rest = np.setdiff1d(np.flatnonzero(free), poison)
    if n_cover > len(rest):
        raise ValueError(f"{n_cover} cover images wanted, but only {len(rest)} are left")
    roles, labels = np.zeros(len(y), np.int8), y.copy()
    roles[poison], labels[poison] = Role.POISON, wanted[poison]
    roles[rng.choice(rest, n_cover, replace=False)] = Role.COVER
    return roles, labels
