"""Numbers as points of inline SVG; the templates draw them. Coordinates are in a box of WIDTH x HEIGHT."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from detrigger.service.console.live import MINUTES, Interval

WIDTH, HEIGHT = 600, 120


@dataclass(frozen=True)
class Line:
    """A line over time; gaps are where nothing happened."""

    pieces: list[str]  # values of `points`
    top: float  # value at the upper edge


def lines(intervals: Sequence[Interval], names: Sequence[str], least: float) -> list[Line]:
    """A line for each of these fields, on one scale that reaches `least` at least."""
    series = [[(it.ago, getattr(it, name)) for it in intervals] for name in names]
    top = max([least, *(value for points in series for _, value in points if value is not None)])
    return [Line(_pieces(points, top), top) for points in series]


def _pieces(points: Sequence[tuple[float, float | None]], top: float) -> list[str]:
    pieces: list[list[str]] = [[]]
    for ago, value in points:
        if value is None:
            pieces.append([])
            continue
        x, y = WIDTH * (1 - ago / (60 * MINUTES)), HEIGHT * (1 - value / top)
        pieces[-1].append(f"{max(0.0, x):.1f},{y:.1f}")
    # A lone point is drawn as a short line, else nothing would be seen.
    return [" ".join(p if len(p) > 1 else [p[0], _right(p[0])]) for p in pieces if p]


def _right(point: str) -> str:
    x, _, y = point.partition(",")
    return f"{float(x) + 3:.1f},{y}"


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram."""

    x: float
    width: float
    height: float
    suspicious: bool
    text: str


@dataclass(frozen=True)
class Scores:
    """Flag scores 0..1 as a histogram, with the threshold and one score marked."""

    bars: list[Bar]
    threshold: float  # x
    mark: float  # x
    count: int


def scores(seen: Sequence[float], threshold: float, score: float, bins: int = 40) -> Scores:
    """The histogram of scores `seen`; heights grow with the logarithm, since most clean scores are 0."""
    counts = [0] * bins
    for value in seen:
        counts[min(bins - 1, max(0, int(value * bins)))] += 1
    tallest = math.log1p(max([1, *counts]))
    width = WIDTH / bins
    bars = [
        Bar(
            k * width,
            width - 1,
            HEIGHT * math.log1p(count) / tallest,
            (k + 0.5) / bins > threshold,
            f"{count} with a score of {k / bins:.2f} to {(k + 1) / bins:.2f}",
        )
        for k, count in enumerate(counts)
        if count
    ]
    return Scores(bars, WIDTH * min(1.0, max(0.0, threshold)), WIDTH * min(1.0, max(0.0, score)), len(seen))
