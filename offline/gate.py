"""Step 8: the gate. What is measured on images that no step has seen decides whether a version may be promoted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import torch

from detrigger.models.manifest import Check, Gate
from detrigger.offline.export import run
from detrigger.offline.invert import ANY
from detrigger.offline.screen import Evidence

MAX_BA_DROP = 0.02
"""In shares, beside one standard error of the measurement. 500 unseen images tell a purifier's drop to half a point,
but a repair's, which changes more answers to and fro, only to one: 2.8 points of them were 0.5 of 2,000."""
MAX_ASR = 0.10

Pixels = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Hits = npt.NDArray[np.bool_]


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
        detail=f"share of {len(drop)} unseen clean images that {what} costs; the limit is {MAX_BA_DROP} and a standard"
        f" error of {error:.4f}",
    )


def judge(
    protected: onnx.ModelProto, clean: Clean, x: Pixels, y: Labels, found: list[Evidence]
) -> tuple[Gate, dict[str, float]]:
    """The gate's checks and all figures, for unseen images ``x`` (N, C, H, W) in [0, 1] with labels ``y``."""
    before, after = (logits.argmax(1) == y for logits in (clean.logits_raw, clean.logits))
    checks = [ba_check(before, after, "the defence")]
    figures = {
        "ba_bare": float(before.mean()),
        "ba_protected": float(after.mean()),
        "ba_drop": checks[0].value,
    }
    if found:
        both = [
            success(piece, x, y, lambda images: run(protected, images, ["logits_raw", "logits"]))
            for piece in found
        ]
        raw, through = (max(shares) for shares in zip(*both, strict=True))
        figures |= {"asr_inverted_before": raw, "asr_inverted_after": through}
        checks.append(
            Check(
                name="asr_inverted",
                value=through,
                limit=MAX_ASR,
                passed=through <= MAX_ASR,
                detail=f"strongest of {len(found)} inverted triggers through the defence (bare: {raw:.1%})",
            )
        )
    return Gate(passed=all(check.passed for check in checks), checks=tuple(checks)), figures


@torch.no_grad()
def success(
    piece: Evidence, x: Pixels, y: Labels, answers: Callable[[Pixels], Sequence[Pixels]]
) -> list[float]:
    """How often an inverted trigger, in 8 bits, works on images ``x`` (N, C, H, W) in [0, 1], by each of ``answers``.

    That is on the share of the images of other classes that get its target label; where it has none, on the share of
    those answered right without it that are answered wrong with it.
    """
    x, y = x[y != piece.target], y[y != piece.target]
    which = torch.zeros(len(x), dtype=torch.long)
    triggered = piece.bank.cpu()(torch.from_numpy(x), which).clamp(0, 1).numpy()
    labels = [logits.argmax(1) for logits in answers(np.round(triggered * 255).astype(np.float32) / 255)]
    if piece.target != ANY:
        return [float((label == piece.target).mean()) for label in labels]
    right = [logits.argmax(1) == y for logits in answers(x)]
    return [
        float((kept & (label != y)).sum() / max(kept.sum(), 1))
        for label, kept in zip(labels, right, strict=True)
    ]
