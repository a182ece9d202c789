"""The bars that the product has to clear, for docs/results.md and docs/serving.md.

`defence()` and `service()` each compare the committed results with what they must and should reach.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]
Bar = tuple[str, str, str, str, bool]  # what, must, aim, measured, whether the must is met


def rows_of(name: str) -> list[Row]:
    """The committed rows of one benchmark."""
    rows: list[Row] = json.loads((RESULTS / f"{name}.json").read_text())
    return rows


def defence() -> list[Bar]:
    """A bar a row: what it must be, what was measured, whether every run is within it."""
    repaired, costs, officials, few, classes = map(
        rows_of, ("repair", "cost", "official", "budget", "classes")
    )
    zoo = [row for row in rows_of("zoo") if row["profile"] == "standard"]
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
    return [
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
    ]  # fmt: skip


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


def serving_result(name: str) -> dict[str, Any]:
    """One measurement of the service; empty where it was not made."""
    path = RESULTS / f"serving/{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def service() -> list[Bar]:
    """A row per bar: what it must be, what was measured, whether that is enough."""
    found: list[Bar] = []
    for name, rows in (
        ("compare", _compared),
        ("overload", _overload),
        ("loads", _loads),
        ("hostile", _hostile),
        ("swaps", _swaps),
        ("soak", _soak),
        ("quarantine", _quarantine),
        ("fuzz", _fuzz),
        ("document", _document),
        ("kills", _kills),
        ("kill_steps", _kill_steps),
        ("disks", _disks),
    ):
        result = serving_result(name)
        found += rows(result) if result else [(f"`bench_serving {name}`", "", "", "not measured", False)]
    return found


def _compared(result: dict[str, Any]) -> list[Bar]:
    rows: list[Bar] = []
    for row in result["rows"]:
        graph, ratios = row["graph"], row["ratios"]
        share, gain, slower = ratios["of_bare"], ratios["of_better_rival"], ratios["p99_of_better_rival"]
        idle, aim = ratios["idle_overhead_ms"], "1.5x" if graph == "cifar" else "2x"
        rows += [
            (
                f"{graph}: requests/s against images/s of the bare graph at its best batch",
                "0.5x", "0.7x", f"{share:.2f}x", share >= 0.5,
            ),
            (
                f"{graph}: requests/s against the better of LitServe and FastAPI ({ratios['better_rival']}), "
                "p99 no worse",
                "1.2x", aim, f"{gain:.2f}x, p99 {slower:.2f}x", gain >= 1.2 and slower <= 1,
            ),
            (
                f"{graph}: idle p50 over the bare graph's time",
                "1.5 ms", "0.8 ms",
                f"{idle:.2f} ms ({ratios['idle_overhead_in_a_row_ms']:.2f} ms over runs without a pause)",
                idle <= 1.5,
            ),
        ]  # fmt: skip
    return rows


def _overload(result: dict[str, Any]) -> list[Bar]:
    answers = ", ".join(f"{status}: {count:,}" for status, count in result["statuses"].items())
    memory = result["memory_mb"]
    measured = (
        f"{answers}; unanswered {result['unanswered']}; p99 of the 200s {result['ok_p99_ms'] / 1e3:.2f} s; "
        f"memory {memory['first']:.0f} to {memory['last']:.0f} MB"
    )
    must = "for 10 min: all answered 200, 429, 503 or 504; p99 within the deadline; memory flat"
    what = f"{result['seconds']:.0f} s at three times the capacity ({result['sent_per_second']:.0f}/s)"
    return [(what, must, "", measured, all(result["checks"].values()) and result["seconds"] >= 600)]


def _loads(result: dict[str, Any]) -> list[Bar]:
    found: list[Bar] = []
    for row in result["rows"]:
        if row["server"] != "Detrigger":
            continue
        peak = max(row["steps"], key=lambda step: step["goodput_per_second"])
        over = [step for step in row["steps"] if step["times"] > 1]
        shares = [step["goodput_per_second"] / peak["goodput_per_second"] for step in over]
        slower = [step["p99_ms"] / peak["p99_ms"] for step in over]
        late = sum(step["answers_after_deadline"] for step in row["steps"])
        live = max(step["livez_max_ms"] for step in row["steps"])
        times = ", ".join(f"{step['times']:g}x" for step in over)
        who = f"one core, {row['clients']} clients in an open loop at {times} the capacity"
        found += [
            (
                f"{who}: goodput against the peak", "0.9, 0.9, 0.7", "", ", ".join(f"{s:.2f}" for s in shares),
                all(share >= (0.7 if step["times"] >= 10 else 0.9) for share, step in zip(shares, over, strict=True)),
            ),
            (
                f"{who}: p99 of the 200s against that at the peak", "2x", "", ", ".join(f"{s:.2f}x" for s in slower),
                max(slower) <= 2,
            ),
            (
                f"{who}: answers after their deadline; longest `/livez`", "0; 100 ms", "", f"{late}; {live:.0f} ms",
                late == 0 and live <= 100,
            ),
        ]  # fmt: skip
    return found


def _hostile(result: dict[str, Any]) -> list[Bar]:
    rows = [row for row in result["rows"] if row["server"] == "Detrigger"]
    calm = next(row for row in rows if row["attack"] == "none")
    found: list[Bar] = []
    for row in rows:
        if row is calm:
            continue
        slower = row["p99_ms"] / calm["p99_ms"]
        memory = row["memory_most_mb"] / row["memory_before_mb"]
        ordinary = sum(row["statuses"].values()) + row["unanswered"]
        missing = ordinary - row["statuses"].get("200", 0)
        found.append(
            (
                f"one client's attack `{row['attack']}`, ordinary JPEGs at a quarter of the capacity",
                "p99 within 2x, memory within 1.5x, all answered", "",
                f"p99 {slower:.2f}x, memory {memory:.2f}x, {missing} of {ordinary} not answered 200",
                slower <= 2 and memory <= 1.5 and not missing,
            )
        )  # fmt: skip
    return found


def _swaps(result: dict[str, Any]) -> list[Bar]:
    memory = result["memory"]
    growth = memory["after_mb"] - memory["before_mb"]
    return [
        (
            f"{result['swaps_per_run']} swaps under load, {result['repeats']} run(s)",
            "0 failed, p99 within 2x", "",
            f"{result['failed']} of {result['requests']:,} failed, p99 {result['p99_ratio']:.2f}x",
            result["failed"] == 0 and result["p99_ratio"] <= 2,
        ),
        (
            f"resident memory over {memory['swaps']} swaps", "flat", "",
            f"{memory['before_mb']:.0f} to {memory['after_mb']:.0f} MB", growth <= 10,
        ),
    ]  # fmt: skip


def _soak(result: dict[str, Any]) -> list[Bar]:
    memory = result["memory_mb"]
    return [
        (
            f"{result['swaps']} swaps in {result['seconds'] / 60:.0f} minutes at half load",
            "0 failed, memory within 2% of that after the fifth", "",
            f"{result['failed']} of {result['requests']:,} failed, "
            f"{memory['after_5_swaps']:.0f} MB, at most {memory['most_after_that']:.0f} MB later",
            all(result["checks"].values()),
        )
    ]  # fmt: skip


def _quarantine(result: dict[str, Any]) -> list[Bar]:
    what = f"every image flagged and kept, {result['flagged_images']:,} at full load"
    measured = (
        f"{100 * result['cost']:.1f}% fewer; at most {result['most_images']:,} images and"
        f" {result['most_bytes'] / 2**20:.1f} MiB"
    )
    caps = f"{result['cap_images']:,} images and {result['cap_bytes'] / 2**20:.0f} MiB"
    must = f"requests/s less than {100 * result['largest_cost']:.0f}% fewer; never above {caps}"
    return [(what, must, "", measured, all(result["checks"].values()))]


def _fuzz(result: dict[str, Any]) -> list[Bar]:
    return [
        (
            f"fuzzing `{row['target']}`, {row['seconds']} s", "no crash, nothing but refusals", "",
            f"{row['executions']:,} inputs, branches {row['coverage_of_seeds']} to {row['coverage_at_end']}, "
            f"{len(row['crashes'])} crashes, at most {row['peak_mb']} MB",
            not row["crashes"] and row["exit_code"] == 0,
        )
        for row in result["rows"]
    ]  # fmt: skip


def _document(result: dict[str, Any]) -> list[Bar]:
    what = f"schemathesis, all checks, {result['examples_per_operation']} examples an operation"
    return [(what, "0 failures", "", result["summary"], result["passed"])]


def _kills(result: dict[str, Any]) -> list[Bar]:
    what = f"SIGKILL of service or job at {result['kills']} random moments"
    return [(what, "starts again, nothing half-promoted", "", result["summary"], result["passed"])]


def _disks(result: dict[str, Any]) -> list[Bar]:
    passed = sum(row["passed"] for row in result["rows"])
    return [
        (
            "a full file system under store, jobs, log, token and quarantine, at every step",
            "each ends in a good sentence, nothing lost", "", f"{passed} of {len(result['rows'])} tests",
            passed == len(result["rows"]),
        )
    ]  # fmt: skip


def _kill_steps(result: dict[str, Any]) -> list[Bar]:
    return [
        (
            f"SIGKILL inside a {row['operation']}, at each of its {len(row['survived'])} steps",
            "20 times each, nothing lost", "",
            f"{min(row['survived'].values())} times each, nothing lost",
            row["exit_code"] == 0 and min(row["survived"].values()) >= 20,
        )
        for row in result["rows"]
    ]  # fmt: skip
