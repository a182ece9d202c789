"""What a reviewer reads: the report of a version, and that of a scan, each one self-contained page.

This module says what stands on the page; ``templates/report.html`` how. Every text goes through Jinja2's autoescape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from detrigger.models.manifest import Manifest
from detrigger.offline.inputs.data import UNLABELLED
from detrigger.offline.jobs import charts, words
from detrigger.offline.jobs.case import Case, case_of_scan, case_of_version
from detrigger.offline.jobs.figures import false_alarms
from detrigger.offline.jobs.pages import page
from detrigger.offline.jobs.pictures import Sheet, Strip
from detrigger.offline.jobs.results import ScanResult
from detrigger.offline.steps.find import name_of
from detrigger.offline.steps.verdict import FEWEST_CLASSES, GAP_EVIDENCE
from detrigger.offline.triggers import UNIVERSAL
from detrigger.offline.triggers.base import TriggerBank
from detrigger.offline.triggers.change import ChangeBank

MOST_TARGETS = 20
"""Rows of the table of classes."""
MOST_BARS = 12
"""Bars of a family's chart."""
CHECKS = {
    "ba_drop": "right answers lost on clean images",
    "asr_inverted": "a rebuilt trigger that still works",
    "logic_cut": "answers that change without the logic in the graph",
    "not_attacked": "a finished defence that nothing attacked",
    "logic_unseen": "a part of the graph that could not be looked at",
}
"""What each check of the gate measures, for people."""
KINDS = {
    "spot": "a small mark at one place, such as a sticker in a corner",
    "patch": "a mark of any shape that covers few pixels: a watermark, a logo",
    "sticker": "a small mark at a place of each image's own",
    "blend": "a faint picture over the whole image",
    "sine": "stripes over the whole image",
    "warp": "a bending of the image, too slight to be seen",
    "tone": "a change of colours or grey levels: a filter, fewer colours",
    "kernel": "blur, sharpening or shake",
    "change": "an ordinary change of the image as it is: turned, blurred, in blocks, noisy, tinted, framed",
}
"""What each family looks for, for people; a family that is not named here stands by its own name."""


@dataclass(frozen=True)
class Pictures:
    """What is shown: each trigger, and the clean images that the defence treats worst."""

    triggers: Sequence[Sheet]
    worst: Sequence[Strip] = ()


@dataclass(frozen=True)
class Bar:
    """A class's cost in one family; ``share`` (0..1) of the dearest one is the bar's length.

    ``hot``: it stands out and is suspected; ``note`` says so, or why standing out is not enough.
    """

    label: str
    cost: float
    success: float
    share: float
    hot: bool
    note: str


@dataclass(frozen=True)
class Chart:
    """A family's costs, cheapest first, with the classes that are left out."""

    family: str
    unit: str
    evidence: bool
    bars: Sequence[Bar]
    left_out: int


def render(manifest: Manifest, report: Mapping[str, Any], pictures: Pictures) -> str:
    """report.html of a version, from its manifest and report.json; texts of strangers are escaped."""
    case = case_of_version(manifest, report)
    budget = report.get("budget", {})
    return _page(
        case,
        pictures,
        title=f"Detrigger report: {manifest.name} {manifest.id}",
        gate=manifest.gate,
        remaining=manifest.metrics.get("remaining") if "asr_inverted_after" in manifest.metrics else None,
        flag=_flag(case, budget),
        rounds=[
            *(
                [_rounds("The purifier while it learns", report.get("remaining", []))]
                if case.purifies
                else []
            ),
            _rounds(
                f"The {'purifier with the repaired copy behind it' if case.purifies else 'repaired copy'}",
                report.get("remaining_repaired", []),
            ),
        ],
        budget=budget,
        facts=_facts(manifest),
        command=report.get("command", ""),
        figures=manifest.metrics,
        mind="" if manifest.data.labelled else UNLABELLED,
    )


def render_scan(scan: ScanResult, pictures: Pictures) -> str:
    """The page of ``detrigger scan --out FILE.html``."""
    facts = {
        "suspect": f"{scan.file_name}, sha256 {scan.suspect}",
        "clean images": str(scan.n_images),
        "time": _duration(scan.seconds),
    }
    return _page(
        case_of_scan(scan),
        pictures,
        title=f"Detrigger scan: {scan.file_name}",
        facts=facts,
        command=scan.command,
        mind="" if scan.labelled else UNLABELLED,
    )


def _page(case: Case, pictures: Pictures, **more: Any) -> str:
    blank = dict.fromkeys(("gate", "remaining", "flag", "rounds", "budget", "figures"))
    questions = {
        "Which label does it lead to?": words.label(case),
        "How sure is that, and why?": words.certainty(case),
        "What removes it?": words.removal(case),
        "What does that cost?": words.cost(case),
        "What can this not tell?": words.blind(case),
    }
    return page(
        "report.html",
        **blank
        | more
        | {
            "case": case,
            "pictures": pictures,
            "verdict": words.verdict(case),
            "questions": questions,
            "steps": words.next_steps(case),
            "charts": [cost_chart(family, rows, case) for family, rows in case.screen.items()],
            "table": gap_table(case),
            "strong_gap": GAP_EVIDENCE,
            "usual": "for innocent networks"
            if len(case.classes) < FEWEST_CLASSES
            else "the lower quartile of all",
            "searched": {family: KINDS.get(family, family) for family in case.screen},
            "kinds": KINDS,
            "checks": CHECKS,
            "not_searched": words.not_searched(case),
            "name_of": lambda target: name_of(target, case.classes),
        },
    )


def cost_chart(family: str, rows: Mapping[str, list[Any]], case: Case) -> Chart:
    """What each class costs in one family: of several candidates the one that stands out most."""
    best: dict[int, tuple[float, float, float]] = {}
    for target, gap, cost, success in zip(
        rows["target"], rows["gap"], rows["cost"], rows["success"], strict=True
    ):
        best[target] = max(best.get(target, (-math.inf, 0.0, 0.0)), (gap, cost, success))
    order = sorted((t for t in best if t >= 0), key=lambda t: best[t][1])
    dearest = max((cost for _, cost, _ in best.values()), default=0.0) or 1.0
    suspects = words.suspects(case)
    bars = []
    for t in order:
        gap, cost, success = best[t]
        out, hot = gap >= GAP_EVIDENCE, gap >= GAP_EVIDENCE and t in suspects
        note = "stands out" if hot else "stands out, but not enough to be suspected" if out else ""
        bars.append(Bar(case.classes[t], cost, success, cost / dearest, hot, note))
    shown = [bar for i, bar in enumerate(bars) if bar.note or i < MOST_BARS - 1]
    if len(bars) > len(shown):
        shown.append(bars[-1])
    banks: tuple[type[TriggerBank], ...] = (*UNIVERSAL, ChangeBank)
    unit = next((bank.unit for bank in banks if bank.family == family), "")
    evidence = any(gap >= GAP_EVIDENCE and t in suspects for t, (gap, _, _) in best.items())
    return Chart(family, unit, evidence, shown, len(bars) - len(shown))


def gap_table(case: Case) -> list[tuple[str, bool, list[float | None]]]:
    """Every target, whether it is suspected, and its gap (bits, at least 0) in every family, most suspicious first."""
    seen: dict[int, dict[str, float]] = {}
    for family, rows in case.screen.items():
        for target, gap in zip(rows["target"], rows["gap"], strict=True):
            row = seen.setdefault(target, {})
            row[family] = max(row.get(family, 0.0), gap)
    order = sorted(seen, key=lambda target: max(seen[target].values()), reverse=True)
    suspects = words.suspects(case)
    return [
        (name_of(t, case.classes), t in suspects, [seen[t].get(family) for family in case.screen])
        for t in order
    ]


def _flag(case: Case, budget: Mapping[str, Any]) -> dict[str, Any] | None:
    """The flag scores' chart and what stands beside it."""
    if not case.flag:
        return None
    f = case.flag
    text = (
        f"Histograms of the flag score from 0 to 1: clean images above the axis, images that a rebuilt trigger"
        f" leads astray below. The threshold is {f['threshold']:.3f}."
    )
    n, labelled = f["n_calibration"], budget.get("n_images", case.n_images)
    return {
        **f,
        "split": words.split(case),
        "chart": charts.histograms(f["clean"], f["triggered"], f["threshold"], text),
        "four_times": false_alarms(f["alpha"], 4 * n),
        "images_then": 4 * labelled,
    }


def _rounds(heading: str, rounds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Success of each round's inversions as a chart with its table: a row for each trigger."""
    keys = list(dict.fromkeys(key for r in rounds for key in r))
    series = [[float(r.get(key, 0.0)) for r in rounds] for key in keys]
    chart = Markup("")
    if series:
        chart = charts.lines(series, f"{heading}: success of the strongest new trigger, round by round")
    return {"heading": heading, "chart": chart, "rows": list(zip(keys, series, strict=True))}


def _facts(manifest: Manifest) -> dict[str, str]:
    """Settings and origin, for who wants to repeat or check it."""
    return {
        "version": manifest.id,
        "made": manifest.created.replace("T", " ").replace("Z", " UTC"),
        "suspect": f"{manifest.suspect.file_name}, sha256 {manifest.suspect.sha256}",
        "clean images": f"{manifest.data.n_images} of {manifest.data.n_classes} classes, sha256 {manifest.data.sha256}",
        "profile and seed": f"{manifest.profile}, {manifest.seed}",
        "input": f"{manifest.input_channels} x {' x '.join(map(str, manifest.preprocess.size))},"
        f" mean {_list(manifest.preprocess.mean)}, std {_list(manifest.preprocess.std)}",
        "time": _duration(manifest.seconds),
        "tools": ", ".join(f"{name} {number}" for name, number in manifest.tools.items()),
    }


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
