"""Write the parts of the documents that come from code and results.

    python -m benchmarks.pages.update [--check] [--demo]

README.md            the demo's figures, from docs/demo.json; the bars of the defence that are missed
docs/results.md      the bars of the defence, then a table per benchmark, from benchmarks/results
docs/*.svg           the zoo before and after, the profiles, the detectors side by side
docs/operations.md   the table of settings, from service.settings
docs/serving.md      what was measured of the service, from benchmarks/results/serving

`--demo` first takes the picture and the figures of the last `make demo` over into docs/; `--check`
changes nothing and only says whether everything is current.
"""

import argparse
import shutil
import sys
from pathlib import Path

from benchmarks import bars
from benchmarks.bars import rows_of
from benchmarks.pages import profiles_plot, roc_plot, scan_tables, serving_table, tables, zoo_plot

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "demo-run"


def replaced(text: str, name: str, content: str) -> str:
    """`text` with what stands between the markers of `name` replaced; ValueError where there are none."""
    begin, end = f"<!-- {name}:begin", f"<!-- {name}:end -->"
    start = text.index("\n", text.index(begin)) + 1
    return f"{text[:start]}{content}\n{text[text.index(end, start) :]}"


def parts() -> list[tuple[str, str, str]]:
    """Page, name of the markers, and what belongs between them."""
    return [
        ("README.md", "demo", tables.demo_table()),
        ("README.md", "misses", tables.misses_list()),
        ("docs/results.md", "bars", tables.bars_table(bars.defence())),
        ("docs/results.md", "zoo", tables.zoo_table()),
        ("docs/results.md", "repair", tables.repair_table()),
        ("docs/results.md", "ablation", tables.ablation_table()),
        ("docs/results.md", "penalty", tables.penalty_table()),
        ("docs/results.md", "profiles", tables.profiles_table()),
        ("docs/results.md", "cost", tables.cost_table()),
        ("docs/results.md", "budget", tables.budget_table()),
        ("docs/results.md", "reviewed", tables.reviewed_table()),
        ("docs/results.md", "classes", tables.classes_table()),
        ("docs/results.md", "logic", tables.logic_table()),
        ("docs/results.md", "few", scan_tables.few_table()),
        ("docs/results.md", "quick", scan_tables.quick_table()),
        ("docs/results.md", "quantised", scan_tables.quantised_table()),
        ("docs/results.md", "setups", scan_tables.setups_table()),
        ("docs/results.md", "importer_fuzz", scan_tables.importer_fuzz_table()),
        ("docs/results.md", "official", tables.official_table()),
        ("docs/results.md", "baselines", tables.baselines_table()),
        ("docs/operations.md", "settings", tables.settings_table()),
        ("docs/serving.md", "bars", tables.bars_table(bars.service())),
        ("docs/serving.md", "servers", serving_table.servers()),
        ("docs/serving.md", "loads", serving_table.loads()),
        ("docs/serving.md", "hostile", serving_table.hostile()),
    ]


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
    for page, name, content in parts():
        path = ROOT / page
        text = path.read_text()
        new = replaced(text, name, content)
        if new != text:
            stale.append(path.name)
            if not arguments.check:
                path.write_text(new)
    for name, drawn in (
        ("zoo", zoo_plot.draw(rows_of("zoo"))),
        ("profiles", profiles_plot.draw(rows_of("zoo"))),
        ("roc", roc_plot.draw(rows_of("baselines"))),
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
