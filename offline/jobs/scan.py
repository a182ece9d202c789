"""``detrigger scan``: import and inversion alone. What the suspect looks like, and the triggers that say so."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch

from detrigger.models.errors import BadInput
from detrigger.models.files import os_errors, replace
from detrigger.offline.compute import Compute
from detrigger.offline.inputs.load import Options, check_writable
from detrigger.offline.inputs.logic import LogicRefused
from detrigger.offline.jobs.pictures import Seen, contact_sheets, sheets, stack
from detrigger.offline.jobs.report import Pictures, render_scan
from detrigger.offline.jobs.results import ScanResult, command_of, signs
from detrigger.offline.progress import Progress
from detrigger.offline.steps.budget import Clock
from detrigger.offline.steps.find import find_triggers, inverted_without_target, screen_figures
from detrigger.offline.steps.last_layer import standing_out
from detrigger.offline.steps.quick import look_quickly
from detrigger.offline.steps.run import Run, SetupRefused, begin
from detrigger.offline.steps.verdict import GAP_EVIDENCE
from detrigger.offline.types import Pixels

PICTURES = (".html", ".png")
WRITING, DRAWING = 1.0, 10.0
"""Seconds of a budget that are kept for the end, without and with pictures."""


@dataclass(frozen=True, kw_only=True)
class ScanOptions(Options):
    """What ``detrigger scan`` is asked for; ``out`` is an .html or .png to write the triggers' pictures to.

    ``quick`` looks for seconds instead of minutes, finds plain backdoors alone, and draws nothing.
    """

    out: Path | None = None
    quick: bool = False


def scan(options: ScanOptions, progress: Progress, clock: Clock = time.monotonic) -> ScanResult:
    """Search the suspect for triggers. Raises BadInput for anything wrong with the inputs or ``options.out``.

    A budget goes by ``clock``.
    """
    if options.quick and options.budget is not None:
        raise BadInput("a quick look takes seconds: leave out --quick or --budget")
    if options.out is not None:
        if options.quick:
            raise BadInput("a quick look draws nothing: leave out --quick or --out")
        check_writable(options.out, PICTURES)
    try:
        run = begin(options, Compute(options.device, options.seed), progress, clock=clock)
    except LogicRefused as refused:
        return _without_search(options, refused, progress)
    except SetupRefused as refused:
        return _set_up_wrong(options, refused)
    if options.quick:
        return _quickly(run)
    run.budget.keep(DRAWING if options.out else WRITING)
    findings = find_triggers(run)
    classes = run.inputs.preprocess.classes
    result = ScanResult(
        verdict=findings.verdict,
        target_labels=findings.targets,
        evidence=signs(findings.leads, classes),
        screen=screen_figures(findings.screens),
        strong_gap=GAP_EVIDENCE,
        classes=classes,
        file_name=options.suspect.name,
        suspect=run.inputs.digest,
        n_images=len(run.inputs.data),
        picture=str(options.out) if options.out else None,
        seconds=round(run.seconds(), 1),
        logic=run.inputs.logic.rows(),
        accuracy=run.accuracy.as_json() if run.accuracy else None,
        reason=run.inputs.logic.unseen or findings.reason,
        labelled=run.inputs.data.labelled,
        command=command_of("scan", options),
        stages=run.stages.rows,
        easily_led=findings.easily_led,
        left_out=tuple(run.budget.left_out),
    )
    if options.out is not None:
        if not findings.leads:
            findings = inverted_without_target(run, findings)
        page = BytesIO()
        if options.out.suffix.lower() == ".png":
            stack(contact_sheets(findings, classes, run.images.unseen[0])).save(page, "PNG")
        else:
            suspect = run.suspect.cpu()

            def watch(x: Pixels) -> Seen:
                with torch.no_grad():
                    return Seen(suspect(torch.from_numpy(x)).numpy())

            shown = Pictures(sheets(findings, classes, run.images.unseen, watch))
            page.write(render_scan(result, shown).encode())
        with os_errors("write", options.out):
            replace(options.out, page.getvalue())
    return result


def _quickly(run: Run) -> ScanResult:
    """What a quick look says."""
    inputs = run.inputs
    with run.progress.stage("screen", 1) as advance:
        row = standing_out(inputs.tunable, run.suspect.n_classes)
        seen = look_quickly(run.suspect, run.suspect.n_classes, run.images, run.seed, row)
        advance()
    found = tuple(piece.target for piece in seen.evidence[:1])
    verdict, targets = inputs.logic.said("backdoored" if found else "clean", found)
    return ScanResult(
        verdict="nothing found, not searched in depth" if verdict == "clean" else verdict,
        target_labels=targets,
        evidence=signs(seen.evidence, inputs.preprocess.classes),
        screen=screen_figures(seen.screens),
        strong_gap=GAP_EVIDENCE,
        classes=inputs.preprocess.classes,
        file_name=run.options.suspect.name,
        suspect=inputs.digest,
        n_images=len(inputs.data),
        picture=None,
        seconds=round(run.seconds(), 1),
        logic=inputs.logic.rows(),
        accuracy=run.accuracy.as_json() if run.accuracy else None,
        reason=inputs.logic.unseen,
        labelled=inputs.data.labelled,
        command=command_of("scan", run.options),
        stages=run.stages.rows,
    )


def _without_search(options: ScanOptions, refused: LogicRefused, progress: Progress) -> ScanResult:
    """Logic that cannot be cut out is verdict enough: there is nothing left to search in."""
    progress.note(f"not searched: {refused}")
    measured = any(not math.isnan(f.effect) for f in refused.logic.findings)
    return ScanResult(
        verdict="backdoored" if measured else "inconclusive",
        target_labels=refused.logic.targets,
        evidence=(),
        screen={},
        strong_gap=GAP_EVIDENCE,
        classes=refused.classes,
        file_name=options.suspect.name,
        suspect=refused.digest,
        n_images=refused.n_images,
        picture=None,
        seconds=0.0,
        logic=refused.logic.rows(),
        reason=str(refused),
        labelled=not options.unlabelled,
    )


def _set_up_wrong(options: ScanOptions, refused: SetupRefused) -> ScanResult:
    """Inconclusive, with the reason, unless the graph itself is evidence; there is nothing to draw."""
    inputs = refused.inputs
    verdict, targets = inputs.logic.said("inconclusive", ())
    return ScanResult(
        verdict=verdict,
        target_labels=targets,
        evidence=(),
        screen={},
        strong_gap=GAP_EVIDENCE,
        classes=inputs.preprocess.classes,
        file_name=options.suspect.name,
        suspect=inputs.digest,
        n_images=len(inputs.data),
        picture=None,
        seconds=0.0,
        accuracy=refused.accuracy.as_json() if refused.accuracy else None,
        labelled=inputs.data.labelled,
        reason=refused.reason,
        logic=inputs.logic.rows(),
    )
