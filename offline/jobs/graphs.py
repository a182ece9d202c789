"""The version's ONNX graphs, and whether they answer as torch does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch

from detrigger.models.protected import OPSET, GraphSettings, build_protected, default_opset, raise_opset
from detrigger.offline.graph.to_onnx import check_same, images_a_run, to_onnx
from detrigger.offline.graph.to_onnx import run as run_onnx
from detrigger.offline.graph.weights import written_back
from detrigger.offline.steps.candidates import Defence
from detrigger.offline.steps.find import Findings
from detrigger.offline.steps.penalty import answered
from detrigger.offline.steps.run import Run
from detrigger.offline.triggers.base import Triggered
from detrigger.offline.types import Pixels

OUTPUTS = ("logits", "logits_raw", "flag_score", "purified")
UNSET = 0.0
"""Flag threshold of a graph that is not calibrated yet."""


@dataclass(frozen=True)
class Graphs:
    """The exported graphs; ``difference`` is the largest one between torch and ONNX Runtime."""

    protected: onnx.ModelProto
    purifier: onnx.ModelProto
    generator: onnx.ModelProto
    outputs: dict[str, Pixels]
    difference: float


def export(run: Run, findings: Findings, defence: Defence) -> Graphs:
    """Every graph of the version, the protected one compared with torch on the calibration images."""
    inputs, pre = run.inputs, run.inputs.preprocess
    shape = (pre.channels, *pre.size)
    x = run.images.calibration[0]
    with run.progress.stage("export", 3) as advance:
        graph = raise_opset(inputs.graph, OPSET)
        tuned = raise_opset(written_back(inputs.tunable, defence.repaired.classifier, inputs.digest), OPSET)
        opset = default_opset(graph)
        purifier = to_onnx(defence.purified.purifier, shape, "purified", opset)
        advance()
        best = next((piece.bank for piece in findings.leads if piece.bank.learned), findings.without_target)
        generator = to_onnx(Triggered(best.cpu()), shape, "triggered", opset)
        advance()
        settings = GraphSettings(
            preprocess=pre,
            softmax=run.suspect.spec.softmax,
            penalty=defence.penalty,
            threshold=UNSET,
            suspected=defence.suspected,
            only=defence.only,
            if_flagged=defence.if_flagged,
        )
        protected = build_protected(purifier, graph, tuned, settings)
        outputs = run_onnx(protected, x, list(OUTPUTS))
        difference = check_against_torch(defence, x, outputs)
        advance()
    return Graphs(protected, purifier, generator, dict(zip(OUTPUTS, outputs, strict=True)), difference)


def answer_if_flagged(logits: Pixels, raw: Pixels, scores: Pixels, threshold: float) -> None:
    """Put the suspect's own ``raw`` logits (N, K) in the place of ``logits`` where ``scores`` (N,) raise no flag."""
    others = scores <= threshold
    logits[others] = raw[others]


def check_against_torch(defence: Defence, x: Pixels, exported: Sequence[Pixels]) -> float:
    """Largest difference between torch in float32 and the exported graph, over purified images and logits."""
    classifier = defence.repaired.classifier.cpu()
    with torch.no_grad():
        batch = images_a_run(x)
        parts = [torch.from_numpy(part) for part in np.array_split(x, -(-len(x) // batch))]
        images = torch.cat([defence.purified.purifier(part) for part in parts])
        answers = torch.cat([classifier(part) for part in images.split(batch)]).numpy()
    purified, logits = images.numpy(), answered(answers, exported[1], defence.penalty)
    if defence.only:
        others = ~np.isin(exported[1].argmax(1), defence.suspected)
        purified[others], logits[others] = x[others], exported[1][others]
    if defence.if_flagged:
        answer_if_flagged(logits, exported[1], exported[2], UNSET)
    limit = classifier.spec.tolerance * (2 + max(defence.penalty))  # by as much a label's difference grows
    return max(
        check_same("purifier", purified, exported[3]),
        check_same("protected graph", logits, exported[0], limit),
    )
