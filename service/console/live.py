"""The last ten minutes of this process, looked up in its metrics every other second."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from itertools import pairwise

from prometheus_client import Counter, Histogram

from detrigger.service.metrics import PREDICT, Metrics

EVERY = 2.0
MINUTES = 10
_POINTS = 60


@dataclass(frozen=True, slots=True)
class Counts:
    """Counters at one moment."""

    time: float
    images: float
    flagged: float
    requests: float
    errors: float
    latency: tuple[tuple[float, float], ...]  # (seconds, requests that took at most that)


@dataclass(frozen=True, slots=True)
class Interval:
    """What happened between two moments."""

    ago: float  # seconds before now, of its end
    images_per_second: float
    flagged_share: float | None  # None: no images
    p50: float | None  # seconds; None: no requests
    p99: float | None


class Live:
    """Keeps the counts; `run` belongs to the event loop."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._counts: deque[Counts] = deque([self._now()], maxlen=round(MINUTES * 60 / EVERY) + 1)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(EVERY)
            self._counts.append(self._now())

    def intervals(self) -> list[Interval]:
        """The last ten minutes in up to 60 steps, oldest first; the last one is long enough to say something."""
        counts, latest = [*self._counts], self._now()
        if len(counts) > 1 and latest.time - counts[-1].time < EVERY / 2:
            counts.pop()
        counts.append(latest)
        step = max(1, len(counts) // _POINTS)
        chosen = counts[::-1][::step][::-1]
        now = counts[-1].time
        return [between(a, b, now) for a, b in pairwise(chosen) if b.time > a.time]

    def lately(self, seconds: float = 60) -> Interval:
        """The last minute as one."""
        now = self._now()
        first = next(it for it in self._counts if it.time >= now.time - seconds or it is self._counts[-1])
        return between(first, now, now.time)

    def totals(self) -> Counts:
        """Since the process started."""
        return self._now()

    def _now(self) -> Counts:
        metrics = self._metrics
        predict = [
            (labels, value)
            for labels, value in _series(metrics.requests, "_total")
            if labels["route"] == PREDICT
        ]
        return Counts(
            time.monotonic(),
            sum(value for labels, value in _series(metrics.images, "_total") if labels["outcome"] == "ok"),
            sum(value for _, value in _series(metrics.flagged, "_total")),
            sum(value for _, value in predict),
            sum(value for labels, value in predict if labels["status"] >= "500"),
            tuple(
                (float(labels["le"]), value)
                for labels, value in _series(metrics.request_duration, "_bucket")
                if labels["route"] == PREDICT
            ),
        )


def between(a: Counts, b: Counts, now: float) -> Interval:
    """What happened from one moment to a later one."""
    images, flagged = b.images - a.images, b.flagged - a.flagged
    before = dict(a.latency)
    latency = [(le, count - before.get(le, 0.0)) for le, count in b.latency]
    return Interval(
        now - b.time,
        images / max(1e-9, b.time - a.time),
        flagged / images if images else None,
        quantile(latency, 0.5),
        quantile(latency, 0.99),
    )


def quantile(buckets: list[tuple[float, float]], share: float) -> float | None:
    """As PromQL's histogram_quantile: within a bucket on a straight line. None where there is nothing."""
    total = buckets[-1][1] if buckets else 0.0
    below, start = 0.0, 0.0
    for bound, count in buckets:
        if total and count >= share * total:
            if bound == float("inf"):
                return start
            return start + (bound - start) * (share * total - below) / (count - below)
        below, start = count, bound
    return None


def _series(metric: Counter | Histogram, ending: str) -> list[tuple[dict[str, str], float]]:
    return [
        (sample.labels, sample.value)
        for family in metric.collect()
        for sample in family.samples
        if sample.name.endswith(ending)
    ]
