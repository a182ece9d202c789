"""What a report speaks of: the facts of a scan or of a version, for `words` and `report`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from detrigger.models.manifest import Manifest
from detrigger.offline.jobs.results import ScanResult, ScanVerdict


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a scan or a version says of its suspect. ``evidence`` are fields of ``Sign``, strongest first.

    ``gate``, ``metrics``, ``flag`` and ``clean`` (see ``figures``) are empty where nothing was defended. The manifest
    has ``given_up``. ``purifies`` is false where other weights alone answer, and ``if_flagged`` true where these answer
    flagged images alone. ``reviewed``: what became of the images that people called poisoned, label by label
    (``steps.reviewed``). ``left_out``: what a budget had no time for.
    """

    name: str
    verdict: ScanVerdict
    targets: tuple[int, ...]
    classes: Sequence[str]
    n_images: int
    evidence: Sequence[Mapping[str, Any]]
    screen: Mapping[str, Mapping[str, list[Any]]]
    accuracy: Mapping[str, Any] | None
    logic: Sequence[Mapping[str, Any]] = ()
    reason: str = ""
    gate_passed: bool | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    flag: Mapping[str, Any] = field(default_factory=dict)
    clean: Mapping[str, float] = field(default_factory=dict)
    given_up: str = ""
    purifies: bool = True
    if_flagged: bool = False
    reviewed: Sequence[Mapping[str, Any]] = ()
    easily_led: Sequence[int] = ()
    left_out: Sequence[str] = ()

    @property
    def labels(self) -> str:
        """The suspected labels by name."""
        return " and ".join(f"“{self.classes[t]}”" for t in self.targets)


def case_of_version(manifest: Manifest, report: Mapping[str, Any]) -> Case:
    """From a manifest and its report.json; keys that an older report lacks are left empty."""
    return Case(
        name=manifest.suspect.file_name,
        verdict=manifest.verdict,
        targets=manifest.target_labels,
        classes=manifest.classes,
        n_images=manifest.data.n_images,
        evidence=report.get("evidence", ()),
        screen=report.get("screen", {}),
        accuracy=report.get("accuracy"),
        logic=report.get("logic", ()),
        reason=report.get("reason", ""),
        gate_passed=manifest.gate.passed,
        metrics=manifest.metrics,
        flag=report.get("flag", {}),
        clean=report.get("clean", {}),
        given_up=manifest.given_up,
        purifies=report.get("defence", "purified") == "purified",
        if_flagged=report.get("defence") == "second opinion",
        reviewed=report.get("reviewed", ()),
        easily_led=report.get("easily_led", ()),
        left_out=manifest.left_out,
    )


def case_of_scan(scan: ScanResult) -> Case:
    """From what ``detrigger scan`` found."""
    return Case(
        name=scan.file_name,
        verdict=scan.verdict,
        targets=scan.target_labels,
        classes=scan.classes,
        n_images=scan.n_images,
        evidence=[vars(sign) for sign in scan.evidence],
        screen=scan.screen,
        accuracy=scan.accuracy,
        logic=scan.logic,
        reason=scan.reason,
        easily_led=scan.easily_led,
        left_out=scan.left_out,
    )
