"""``detrigger protect``: from the suspect to a published version, top to bottom; each step is a module of its own."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from detrigger.models.errors import GateRefused
from detrigger.models.manifest import Purify
from detrigger.models.store import VersionStore
from detrigger.offline.compute import Compute
from detrigger.offline.inputs.load import Options
from detrigger.offline.inputs.profile import Profile
from detrigger.offline.inputs.reviewed import load_reviewed
from detrigger.offline.jobs.publish import publish, seconds_to_publish
from detrigger.offline.jobs.results import ProtectResult
from detrigger.offline.progress import Progress
from detrigger.offline.steps.budget import Clock
from detrigger.offline.steps.candidates import choose_defence
from detrigger.offline.steps.find import Findings, find_triggers, prepared, taught
from detrigger.offline.steps.reviewed import learn
from detrigger.offline.steps.run import Run, begin

SEARCH = 0.4
"""Share of a budget that the search may take, about what it takes without one."""


@dataclass(frozen=True, kw_only=True)
class ProtectOptions(Options):
    """What ``detrigger protect`` is asked for.

    ``purify`` "suspected": images whose bare label is not suspected are answered by the suspect at once. ``reviewed``
    is an export of the quarantine to learn from.
    """

    store: Path
    name: str = "model"
    promote: bool = True
    purify: Purify = "every"
    reviewed: Path | None = None


def protect(
    options: ProtectOptions,
    progress: Progress,
    profile: Profile | None = None,
    clock: Clock = time.monotonic,
) -> ProtectResult:
    """Run the whole job and publish a version; promote it where the gate passes and ``options.promote`` is set.

    Raises BadInput for anything wrong with the inputs or the store, before anything is written; nothing is ever
    visible of a job that ends early. GateRefused where only suspected images are to be purified and the verdict names
    no label. ``profile`` stands in for the one that ``options`` name, and a budget goes by ``clock``.
    """
    compute = Compute(options.device, options.seed)
    store = VersionStore.create(options.store)
    with store.job_lock():
        run = begin(options, compute, progress, profile, clock)
        run.budget.keep(seconds_to_publish(run))
        reviewed = (
            load_reviewed(options.reviewed, run.inputs.preprocess, progress) if options.reviewed else None
        )
        with run.budget.part(SEARCH):
            found = find_triggers(run)
        findings = prepared(run, found)
        suspected, only = suspected_labels(run, findings), options.purify == "suspected"
        if reviewed is not None:
            findings = taught(run, findings, learn(run, reviewed))
            # Reviews add to what the search names. Alone they name nothing: other labels would lose their flags.
            suspected = tuple(dict.fromkeys([*suspected, *findings.lessons.targets])) if suspected else ()
        if only and not suspected:
            raise GateRefused(
                f"--purify suspected needs labels that the verdict names; it is {findings.verdict!r} and names none"
                " that all of its evidence leads to: run again with --purify every",
                code="purify_refused",
            )
        defence = choose_defence(run, findings, suspected, only)
        manifest = publish(run, findings, defence, store, options.name)
        promoted = options.promote and manifest.gate.passed
        if promoted:
            store.promote(manifest.id, by="job", reason=f"gate passed, verdict {findings.verdict}")
    return ProtectResult(
        version=manifest.id,
        verdict=findings.verdict,
        target_labels=findings.targets,
        gate_passed=manifest.gate.passed,
        promoted=promoted,
        metrics=manifest.metrics,
        seconds=run.seconds(),
        left_out=tuple(run.budget.left_out),
    )


def suspected_labels(run: Run, findings: Findings) -> tuple[int, ...]:
    """The labels that a success of the backdoor must have, and those led to as easily; none where no verdict tells.

    It does not where a trigger has no single target, nor where the targets may be those of logic in the graph, which is
    cut out: what hides in the weights may lead elsewhere.
    """
    told = findings.verdict == "backdoored" and not findings.untargeted and not run.inputs.logic.findings
    return (*findings.targets, *findings.easily_led) if told else ()
