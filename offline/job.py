"""The offline job from the suspect to a published version, top to bottom; each step is a module of its own."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from detrigger.models.manifest import Data, Flag, Manifest, Verdict, new_version_id, utc_now
from detrigger.models.manifest import Suspect as SuspectRecord
from detrigger.models.protected import OPSET, build_protected, default_opset, raise_opset
from detrigger.models.store import VersionStore
from detrigger.models.suspect import Suspect
from detrigger.offline import screen as screening
from detrigger.offline.calibrate import conformal_threshold, second_mode, trustworthy
from detrigger.offline.compute import Compute
from detrigger.offline.export import Triggered, check_same, run, to_onnx
from detrigger.offline.find import Inverted, find_triggers, responses_by_kind, screen_figures
from detrigger.offline.gate import Clean, Pixels, judge
from detrigger.offline.inputs import PROFILES, Given, Options, Profile, Split, load, split_data
from detrigger.offline.penalty import answered, choose_penalty
from detrigger.offline.pool import Pool
from detrigger.offline.progress import Progress
from detrigger.offline.purify import Purified, Teacher, train_purifier
from detrigger.offline.report import render, sheets_of
from detrigger.offline.unlearn import Repaired, repaired_copy, written_back


@dataclass(frozen=True, kw_only=True)
class ProtectOptions(Options):
    """What ``detrigger protect`` is asked for."""

    store: Path
    name: str = "model"
    promote: bool = True


@dataclass(frozen=True)
class Outcome:
    """What the job ends with."""

    version: str
    verdict: Verdict
    target_labels: tuple[int, ...]
    gate_passed: bool
    promoted: bool
    metrics: dict[str, float]
    seconds: float


def protect(options: ProtectOptions, progress: Progress) -> Outcome:
    """Run the whole job and publish a version; promote it where the gate passes and ``options.promote`` is set.

    Raises BadInput for anything wrong with the inputs or the store, before anything is written; nothing is ever
    visible of a job that ends early.
    """
    began = time.monotonic()
    profile = PROFILES[options.profile]
    compute = Compute(options.device, options.seed)
    store = VersionStore.create(options.store)
    with store.job_lock():
        given = load(options, compute, progress)
        split = split_data(given.data, options.seed, compute)
        teacher = Teacher(given.suspect, *split.train, compute)
        found = find_triggers(given, teacher, split, profile, options.seed, compute, progress)
        purified = purify(given.suspect, teacher, split, found, profile, options.seed, compute, progress)
        if left_out := len(teacher.aside) // 2:  # each stands beside its mirror image
            progress.note(
                f"warning: about {left_out} clean images with a suspected label lose it when purified; they may carry"
                " the trigger and were not trained on"
            )
        repaired = repaired_copy(given, teacher, split, found, purified.purifier, options, compute, progress)
        penalty = choose_penalty(given.suspect, repaired.classifier, purified.purifier, found, split, compute)
        return publish(options, store, given, split, found, repaired, purified, penalty, began, progress)


def purify(
    suspect: Suspect,
    teacher: Teacher,
    split: Split,
    found: Inverted,
    profile: Profile,
    seed: int,
    compute: Compute,
    progress: Progress,
) -> Purified:
    """Train the purifier on what stood out; on a suspect that looks clean, on the cheapest classes, in one round.

    A trigger without a single target is trained against for longer: the penalty that follows can hold little against
    every label.
    """
    pool = Pool(compute, found.kinds())
    pool.add_round(found.known())
    teacher.set_aside(found.targets)
    if not found.marked:
        profile = replace(profile, rounds=1)
    elif found.untargeted:
        profile = replace(profile, purify_steps=profile.purify_steps * 3 // 2)
    return train_purifier(
        suspect, teacher, pool, found.marked, split.train, split.held_out, compute, progress,
        steps=profile.purify_steps, rounds=profile.rounds, refresh_steps=profile.refresh_steps, seed=seed,
    )  # fmt: skip


def publish(
    options: ProtectOptions,
    store: VersionStore,
    given: Given,
    split: Split,
    found: Inverted,
    repaired: Repaired,
    purified: Purified,
    penalty: tuple[float, ...],
    began: float,
    progress: Progress,
) -> Outcome:
    """Export, calibrate on the exported graph, gate, write the version, promote."""
    suspect, pre = given.suspect, given.preprocess
    shape = (pre.channels, *pre.size)
    x, y = split.calibration
    with progress.stage("export", 3) as advance:
        graph = raise_opset(given.graph, OPSET)
        tuned = raise_opset(written_back(given.graph, repaired.classifier, given.digest), OPSET)
        opset = default_opset(graph)
        purifier = to_onnx(purified.purifier, shape, "purified", opset)
        advance()
        best = found.marked[0].bank if found.marked else found.generator
        generator = to_onnx(Triggered(best.cpu()), shape, "triggered", opset)
        advance()
        protected = build_protected(
            purifier, graph, tuned,
            layout=suspect.spec.layout, softmax=suspect.spec.softmax, mean=pre.mean, std=pre.std,
            n_classes=suspect.n_classes, classes=pre.classes, penalty=penalty, threshold=0.0,
        )  # fmt: skip
        outputs = run(protected, x, ["logits", "logits_raw", "flag_score", "purified"])
        difference = check_against_torch(repaired.classifier.cpu(), purified, penalty, x, outputs)
        advance()
    with progress.stage("calibrate", 1) as advance:
        scores = outputs[2]
        apart, alarming = second_mode(scores)
        kept = trustworthy(scores, y, found.targets) if alarming else np.ones(len(y), bool)
        threshold, alpha = conformal_threshold(scores[kept])
        set_threshold(protected, threshold)
        advance()
    if alarming:
        progress.note(
            f"warning: {apart:.1%} of the clean images score like triggered ones; look at them, some may carry the"
            " trigger. Those with a suspected label are left out; the flag threshold is as good as the rest"
        )
    with progress.stage("gate", 1) as advance:
        unseen = kept & (np.arange(len(y)) < split.n_unseen)
        clean = Clean(*(output[unseen] for output in outputs[:3]))
        gate, metrics = judge(protected, clean, x[unseen], y[unseen], found.marked)
        advance()
    metrics |= {
        "flag_rate_calibration": float((scores[kept] > threshold).mean()),
        "calibration_second_mode": apart,
        "export_difference": difference,
        "repaired": float(repaired.tuned),
        "penalty": max(penalty),
        "mask_mean": found.mask_mean,
        "generator_largest_vote": max(found.votes),
        **{f"calibration_score_p{q}": float(np.percentile(scores[kept], q)) for q in (10, 25, 50, 75, 90)},
    }
    manifest = Manifest(
        id=new_version_id(given.digest),
        name=options.name,
        created=utc_now(),
        parent=store.current(),
        profile=options.profile,
        seed=options.seed,
        preprocess=pre,
        input_channels=1 if pre.channels == 1 else 3,
        verdict=found.verdict,
        target_labels=found.targets,
        flag=Flag(threshold=threshold, alpha=alpha, n_calibration=int(kept.sum())),
        gate=gate,
        metrics=metrics,
        suspect=SuspectRecord(sha256=given.digest, file_name=options.suspect.name),
        data=Data(sha256=given.data.digest, n_images=len(given.data), n_classes=len(given.data.classes)),
        tools=tools(),
        seconds=round(time.monotonic() - began, 1),
    )
    with progress.stage("publish", 1) as advance:
        with store.stage(manifest.id) as folder:
            for name, model in (("protected", protected), ("purifier", purifier), ("generator", generator)):
                (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
            (folder / "classifier.onnx").write_bytes(options.suspect.read_bytes())
            report = report_of(manifest, found, repaired, purified)
            sheets = sheets_of(
                found, pre.classes, x[unseen], lambda seen: run(protected, seen, ["purified"])[0]
            )
            (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
            (folder / "report.html").write_text(render(manifest, report, sheets))
            store.publish(folder, manifest)
        promoted = options.promote and gate.passed
        if promoted:
            store.promote(manifest.id, by="job", reason=f"gate passed, verdict {found.verdict}")
        advance()
    return Outcome(
        manifest.id, found.verdict, found.targets, gate.passed, promoted, metrics, time.monotonic() - began
    )


def check_against_torch(
    classifier: Suspect, purified: Purified, penalty: tuple[float, ...], x: Pixels, exported: list[Pixels]
) -> float:
    """Largest difference between torch in float32 and the exported graph, over purified images and logits."""
    with torch.no_grad():
        parts = [torch.from_numpy(part) for part in np.array_split(x, -(-len(x) // 128))]
        images = torch.cat([purified.purifier(part) for part in parts])
        answers = torch.cat([classifier(part) for part in images.split(128)]).numpy()
    logits = answered(answers, exported[1], penalty)
    limit = classifier.spec.tolerance * (2 + max(penalty))  # by as much a label's difference grows
    return max(
        check_same("purifier", images.numpy(), exported[3]),
        check_same("protected graph", logits, exported[0], limit),
    )


def set_threshold(protected: onnx.ModelProto, threshold: float) -> None:
    """Write the calibrated flag threshold into the graph's metadata."""
    for prop in protected.metadata_props:
        if prop.key == "detrigger.flag_threshold":
            prop.value = repr(threshold)


def report_of(manifest: Manifest, found: Inverted, repaired: Repaired, purified: Purified) -> dict[str, Any]:
    """report.json: what each step saw."""
    return {
        "version": manifest.id,
        "verdict": manifest.verdict,
        "target_labels": [{"index": t, "label": manifest.classes[t]} for t in manifest.target_labels],
        "strong_gap": screening.STRONG,
        "screen": screen_figures(found),
        "generator_votes": found.votes,
        "synthetic_responses": responses_by_kind(found),
        "remaining": purified.remaining,
        "remaining_repaired": repaired.remaining,
        "gate": manifest.gate.model_dump(),
        "metrics": manifest.metrics,
    }


def tools() -> dict[str, str]:
    """Versions of what made this, for the manifest."""
    names = ("detrigger", "torch", "onnx", "onnx2fx", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}
