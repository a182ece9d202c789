"""The gate. What is measured on images that no step has seen decides whether a version may be promoted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch

from detrigger.models.manifest import Check, Gate
from detrigger.offline.graph.to_onnx import run
from detrigger.offline.inputs.split import Split
from detrigger.offline.steps.invert import ANY_OTHER
from detrigger.offline.steps.verdict import GAP_EVIDENCE, Evidence
from detrigger.offline.types import Hits, Labels, Pixels

Classify = Callable[[Pixels], Pixels]
"""Images (N, C, H, W) in [0, 1] to logits (N, K)."""
BothAnswers = Callable[[Pixels], Sequence[Pixels]]
"""The same from the bare and from the defended classifier."""

MAX_BA_DROP = 0.02
"""In shares, beside one standard error of the measurement. A repair changes more answers to and fro than a purifier, so
that few images tell its drop badly (docs/experiments.md, Calibrate and gate)."""
MAX_ASR = 0.10


@dataclass(frozen=True)
class Clean:
    """The protected graph's answers to unseen clean images: logits (N, K) twice, flag scores (N,)."""

    logits: Pixels
    logits_raw: Pixels
    flag_score: Pixels


def ba_check(before: Hits, after: Hits, what: str) -> Check:
    """Whether BA fell too far, from which of the same unseen images (N,) were classified right before and after."""
    drop = before.astype(np.float64) - after
    error = float(drop.std() / np.sqrt(len(drop)))
    value, limit = float(drop.mean()), MAX_BA_DROP + error
    return Check(
        name="ba_drop",
        value=value,
        limit=limit,
        passed=value <= limit,
        detail=f"share of {len(drop)} unseen clean images that {what} costs; the limit is {MAX_BA_DROP:.0%} and a"
        f" standard error of {error:.2%}",
    )


def judge_version(
    protected: onnx.ModelProto, clean: Clean, x: Pixels, y: Labels, leads: Sequence[Evidence]
) -> tuple[Gate, dict[str, float]]:
    """The gate's checks and all figures, for unseen images ``x`` (N, C, H, W) in [0, 1] with labels ``y``."""
    before, after = (logits.argmax(1) == y for logits in (clean.logits_raw, clean.logits))
    checks = [ba_check(before, after, "the defence")]
    figures = {
        "ba_bare": float(before.mean()),
        "ba_protected": float(after.mean()),
        "ba_drop": checks[0].value,
    }
    if leads:
        check, rates = asr_check(
            leads,
            x,
            y,
            lambda images: run(protected, images, ["logits_raw", "logits"]),
            "through the defence",
        )
        checks.append(check)
        figures |= rates
    return _gate(checks), figures


def judge_repair(
    before: Classify, after: Classify, images: Split, leads: Sequence[Evidence]
) -> tuple[Gate, dict[str, float]]:
    """The same for a repaired file, from the answers of both files.

    BA is taken on all images that nothing was trained on, since few of them tell a repair badly. Success is taken on
    unseen images, as the triggers were chosen on the others.
    """
    x, y = images.calibration
    bare, kept = (answer(x).argmax(1) == y for answer in (before, after))
    checks = [ba_check(bare, kept, "the repair")]
    figures = {
        "ba_before": float(bare.mean()),
        "ba_after": float(kept.mean()),
        "ba_drop": checks[0].value,
    }
    # Weak signs are trained against as well, but a class that lies near the others by nature may stay near.
    if strong := [piece for piece in leads if piece.gap >= GAP_EVIDENCE]:
        check, rates = asr_check(strong, *images.unseen, lambda x: [before(x), after(x)], "after the repair")
        checks.append(check)
        figures |= rates
    return _gate(checks), figures


def asr_check(
    leads: Sequence[Evidence], x: Pixels, y: Labels, answers: BothAnswers, what: str
) -> tuple[Check, dict[str, float]]:
    """Whether the strongest inverted trigger still works, and its success before and after the defence.

    Args:
        x: unseen images (N, C, H, W) in [0, 1] with labels ``y``.
        answers: images to the logits (N, K) of the bare and of the defended classifier.
        what: where "after" is, in words.
    """
    rates = [inverted_asr(piece, x, y, answers) for piece in leads]
    before, after = (max(shares) for shares in zip(*rates, strict=True))
    check = Check(
        name="asr_inverted",
        value=after,
        limit=MAX_ASR,
        passed=after <= MAX_ASR,
        detail=f"strongest of {len(leads)} rebuilt triggers {what} (before: {before:.1%})",
    )
    return check, {"asr_inverted_before": before, "asr_inverted_after": after}


@torch.no_grad()
def inverted_asr(piece: Evidence, x: Pixels, y: Labels, answers: BothAnswers) -> list[float]:
    """Success rate of one inverted trigger on images ``x`` (N, C, H, W) in [0, 1], once for each of ``answers``.

    With a target: the share of other-class images classified as the target. An ordinary change spoils answers of any
    network, so the share that it leads astray to some other label is taken off. Without a target (``ANY_OTHER``): the
    share of images that were right and become wrong. Triggered images are rounded to 8 bits first.
    """
    x, y = x[y != piece.target], y[y != piece.target]
    which = torch.zeros(len(x), dtype=torch.long)
    triggered = piece.bank.cpu()(torch.from_numpy(x), which).clamp(0, 1).numpy()
    labels = [logits.argmax(1) for logits in answers(np.round(triggered * 255).astype(np.float32) / 255)]
    if piece.target != ANY_OTHER:
        usual = [0.0 if piece.bank.learned else _spoilt(label, y, piece.target) for label in labels]
        led = [float((label == piece.target).mean()) for label in labels]
        return [max(0.0, share - less) for share, less in zip(led, usual, strict=True)]
    right = [logits.argmax(1) == y for logits in answers(x)]
    return [
        float((kept & (label != y)).sum() / max(kept.sum(), 1))
        for label, kept in zip(labels, right, strict=True)
    ]


def _spoilt(label: Labels, y: Labels, target: int) -> float:
    """The largest share of images with labels ``y`` (N,) that one label gets wrongly, ``target`` aside."""
    wrong = label[(label != y) & (label != target)]
    return float(np.bincount(wrong, minlength=1).max() / max(len(y), 1))


def _gate(checks: list[Check]) -> Gate:
    return Gate(passed=all(check.passed for check in checks), checks=tuple(checks))
