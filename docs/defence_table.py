"""The bars that the defence has to clear, in docs/method.md, from benchmarks/results/ but for those of the service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from serving_table import Bar, bar_lines

Row = dict[str, Any]


def bars(
    zoo: list[Row],
    repaired: list[Row],
    costs: list[Row],
    officials: list[Row],
    few: list[Row],
    classes: list[Row],
) -> str:
    """A row per bar: what it must be, what was measured, whether every run is within it.

    From the rows of zoo.json, repair.json, cost.json, official.json, budget.json and classes.json.
    """
    zoo = [row for row in zoo if row["profile"] == "standard"]
    attacked = [row for row in zoo if "ASR" in row]
    plain = [row for row in attacked if row["ASR_bare"] >= 0.9]
    drops = [100 * ba_drop(row) for row in zoo]
    named = [row for row in zoo if not _right(row)]
    (cost,) = (row for row in costs if row["store"].startswith("cifar10-badnets"))
    first = next(row for row in zoo if (row["model"], row["seed"]) == ("cifar10-badnets", 0))
    (official,) = officials
    ours, times = same_job(official, few), with_all(official) / first["seconds"]
    small = {r["classes"]: r["cpu_seconds"] for r in classes if (r["side"], r["profile"]) == (32, "standard")}
    growth = small[1000] / small[10]
    return bar_lines(
        [
            _every(attacked, "ASR", lambda row: 100 * row["ASR"], 2, 0.5, "%"),
            _every(zoo, f"BA drop (mean {sum(drops) / len(drops):.2f})", lambda row: 100 * ba_drop(row), 1, 0.3),
            _every(attacked, "BA - PA", lambda row: 100 * (row["BA"] - row["PA"]), 5, 2),
            _every(
                plain, "triggered images not flagged, bare ASR 90% or more",
                lambda row: 100 - 100 * row["TPR"], 5, 1, "%",
            ),
            _every(zoo, "FPR at a nominal 1%", lambda row: 100 * row["FPR"], 2.5, 2.5, "%"),
            (
                "verdict, and the target labels where there are any", "right on all", "",
                f"{len(zoo) - len(named)} of {len(zoo)} runs" + _names(named), not named,
            ),
            _every(repaired, "`repair`: ASR", lambda row: 100 * row.get("ASR", 1.0), 2, 0.5, "%"),
            _every(repaired, "`repair`: BA drop", lambda row: 100 * ba_drop(row) if "BA" in row else 0.0, 1.5, 0.5),
            (
                "time of `protect`, two cores, cifar10-badnets", "240 s", "120 s",
                f"{first['seconds']:.0f} s", first["seconds"] <= 240,
            ),
            ("faster than the official code, 2,500 clean images", "60x", "150x", f"{times:.0f}x", times >= 60),
            (
                f"ASR and BA beside the official code's, {official['images']} clean images", "as good", "",
                f"ASR {100 * ours['ASR']:.1f}% and its {100 * official['ASR']:.1f}%,"
                f" BA {100 * ours['BA']:.1f}% and its {100 * official['BA']:.1f}%",
                ours["ASR"] <= official["ASR"] and ours["BA"] >= official["BA"],
            ),
            (
                "CPU time of `protect` for 1,000 classes against 10", "under 100x", "",
                f"{growth:.1f}x", growth < 100,
            ),
            (
                "images/s of the protected graph against the bare classifier, cifar10-badnets", "0.45x", "0.7x",
                f"{cost['ratio']:.2f}x", cost["ratio"] >= 0.45,
            ),
        ]
    )  # fmt: skip


def _every(
    rows: list[Row], what: str, figure: Callable[[Row], float], must: float, aim: float, unit: str = " points"
) -> Bar:
    """A bar that no run may be above."""
    within, good = (sum(figure(row) <= most for row in rows) for most in (must, aim))
    worst = max(rows, key=figure)
    most = f"{figure(worst):.2f}{unit}, {worst['model']}"
    measured = f"{within} of {len(rows)} runs, {good} at most {aim:g}; worst {most}"
    return what, f"{must:g}{unit}", f"{aim:g}{unit}", measured, within == len(rows)


def ba_drop(row: Row) -> float:
    """What the defence costs of BA, 0 to 1; rounded, so that 1.5 points are no more than 1.5."""
    drop: float = round(row["BA_bare"] - row["BA"], 6)
    return drop


def same_job(official: Row, few: list[Row]) -> Row:
    """What Detrigger did on the suspect of a row of the official code, with its number of clean images and seed."""
    names = ("model", "images", "seed")
    return next(row for row in few if all(row[name] == official[name] for name in names))


def with_all(official: Row) -> float:
    """Seconds that the official code takes with 2,500 clean images: its schedule counts walks through them."""
    seconds: float = official["seconds"] * 2500 / official["images"]
    return seconds


def _right(row: Row) -> bool:
    """Whether verdict and labels are those of the attack; of several targets only the verdict is known here."""
    if "ASR" not in row:
        return bool(row["verdict"] == "clean")
    target = row["target"]
    return row["verdict"] == "backdoored" and (isinstance(target, str) or row["target_labels"] == [target])


def _names(rows: list[Row]) -> str:
    if not rows:
        return ""
    found = (f"{row['model']} ({row['verdict']}, {row['target_labels']})" for row in rows)
    return "; not " + ", ".join(dict.fromkeys(found))
