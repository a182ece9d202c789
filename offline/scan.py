"""``detrigger scan``: import and inversion alone. What the suspect looks like, and the triggers that say so."""

from __future__ import annotations

import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from detrigger.models.files import os_errors, replace
from detrigger.models.manifest import Verdict
from detrigger.offline import screen as screening
from detrigger.offline.compute import Compute
from detrigger.offline.find import Inverted, find_triggers, name_of, screen_figures
from detrigger.offline.inputs import PROFILES, Options, check_writable, load, split_data
from detrigger.offline.progress import Progress
from detrigger.offline.purify import Teacher
from detrigger.offline.report import render_scan, sheets_of, stack

PICTURES = (".html", ".png")


@dataclass(frozen=True, kw_only=True)
class ScanOptions(Options):
    """What ``detrigger scan`` is asked for; ``out`` is an .html or .png to write the triggers' pictures to."""

    out: Path | None = None


@dataclass(frozen=True)
class Sign:
    """A target that one family reaches too cheaply; -1 stands for any class but the image's own."""

    family: str
    target: int
    label: str
    gap: float
    cost: float
    success: float


@dataclass(frozen=True)
class Scan:
    """What a scan says. ``screen``: every candidate of every family, see ``screen_figures``.

    ``evidence`` is what made the verdict; where that is "inconclusive", the signs that were too weak for one.
    """

    verdict: Verdict
    target_labels: tuple[int, ...]
    evidence: tuple[Sign, ...]
    screen: dict[str, dict[str, list[Any]]]
    strong_gap: float
    classes: tuple[str, ...]
    file_name: str
    suspect: str
    n_images: int
    picture: str | None
    seconds: float


def scan(options: ScanOptions, progress: Progress) -> Scan:
    """Search the suspect for triggers. Raises BadInput for anything wrong with the inputs or ``options.out``."""
    began = time.monotonic()
    if options.out is not None:
        check_writable(options.out, PICTURES)
    compute = Compute(options.device, options.seed)
    given = load(options, compute, progress)
    split = split_data(given.data, options.seed, compute)
    teacher = Teacher(given.suspect, *split.train, compute)
    found = find_triggers(given, teacher, split, PROFILES[options.profile], options.seed, compute, progress)
    classes = given.preprocess.classes
    result = Scan(
        verdict=found.verdict,
        target_labels=found.targets,
        evidence=signs(found, classes),
        screen=screen_figures(found),
        strong_gap=screening.STRONG,
        classes=classes,
        file_name=options.suspect.name,
        suspect=given.digest,
        n_images=len(given.data),
        picture=str(options.out) if options.out else None,
        seconds=round(time.monotonic() - began, 1),
    )
    if options.out is not None:
        sheets = sheets_of(found, classes, split.unseen[0])
        page = BytesIO()
        if options.out.suffix.lower() == ".png":
            stack(sheets).save(page, "PNG")
        else:
            page.write(render_scan(result, sheets).encode())
        with os_errors("write", options.out):
            replace(options.out, page.getvalue())
    return result


def signs(found: Inverted, classes: tuple[str, ...]) -> tuple[Sign, ...]:
    """The evidence, or the weak signs where there is none; a spot that is looked at beside a lone patch is no sign."""
    return tuple(
        Sign(e.family, e.target, name_of(e.target, classes), e.gap, e.cost, e.success)
        for e in found.marked
        if e.gap >= screening.DOUBTFUL
    )
