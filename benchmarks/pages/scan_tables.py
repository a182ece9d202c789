"""The generated tables of what a scan says: few classes, `--quick`, quantised files, wrong set-ups."""

from __future__ import annotations

import json

from benchmarks.bars import RESULTS, rows_of
from benchmarks.pages.tables import percent, table

NOT_MEASURED = "Not measured."


def few_table() -> str:
    """A row per suspect with few classes."""
    if not (RESULTS / "few.json").exists():
        return NOT_MEASURED
    return table(
        "suspect|classes|BA|ASR|target|verdict|label|",
        (
            [
                row["model"],
                str(row["classes"]),
                *percent({name: row[name] for name in ("BA", "ASR") if row[name] is not None}, "BA", "ASR"),
                "" if row["target"] is None else str(row["target"]),
                row["verdict"],
                ", ".join(map(str, row["target_labels"])),
                "right" if row["right"] else "**wrong**" if row["wrong"] else "open",
            ]
            for row in sorted(rows_of("few"), key=lambda row: (row["classes"], row["model"]))
        ),
    )


def quick_table() -> str:
    """A row per suspect that `--quick` looked at."""
    return table(
        "suspect|target|said|label|found by|seconds|CPU seconds|cores",
        (
            [
                row["model"],
                "" if row["target"] is None else str(row["target"]),
                row["verdict"],
                ", ".join(map(str, row["target_labels"])),
                ", ".join(family for family, _ in row["evidence"]),
                f"{row['seconds']:.0f}",
                f"{row['cpu_seconds']:.0f}",
                str(row["cores"]),
            ]
            for row in rows_of("quick")
        ),
    )


def quantised_table() -> str:
    """A row per suspect: what is said of the float file and of each quantised twin."""
    if not (RESULTS / "quantised.json").exists():
        return NOT_MEASURED
    scans = [row for row in rows_of("quantised") if row["did"] == "scan"]

    def said(model: str, twin: str) -> str:
        for row in scans:
            if (row["model"], row["twin"]) == (model, twin):
                return " ".join([row["verdict"], *map(str, row["target_labels"])])
        return "not measured"

    twins = ("float", "dynamic", "qdq", "qdq_per_channel")
    models = dict.fromkeys((row["model"], row["target"]) for row in scans)
    return table(
        "suspect|target|" + "|".join(twin.replace("_", " ") for twin in twins),
        (
            [model, "" if target is None else str(target), *(said(model, twin) for twin in twins)]
            for model, target in models
        ),
    )


def setups_table() -> str:
    """A row per wrong set-up: how many suspects it stopped, with the right hint, and the right one."""
    if not (RESULTS / "setups.json").exists():
        return NOT_MEASURED
    rows = rows_of("setups")
    cells = []
    for setup in dict.fromkeys(row["setup"] for row in rows):
        wrong, right = (
            [row for row in rows if row["setup"] == setup and row["wrong"] == it] for it in (True, False)
        )
        passed = f"{sum(not row['stopped'] for row in right)} of {len(right)}" if right else ""
        if not wrong:
            cells.append([setup, "", "", "", passed])
            continue
        accuracy = [f"{row['accuracy']:.0%}" for row in wrong]
        cells.append(
            [
                setup,
                f"{sum(row['stopped'] for row in wrong)} of {len(wrong)}",
                f"{sum(row['stopped'] and row['hinted'] for row in wrong)} of {len(wrong)}",
                ", ".join(accuracy),
                passed,
            ]
        )
    return table("set-up|stopped|with the right hint|accuracy|searched when right", cells)


def importer_fuzz_table() -> str:
    """What fuzzing the import found."""
    run = json.loads((RESULTS / "importer_fuzz.json").read_text())
    answers = run["at_least"]
    return table(
        "what|measured",
        [
            ["seconds", str(run["seconds"])],
            ["inputs refused in one line, at least", f"{answers['refused']:,}"],
            ["inputs imported, at least", f"{answers['imported']:,}"],
            ["inputs that crashed, hung or took too much memory", str(run["ended_the_fuzzer"])],
            ["defects of the import as users call it", str(run["defects"])],
        ],
    )
