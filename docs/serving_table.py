"""The tables of docs/serving.md, from what benchmarks/bench_serving.py left in benchmarks/results/serving/."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks/results/serving"
Bar = tuple[str, str, str, str, bool]  # what, must, aim, measured, whether the must is met


def _result(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def bar_lines(bars: Iterable[Bar]) -> str:
    """The table of bars."""
    lines = ["| | must | aim | measured | |", "|---|---|---|---|---|"]
    for what, must, aim, measured, met in bars:
        lines.append(f"| {what} | {must} | {aim} | {measured} | {'met' if met else '**missed**'} |")
    return "\n".join(lines)


def bars() -> str:
    """A row per bar: what it must be, what was measured, whether that is enough."""
    found: list[Bar] = []
    for name, rows in (
        ("compare", _compared),
        ("overload", _overload),
        ("swaps", _swaps),
        ("fuzz", _fuzz),
        ("document", _document),
        ("kills", _kills),
    ):
        result = _result(name)
        found += rows(result) if result else [(f"`{name}`", "", "", "not measured", False)]
    return bar_lines(found)


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


def servers() -> str:
    """A row per server and graph of `compare`."""
    result = _result("compare")
    if not result:
        return "Not measured."
    lines = [
        "| graph | server | requests/s | p50 ms | p99 ms | CPU ms a request | idle p50 ms | others' CPU |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        bare = row["bare"]
        best = max(bare["images_per_second"].values())
        lines.append(
            f"| {row['graph']} | bare graph, batches of {bare['best_batch']}; one image | {best:.0f} | | | | "
            f"{bare['one_image_after_pause_ms']:.2f} | |"
        )
        for name, found in row["servers"].items():
            figures = (
                f"{found['requests_per_second']:.0f}", f"{found['p50_ms']:.1f}", f"{found['p99_ms']:.1f}",
                f"{found['cpu_ms_per_request']:.2f}", f"{found['idle_p50_ms']:.2f}", f"{found['others_cpu_share']:.0%}",
            )  # fmt: skip
            lines.append(f"| {row['graph']} | {name} | " + " | ".join(figures) + " |")
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines += ["", f"{result['date'][:10]}, {result['device']}; {versions}."]
    return "\n".join(lines)
