"""Figures that only the report needs: flag scores as histograms, and what the defence does to clean images."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import betaincinv

from detrigger.models.manifest import Flag
from detrigger.offline.jobs.pictures import Defended
from detrigger.offline.types import Hits, Labels, Pixels

BINS = 40
SURE = 0.95
"""Of the intervals."""


def false_alarms(alpha: float, n: int) -> tuple[float, float]:
    """The interval of the share of clean images that are flagged, for a threshold from ``n`` clean images.

    The threshold is the j-th largest of n scores, j = floor(alpha (n + 1)), at least 1. Of exchangeable clean images
    the share above it is distributed as Beta(j, n + 1 - j) (split conformal prediction); this is its central ``SURE``.
    """
    j = max(1, int(alpha * (n + 1) + 1e-9))
    low, high = (float(betaincinv(j, max(1, n + 1 - j), p)) for p in ((1 - SURE) / 2, (1 + SURE) / 2))
    return low, high


def flag_figures(flag: Flag, clean: Pixels, asked: Hits, triggered: Pixels, led: Hits) -> dict[str, Any]:
    """Histograms of flag scores in 0..1: of clean images (N,), and of those of images with the inverted triggers (M,)
    that a trigger leads astray.

    ``asked`` (N,) says which of the clean ones have a suspected label, ``led`` (M,) where a trigger works.
    """

    def shares(scores: Pixels) -> list[float]:
        counts = np.histogram(scores.clip(0, 1), BINS, (0, 1))[0]
        return [round(float(share), 5) for share in counts / max(1, len(scores))]

    return {
        "threshold": flag.threshold,
        "alpha": flag.alpha,
        "n_calibration": flag.n_calibration,
        "interval": list(false_alarms(flag.alpha, flag.n_calibration)),
        "suspected": list(flag.suspected),
        "grounds": flag.grounds,
        "suspected_flagged": above(clean[asked], flag.threshold),
        "clean": shares(clean),
        "triggered": shares(triggered[led]) if led.any() else [],
        "n_triggered": len(triggered),
        "n_led": int(led.sum()),
        "triggered_flagged": above(triggered, flag.threshold) if len(triggered) else None,
        "led_flagged": above(triggered[led], flag.threshold) if led.any() else None,
    }


def above(scores: Pixels, threshold: float) -> float:
    """The share of ``scores`` (N,) above the threshold; 0 of none."""
    return float((scores > threshold).mean()) if len(scores) else 0.0


def clean_figures(x: Pixels, y: Labels, bare: Pixels, defended: Defended) -> dict[str, float]:
    """What the defence does to unseen clean images (N, C, H, W) with labels ``y``; changes are in levels of 0..255."""
    before, after = bare.argmax(1), defended.logits.argmax(1)
    change = 255 * np.abs(defended.purified - x).mean((1, 2, 3))
    return {
        "n": len(y),
        "same_answer": float((before == after).mean()),
        "spoilt": int(((before == y) & (after != y)).sum()),
        "mended": int(((before != y) & (after == y)).sum()),
        "change_median": float(np.median(change)),
        "change_largest": float(change.max()),
    }
