"""What the jobs end with."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Literal

from detrigger.models.manifest import Verdict
from detrigger.offline.inputs.load import Options
from detrigger.offline.steps.find import name_of
from detrigger.offline.steps.verdict import GAP_SECOND_LOOK, Evidence
from detrigger.offline.triggers.change import ChangeBank

ScanVerdict = Verdict | Literal["nothing found, not searched in depth"]
"""What a scan may say; the last is a quick look's."""


@dataclass(frozen=True)
class ProtectResult:
    """What ``detrigger protect`` ends with; ``left_out`` is what the budget had no time for."""

    version: str
    verdict: Verdict
    target_labels: tuple[int, ...]
    gate_passed: bool
    promoted: bool
    metrics: dict[str, float]
    seconds: float
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sign:
    """A target that one family reaches too cheaply; -1 stands for any class but the image's own.

    ``change`` says which one it is in the family of ordinary changes.
    """

    family: str
    target: int
    label: str
    gap: float
    cost: float
    success: float
    change: str = ""


def signs(leads: Sequence[Evidence], classes: tuple[str, ...]) -> tuple[Sign, ...]:
    """The evidence, or the weak signs where there is none. A spot beside a lone patch is not a sign."""
    return tuple(
        Sign(
            e.family,
            e.target,
            name_of(e.target, classes),
            e.gap,
            e.cost,
            e.success,
            e.bank.names()[0] if isinstance(e.bank, ChangeBank) else "",
        )
        for e in leads
        if e.gap >= GAP_SECOND_LOOK
    )


def command_of(command: str, options: Options, reviewed: str = "") -> str:
    """The command line that repeats a job; of paths the names alone, since the page goes to others."""
    words = ["detrigger", command, options.suspect.name, "--data", options.data.name]
    if options.preprocess is not None:
        words += ["--preprocess", options.preprocess.name]
    if command == "protect":
        words += ["--store", "STORE"]
    if reviewed:
        words += ["--reviewed", reviewed]
    words += ["--profile", options.profile, "--seed", str(options.seed)]
    if options.feature_node is not None:
        words += ["--feature-node", options.feature_node]
    if options.trust_setup:
        words.append("--trust-setup")
    if options.budget is not None:
        words += ["--budget", f"{options.budget:g}"]
    if getattr(options, "quick", False):
        words.append("--quick")
    return shlex.join(words)


@dataclass(frozen=True)
class ScanResult:
    """What a scan says. ``screen``: every candidate of every family, see ``screen_figures``.

    ``accuracy`` is what the suspect itself is right on; None where it was not measured. ``reason`` says why no search
    was made, or why it is not enough.
    ``evidence`` is what made the verdict; where that is "inconclusive", the signs that were too weak for one.
    ``logic`` is what was found in the graph itself, see ``inputs.logic``; it is evidence as well.
    ``labelled`` is false where the suspect's own answers stood for the classes of the images.
    ``command`` repeats the scan, with file names for paths. ``stages`` is what each one cost, see ``Stages``.
    ``easily_led`` are labels that stand out, but not enough beside the targets to be accused.
    ``left_out`` is what the budget had no time for.
    """

    verdict: ScanVerdict
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
    command: str = ""
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    easily_led: tuple[int, ...] = ()
    left_out: tuple[str, ...] = ()


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


def tools() -> dict[str, str]:
    """Versions of what made this, for the manifest."""
    names = ("detrigger", "torch", "onnx", "onnx2fx", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}
