"""What every job starts from: what it was asked for, the checked suspect, and the clean images in three shares."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from detrigger.models.errors import BadInput
from detrigger.models.preprocess import Preprocess
from detrigger.models.suspect import Suspect, describe, import_suspect, read_onnx
from detrigger.offline.compute import Compute
from detrigger.offline.data import Dataset, check_against_logits, load_dataset
from detrigger.offline.gate import Pixels
from detrigger.offline.progress import Progress

HELD_OUT, UNSEEN = 0.1, 0.2
"""Shares of the clean images that judge inversions, and that no step but calibration and gate sees; the rest trains.
Both calibrate: a threshold from 750 scores instead of 500 depends less on a few outliers (TPR of three jobs on a WaNet:
at least 97.5% instead of 93.0%), and those that judge inversions score no lower (1.1% above a threshold of the others
for 1%)."""
LEAST_UNSEEN, MOST_UNSEEN = 200, 0.4
"""Of few clean images a larger share calibrates, up to ``MOST_UNSEEN``: a threshold for 1% that is the highest of 100
scores is wherever one outlier happens to be (WaNet, 500 images: TPR 34%)."""


@dataclass(frozen=True)
class Profile:
    """A point on the curve of time against quality; steps of the optimisers."""

    screen_steps: int
    per_class: int
    generator_steps: int
    purify_steps: int
    rounds: int
    refresh_steps: int


PROFILES = {
    "fast": Profile(50, 5, 30, 350, 3, 40),
    "standard": Profile(70, 6, 60, 400, 3, 50),
    "thorough": Profile(120, 12, 120, 1000, 6, 100),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every job is asked for; ``device`` is "auto", "cpu" or "cuda"."""

    suspect: Path
    data: Path
    preprocess: Path | None = None
    device: str = "auto"
    profile: str = "standard"
    seed: int = 0
    feature_node: str | None = None


@dataclass(frozen=True)
class Given:
    """The checked inputs: the suspect, its graph with an open batch, and the clean images."""

    suspect: Suspect
    graph: onnx.ModelProto
    digest: str
    preprocess: Preprocess
    data: Dataset


@dataclass(frozen=True)
class Split:
    """The clean images, each step's own: float (N, C, H, W) in [0, 1] with labels (N,)."""

    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    calibration: tuple[Pixels, Any]  # the unseen ones, then those held out
    n_unseen: int

    @property
    def unseen(self) -> tuple[Pixels, Any]:
        """The images and labels that no step but calibration and gate sees."""
        x, y = self.calibration
        return x[: self.n_unseen], y[: self.n_unseen]


def load(options: Options, compute: Compute, progress: Progress) -> Given:
    """Read and check everything that the user gave."""
    pre = Preprocess.load(options.preprocess) if options.preprocess else None
    model, _ = read_onnx(options.suspect)
    spec = describe(model)
    if pre is None and spec.size is not None:
        pre = Preprocess.plain(*spec.size, spec.channels)
    data = load_dataset(options.data, pre, progress)
    if pre is None:
        pre = Preprocess.plain(data.x.shape[1], data.x.shape[2], data.x.shape[3])
    with progress.stage("import", 1) as advance:
        suspect, graph, digest = import_suspect(
            options.suspect,
            mean=pre.mean,
            std=pre.std,
            size=pre.size,
            images=as_float(data.x[:8]),
            feature_node=options.feature_node,
        )
        check_against_logits(data, suspect.n_classes)
        advance()
    progress.note(f"suspect: {suspect.n_classes} classes, features cut at {suspect.cut}, imported exactly")
    pre = pre.model_copy(update={"classes": data.classes, "layout": suspect.spec.layout})
    return Given(suspect.to(compute.device), graph, digest, pre, data)


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
    return Split(tensors(train), tensors(held_out), both, len(unseen))


def as_float(x: Any) -> Pixels:
    """uint8 (N, H, W, C) to float32 (N, C, H, W) in [0, 1]."""
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


def check_writable(out: Path, suffixes: tuple[str, ...]) -> None:
    """BadInput now rather than after minutes of work, where ``out`` cannot become a file."""
    if out.suffix.lower() not in suffixes:
        raise BadInput(f"--out {out} has to end in {' or '.join(suffixes)}")
    if out.is_dir():
        raise BadInput(f"--out {out} is a folder; give the path of a file")
    if not out.parent.is_dir():
        raise BadInput(f"--out {out}: there is no folder {out.parent}; make it first")
    if not os.access(out.parent, os.W_OK):
        raise BadInput(f"--out {out}: the folder {out.parent} cannot be written to; check its permissions")
