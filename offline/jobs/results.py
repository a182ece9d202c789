"""What the jobs end with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from detrigger.models.manifest import Verdict


@dataclass(frozen=True)
class ProtectResult:
    """What ``detrigger protect`` ends with."""

    version: str
    verdict: Verdict
    target_labels: tuple[int, ...]
    gate_passed: bool
    promoted: bool
    metrics: dict[str, float]
    seconds: float


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
class ScanResult:
    """What a scan says. ``screen``: every candidate of every family, see ``screen_figures``.

    ``accuracy`` is what the suspect itself is right on; None where it was not measured. ``reason`` says why no search
    was made, or why it is not enough.
    ``evidence`` is what made the verdict; where that is "inconclusive", the signs that were too weak for one.
    ``logic`` is what was found in the graph itself, see ``inputs.logic``; it is evidence as well.
    ``labelled`` is false where the suspect's own answers stood for the classes of the images.
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
    logic: tuple[dict[str, Any], ...] = ()
    accuracy: dict[str, Any] | None = None
    reason: str = ""
    labelled: bool = True


@dataclass(frozen=True)
class RepairResult:
    """What the repair ends with; ``written`` is None where the gate refused. ``remaining``: see ``unlearn``."""

    verdict: Verdict
    target_labels: tuple[int, ...]
    gate_passed: bool
    checks: tuple[dict[str, Any], ...]
    metrics: dict[str, float]
    remaining: list[dict[str, float]]
    written: str | None
    seconds: float
