"""Step 6: what purification takes from a suspected label is held against it.

The answer to an image x is not the label k with the largest log p_g(k | P(x)), g the repaired copy, but that with

    max_k  log p_g(k | P(x)) - c_k max(0, log p_f(k | x) - log p_g(k | P(x)))

where c_k is 0 but for suspected labels. Purification rarely takes all of a trigger away: where a little is left, or the
object resembles the target anyway, the target still wins narrowly. But then most of its confidence has gone, which
hardly ever happens to a clean image of that label, so that c may be large. The paper has nothing like it. A WaNet
suspect (ASR through purifier and copy 3.3%, with 2.6% of the clean images taken for the target by the bare suspect)
came to 0.7% with c = 4, for no BA and 0.6 points of the target's recall; a plain margin on the target's logit that
brings it to 0.6% costs 14 of those.

An all-to-all backdoor has no target, and c is the same for every label. Where nothing was found c is 0: what the
purifier does not remove leaves no such trace.

Limitation: an image of a suspected label that the purifier damages is answered with another label sooner than before.
``c`` is the largest that costs clean images next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.networks import Purifier
from models.suspect import Suspect
from offline.calibrate import second_mode, trustworthy
from offline.compute import Compute
from offline.find import Inverted
from offline.gate import Labels, Pixels
from offline.inputs import Split
from offline.invert import ANY

FACTORS = (4.0, 3.0, 2.0, 1.0, 0.5)
"""Possible values of c, the largest first. The purifier hurts images that it was trained on less than others: of 8 they
said 0.1 points of BA where it was 0.45, and it took no more of the ASR."""
MAX_BA_COST, MAX_RECALL_COST = 0.002, 0.05
"""What c may cost of BA, and of the share of a suspected label's clean images that get that label."""


def choose_penalty(
    suspect: Suspect,
    classifier: Suspect,
    purifier: Purifier,
    found: Inverted,
    split: Split,
    compute: Compute,
) -> tuple[float, ...]:
    """The penalty c of every label, chosen on the clean images that the defence was trained on or judged by."""
    labels = penalised_labels(found)
    penalty = np.zeros(suspect.n_classes, np.float32)
    if labels:
        x, y = (torch.cat(pair) for pair in zip(split.train, split.held_out, strict=True))
        raw, purified = _log_probabilities(suspect, classifier, purifier, x, compute)
        penalty[labels] = largest_free(purified, raw, y.cpu().numpy(), labels)
    return tuple(penalty.tolist())


def penalised_labels(found: Inverted) -> list[int]:
    """The suspected target labels; all labels where the trigger has no single target, none where nothing stood out."""
    if found.verdict == "clean":
        return []
    targets = sorted(found.targets or {piece.target for piece in found.marked})
    return list(range(len(found.votes))) if ANY in targets else targets


def largest_free(logits: Pixels, logits_raw: Pixels, y: Labels, labels: Sequence[int]) -> float:
    """The largest of ``FACTORS`` within both limits for clean images with labels ``y`` (N,), or 0.

    Clean images that carry the trigger would lose their label as they should, so where calibration would leave such
    images out they do not count here either.
    """
    before = _log_softmax(logits_raw)
    raw = before.argmax(1, keepdims=True)
    lost = np.take_along_axis(before - _log_softmax(logits), raw, 1)[:, 0].clip(0)
    scores = lost / (1 + lost)
    if second_mode(scores)[1]:
        kept = trustworthy(scores, y, labels)
        logits, logits_raw, y = logits[kept], logits_raw[kept], y[kept]
    penalty = np.zeros(logits.shape[1], np.float32)
    right = logits.argmax(1) == y
    for factor in FACTORS:
        penalty[list(labels)] = factor
        lost_hits = right.astype(np.float64) - (penalised(logits, logits_raw, penalty).argmax(1) == y)
        recalls = [float(lost_hits[y == label].mean()) for label in labels if (y == label).any()]
        if lost_hits.mean() <= MAX_BA_COST and max(recalls, default=0.0) <= MAX_RECALL_COST:
            return factor
    return 0.0


def penalised(
    logits: Pixels, logits_raw: Pixels, penalty: Sequence[float] | npt.NDArray[np.float32]
) -> Pixels:
    """The equation above for logits (N, K) of purified images and of the images as sent."""
    lost = (_log_softmax(logits_raw) - _log_softmax(logits)).clip(0)
    answers: Pixels = logits - np.asarray(penalty, np.float32) * lost
    return answers


def _log_softmax(logits: Pixels) -> Pixels:
    shifted = logits - logits.max(1, keepdims=True)
    found: Pixels = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return found


@torch.no_grad()
def _log_probabilities(
    suspect: Suspect, classifier: Suspect, purifier: Purifier, x: Tensor, compute: Compute
) -> tuple[Pixels, Pixels]:
    """(N, K) of the images as they are by the suspect, and of the purified ones by its copy."""
    raw, purified = [], []
    for part in x.split(256):
        with compute.autocast():
            raw.append(suspect(compute.lay(part)))
            purified.append(classifier(compute.lay(purifier(compute.lay(part)).float())))
    first, second = (torch.cat(parts).float().log_softmax(1).cpu().numpy() for parts in (raw, purified))
    return first, second
