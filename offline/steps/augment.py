"""Clean images that are moved by a little, and mirrored where that leaves their class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from detrigger.offline.steps.accuracy import right_on
from detrigger.offline.steps.run import Run

SHIFT = 1 / 8
"""Share of the side that images are moved by, at most."""
MIRRORS = 0.03
"""Share of held-out images on which an answer may become wrong by mirroring, where mirrored ones are trained on."""


def mirrors(run: Run, right: float) -> bool:
    """Whether a mirrored image is still one of its class, by the suspect's answers to held-out images.

    ``right`` is the share of these that it is right on as they are.
    """
    x, y = run.images.held_out
    return bool(right_on(run.suspect, x.flip(3), y).mean() >= right - MIRRORS)


def moved(run: Run, x: Tensor, mirrored: bool) -> Tensor:
    """Images (N, C, H, W), each moved by a little, with its edges drawn out, and half of them mirrored."""
    most = round(SHIFT * x.shape[3])
    padded = F.pad(x, (most, most, most, most), mode="replicate")
    tops, lefts, turns = (run.compute.randint(n, len(x)).tolist() for n in (2 * most + 1, 2 * most + 1, 2))
    height, width = x.shape[2:]
    moved = [
        image[:, top : top + height, left : left + width]
        for image, top, left in zip(padded, tops, lefts, strict=True)
    ]
    return torch.stack([i.flip(2) if mirrored and turn else i for i, turn in zip(moved, turns, strict=True)])
