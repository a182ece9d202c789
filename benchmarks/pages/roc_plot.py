"""docs/roc.svg: how well detectors tell triggered images from clean ones, from benchmarks/results/baselines.json."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.pages.svg import BARE, FAINT, FLOOR, OURS, curve, line, picture, text

RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""False-positive rates of the rows' ROC, as in `benchmarks/bench_baselines.py`."""
DETECTORS = {
    "detrigger_flag": ("Detrigger", OURS),
    "strip": ("STRIP", BARE),
    "scale_up": ("SCALE-UP", FLOOR),
}
SIDE, GAP, LEFT, TOP, COLUMNS = 150, 34, 44, 62, 4


def draw(rows: list[dict[str, Any]]) -> str:
    """A panel for each suspect (fields of baselines.json, first seed): true against false positives, log scale."""
    suspects: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if "ROC" in row and row["method"] in DETECTORS:
            suspects.setdefault(row["model"], {}).setdefault(row["method"], row["ROC"])
    parts = [text(LEFT, 18, "triggered images flagged, by the share of clean images that are", weight="600")]
    x = LEFT
    for name, colour in DETECTORS.values():
        parts += [line(x, 34, x + 18, 34, colour, 2), text(x + 24, 38, name)]
        x += 40 + 8 * len(name)
    lowest, highest = math.log10(RATES[0]), math.log10(RATES[-1])
    for i, (model, curves) in enumerate(sorted(suspects.items())):
        left = LEFT + (SIDE + GAP) * (i % COLUMNS)
        bottom = TOP + SIDE + (SIDE + 58) * (i // COLUMNS)
        parts.append(text(left, bottom - SIDE - 6, model))
        for share in (0, 0.5, 1):
            y = bottom - SIDE * share
            parts += [
                line(left, y, left + SIDE, y, FAINT),
                text(left - 6, y + 4, f"{share:.0%}", anchor="end"),
            ]
        for rate in (0.001, 0.01, 0.1):
            at = left + SIDE * (math.log10(rate) - lowest) / (highest - lowest)
            parts += [
                line(at, bottom, at, bottom - SIDE, FAINT),
                text(at, bottom + 16, f"{rate:.1%}" if rate < 0.01 else f"{rate:.0%}", anchor="middle"),
            ]
        for method, (_, colour) in reversed(DETECTORS.items()):
            if method in curves:
                points = [
                    (left + SIDE * (math.log10(rate) - lowest) / (highest - lowest), bottom - SIDE * share)
                    for rate, share in zip(RATES, curves[method], strict=True)
                ]
                parts.append(curve(points, colour))
    lines = -(-len(suspects) // COLUMNS)
    return picture(LEFT + (SIDE + GAP) * COLUMNS, TOP + (SIDE + 58) * lines, parts)
