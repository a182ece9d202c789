"""Step 4: the flag score and its conformal threshold.

    s(x)  = max(0, log p_f(k | x) - log p_f(k | P(x))),  k the raw label;  reported as s / (1 + s), in [0, 1)

the confidence that the raw label loses when the image is purified. Flagged is what is above the threshold, the
j-th largest score of n clean calibration images with j = floor(alpha (n + 1)): if clean traffic is exchangeable
with the calibration images, a clean image is flagged with probability at most alpha (split conformal prediction).
Limitations: drift voids the guarantee; images that the suspect was trained on score too low as calibration images.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ALPHA = 0.01
"""Nominal false-positive rate."""


def conformal_threshold(scores: npt.NDArray[np.float32], alpha: float = ALPHA) -> tuple[float, float]:
    """The threshold and the alpha that it really stands for (a larger one where n < 1 / alpha - 1).

    Args:
        scores: (n,) flag scores of clean images that no earlier step saw, n >= 1.
    """
    n = len(scores)
    rank = int(alpha * (n + 1))
    if rank < 1:
        rank, alpha = 1, 1 / (n + 1)
    return float(np.sort(scores)[::-1][rank - 1]), alpha
