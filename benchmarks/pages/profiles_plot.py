"""docs/profiles.svg: what more time buys, from the suspects that every profile of benchmarks/results/zoo.json has."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import cycle
from typing import Any

from benchmarks.bars import ba_drop
from benchmarks.pages.svg import BARE, FAINT, FLOOR, INK, OURS, curve, dot, line, picture, text

PROFILES = ("fast", "standard", "thorough")
COLOURS = (OURS, BARE, FLOOR, INK)
PANELS: tuple[tuple[str, Callable[[dict[str, Any]], float], tuple[float, ...]], ...] = (
    ("ASR, %", lambda row: 100 * row["ASR"], (0, 1, 2)),
    ("BA drop, points", lambda row: 100 * ba_drop(row), (-1, 0, 1, 2)),
)
SECONDS = (30, 60, 120, 240, 480)
WIDTH, HEIGHT, GAP, LEFT, TOP = 320, 170, 64, 40, 62


def in_every_profile(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """For each suspect its rows of the first seed in the order of ``PROFILES``, where there are all of them."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row["seed"] == 0 and "ASR" in row:
            found.setdefault(row["model"], {})[row["profile"]] = row
    return {
        model: [own[profile] for profile in PROFILES]
        for model, own in found.items()
        if len(own) == len(PROFILES)
    }


def draw(rows: list[dict[str, Any]]) -> str:
    """A panel for ASR and one for the BA drop, over seconds on one core (log scale); a line is a suspect."""
    suspects = in_every_profile(rows)
    parts = [
        text(LEFT, 18, "fast, standard and thorough, by the seconds that they take on one core", weight="600")
    ]
    x = LEFT
    for model, colour in zip(suspects, cycle(COLOURS), strict=False):
        parts += [line(x, 34, x + 18, 34, colour, 2), text(x + 24, 38, model)]
        x += 44 + 7 * len(model)
    lowest, highest = math.log(SECONDS[0]), math.log(SECONDS[-1])
    for i, (title, figure, marks) in enumerate(PANELS):
        left, bottom = LEFT + (WIDTH + GAP) * i, TOP + HEIGHT

        def at(seconds: float, left: float = left) -> float:
            return left + WIDTH * (math.log(seconds) - lowest) / (highest - lowest)

        def level(value: float, marks: tuple[float, ...] = marks, bottom: float = bottom) -> float:
            share = (value - marks[0]) / (marks[-1] - marks[0])
            return bottom - HEIGHT * min(1.0, max(0.0, share))

        parts.append(text(left, TOP - 8, title))
        for mark in marks:
            y = level(mark)
            parts += [line(left, y, left + WIDTH, y, FAINT), text(left - 6, y + 4, f"{mark:g}", anchor="end")]
        for seconds in SECONDS:
            parts += [
                line(at(seconds), bottom, at(seconds), TOP, FAINT),
                text(at(seconds), bottom + 16, f"{seconds} s", anchor="middle"),
            ]
        for own, colour in zip(suspects.values(), cycle(COLOURS), strict=False):
            points = [(at(row["seconds"]), level(figure(row))) for row in own]
            parts += [curve(points, colour), *(dot(*point, colour) for point in points)]
    return picture(LEFT + (WIDTH + GAP) * len(PANELS), TOP + HEIGHT + 30, parts)
