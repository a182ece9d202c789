"""The answer weighs what purification left of an image against what the suspect says of it as sent.

The answer to an image x is not the label k with the largest log p_g(k | P(x)), g the repaired copy, but that with

    max_k  log p_g(k | P(x)) - c_k p_f(k | x)^8 max(0, log p_f(k | x) - log p_g(k | P(x)))
                             + d(x) clip(log p_f(k | x) - log p_g(k | P(x)), -1, 1)

where c_k is 0 unless label k is suspected.

The penalty, c. Purification rarely takes all of a trigger away: where a little is left, or the object resembles the
target anyway, the target still wins narrowly. But then most of its confidence has gone, and with the trigger it was
high. Both together hardly ever happen to a clean image of that label. The eighth power leaves images alone that the
suspect was not sure of. An all-to-all backdoor has no target, and a small c is the same for every label. A doubtful
sign, which decides no verdict, is enough to suspect a label. Without any c is 0: what the purifier does not remove
leaves no such trace.

The doubt, d(x) = 1 - p_f(y | x)^8 where y, the suspect's own label of x, is not suspected while others are; else 0.
Purification harms clean images that the suspect was not sure of. A trigger has hardly worked there, as it makes the
suspect sure, of a suspected label. So both have a say. The eighth power keeps a second backdoor from gaining by this
where nobody suspects its target.

The paper has neither. What each is worth: docs/experiments.md, Weigh the answer.

Limitations. An image of a suspected label that the purifier damages is answered with another label sooner than before.
A trigger that leaves the suspect in doubt is answered as without the penalty.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from detrigger.models.protected import CONFIDENCE, SAY, SURE, trusted
from detrigger.models.suspect import Suspect
from detrigger.offline.steps.calibrate import second_mode, trustworthy
from detrigger.offline.steps.find import Findings
from detrigger.offline.steps.invert import ANY_OTHER
from detrigger.offline.steps.run import Run
from detrigger.offline.types import Labels, Pixels

FACTORS, FACTORS_FOR_ALL = (32.0, 20.0, 12.0, 8.0, 4.0, 2.0, 1.0), (2.0, 1.0, 0.5)
"""Possible values of c for suspected labels, and for all labels, the largest first. The purifier hurts images that it
was trained on less than others, so they are bounded (docs/experiments.md, Weigh the answer)."""
MAX_BA_COST, MAX_RECALL_COST = 0.002, 0.05
"""What c may cost of BA, and of the share of a suspected label's clean images that get that label."""


def choose_penalty(
    run: Run, findings: Findings, classifier: Suspect, purifier: nn.Module
) -> tuple[float, ...]:
    """The penalty c of every label, chosen on the clean images that the defence was trained on or judged by."""
    labels = penalised_labels(findings)
    penalty = np.zeros(run.suspect.n_classes, np.float32)
    if labels:
        x, y = (torch.cat(pair) for pair in zip(run.images.train, run.images.held_out, strict=True))
        raw, purified = (
            logits.log_softmax(1).cpu().numpy() for logits in both_logits(run, classifier, purifier, x)
        )
        factors = FACTORS_FOR_ALL if len(labels) == len(penalty) else FACTORS
        penalty[labels] = largest_free(purified, raw, y.cpu().numpy(), labels, factors)
    return tuple(penalty.tolist())


def penalised_labels(findings: Findings) -> list[int]:
    """The suspected target labels; all labels where the trigger has no single target, none where nothing stood out."""
    targets = sorted(findings.targets or {piece.target for piece in findings.leads})
    return list(range(len(findings.votes))) if ANY_OTHER in targets else targets


def largest_free(
    logits: Pixels, logits_raw: Pixels, y: Labels, labels: Sequence[int], factors: Sequence[float]
) -> float:
    """The largest of ``factors`` within both limits for clean images with labels ``y`` (N,), or 0.

    Clean images that carry the trigger would lose their label as they should, so where calibration would leave such
    images out they do not count here either.
    """
    before = _log_softmax(logits_raw)
    of_label = np.arange(len(before)), before.argmax(1)
    lost = (before - _log_softmax(logits))[of_label].clip(0) * np.exp(SURE * before[of_label])
    scores = lost / (1 + lost)
    if second_mode(scores)[1]:
        kept = trustworthy(scores, y, labels)
        logits, logits_raw, y = logits[kept], logits_raw[kept], y[kept]
    penalty = np.zeros(logits.shape[1], np.float32)
    right = logits.argmax(1) == y
    for factor in factors:
        penalty[list(labels)] = factor
        lost_hits = right.astype(np.float64) - (penalised(logits, logits_raw, penalty).argmax(1) == y)
        recalls = [float(lost_hits[y == label].mean()) for label in labels if (y == label).any()]
        if lost_hits.mean() <= MAX_BA_COST and max(recalls, default=0.0) <= MAX_RECALL_COST:
            return factor
    return 0.0


def penalised(
    logits: Pixels, logits_raw: Pixels, penalty: Sequence[float] | npt.NDArray[np.float32]
) -> Pixels:
    """Logits (N, K) of purified images less the penalty, with ``logits_raw`` of the images as sent."""
    before = _log_softmax(logits_raw)
    lost = (before - _log_softmax(logits)).clip(0)
    answers: Pixels = logits - np.asarray(penalty, np.float32) * np.exp(CONFIDENCE * before) * lost
    return answers


def answered(
    logits: Pixels, logits_raw: Pixels, penalty: Sequence[float] | npt.NDArray[np.float32]
) -> Pixels:
    """The whole equation above, for the same arguments."""
    before = _log_softmax(logits_raw)
    label = logits_raw.argmax(1)
    doubt = (1 - np.exp(CONFIDENCE * before.max(1))) * trusted(penalty)[label]
    said = (before - _log_softmax(logits)).clip(-SAY, SAY)
    answers: Pixels = penalised(logits, logits_raw, penalty) + doubt[:, None] * said
    return answers


def _log_softmax(logits: Pixels) -> Pixels:
    shifted = logits - logits.max(1, keepdims=True)
    found: Pixels = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return found


@torch.no_grad()
def both_logits(run: Run, classifier: Suspect, purifier: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) for images (N, C, H, W): of the suspect as they are, and of its copy once they are purified."""
    raw, purified, laid = [], [], run.compute.channels_last
    for part in x.split(min(256, run.compute.most_at_once(x.shape))):
        images = laid(part.to(run.compute.device))
        with run.compute.autocast():
            raw.append(run.suspect(images))
            purified.append(classifier(laid(purifier(images).float())))
    return torch.cat(raw).float(), torch.cat(purified).float()
