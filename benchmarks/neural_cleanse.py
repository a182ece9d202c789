"""Neural Cleanse (Wang et al., S&P 2019) with its unlearning, as a baseline on suspects in ONNX.

1. For every label, the smallest mask with a pattern that sends images there (section IV-B).
2. A label whose mask is smaller than the median by more than 2 median absolute deviations (x 1.4826) is a target
   (section III-C); without one the suspect stays as it is.
3. The suspect is tuned on clean images, a fifth of which carry the inverted trigger, with their true labels
   (section VI-C).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from detrigger.offline.compute import Compute
from detrigger.offline.graph.weights import weight_names, weights
from detrigger.offline.inputs.load import Options, load
from detrigger.offline.inputs.split import split_data
from detrigger.offline.progress import SilentProgress
from detrigger.offline.steps.invert import Effort, invert
from detrigger.offline.steps.starts import start
from detrigger.offline.triggers.patch import PatchBank

STEPS, PER_LABEL = 200, 6
OUTLIER = 2.0
TRIGGERED, EPOCHS, RATE, BATCH = 0.2, 5, 1e-4, 64
"""Share of images with the trigger; the paper tunes for one epoch of 10% of the training images, ours are half as
many."""


def neural_cleanse(
    folder: Path, data: Path, seed: int
) -> tuple[Callable[[NDArray[np.float32]], NDArray[np.int64]], dict[str, Any]]:
    """What answers images (N,C,H,W) in [0,1] with labels (N,) after the unlearning, and the row's further fields."""
    compute = Compute("auto", seed)
    options = Options(
        suspect=folder / "model.onnx", data=data, preprocess=folder / "preprocess.json", seed=seed
    )
    given = load(options, compute, SilentProgress())
    split = split_data(given.data, seed, compute)
    targets = torch.arange(given.suspect.n_classes, device=compute.device)
    effort = Effort(steps=STEPS, images_each=PER_LABEL, seed=seed)
    bank = start(given.suspect, PatchBank, targets, split, effort)
    found = invert(given.suspect, bank, targets, split, effort)
    middle = found.cost.median()
    deviation = 1.4826 * (found.cost - middle).abs().median()
    score = (found.cost - middle) / deviation
    target = int(score.argmin())
    suspected = float(score[target]) < -OUTLIER
    tuned = copy.deepcopy(given.suspect)
    if suspected:
        images, labels = (torch.cat(pair) for pair in zip(split.train, split.held_out, strict=True))
        tensors = list(weights(tuned, weight_names(given.graph)).values())
        for tensor in tensors:
            tensor.requires_grad_(True)
        optimizer = torch.optim.Adam(tensors, RATE)
        for _ in range(EPOCHS):
            order = torch.randperm(len(images), generator=compute.generator)
            for chosen in order.split(BATCH):
                x = images[chosen].clone()
                count = round(TRIGGERED * len(x))
                which = torch.full((count,), target, device=x.device)
                with torch.no_grad():
                    x[:count] = found.bank(x[:count], which)
                with compute.autocast():
                    logits = tuned(compute.channels_last(x))
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(logits.float(), labels[chosen]).backward()
                optimizer.step()
        for tensor in tensors:
            tensor.requires_grad_(False)

    @torch.no_grad()
    def answer(x: NDArray[np.float32]) -> NDArray[np.int64]:
        parts = [
            tuned(compute.channels_last(part.to(compute.device))).argmax(1)
            for part in torch.from_numpy(x).split(100)
        ]
        answers: NDArray[np.int64] = torch.cat(parts).cpu().numpy()
        return answers

    return answer, {"label": target if suspected else None}
