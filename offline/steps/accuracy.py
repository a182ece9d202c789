"""What the suspect is right on, before anything is searched: a wrong set-up makes every later answer false.

The suspect answers the clean images as they were set up, and under other readings of its input: channels swapped,
values in 0..255 or -1..1, other means and deviations, the layout mistaken. A reading under which it is right far more
often names what is wrong. So does an assignment of class folders to outputs (``linear_sum_assignment``) that fits far
better than the given one.

Limitation: a suspect that is wrong on these images for another reason (other classes, another kind of photograph)
looks like one that is set up wrong. The refusal then names no reading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detrigger.models.suspect import Suspect
from detrigger.offline.compute import Compute
from detrigger.offline.inputs.data import Dataset
from detrigger.offline.inputs.split import as_float
from detrigger.offline.types import Answer, Hits, Labels, Pixels

MOST_IMAGES, MOST_PROBED, FIRST_PROBED = 320, 96, 24
"""Images that the accuracy is measured on, those that other readings are tried on, and those that tell which of these
are worth it; the same share of each class."""
ABOVE_CHANCE = 0.2
"""Share of the way from chance to perfect that a suspect has to be right on."""
BETTER = 0.1
"""A reading that is right on so much more is taken for the right one."""
ALIKE = 0.03
"""Of readings that differ by no more, the simplest is named."""
OVERCONFIDENT = 0.2
"""By how much the mean confidence may exceed the accuracy without a warning."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Reading:
    """Another way to read the input: what to set, and the accuracy (0..1) under it."""

    setting: str
    accuracy: float


@dataclass(frozen=True)
class Accuracy:
    """The suspect's own accuracy on the clean images.

    ``overall`` and ``per_class`` are shares of the ``n_images`` that were tried; ``confidence`` is the mean
    probability of the given answers. ``better`` is the best other reading, if one is far better. ``problem`` says why
    no verdict can be given, with the mend; empty where the set-up holds.
    """

    overall: float
    per_class: dict[str, float]
    n_images: int
    confidence: float
    better: Reading | None
    problem: str
    warning: str

    def as_json(self) -> dict[str, Any]:
        """What report.json and ``--json`` hold."""
        return asdict(self)

    def in_words(self) -> str:
        """One line for people."""
        worst = min(self.per_class, key=lambda name: self.per_class[name])
        return (
            f"the suspect is right on {self.overall:.1%} of {self.n_images} clean images"
            f" (least of class {worst}: {self.per_class[worst]:.0%})"
        )


def own_accuracy(suspect: Suspect, data: Dataset, compute: Compute) -> Accuracy:
    """Measure the suspect on a stratified share of ``data``, under the given reading and under others."""
    chosen = stratified(data.y, MOST_IMAGES)
    x, y = torch.from_numpy(as_float(data.x[chosen])).to(compute.device), data.y[chosen]
    logits = _logits(suspect, x, compute)
    said = logits.argmax(1)
    right = said == y
    overall = float(right.mean())
    confidence = float(torch.from_numpy(logits).softmax(1).amax(1).mean())
    per_class = {name: float(right[y == k].mean()) for k, name in enumerate(data.classes) if (y == k).any()}
    better = None
    if overall + BETTER <= 1:
        ways = dict(readings(suspect))

        def tried_on(read: Read, most: int) -> float:
            few = stratified(y, most)
            return _share(suspect, read(x[few]), y[few], compute)

        def probed(read: Read) -> float:
            share = tried_on(read, FIRST_PROBED)
            return share if share < overall - BETTER else tried_on(read, MOST_PROBED)

        # The simplest come first.
        swap, *others = [Reading(name, probed(read)) for name, read in ways.items()]
        tried = [swap, _best_assignment(said, y, data.classes), *others]
        most = max(reading.accuracy for reading in tried)
        best = next(reading for reading in tried if reading.accuracy >= most - ALIKE)
        if read := ways.get(best.setting):  # so far it was tried on a few
            best = Reading(best.setting, _share(suspect, read(x), y, compute))
        better = best if best.accuracy >= overall + BETTER else None
    return Accuracy(
        overall=overall,
        per_class=per_class,
        n_images=len(y),
        confidence=confidence,
        better=better,
        problem=_problem(overall, better, len(data.classes)),
        warning=_warning(overall, confidence),
    )


def stratified(y: Labels, most: int) -> Labels:
    """Indices of at most ``most`` images, or two a class: the same share of every class, in order."""
    if len(y) <= most:
        return np.arange(len(y))
    n_classes = int(y.max()) + 1
    each = max(2, most // n_classes)
    parts = [np.flatnonzero(y == k) for k in range(n_classes)]
    kept = [
        part[np.linspace(0, len(part) - 1, min(each, len(part))).astype(int)] for part in parts if len(part)
    ]
    return np.sort(np.concatenate(kept))


Read = Callable[[Tensor], Tensor]
"""Images (N, C, H, W) in [0, 1] to what the suspect has to be given, so that its network sees the other reading."""


def readings(suspect: Suspect) -> list[tuple[str, Read]]:
    """Other readings of the input by the setting that would make them the given one."""
    mean, std = suspect.mean, suspect.std
    channels = mean.shape[1]

    def seen(network_input: Read) -> Read:
        """The images whose normalised form is ``network_input`` of the given ones."""
        return lambda x: network_input(x) * std + mean

    def scaled(factor: float, mean: Sequence[float], std: Sequence[float]) -> Read:
        m, s = (torch.tensor(v, device=suspect.mean.device).view(1, -1, 1, 1) for v in (mean, std))
        return seen(lambda x: (x * factor - m) / s)

    zero, one, half = (0.0,) * channels, (1.0,) * channels, (0.5,) * channels
    found: list[tuple[str, Read]] = [
        ("values in 0..255 without mean and std (range 255)", scaled(255, zero, one)),
        ("mean and std meant for values in 0..255 (range 255)", seen(lambda x: (x * 255 - mean) / std)),
        ("values in 0..1 without mean and std", scaled(1, zero, one)),
        ("values in -1..1 (mean 0.5, std 0.5)", scaled(1, half, half)),
        ("the clean images' own mean and std", seen(_standardised)),
        ("the layout NHWC read as NCHW", seen(_mistaken_layout)),
        ("a centre crop of 7/8, resized", seen(lambda x: (_cropped(x) - mean) / std)),
    ]
    if channels == 3:
        swap = "channels RGB" if suspect.spec.bgr else "channels BGR"
        found.append(("ImageNet's mean and std", scaled(1, *IMAGENET)))
        found = [
            (swap, lambda x: x.flip(1)),
            *found,
            *((f"{swap}, {setting}", _swapped(read)) for setting, read in found),
        ]
    return found


def _swapped(read: Read) -> Read:
    return lambda x: read(x.flip(1))


def _standardised(x: Tensor) -> Tensor:
    axes = (0, 2, 3)
    return (x - x.mean(axes, keepdim=True)) / x.std(axes, keepdim=True).clamp_min(1e-6)


def _mistaken_layout(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(x.shape)


def _cropped(x: Tensor) -> Tensor:
    h, w = x.shape[2:]
    top, left = h // 16, w // 16
    return F.interpolate(x[:, :, top : h - top, left : w - left], (h, w), mode="bilinear", antialias=True)


def _best_assignment(said: Labels, y: Labels, classes: Sequence[str]) -> Reading:
    """The assignment of class folders to outputs under which most answers are right."""
    k = len(classes)
    counts = np.zeros((k, k), np.int64)
    np.add.at(counts, (y, said), 1)
    folders, outputs = linear_sum_assignment(-counts)
    moved = [(int(f), int(o)) for f, o in zip(folders, outputs, strict=True) if f != o]
    shown = ", ".join(f"{classes[folder]} is output {output}" for folder, output in moved[:4])
    more = f" and {len(moved) - 4} more" if len(moved) > 4 else ""
    accuracy = float(counts[folders, outputs].sum() / max(1, len(y)))
    return Reading(f"classes in the model's own order ({shown}{more})", accuracy)


def _problem(overall: float, better: Reading | None, n_classes: int) -> str:
    if better is not None:
        return (
            f"the suspect is right on {overall:.1%} of the clean images; with {better.setting} it would be right on"
            f" {better.accuracy:.1%}: correct the preprocess file"
        )
    chance = 1 / n_classes
    least = chance + ABOVE_CHANCE * (1 - chance)
    if overall < least:
        return (
            f"the suspect is right on {overall:.1%} of the clean images, where at least {least:.0%} are needed: check"
            " that preprocessing, classes and their order are those that it was made for"
        )
    return ""


def _warning(overall: float, confidence: float) -> str:
    if confidence - overall <= OVERCONFIDENT:
        return ""
    return (
        f"the suspect is right on {overall:.1%} of the clean images, and {confidence:.0%} sure on average: these"
        " images or their preprocessing may differ from what it was made for"
    )


def _share(suspect: Suspect, x: Tensor, y: Labels, compute: Compute) -> float:
    return float((_logits(suspect, x, compute).argmax(1) == y).mean())


@torch.no_grad()
def _logits(suspect: Suspect, x: Tensor, compute: Compute) -> Pixels:
    parts = []
    for part in x.split(32):
        with compute.autocast():
            parts.append(suspect(compute.channels_last(part)).float().cpu())
    logits: Pixels = torch.cat(parts).nan_to_num().numpy()
    return logits


@torch.no_grad()
def right_on(answer: Answer, x: Tensor, y: Tensor) -> Hits:
    """Which images (N, C, H, W) are answered as their labels (N,) say."""
    hits = [answer(part).argmax(1) == of for part, of in zip(x.split(256), y.split(256), strict=True)]
    return torch.cat(hits).cpu().numpy()
