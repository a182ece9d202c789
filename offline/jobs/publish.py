"""The end of ``detrigger protect``: export, calibrate on the exported graph, gate, write the version."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from detrigger.models.manifest import Data, Flag, Gate, Manifest, new_version_id, utc_now
from detrigger.models.manifest import Suspect as SuspectRecord
from detrigger.models.protected import GROUNDS, set_threshold
from detrigger.models.store import VersionStore
from detrigger.models.suspect import whole_file
from detrigger.offline.graph.to_onnx import run as run_onnx
from detrigger.offline.jobs.figures import clean_figures, flag_figures
from detrigger.offline.jobs.graphs import OUTPUTS, Graphs, answer_if_flagged, export
from detrigger.offline.jobs.pictures import Defended, Seen, put_on, sheets, worst_clean
from detrigger.offline.jobs.report import Pictures, render
from detrigger.offline.jobs.results import command_of, signs, tools
from detrigger.offline.steps.calibrate import (
    ALPHA_SUSPECTED,
    CONTAMINATED,
    conformal_threshold,
    corrected_threshold,
    second_mode,
    suspected_threshold,
    trustworthy,
)
from detrigger.offline.steps.candidates import Defence, plainest
from detrigger.offline.steps.find import Findings, responses_by_kind, screen_figures
from detrigger.offline.steps.gate import Clean, judge_version
from detrigger.offline.steps.invert import ANY_OTHER
from detrigger.offline.steps.run import Run
from detrigger.offline.steps.verdict import GAP_EVIDENCE
from detrigger.offline.types import Hits, Labels, Pixels

WRITING, PASSES = 15.0, 6
"""Seconds that export, pages and files take beside that, and passes with as much work as a gradient."""
MOST_TRIGGERED = 200
"""Images that each inverted trigger is put on, for the report's histogram and the estimate of PA."""


@dataclass(frozen=True)
class OnTriggered:
    """Of images with an inverted trigger: flag scores (M,), which ones the defence classifies right, and which ones the
    trigger leads the bare suspect astray on. The share that is right estimates PA, as far as the inverted triggers are
    the attacker's.
    """

    score: Pixels
    right: Hits
    led: Hits


def seconds_to_publish(run: Run) -> float:
    """What the end of the job takes at most, for a budget: some passes of the last images through the suspect."""
    return WRITING + run.budget.pace.seconds(PASSES * len(run.images.calibration[0]))


def publish(run: Run, findings: Findings, defence: Defence, store: VersionStore, name: str) -> Manifest:
    """Export, calibrate, gate and write the version; its manifest says whether the gate passed."""
    graphs = export(run, findings, defence)
    y = run.images.calibration[1]
    with run.progress.stage("calibrate", 1) as advance:
        scores = graphs.outputs["flag_score"]
        asked = np.isin(graphs.outputs["logits_raw"].argmax(1), defence.suspected)
        apart, alarming = second_mode(scores, ALPHA_SUSPECTED if defence.suspected else CONTAMINATED)
        kept = trustworthy(scores, y, findings.targets) if alarming else np.ones(len(y), bool)
        if defence.suspected:
            threshold, alpha = suspected_threshold(scores[kept], asked[kept])
        else:
            threshold, alpha = conformal_threshold(scores[kept])
        threshold = corrected_threshold(
            threshold, alpha, scores[kept], *_reviewed_scores(run, graphs, findings)
        )
        set_threshold(graphs.protected, threshold)
        if defence.if_flagged:
            answer_if_flagged(graphs.outputs["logits"], graphs.outputs["logits_raw"], scores, threshold)
        advance()
    if alarming:
        run.progress.note(
            f"warning: {apart:.1%} of the clean images score like triggered ones; look at them, some may carry the"
            " trigger. Those with a suspected label are left out; the flag threshold is as good as the rest"
        )
    with run.progress.stage("gate", 1) as advance:
        unseen = kept & (np.arange(len(y)) < run.images.n_unseen)
        x = run.images.calibration[0][unseen]
        clean = Clean(*(graphs.outputs[output][unseen] for output in OUTPUTS[:3]))
        gate, metrics = judge_version(graphs.protected, clean, x, y[unseen], plainest(findings).leads)
        for check in filter(None, (run.inputs.logic.check(), defence.check())):
            gate = Gate(passed=gate.passed and check.passed, checks=(*gate.checks, check))
        triggered = on_triggered(graphs, findings, x, y[unseen])
        advance()
    metrics |= {
        **({"pa_estimated": float(triggered.right.mean())} if len(triggered.right) else {}),
        **({"suspect_accuracy": run.accuracy.overall} if run.accuracy else {}),
        "flag_rate_calibration": float((scores[kept] > threshold).mean()),
        "calibration_second_mode": apart,
        "export_difference": graphs.difference,
        **({"remaining": defence.remaining} if defence.attacked else {}),
        "repaired": float(defence.repaired.tuned),
        "penalty": max(defence.penalty),
        "mask_mean": findings.mask_mean,
        "generator_largest_vote": max(findings.votes),
        **{f"calibration_score_p{q}": float(np.percentile(scores[kept], q)) for q in (10, 25, 50, 75, 90)},
    }
    inputs, options = run.inputs, run.options
    manifest = Manifest(
        id=new_version_id(inputs.digest),
        name=name,
        created=utc_now(),
        parent=store.current(),
        profile=options.profile,
        seed=options.seed,
        preprocess=inputs.preprocess,
        input_channels=1 if inputs.preprocess.channels == 1 else 3,
        verdict=findings.verdict,
        target_labels=findings.targets,
        flag=Flag(
            threshold=threshold,
            alpha=alpha,
            n_calibration=int(kept.sum()),
            suspected=defence.suspected,
            grounds=GROUNDS if defence.suspected else 1.0,
        ),
        purify="suspected" if defence.only else "every",
        gate=gate,
        metrics=metrics,
        suspect=SuspectRecord(sha256=inputs.digest, file_name=options.suspect.name),
        data=Data(
            sha256=inputs.data.digest,
            n_images=len(inputs.data),
            n_classes=len(inputs.data.classes),
            labelled=inputs.data.labelled,
        ),
        tools=tools(),
        seconds=round(run.seconds(), 1),
        left_out=tuple(run.budget.left_out),
    )
    with run.progress.stage("publish", 1) as advance:
        raw, defended = _seen([graphs.outputs[output][unseen] for output in OUTPUTS], threshold)
        seen = Seen(raw, defended)
        report = report_of(run, manifest, findings, defence)
        report |= {
            "flag": flag_figures(
                manifest.flag,
                scores[kept],
                asked[kept],
                triggered.score,
                triggered.led,
            ),
            "clean": clean_figures(x, y[unseen], raw, defended),
        }
        pictures = Pictures(
            sheets(
                findings,
                manifest.classes,
                (x, y[unseen]),
                lambda images: Seen(*_seen(run_onnx(graphs.protected, images, list(OUTPUTS)), threshold)),
            ),
            worst_clean((x, y[unseen]), seen, manifest.classes),
        )
        with store.stage(manifest.id) as folder:
            for part in ("protected", "purifier", "generator"):
                (folder / f"{part}.onnx").write_bytes(getattr(graphs, part).SerializeToString())
            (folder / "classifier.onnx").write_bytes(whole_file(options.suspect))
            (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
            (folder / "report.html").write_text(render(manifest, report, pictures))
            store.publish(folder, manifest)
        advance()
    return manifest


def _seen(outputs: Sequence[Pixels], threshold: float) -> tuple[Pixels, Defended]:
    """The protected graph's ``OUTPUTS``, for the report: the bare suspect's logits, and the defence's part."""
    logits, raw, score, purified = outputs
    return raw, Defended(logits, score, purified, threshold)


def on_triggered(graphs: Graphs, findings: Findings, x: Pixels, y: Labels) -> OnTriggered:
    """What unseen images (N, C, H, W) of other classes get with each inverted trigger on them."""
    made = [(np.zeros(0, np.float32), np.zeros(0, bool), np.zeros(0, bool))]
    for piece in plainest(findings).leads:
        others = np.flatnonzero(y != piece.target)[:MOST_TRIGGERED]
        if len(others):
            score, logits, raw = run_onnx(
                graphs.protected, put_on(piece.bank, x[others]), ["flag_score", "logits", "logits_raw"]
            )
            answer = raw.argmax(1)
            led = answer != y[others] if piece.target == ANY_OTHER else answer == piece.target
            made.append((score, logits.argmax(1) == y[others], led))
    return OnTriggered(*(np.concatenate(part) for part in zip(*made, strict=True)))


def _reviewed_scores(run: Run, graphs: Graphs, findings: Findings) -> tuple[Pixels, Pixels]:
    """Flag scores of images that people called clean, and of those known to be triggered: the inverted triggers on
    unseen images, and reviewed images that nothing was learned from.
    """
    lessons = findings.lessons
    if lessons.clean is None:
        return np.zeros(0, np.float32), np.zeros(0, np.float32)
    triggered = [on_triggered(graphs, findings, *run.images.unseen).score]
    if lessons.aside is not None:
        triggered += run_onnx(graphs.protected, lessons.aside[0].cpu().numpy(), ["flag_score"])
    (clean,) = run_onnx(graphs.protected, lessons.clean, ["flag_score"])
    return clean, np.concatenate(triggered)


def report_of(run: Run, manifest: Manifest, findings: Findings, defence: Defence) -> dict[str, Any]:
    """report.json: what each step saw."""
    return {
        "version": manifest.id,
        "defence": defence.kind,
        "verdict": manifest.verdict,
        "target_labels": [{"index": t, "label": manifest.classes[t]} for t in manifest.target_labels],
        "strong_gap": GAP_EVIDENCE,
        "accuracy": run.accuracy.as_json() if run.accuracy else None,
        "evidence": [asdict(sign) for sign in signs(findings.leads, manifest.classes)],
        "command": command_of("protect", run.options, findings.lessons.source)
        + (" --purify suspected" if defence.only else ""),
        "budget": {
            "n_images": manifest.data.n_images,
            "train": len(run.images.train[0]),
            "held_out": len(run.images.held_out[0]),
            "unseen": run.images.n_unseen,
        },
        "screen": screen_figures(findings.screens),
        "generator_votes": findings.votes,
        "synthetic_responses": responses_by_kind(findings),
        "remaining": defence.purified.remaining,
        "remaining_repaired": defence.repaired.remaining,
        "gate": manifest.gate.model_dump(),
        "metrics": manifest.metrics,
        "logic": run.inputs.logic.rows(),
        "reviewed": list(findings.lessons.rows),
        "reason": run.inputs.logic.unseen or findings.reason,
        "easily_led": list(findings.easily_led),
        "left_out": run.budget.left_out,
        "stages": run.stages.rows,
    }
