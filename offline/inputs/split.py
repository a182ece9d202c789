"""The clean images in three shares: to train on, to judge inversions by, and unseen until calibration and gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detrigger.offline.compute import Compute
from detrigger.offline.inputs.data import Dataset
from detrigger.offline.types import Labelled, Labels, Pixels

HELD_OUT, UNSEEN = 0.1, 0.2
"""Shares of the clean images that judge inversions, and that no step but calibration and gate sees; the rest trains.
Both calibrate: a threshold from more scores depends less on a few outliers, and those that judge inversions score no
lower."""
LEAST_UNSEEN, MOST_UNSEEN = 200, 0.4
"""Of few clean images a larger share calibrates, up to ``MOST_UNSEEN``: a threshold that is the highest of 100 scores
is wherever one outlier happens to be."""


@dataclass(frozen=True)
class CleanImages:
    """What an inversion works on: the images that it learns from, those that judge it, and where they lie."""

    train: Labelled
    held_out: Labelled
    compute: Compute


@dataclass(frozen=True)
class Split(CleanImages):
    """All shares. ``calibration`` holds the ``n_unseen`` unseen images first, then those held out."""

    calibration: tuple[Pixels, Labels]
    n_unseen: int

    @property
    def unseen(self) -> tuple[Pixels, Labels]:
        """The images and labels that no step but calibration and gate sees."""
        x, y = self.calibration
        return x[: self.n_unseen], y[: self.n_unseen]


def split_data(data: Dataset, seed: int, compute: Compute) -> Split:
    """Shares of every class: for training, for judging inversions, and unseen by both; the latter two calibrate."""
    rng = np.random.default_rng(seed)
    train_share = 1 - HELD_OUT - min(max(UNSEEN, LEAST_UNSEEN / len(data)), MOST_UNSEEN)
    parts: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
    for label in range(len(data.classes)):
        own = rng.permutation(np.flatnonzero(data.y == label))
        first, second = round(len(own) * train_share), round(len(own) * (train_share + HELD_OUT))
        first = max(1, min(first, len(own) - 1))
        for part, piece in zip(parts, (own[:first], own[first:second], own[second:]), strict=True):
            part.append(piece)
    train, held_out, unseen = (np.sort(np.concatenate(part)) for part in parts)
    calibration = np.concatenate([unseen, held_out])
    if len(held_out) == 0:
        held_out = train

    def tensors(chosen: Any) -> tuple[Tensor, Tensor]:
        x, y = torch.from_numpy(as_float(data.x[chosen])), torch.from_numpy(data.y[chosen])
        return x.to(compute.device), y.to(compute.device)

    both = as_float(data.x[calibration]), data.y[calibration]
    return Split(tensors(train), tensors(held_out), compute, both, len(unseen))


def as_float(x: Any) -> Pixels:
    """uint8 (N, H, W, C) to float32 (N, C, H, W) in [0, 1]."""
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
