"""The flag score and its conformal threshold.

    s(x)  = p_f(k | x)^3 max(0, log p_f(k | x) - log p_g(k | P(x))),  k the raw label;  reported as s / (1 + s)

the confidence that the suspect's label loses when the image is purified and classified by the repaired copy g. The
third power leaves images alone that the suspect was not sure of. They lose as much, and a trigger makes it sure.
Flagged is what is above the threshold. The threshold is the j-th largest score of n clean calibration images, with
j = floor(alpha (n + 1)). If clean traffic is exchangeable with the calibration images, a clean image is flagged with
probability at most alpha (split conformal prediction).

Where the verdict names targets, only an image with such a label can be a success of that backdoor. The graph then
divides s by a fixed number for all other labels (``models/protected.py``). No calibration image had a part in that,
so the promise holds as it is, for all clean images together. As few of them have a suspected label, the same rule ends
at a far lower threshold (``suspected_threshold``).
Limitations: drift voids the guarantee, and so does traffic with another share of suspected labels; images that the
suspect was trained on score too low as calibration images.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

ALPHA = 0.01
"""Nominal false-positive rate."""
SECOND_MODE = 0.7
"""Score that few clean images exceed and most triggered ones do (docs/experiments.md, Calibrate and gate)."""
CONTAMINATED = 0.01
ALPHA_SUSPECTED = 0.005
"""Nominal false-positive rate over all labels, where some are suspected."""
MOST_OF_LABEL = 0.1
"""Of clean images with a suspected label so many are flagged at most, however rare the label is."""
LEAST_SCORE = 0.1
"""Score of an image whose label lost a tenth of its confidence. What lost less is never flagged."""
KEPT = 0.95
"""Share of the images known to be triggered that stay flagged, whatever people call clean."""


def conformal_threshold(scores: npt.NDArray[np.float32], alpha: float = ALPHA) -> tuple[float, float]:
    """The threshold and the alpha that it really stands for (a larger one where n < 1 / alpha - 1).

    Args:
        scores: (n,) flag scores of clean images that nothing was trained on, n >= 1.
    """
    n = len(scores)
    rank = int(alpha * (n + 1))
    if rank < 1:
        rank, alpha = 1, 1 / (n + 1)
    return float(np.sort(scores)[::-1][rank - 1]), alpha


def suspected_threshold(scores: npt.NDArray[np.float32], asked: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """The same where some labels are suspected: ``asked`` (n,) says which of the clean images have one.

    It is the highest of three: the conformal one of all ``scores`` for ``ALPHA_SUSPECTED``, that of the asked ones for
    ``MOST_OF_LABEL``, and ``LEAST_SCORE``. The alpha is that of as many scores as really lie above.
    """
    own = conformal_threshold(scores[asked], MOST_OF_LABEL)[0] if asked.any() else 0.0
    threshold = max(conformal_threshold(scores, ALPHA_SUSPECTED)[0], own, LEAST_SCORE)
    return threshold, float(((scores > threshold).sum() + 1) / (len(scores) + 1))


def corrected_threshold(
    threshold: float,
    alpha: float,
    calibration: npt.NDArray[np.float32],
    clean: npt.NDArray[np.float32],
    triggered: npt.NDArray[np.float32],
) -> float:
    """The threshold, raised for images that people called clean, so that fewer of their kind are flagged.

    Their scores count like those of ``calibration`` images. It is never lowered, so the nominal rate still holds. Nor
    is it raised above ``SECOND_MODE``, or so far that fewer than ``KEPT`` of the images known to be ``triggered`` stay
    flagged: else whoever gets crafted images called clean could switch the flag off.
    """
    if not len(clean):
        return threshold
    raised, _ = conformal_threshold(np.concatenate([calibration, clean]), alpha)
    known = float(np.quantile(triggered, 1 - KEPT)) if len(triggered) else SECOND_MODE
    return max(threshold, min(raised, known, SECOND_MODE))


def second_mode(scores: npt.NDArray[np.float32], most: float = CONTAMINATED) -> tuple[float, bool]:
    """The share of the clean ``scores`` (n,) that lie where those of triggered images do, and whether that is alarming.

    Clean scores have one mode, near zero. A second one says that some of the "clean" images carry the trigger, or are
    not of the kind that the suspect was trained on. The threshold is then too high to be worth much. Fewer than three
    images, or no more than ``most``, are left to chance.
    """
    above = scores > SECOND_MODE
    return float(above.mean()), bool(above.sum() >= 3 and above.mean() > most)


def trustworthy(
    scores: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], suspected: Collection[int]
) -> npt.NDArray[np.bool_]:
    """Which clean images (n,) to calibrate on where ``second_mode`` alarms.

    Left out are those of the second mode with a ``suspected`` label: what carries the trigger in a clean set has it. A
    second mode of other labels stays, as it may well be part of the traffic.
    """
    kept: npt.NDArray[np.bool_] = (scores <= SECOND_MODE) | ~np.isin(labels, list(suspected))
    return kept
