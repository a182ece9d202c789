"""docs/zoo.svg: what each attack of the zoo achieves before and after, drawn from benchmarks/results/zoo.json."""

from __future__ import annotations

from html import escape
from typing import Any

ROW, LEFT, WIDTH, GAP, TOP = 22, 190, 420, 60, 58
RIGHT = 150
BARE, OURS, FLOOR, INK, FAINT = "#c0392b", "#1f6feb", "#57606a", "#24292f", "#d0d7de"


def draw(rows: list[dict[str, Any]]) -> str:
    """The picture of the standard profile's rows (fields of zoo.json); several seeds are several dots."""
    suspects: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["profile"] == "standard" and "ASR" in row:
            suspects.setdefault(row["model"], []).append(row)
    bottom = TOP + ROW * len(suspects)
    right = LEFT + WIDTH + GAP
    parts = [
        _text(LEFT, 18, "images with a trigger that get the attacker's answer (ASR)", weight="600"),
        _dot(LEFT + 4, 34, BARE), _text(LEFT + 14, 38, "bare"),
        _dot(LEFT + 64, 34, OURS), _text(LEFT + 74, 38, "through Detrigger"),
        _line(LEFT + 196, 28, LEFT + 196, 40, FLOOR, 2),
        _text(LEFT + 204, 38, "clean images with that answer anyway"),
        _text(right, 18, "triggered images flagged", weight="600"),
    ]  # fmt: skip
    marks = [(LEFT + WIDTH * share / 100, share) for share in (0, 25, 50, 75, 100)]
    marks += [(right + RIGHT * (share - 90) / 10, share) for share in (90, 95, 100)]
    for x, share in marks:
        parts += [_line(x, TOP - 6, x, bottom, FAINT), _text(x, bottom + 16, f"{share}%", anchor="middle")]
    for i, (model, runs) in enumerate(sorted(suspects.items())):
        y = TOP + ROW * i + ROW / 2
        parts.append(_text(LEFT - 12, y + 4, model, anchor="end"))
        spot = [LEFT + WIDTH * run["ASR"] for run in runs]
        bare = LEFT + WIDTH * runs[0]["ASR_bare"]
        parts.append(_line(max(spot), y, bare, y, FAINT, 2))
        if "floor" in runs[0]:
            floor = LEFT + WIDTH * runs[0]["floor"]
            parts.append(_line(floor, y - 7, floor, y + 7, FLOOR, 2))
        parts += [_dot(bare, y, BARE), *(_dot(x, y, OURS) for x in spot)]
        parts += [_dot(right + RIGHT * max(0.0, run["TPR"] - 0.9) * 10, y, OURS) for run in runs]
    width, height = right + RIGHT + 30, bottom + 28
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        'font-family="system-ui, sans-serif" font-size="12">\n'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _text(x: float, y: float, words: str, anchor: str = "start", weight: str = "400") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{INK}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{escape(words)}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: int = 1) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width}"/>'
    )


def _dot(x: float, y: float, colour: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>'
