"""docs/zoo.svg: what each attack of the zoo achieves before and after, drawn from benchmarks/results/zoo.json."""

from __future__ import annotations

from typing import Any

from benchmarks.pages.svg import BARE, FAINT, FLOOR, OURS, dot, line, picture, text

ROW, LEFT, WIDTH, GAP, TOP = 22, 190, 420, 60, 58
RIGHT, LEAST = 200, 0.6
"""The panel of flagged images, from its least share on."""


def draw(rows: list[dict[str, Any]]) -> str:
    """The picture of the standard profile's rows (fields of zoo.json); several seeds are several dots."""
    suspects: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["profile"] == "standard" and "ASR" in row:
            suspects.setdefault(row["model"], []).append(row)
    bottom = TOP + ROW * len(suspects)
    right = LEFT + WIDTH + GAP

    def flagged(share: float) -> float:
        return right + RIGHT * max(0.0, (share - LEAST) / (1 - LEAST))

    parts = [
        text(LEFT, 18, "images with a trigger that get the attacker's answer (ASR)", weight="600"),
        dot(LEFT + 4, 34, BARE), text(LEFT + 14, 38, "bare"),
        dot(LEFT + 64, 34, OURS), text(LEFT + 74, 38, "through Detrigger"),
        line(LEFT + 196, 28, LEFT + 196, 40, FLOOR, 2),
        text(LEFT + 204, 38, "clean images with that answer anyway"),
        text(right, 18, "triggered images flagged", weight="600"),
    ]  # fmt: skip
    marks = [(LEFT + WIDTH * share / 100, share) for share in (0, 25, 50, 75, 100)]
    marks += [(flagged(share / 100), share) for share in (60, 70, 80, 90, 100)]
    for x, share in marks:
        parts += [line(x, TOP - 6, x, bottom, FAINT), text(x, bottom + 16, f"{share}%", anchor="middle")]
    for i, (model, runs) in enumerate(sorted(suspects.items())):
        y = TOP + ROW * i + ROW / 2
        parts.append(text(LEFT - 12, y + 4, model, anchor="end"))
        spot = [LEFT + WIDTH * run["ASR"] for run in runs]
        bare = LEFT + WIDTH * runs[0]["ASR_bare"]
        parts.append(line(max(spot), y, bare, y, FAINT, 2))
        if "floor" in runs[0]:
            floor = LEFT + WIDTH * runs[0]["floor"]
            parts.append(line(floor, y - 7, floor, y + 7, FLOOR, 2))
        parts += [dot(bare, y, BARE), *(dot(x, y, OURS) for x in spot)]
        parts += [dot(flagged(run["TPR"]), y, OURS) for run in runs]
    width, height = right + RIGHT + 30, bottom + 28
    return picture(width, height, parts)
