"""Two signs of trouble that a flagged rate alone does not show, over the last images served.

Concentration. A backdoor sends many inputs to one label, so under an attack flagged images share their raw
label, while false alarms are spread like all images are:

    concentration = max over labels of (share among the last flagged images - share among all the last images)

Drift. Scores of clean traffic should be distributed like those of the calibration set. Of that set the
manifest knows quantiles (q, p). One is the threshold, passed by 1 - alpha; more where the manifest has
metrics `calibration_score_pNN`. The gauge is the Kolmogorov-Smirnov distance at these points, which is how
far p lies outside of what the last scores s allow for a quantile, since most clean images score exactly 0:

    drift = max over (q, p) of the distance of p from [share of s < q, share of s <= q]

Both are 0 until enough images came, start anew with each version, and are two or three series whatever the
number of classes. Neither proves anything: concentration also rises when one class is hard, drift when the
traffic changes.
"""

import re
from collections import Counter, deque

import numpy as np

from detrigger.models.manifest import Manifest
from detrigger.service.engine import Model, Outputs

_FLAGGED = 256
_ALL = 2048
_ENOUGH_FLAGGED = 20
_ENOUGH = 200
_QUANTILE = re.compile(r"calibration_score_p(\d\d)")


class Watch:
    """The last images of the version being served. Cheap to feed; the sums are done at each scrape."""

    def __init__(self) -> None:
        self._start(None)

    def _start(self, model: Model | None) -> None:
        self._version = model.version if model else None
        self._points = calibration_points(model.manifest) if model else ()
        self._flagged: deque[int] = deque(maxlen=_FLAGGED)
        self._labels: deque[int] = deque(maxlen=_ALL)
        self._scores: deque[float] = deque(maxlen=_ALL)

    def feed(self, model: Model, outputs: Outputs) -> None:
        """Take note of one request."""
        if model.version != self._version:
            self._start(model)
        labels = outputs.raw_index.tolist()
        self._labels.extend(labels)
        self._scores.extend(outputs.flag_score.tolist())
        if outputs.flagged.any():
            self._flagged.extend(
                label for label, flagged in zip(labels, outputs.flagged.tolist(), strict=True) if flagged
            )

    def concentration(self) -> tuple[float, int]:
        """The concentration and the label that it is about; (0, -1) while there is too little to say."""
        if len(self._flagged) < _ENOUGH_FLAGGED:
            return 0.0, -1
        every = Counter(self._labels)
        excess = {
            label: count / len(self._flagged) - every[label] / len(self._labels)
            for label, count in Counter(self._flagged).items()
        }
        label = max(excess, key=excess.__getitem__)
        return max(0.0, excess[label]), label

    def drift(self) -> float:
        """The distance to the calibration set, 0..1."""
        if len(self._scores) < _ENOUGH:
            return 0.0
        scores = np.sort(np.fromiter(self._scores, float))
        quantiles, shares = np.array(self._points).T
        below, at_most = (
            np.searchsorted(scores, quantiles, side) / len(scores) for side in ("left", "right")
        )
        return float(np.maximum(below - shares, shares - at_most).max(initial=0.0))


def calibration_points(manifest: Manifest) -> tuple[tuple[float, float], ...]:
    """The points (q, p) of the calibration set's score distribution that the manifest knows."""
    points = [(manifest.flag.threshold, 1.0 - manifest.flag.alpha)]
    for name, value in manifest.metrics.items():
        found = _QUANTILE.fullmatch(name)
        if found:
            points.append((value, int(found[1]) / 100))
    return tuple(points)
