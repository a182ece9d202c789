"""Write the parts of the documents that come from code and results.

README.md            the demo's figures, from docs/demo.json; the zoo's, from benchmarks/results/zoo.json
docs/zoo.svg         the same as a picture
docs/profiles.svg    what each profile takes and achieves, from zoo.json as well
docs/roc.svg         detectors side by side, from benchmarks/results/baselines.json
docs/operations.md   the table of settings, from service.settings
docs/method.md       the bars of the defence, what repair achieved, what each part brings, the penalty, the profiles,
                     what protection costs, fewer clean images, more classes, the official code, other defences: from
                     repair.json, ablation.json, penalty.json, zoo.json, cost.json, budget.json, classes.json,
                     official.json and baselines.json in benchmarks/results
docs/serving.md      what was measured of the service, from benchmarks/results/serving

`--demo` first takes the picture and the figures of the last `make demo` over into docs/; `--check`
changes nothing and only says whether everything is current.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any, get_args

import defence_table
import profiles_plot
import roc_plot
import serving_table
import zoo_plot
from defence_table import ba_drop, same_job, with_all

from detrigger.service.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
RUN = ROOT / "demo-run"
RESULTS = ROOT / "benchmarks/results"


def results(name: str) -> list[dict[str, Any]]:
    """The rows of one benchmark."""
    rows: list[dict[str, Any]] = json.loads((RESULTS / f"{name}.json").read_text())
    return rows


def percent(row: dict[str, Any], *names: str) -> list[str]:
    """These figures of a row as cells, empty where it has none."""
    return [f"{100 * row[name]:.1f}" if name in row else "" for name in names]


def table(columns: str, rows: Iterable[Iterable[str]]) -> str:
    """A table of cells under names that are divided by bars."""
    lines = [columns.split("|"), *rows]
    head, *body = ("| " + " | ".join(cells) + " |" for cells in lines)
    return "\n".join([head, "|" + "---|" * len(columns.split("|")), *body])


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
    for row in results("zoo"):
        if row["profile"] == "standard":
            groups.setdefault(row["model"], []).append(row)

    def verdict(row: dict[str, Any]) -> str:
        labels = ", ".join(map(str, row["target_labels"]))
        return row["verdict"] + (f" to {labels}" if labels else "")

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
            for own in profiles_plot.in_every_profile(results("zoo")).values()
            for row in own
        ),
    )


def cost_table() -> str:
    """A row per version: images a second of the bare and of the protected graph, each at its best batch."""
    rows = []
    for row in results("cost"):
        rates = (max(row[f"{graph}_images_per_s"].values()) for graph in ("bare", "protected"))
        name = row["store"].removesuffix("-standard-0")
        rows.append([name, *(f"{rate:,.0f}" for rate in rates), f"{row['ratio']:.2f}x"])
    return table("suspect|bare, images/s|protected, images/s|ratio", rows)


def repair_table() -> str:
    """A row per repaired suspect, in percent; the floor is a property of the suspect, and the zoo's rows have it."""
    floors = {row["model"]: row for row in results("zoo")}
    rows = []
    for row in results("repair"):
        cells = percent(row, "BA_bare", "BA", "ASR_bare", "ASR", "PA")
        if not row["gate_passed"]:
            cells[1] = "refused by the gate"
        cells[4:4] = percent(floors[row["model"]], "floor")
        rows.append([row["model"], str(row["seed"]), *cells])
    return table("suspect|seed|BA bare|repaired|ASR bare|repaired|floor|PA", rows)


def whole(row: dict[str, Any]) -> dict[str, Any]:
    """What the whole method with all clean images did on the suspect of a row, with its profile and seed."""
    names = ("model", "profile", "seed")
    return next(each for each in results("zoo") if all(each[name] == row[name] for name in names))


def ablation_table() -> str:
    """A row per part left out, first with none: each suspect's BA drop and ASR, averaged over the seeds.

    Nothing left out are the zoo's rows; without the graph's last steps, those of `bench_penalty.py`.
    """
    left_out = results("ablation")
    jobs = {(row["model"], row["profile"], row["seed"]): row for row in left_out}
    rows = [whole(jobs[job]) | {"without": "nothing"} for job in sorted(jobs)]
    rows += [
        whole(row) | {"without": part, "BA": row[f"BA_{figures}"], "ASR": row[f"ASR_{figures}"]}
        for part, figures in (("doubt", "penalised"), ("doubt and penalty", "without"))
        for row in results("penalty")
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
    for row in results("penalty"):
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
    few = results("budget")
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
            for row in sorted(results("classes"), key=lambda row: (row["side"], row["classes"]))
        ),
    )


def official_table() -> str:
    """The official code and Detrigger on the same suspect, with the same clean images and with all of them."""
    rows = []
    for row in results("official"):
        few, every = same_job(row, results("budget")), whole(row | {"profile": "standard"})
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
            for row in results("baselines")
        ),
    )


def replaced(text: str, name: str, content: str) -> str:
    """`text` with what stands between the markers of `name` replaced; ValueError where there are none."""
    begin, end = f"<!-- {name}:begin", f"<!-- {name}:end -->"
    start = text.index("\n", text.index(begin)) + 1
    return f"{text[:start]}{content}\n{text[text.index(end, start) :]}"


def main() -> int:
    """Update, or with --check compare; 1 where something is not current."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing, exit 1 if something would change"
    )
    parser.add_argument("--demo", action="store_true", help="take over what the last `make demo` left")
    arguments = parser.parse_args()
    if arguments.demo:
        shutil.copyfile(RUN / "sheet.png", ROOT / "docs/demo.png")
        shutil.copyfile(RUN / "story.json", ROOT / "docs/demo.json")
    stale = []
    for path, name, content in (
        (ROOT / "README.md", "demo", demo_table()),
        (ROOT / "README.md", "zoo", zoo_table()),
        (
            ROOT / "docs/method.md",
            "bars",
            defence_table.bars(*map(results, ("zoo", "repair", "cost", "official", "budget", "classes"))),
        ),
        (ROOT / "docs/method.md", "repair", repair_table()),
        (ROOT / "docs/method.md", "ablation", ablation_table()),
        (ROOT / "docs/method.md", "penalty", penalty_table()),
        (ROOT / "docs/method.md", "profiles", profiles_table()),
        (ROOT / "docs/method.md", "cost", cost_table()),
        (ROOT / "docs/method.md", "budget", budget_table()),
        (ROOT / "docs/method.md", "classes", classes_table()),
        (ROOT / "docs/method.md", "official", official_table()),
        (ROOT / "docs/method.md", "baselines", baselines_table()),
        (ROOT / "docs/operations.md", "settings", settings_table()),
        (ROOT / "docs/serving.md", "bars", serving_table.bars()),
        (ROOT / "docs/serving.md", "servers", serving_table.servers()),
    ):
        text = path.read_text()
        new = replaced(text, name, content)
        if new != text:
            stale.append(path.name)
            if not arguments.check:
                path.write_text(new)
    for name, drawn in (
        ("zoo", zoo_plot.draw(results("zoo"))),
        ("profiles", profiles_plot.draw(results("zoo"))),
        ("roc", roc_plot.draw(results("baselines"))),
    ):
        picture = ROOT / f"docs/{name}.svg"
        if not picture.exists() or picture.read_text() != drawn:
            stale.append(picture.name)
            if not arguments.check:
                picture.write_text(drawn)
    if stale:
        sys.stdout.write(f"{'not current' if arguments.check else 'updated'}: {', '.join(stale)}\n")
    return 1 if stale and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
