"""The tables of docs/serving.md that set Detrigger beside other servers."""

from __future__ import annotations

from typing import Any

from benchmarks.bars import serving_result


def servers() -> str:
    """A row per server and graph of `compare`."""
    result = serving_result("compare")
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
    return "\n".join([*lines, "", _where(result)])


def _where(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    return f"{result['date'][:10]}, {result['device']}; {versions}."


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def loads() -> str:
    """A row per server, kind of client and offered load."""
    result = serving_result("loads")
    if not result:
        return "Not measured."
    lines = [
        "| server | clients | offered | goodput/s | of its peak | p50 ms | p99 ms | late | given up "
        "| health, longest ms | others' CPU |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        peak = max(step["goodput_per_second"] for step in row["steps"])
        for step in row["steps"]:
            cells = (
                row["server"], row["clients"], f"{step['times']:g}x", f"{step['goodput_per_second']:.0f}",
                f"{step['goodput_per_second'] / peak:.0%}", _ms(step["p50_ms"]), _ms(step["p99_ms"]),
                f"{step['answers_after_deadline']}", f"{step['unanswered'] + step['not_sent']}",
                _ms(step["livez_max_ms"]), f"{step['others_share_of_core']:.0%}",
            )  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _where(result)])


def hostile() -> str:
    """A row per attack, with both servers beside each other."""
    result = serving_result("hostile")
    if not result:
        return "Not measured."
    servers = list(dict.fromkeys(row["server"] for row in result["rows"]))
    columns = ("answered 200", "p99 ms", "health, longest ms", "memory MB", "others' CPU")
    head = "".join(f" {server}: {column} |" for server in servers for column in columns)
    lines = [f"| attack |{head}", "|---|" + "---|" * (len(servers) * len(columns))]
    for attack in dict.fromkeys(row["attack"] for row in result["rows"]):
        cells = [attack]
        for server in servers:
            row = next((r for r in result["rows"] if (r["server"], r["attack"]) == (server, attack)), None)
            if row is None:
                cells += [""] * len(columns)
                continue
            asked = sum(row["statuses"].values()) + row["unanswered"] + row["not_sent"]
            cells += [
                f"{row['statuses'].get('200', 0) / max(1, asked):.0%}", _ms(row["p99_ms"]), _ms(row["livez_max_ms"]),
                f"{row['memory_before_mb']:.0f} to {row['memory_most_mb']:.0f}", f"{row['others_share_of_core']:.0%}",
            ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _where(result)])
