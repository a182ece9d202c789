"""``detrigger protect``: from the suspect to a published version, top to bottom; each step is a module of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from detrigger.models.store import VersionStore
from detrigger.offline.compute import Compute
from detrigger.offline.inputs.load import Options
from detrigger.offline.inputs.profile import Profile
from detrigger.offline.jobs.publish import Defence, publish
from detrigger.offline.jobs.results import ProtectResult
from detrigger.offline.progress import Progress
from detrigger.offline.steps.find import find_triggers
from detrigger.offline.steps.penalty import choose_penalty
from detrigger.offline.steps.purify import purify
from detrigger.offline.steps.run import begin
from detrigger.offline.steps.unlearn import repaired_copy


@dataclass(frozen=True, kw_only=True)
class ProtectOptions(Options):
    """What ``detrigger protect`` is asked for."""

    store: Path
    name: str = "model"
    promote: bool = True


def protect(options: ProtectOptions, progress: Progress, profile: Profile | None = None) -> ProtectResult:
    """Run the whole job and publish a version; promote it where the gate passes and ``options.promote`` is set.

    Raises BadInput for anything wrong with the inputs or the store, before anything is written; nothing is ever
    visible of a job that ends early. ``profile`` stands in for the one that ``options`` name.
    """
    compute = Compute(options.device, options.seed)
    store = VersionStore.create(options.store)
    with store.job_lock():
        run = begin(options, compute, progress, profile)
        findings = find_triggers(run)
        purified = purify(run, findings)
        repaired = repaired_copy(run, findings, purified.purifier)
        penalty = choose_penalty(run, findings, repaired.classifier, purified.purifier)
        defence = Defence(purified=purified, repaired=repaired, penalty=penalty)
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
    )
