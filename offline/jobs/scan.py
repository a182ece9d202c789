"""``detrigger scan``: import and inversion alone. What the suspect looks like, and the triggers that say so."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from detrigger.models.files import os_errors, replace
from detrigger.offline.compute import Compute
from detrigger.offline.inputs.load import Options, check_writable
from detrigger.offline.jobs.report import render_scan, sheets_of, stack
from detrigger.offline.jobs.results import ScanResult, Sign
from detrigger.offline.progress import Progress
from detrigger.offline.steps.find import Findings, find_triggers, name_of, screen_figures
from detrigger.offline.steps.run import begin
from detrigger.offline.steps.verdict import GAP_EVIDENCE, GAP_SECOND_LOOK

PICTURES = (".html", ".png")


@dataclass(frozen=True, kw_only=True)
class ScanOptions(Options):
    """What ``detrigger scan`` is asked for; ``out`` is an .html or .png to write the triggers' pictures to."""

    out: Path | None = None


def scan(options: ScanOptions, progress: Progress) -> ScanResult:
    """Search the suspect for triggers. Raises BadInput for anything wrong with the inputs or ``options.out``."""
    if options.out is not None:
        check_writable(options.out, PICTURES)
    run = begin(options, Compute(options.device, options.seed), progress)
    findings = find_triggers(run)
    classes = run.inputs.preprocess.classes
    result = ScanResult(
        verdict=findings.verdict,
        target_labels=findings.targets,
        evidence=signs(findings, classes),
        screen=screen_figures(findings),
        strong_gap=GAP_EVIDENCE,
        classes=classes,
        file_name=options.suspect.name,
        suspect=run.inputs.digest,
        n_images=len(run.inputs.data),
        picture=str(options.out) if options.out else None,
        seconds=round(run.seconds(), 1),
        logic=run.inputs.logic.rows(),
    )
    if options.out is not None:
        sheets = sheets_of(findings, classes, run.images.unseen[0])
        page = BytesIO()
        if options.out.suffix.lower() == ".png":
            stack(sheets).save(page, "PNG")
        else:
            page.write(render_scan(result, sheets).encode())
        with os_errors("write", options.out):
            replace(options.out, page.getvalue())
    return result


def signs(findings: Findings, classes: tuple[str, ...]) -> tuple[Sign, ...]:
    """The evidence, or the weak signs where there is none. A spot beside a lone patch is not a sign."""
    return tuple(
        Sign(e.family, e.target, name_of(e.target, classes), e.gap, e.cost, e.success)
        for e in findings.leads
        if e.gap >= GAP_SECOND_LOOK
    )
