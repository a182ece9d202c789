"""Write the parts of the documents that come from code and results.

README.md            the demo's figures, from docs/demo.json; the zoo's, from benchmarks/results/zoo.json
docs/zoo.svg         the same as a picture
docs/operations.md   the table of settings, from service.settings
docs/method.md       what repair achieved, from benchmarks/results/repair.json
docs/serving.md      what was measured of the service, from benchmarks/results/serving

`--demo` first takes the picture and the figures of the last `make demo` over into docs/; `--check`
changes nothing and only says whether everything is current.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any, get_args

import serving_table
import zoo_plot

from service.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
RUN = ROOT / "demo-run"
RESULTS = ROOT / "benchmarks/results/zoo.json"
REPAIRS = ROOT / "benchmarks/results/repair.json"


def settings_table() -> str:
    """A row per setting of the service."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "required" if field.is_required() else f"`{field.default}`"
        if field.default is None and not field.is_required():
            default = "unset"
        meaning = field.description or "one of " + ", ".join(get_args(field.annotation))
        rows.append(f"| `DETRIGGER_{name.upper()}` | {default} | {meaning} |")
    return "\n".join(rows)


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
    head = f"| {story['n_clean']} ordinary, {story['n_triggered']} stickered signs | bare model | Detrigger |"
    return "\n".join([head, "|---|---|---|", *("| " + " | ".join(row) + " |" for row in rows)])


def zoo_table() -> str:
    """A row per measured suspect of the zoo, in percent; seeds are averaged."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in json.loads(RESULTS.read_text()):
        groups.setdefault((row["profile"], row["model"]), []).append(row)

    def verdict(row: dict[str, Any]) -> str:
        labels = ", ".join(map(str, row["target_labels"]))
        return row["verdict"] + (f" to {labels}" if labels else "")

    def mean(rows: list[dict[str, Any]], name: str) -> str:
        values = [row[name] for row in rows if name in row]
        return f"{100 * sum(values) / len(values):.1f}" if values else ""

    lines = [
        "| suspect | profile (runs) | verdict | BA bare | BA | ASR bare | ASR | floor | PA | TPR | FPR | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (profile, model), rows in sorted(groups.items()):
        cells = [
            mean(rows, name) for name in ("BA_bare", "BA", "ASR_bare", "ASR", "floor", "PA", "TPR", "FPR")
        ]
        verdicts = ", ".join(sorted({verdict(row) for row in rows}))
        seconds = f"{sum(row['seconds'] for row in rows) / len(rows):.0f}"
        lines.append("| " + " | ".join([model, f"{profile} ({len(rows)})", verdicts, *cells, seconds]) + " |")
    return "\n".join(lines)


def repair_table() -> str:
    """A row per repaired suspect, in percent."""
    lines = [
        "| suspect | seed | BA bare | repaired | ASR bare | repaired | PA |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in json.loads(REPAIRS.read_text()):
        names = ("BA_bare", "BA", "ASR_bare", "ASR", "PA")
        cells = [f"{100 * row[name]:.1f}" if name in row else "" for name in names]
        if not row["gate_passed"]:
            cells[1] = "refused by the gate"
        lines.append("| " + " | ".join([row["model"], str(row["seed"]), *cells]) + " |")
    return "\n".join(lines)


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
        (ROOT / "docs/method.md", "repair", repair_table()),
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
    picture, drawn = ROOT / "docs/zoo.svg", zoo_plot.draw(json.loads(RESULTS.read_text()))
    if not picture.exists() or picture.read_text() != drawn:
        stale.append(picture.name)
        if not arguments.check:
            picture.write_text(drawn)
    if stale:
        sys.stdout.write(f"{'not current' if arguments.check else 'updated'}: {', '.join(stale)}\n")
    return 1 if stale and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
