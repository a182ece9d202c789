"""``detrigger repair``: the suspect's own file with weights from which the backdoor is unlearned (``unlearn.py``).

The tuned weights go back into the suspect's own ONNX file, whose graph stays what it was.

Limitations: those of unlearning. An unlearned backdoor may be learned again faster than a new one, so train no further
on data that nobody checked. A repaired model flags nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch

from detrigger.models import files
from detrigger.models.errors import BadInput
from detrigger.models.suspect import Suspect, onnx_logits, read_onnx
from detrigger.offline.compute import Compute
from detrigger.offline.graph.to_onnx import check_same, images_a_run
from detrigger.offline.graph.weights import weight_names, written_back
from detrigger.offline.inputs.load import JobInputs, Options, check_writable
from detrigger.offline.jobs.results import RepairResult
from detrigger.offline.progress import Progress
from detrigger.offline.steps.find import find_triggers, prepared
from detrigger.offline.steps.gate import judge_repair
from detrigger.offline.steps.run import begin
from detrigger.offline.steps.unlearn import unlearn
from detrigger.offline.types import Pixels


@dataclass(frozen=True, kw_only=True)
class RepairOptions(Options):
    """What ``detrigger repair`` is asked for; ``out`` is where the repaired .onnx goes."""

    out: Path


def repair(options: RepairOptions, progress: Progress) -> RepairResult:
    """Unlearn what the inversion finds and write the repaired classifier, if it passes the gate.

    Raises BadInput for anything wrong with the inputs or ``options.out``. The file appears as a whole at the end or
    not at all.
    """
    if options.budget is not None:
        raise BadInput("a repair has no budget: leave it out, or use `detrigger protect`")
    check_writable(options.out, (".onnx",))
    if options.out.exists() and options.out.samefile(options.suspect):
        raise BadInput(f"--out {options.out} is the suspect itself; keep it and give another path")
    run = begin(options, Compute(options.device, options.seed), progress)
    logic = run.inputs.logic
    if logic.findings or logic.unseen:
        found = logic.summary() if logic.findings else logic.unseen
        raise BadInput(
            f"{found}; repair tunes weights and would leave it in the graph: use `detrigger protect`"
        )
    if run.suspect.spec.quantised or not weight_names(run.inputs.tunable):
        raise BadInput(
            "the model has no floating-point weights to tune (quantised, or kept in Constant nodes); "
            "export it in float32, or use `detrigger protect`, which can leave the weights alone"
        )
    findings = prepared(run, find_triggers(run))
    run.reference.exclude_labels(findings.targets)
    tuned, remaining = unlearn(run, findings, run.profile.repair)
    original, _ = read_onnx(options.suspect)
    with progress.stage("gate", 1) as advance:
        repaired = written_back(original, tuned, run.inputs.digest)
        judged = written_back(run.inputs.tunable, tuned, run.inputs.digest)
        before, after = (_answering(model, run.inputs) for model in (run.inputs.graph, judged))
        x = run.images.calibration[0]
        check_same("repaired classifier", _in_torch(tuned.cpu(), x), after(x), tuned.spec.tolerance)
        gate, metrics = judge_repair(before, after, run.images, findings.leads)
        advance()
    if gate.passed:
        with files.os_errors("write", options.out):
            files.replace(options.out, repaired.SerializeToString())
    return RepairResult(
        verdict=findings.verdict,
        target_labels=findings.targets,
        gate_passed=gate.passed,
        checks=tuple(check.model_dump() for check in gate.checks),
        metrics=metrics,
        remaining=remaining,
        written=str(options.out) if gate.passed else None,
        seconds=round(run.seconds(), 1),
    )


def _answering(model: onnx.ModelProto, inputs: JobInputs) -> Callable[[Pixels], Pixels]:
    pre = inputs.preprocess
    return lambda x: onnx_logits(model, inputs.suspect.spec, pre.mean, pre.std, x)


@torch.no_grad()
def _in_torch(tuned: Suspect, x: Pixels) -> Pixels:
    logits: Pixels = torch.cat(
        [tuned(torch.from_numpy(part)) for part in np.array_split(x, -(-len(x) // images_a_run(x)))]
    ).numpy()
    return logits
