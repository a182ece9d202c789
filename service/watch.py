"""Two signs of trouble that a flagged rate alone does not show, over the last images served.

Concentration. A backdoor sends many inputs to one label, so under an attack flagged images share their raw
label, while false alarms are spread like all images are:

    concentration = max over labels of (share among the last flagged images - share among all the last images)

Where the version suspects labels, false alarms have those as well. Of their flags among the last images only so many
count as are beyond alpha, the share of clean images that the threshold may flag.

Drift. Scores of clean traffic should be distributed like those of the calibration set. Of that set the
manifest knows quantiles (q, p). One is the threshold, passed by 1 - alpha; more where the manifest has
metrics `calibration_score_pNN`. The gauge is the Kolmogorov-Smirnov distance at these points, which is how
far p lies outside of what the last scores s allow for a quantile, since most clean images score exactly 0:

    drift = max over (q, p) of the distance of p from [share of s < q, share of s <= q]

Both are 0 until enough images came, look back `_SECONDS` at most, so that an attack of the past is forgotten when no
traffic follows it, start anew with each version, and are two or three series whatever the number of classes. Neither
proves anything: concentration also rises when one class is hard, drift when the traffic changes.
"""

import re
import time
from collections import Counter, deque
from collections.abc import Callable
from itertools import repeat

import numpy as np

from detrigger.models.manifest import Manifest
from detrigger.service.engine import Model, Outputs

_FLAGGED = 256
_ALL = 2048
_ENOUGH_FLAGGED = 20
_ENOUGH = 200
_SECONDS = 600.0
_QUANTILE = re.compile(r"calibration_score_p(\d\d)")


class Watch:
    """The last images of the version being served. Cheap to feed; the sums are done at each scrape."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start(None)

    def _start(self, model: Model | None) -> None:
        self._version = model.version if model else None
        self._points = calibration_points(model.manifest) if model else ()
        self._flag = model.manifest.flag if model else None
        self._flagged: deque[tuple[float, int]] = deque(maxlen=_FLAGGED)  # when, raw label
        self._all: deque[tuple[float, int, float]] = deque(maxlen=_ALL)  # when, raw label, flag score

    def feed(self, model: Model, outputs: Outputs) -> None:
        """Take note of one request."""
        if model.version != self._version:
            self._start(model)
        now = self._clock()
        labels = outputs.raw_index.tolist()
        self._all.extend(zip(repeat(now), labels, outputs.flag_score.tolist(), strict=False))
        if outputs.flagged.any():
            flags = outputs.flagged.tolist()
            self._flagged.extend((now, label) for label, flag in zip(labels, flags, strict=True) if flag)

    def _forget(self) -> None:
        oldest = self._clock() - _SECONDS
        while self._all and self._all[0][0] < oldest:
            self._all.popleft()
        while self._flagged and self._flagged[0][0] < oldest:
            self._flagged.popleft()

    def flagged_labels(self) -> Counter[int]:
        """The raw labels of the last flagged images, each with how many there were."""
        self._forget()
        return Counter(label for _, label in self._flagged)

    def scores(self) -> list[float]:
        """The last flag scores."""
        self._forget()
        return [score for _, _, score in self._all]

    def concentration(self) -> tuple[float, int]:
        """The concentration and the label that it is about; (0, -1) while there is too little to say."""
        self._forget()
        if len(self._flagged) < _ENOUGH_FLAGGED:
            return 0.0, -1
        every = Counter(label for _, label, _ in self._all)
        flagged = Counter(label for _, label in self._flagged)
        excess = {
            label: count / len(self._flagged) - every[label] / len(self._all)
            for label, count in flagged.items()
        }
        if self._flag is not None and self._flag.suspected:
            above = [label for _, label, score in self._all if score > self._flag.threshold]
            allowed = self._flag.alpha * len(self._all)
            for label in flagged.keys() & set(self._flag.suspected):
                excess[label] = (above.count(label) - allowed) / max(1, len(above))
        label = max(excess, key=excess.__getitem__)
        return max(0.0, excess[label]), label

    def drift(self) -> float:
        """The distance to the calibration set, 0..1."""
        self._forget()
        if len(self._all) < _ENOUGH:
            return 0.0
        scores = np.sort(np.fromiter((score for _, _, score in self._all), float))
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
