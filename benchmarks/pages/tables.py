"""The generated tables of README.md and docs/, as Markdown: what stands in benchmarks/results, and the settings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any, get_args

from benchmarks.bars import RESULTS, Bar, ba_drop, defence, rows_of, same_job, service, with_all
from benchmarks.pages.profiles_plot import in_every_profile
from detrigger.service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


def percent(row: dict[str, Any], *names: str) -> list[str]:
    """These figures of a row as cells, empty where it has none."""
    return [f"{100 * row[name]:.1f}" if name in row else "" for name in names]


def table(columns: str, rows: Iterable[Iterable[str]]) -> str:
    """A table of cells under names that are divided by bars."""
    lines = [columns.split("|"), *rows]
    head, *body = ("| " + " | ".join(cells) + " |" for cells in lines)
    return "\n".join([head, "|" + "---|" * len(columns.split("|")), *body])


def bars_table(bars: Iterable[Bar]) -> str:
    """A row per bar."""
    lines = ["| | must | aim | measured | |", "|---|---|---|---|---|"]
    lines += [
        f"| {what} | {must} | {aim} | {measured} | {'met' if met else '**missed**'} |"
        for what, must, aim, measured, met in bars
    ]
    return "\n".join(lines)


def misses_list() -> str:
    """A line per bar that is missed, without how many runs reach the aim."""
    lines = [
        f"- {what}{f', at {must}' if must else ''}: {re.sub(r', [0-9]+ at most [0-9.]+', '', measured)}"
        for what, must, _, measured, met in (*defence(), *service())
        if not met
    ]
    return "\n".join(lines) or "Nothing."


def settings_table() -> str:
    """A row per setting of the service."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "required" if field.is_required() else f"`{field.default}`"
        if field.default is None and not field.is_required():
            default = "unset"
        meaning = field.description or "one of " + ", ".join(get_args(field.annotation))
        rows.append([f"`DETRIGGER_{name.upper()}`", default, meaning])
    return table("variable|default|meaning", rows)


def demo_table() -> str:
    """The figures of the committed demo run."""
    story = json.loads((ROOT / "docs/demo.json").read_text())
    rows = [
        ("ordinary signs read right (BA)", f"{story['ba_bare']:.1%}", f"{story['ba']:.1%}"),
        (
            f"stickered signs read as `{story['target']}` (ASR)",
            f"{story['asr_bare']:.1%}",
            f"{story['asr']:.1%}",
        ),
        ("stickered signs read right (PA)", f"{story['pa_bare']:.1%}", f"{story['pa']:.1%}"),
        ("stickered signs flagged (TPR)", "", f"{story['tpr']:.1%}"),
        ("ordinary signs flagged (FPR)", "", f"{story['fpr']:.1%}"),
    ]
    head = f"{story['n_clean']} ordinary, {story['n_triggered']} stickered signs|bare model|Detrigger"
    return table(head, rows)


def zoo_table() -> str:
    """A row per suspect of the zoo, in percent; of several seeds the mean, and the worst of three figures."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows_of("zoo"):
        if row["profile"] == "standard":
            groups.setdefault(row["model"], []).append(row)

    def verdict(row: dict[str, Any]) -> str:
        labels = ", ".join(map(str, row["target_labels"]))
        return f"{row['verdict']}" + (f" to {labels}" if labels else "")

    worst = {"BA": min, "ASR": max, "TPR": min}

    def mean(rows: list[dict[str, Any]], name: str) -> str:
        values = [100 * row[name] for row in rows if name in row]
        if not values:
            return ""
        cell = f"{sum(values) / len(values):.1f}"
        return f"{cell} ({worst[name](values):.1f})" if name in worst and len(values) > 1 else cell

    rows = []
    for model, measured in sorted(groups.items()):
        cells = [
            mean(measured, name) for name in ("BA_bare", "BA", "ASR_bare", "ASR", "floor", "PA", "TPR", "FPR")
        ]
        verdicts = ", ".join(sorted({verdict(row) for row in measured}))
        seconds = f"{median(row['seconds'] for row in measured):.0f}"
        rows.append([model, str(len(measured)), verdicts, *cells, seconds])
    return table("suspect|runs|verdict|BA bare|BA|ASR bare|ASR|floor|PA|TPR|FPR|seconds", rows)


def profiles_table() -> str:
    """A row per suspect that was measured with every profile, and profile."""
    return table(
        "suspect|profile|verdict|BA bare|BA|ASR bare|ASR|PA|TPR|FPR|seconds",
        (
            [
                row["model"],
                row["profile"],
                row["verdict"],
                *percent(row, "BA_bare", "BA", "ASR_bare", "ASR", "PA", "TPR", "FPR"),
                f"{row['seconds']:.0f}",
            ]
            for own in in_every_profile(rows_of("zoo")).values()
            for row in own
        ),
    )


def cost_table() -> str:
    """A row per version: images a second of the bare and of the protected graph, each at its best batch."""
    rows = []
    for row in rows_of("cost"):
        rates = (max(row[f"{graph}_images_per_s"].values()) for graph in ("bare", "protected"))
        name = row["store"].removesuffix("-standard-0")
        rows.append([name, *(f"{rate:,.0f}" for rate in rates), f"{row['ratio']:.2f}x"])
    return table("suspect|bare, images/s|protected, images/s|ratio", rows)


def repair_table() -> str:
    """A row per repaired suspect, in percent; the floor is a property of the suspect, and the zoo's rows have it."""
    floors = {row["model"]: row for row in rows_of("zoo")}
    rows = []
    for row in rows_of("repair"):
        cells = percent(row, "BA_bare", "BA", "ASR_bare", "ASR", "PA")
        if not row["gate_passed"]:
            cells[1] = "refused by the gate"
        cells[4:4] = percent(floors[row["model"]], "floor")
        rows.append([row["model"], str(row["seed"]), *cells])
    return table("suspect|seed|BA bare|repaired|ASR bare|repaired|floor|PA", rows)


def whole(row: dict[str, Any]) -> dict[str, Any]:
    """What the whole method with all clean images did on the suspect of a row, with its profile and seed."""
    names = ("model", "profile", "seed")
    return next(each for each in rows_of("zoo") if all(each[name] == row[name] for name in names))


def ablation_table() -> str:
    """A row per part left out, first with none: each suspect's BA drop and ASR, averaged over the seeds.

    Nothing left out are the zoo's rows; without the graph's last steps, those of `bench_penalty.py`.
    """
    left_out = rows_of("ablation")
    jobs = {(row["model"], row["profile"], row["seed"]): row for row in left_out}
    rows = [whole(jobs[job]) | {"without": "nothing"} for job in sorted(jobs)]
    rows += [
        whole(row) | {"without": part, "BA": row[f"BA_{figures}"], "ASR": row[f"ASR_{figures}"]}
        for part, figures in (("doubt", "penalised"), ("doubt and penalty", "without"))
        for row in rows_of("penalty")
        if (row["model"], row["profile"], row["seed"]) in jobs
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in [*rows, *left_out]:
        groups.setdefault((row["without"], row["model"]), []).append(row)
    models = sorted({model for _, model in groups})

    def cell(rows: list[dict[str, Any]]) -> str:
        drop, asr = (
            sum(figure(row) for row in rows) / len(rows) for figure in (ba_drop, lambda row: row["ASR"])
        )
        worst = max(row["ASR"] for row in rows)
        return f"{100 * drop:.1f}, {100 * asr:.1f} ({100 * worst:.1f})"

    return table(
        "|".join(["left out", *models]),
        (
            [without, *(cell(groups[without, m]) if (without, m) in groups else "" for m in models)]
            for without in dict.fromkeys(without for without, _ in groups)
        ),
    )


def penalty_table() -> str:
    """A row per suspect: before the graph's last steps and after each, in percent; seeds are averaged."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows_of("penalty"):
        groups.setdefault(row["model"], []).append(row)
    figures = [f"{figure}{step}" for figure in ("BA", "ASR", "PA") for step in ("_without", "_penalised", "")]
    return table(
        "suspect|runs|BA before|penalty|doubt|ASR before|penalty|doubt|PA before|penalty|doubt",
        (
            [model, str(len(rows)), *(f"{100 * sum(r[f] for r in rows) / len(rows):.1f}" for f in figures)]
            for model, rows in groups.items()
        ),
    )


def budget_table() -> str:
    """A row per suspect and number of clean images."""
    few = rows_of("budget")
    every = [whole(row) | {"images": 2500} for row in few]
    rows = {(row["model"], -row["images"], row["seed"]): row for row in [*few, *every]}
    return table(
        "suspect|clean images|seed|verdict|BA bare|BA|ASR bare|ASR|PA|TPR|FPR",
        (
            [
                row["model"],
                str(row["images"]),
                str(row["seed"]),
                row["verdict"],
                *percent(row, "BA_bare", "BA", "ASR_bare", "ASR", "PA", "TPR", "FPR"),
            ]
            for _, row in sorted(rows.items())
        ),
    )


def reviewed_table() -> str:
    """A row per suspect: the weak version, and the one that learned from what people reviewed."""
    if not (RESULTS / "reviewed.json").exists():
        return "Not measured."
    rows = rows_of("reviewed")
    names = ("BA", "ASR", "TPR", "FPR")
    return table(
        "suspect|not asked|seed|answers until 50|verdict|BA|ASR|TPR|FPR|verdict, taught|BA|ASR|TPR|FPR",
        (
            [
                row["model"],
                ", ".join(row["not_asked"]),
                str(row["seed"]),
                f"{row['traffic']:,}",
                *(
                    cell
                    for it in (row["before"], row["after"])
                    for cell in (it["verdict"], *percent(it, *names))
                ),
            ]
            for row in rows
        ),
    )


def classes_table() -> str:
    """A row per number of classes and size of the images."""
    return table(
        "classes|pixels|clean images|profile|verdict|label|BA bare|BA|ASR bare|ASR|PA|CPU seconds",
        (
            [
                str(row["classes"]),
                f"{row['side']}x{row['side']}",
                str(row["images"]),
                row["profile"],
                row["verdict"],
                ", ".join(map(str, row["target_labels"])),
                *percent(row, "BA_bare", "BA", "ASR_bare", "ASR", "PA"),
                f"{row['cpu_seconds']:.0f}",
            ]
            for row in sorted(rows_of("classes"), key=lambda row: (row["side"], row["classes"]))
        ),
    )


def logic_table() -> str:
    """What the look at the graph says of suspects with logic in them and of honest graphs."""
    measured = json.loads((ROOT / "benchmarks/results/logic.json").read_text())
    rows, summary = measured["rows"], measured["summary"]
    honest = [row for row in rows if row["kind"] == "honest"]
    suspects = [row for row in rows if row["kind"] == "suspect"]
    signs = [row["sign_success"] for row in suspects if row["sign_success"] is not None]
    return table(
        "what|measured",
        [
            ["suspects, of how many designs", f"{len(suspects)}, {summary['designs']}"],
            ["found with a node of the logic and no other", f"{sum(row['found'] for row in suspects)}"],
            ["sign proposed that works on 90% of clean images", str(sum(sign >= 0.9 for sign in signs))],
            ["honest graphs", str(len(honest))],
            ["false alarms", str(sum(bool(row["false_alarms"]) for row in honest))],
            ["CPU seconds at most, one thread", f"{summary['most_seconds']:.2f}"],
            [
                "honest graphs' accuracy, least and median",
                f"{min(row['accuracy'] for row in honest):.0%}, {median(row['accuracy'] for row in honest):.0%}",
            ],
        ],
    )


def official_table() -> str:
    """The official code and Detrigger on the same suspect, with the same clean images and with all of them."""
    rows = []
    for row in rows_of("official"):
        few, every = same_job(row, rows_of("budget")), whole(row | {"profile": "standard"})
        worked_out = {"seconds": with_all(row)}
        for whose, images, figures in (
            ("official code", row["images"], row),
            ("Detrigger", row["images"], few),
            ("official code, worked out", 2500, worked_out),
            ("Detrigger", 2500, every),
        ):
            cells = percent(figures, "BA_bare", "BA", "ASR_bare", "ASR", "PA")
            rows.append([row["model"], whose, str(images), *cells, f"{figures['seconds']:,.0f}"])
    return table("suspect|by|clean images|BA bare|BA|ASR bare|ASR|PA|seconds", rows)


def baselines_table() -> str:
    """A row per suspect and method."""
    return table(
        "suspect|method|BA|ASR|PA|TPR|FPR|AUROC",
        (
            [
                row["model"],
                row["method"].replace("_", " "),
                *percent(row, "BA", "ASR", "PA", "TPR", "FPR", "AUROC"),
            ]
            for row in rows_of("baselines")
        ),
    )
