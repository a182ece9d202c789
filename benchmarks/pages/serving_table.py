"""The table of docs/serving.md that sets Detrigger beside other servers."""

from __future__ import annotations

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
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines += ["", f"{result['date'][:10]}, {result['device']}; {versions}."]
    return "\n".join(lines)
