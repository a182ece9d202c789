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
from PIL import Image
from torch import Tensor

from models.manifest import Data, Flag, Manifest, Verdict, new_version_id, utc_now
from models.manifest import Suspect as SuspectRecord
from models.preprocess import Preprocess
from models.protected import OPSET, build_protected, default_opset, raise_opset
from models.store import VersionStore
from models.suspect import Suspect, describe, import_suspect, read_onnx
from offline import screen as screening
from offline.calibrate import conformal_threshold
from offline.compute import Compute
from offline.data import Dataset, check_against_logits, load_dataset
from offline.decouple import benign_mask, decoupled_generator, votes
from offline.export import Triggered, check_same, run, to_onnx
from offline.gate import Clean, Pixels, judge
from offline.pool import Pool
from offline.progress import Progress
from offline.purify import Purified, Teacher, train_purifier
from offline.report import contact_sheet, render
from offline.screen import Evidence, Screened
from offline.triggers import UNIVERSAL
from offline.triggers.base import TriggerBank

TRAIN, HELD_OUT = 0.7, 0.1
"""Shares of the clean images for training and for judging inversions; the rest calibrates and gates, unseen."""
MOST_MARKED = 6
"""Pieces of evidence that are inverted again in every round, strongest first."""


@dataclass(frozen=True)
class Profile:
    """A point on the curve of time against quality; steps of the optimisers."""

    screen_steps: int
    per_class: int
    generator_steps: int
    purify_steps: int
    rounds: int
    refresh_steps: int


PROFILES = {
    "fast": Profile(100, 6, 30, 800, 6, 60),
    "standard": Profile(100, 8, 60, 750, 5, 80),
    "thorough": Profile(200, 12, 120, 1600, 8, 120),
}


@dataclass(frozen=True)
class ProtectOptions:
    """What ``detrigger protect`` is asked for; ``device`` is "auto", "cpu" or "cuda"."""

    suspect: Path
    data: Path
    store: Path
    preprocess: Path | None = None
    device: str = "auto"
    profile: str = "standard"
    seed: int = 0
    name: str = "model"
    promote: bool = True
    feature_node: str | None = None


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


@dataclass(frozen=True)
class Given:
    """The checked inputs: the suspect, its graph with an open batch, and the clean images."""

    suspect: Suspect
    graph: onnx.ModelProto
    digest: str
    preprocess: Preprocess
    data: Dataset


@dataclass(frozen=True)
class Split:
    """The clean images, each step's own: float (N, C, H, W) in [0, 1] with labels (N,)."""

    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    unseen: tuple[Pixels, Any]


@dataclass(frozen=True)
class Inverted:
    """What the inversion found, and the generator of Eq. 2 with its votes."""

    screened: list[Screened]
    marked: list[Evidence]
    verdict: Verdict
    targets: tuple[int, ...]
    generator: TriggerBank
    refined: list[TriggerBank]
    votes: list[float]
    mask_mean: float


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
        found = find_triggers(given.suspect, teacher, split, profile, options.seed, compute, progress)
        say_found(found, given.preprocess.classes, progress)
        purified = purify(given.suspect, teacher, split, found, profile, options.seed, compute, progress)
        return publish(options, store, given, split, found, purified, began, progress)


def load(options: ProtectOptions, compute: Compute, progress: Progress) -> Given:
    """Read and check everything that the user gave."""
    pre = Preprocess.load(options.preprocess) if options.preprocess else None
    model, _ = read_onnx(options.suspect)
    spec = describe(model)
    if pre is None and spec.size is not None:
        pre = Preprocess.plain(*spec.size, spec.channels)
    data = load_dataset(options.data, pre, progress)
    if pre is None:
        pre = Preprocess.plain(data.x.shape[1], data.x.shape[2], data.x.shape[3])
    with progress.stage("import", 1) as advance:
        suspect, graph, digest = import_suspect(
            options.suspect,
            mean=pre.mean,
            std=pre.std,
            size=pre.size,
            images=as_float(data.x[:8]),
            feature_node=options.feature_node,
        )
        check_against_logits(data, suspect.n_classes)
        advance()
    progress.note(f"suspect: {suspect.n_classes} classes, features cut at {suspect.cut}, imported exactly")
    pre = pre.model_copy(update={"classes": data.classes, "layout": suspect.spec.layout})
    return Given(suspect.to(compute.device), graph, digest, pre, data)


def split_data(data: Dataset, seed: int, compute: Compute) -> Split:
    """Shares of every class: for training, for judging inversions, and unseen by both."""
    rng = np.random.default_rng(seed)
    parts: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
    for label in range(len(data.classes)):
        own = rng.permutation(np.flatnonzero(data.y == label))
        first, second = round(len(own) * TRAIN), round(len(own) * (TRAIN + HELD_OUT))
        first = max(1, min(first, len(own) - 1))
        for part, piece in zip(parts, (own[:first], own[first:second], own[second:]), strict=True):
            part.append(piece)
    train, held_out, unseen = (np.sort(np.concatenate(part)) for part in parts)
    if len(held_out) == 0:
        held_out = train

    def tensors(chosen: Any) -> tuple[Tensor, Tensor]:
        x, y = torch.from_numpy(as_float(data.x[chosen])), torch.from_numpy(data.y[chosen])
        return x.to(compute.device), y.to(compute.device)

    return Split(tensors(train), tensors(held_out), (as_float(data.x[unseen]), data.y[unseen]))


def find_triggers(
    suspect: Suspect,
    teacher: Teacher,
    split: Split,
    profile: Profile,
    seed: int,
    compute: Compute,
    progress: Progress,
) -> Inverted:
    """Screen every class with every family, and invert once the paper's way, without a target."""
    with progress.stage("screen", profile.screen_steps * len(UNIVERSAL)) as advance:
        screened = screening.screen(
            suspect, suspect.n_classes, split.train, split.held_out, compute,
            steps=profile.screen_steps, per_class=profile.per_class, seed=seed, advance=lambda: advance(1),
        )  # fmt: skip
    verdict, targets = screening.verdict(screened, suspect.n_classes)
    images, labels = split.train
    features = teacher.features(torch.arange(len(images)))
    with progress.stage("decouple", 100) as advance:
        mask = benign_mask(suspect, features, labels, compute, steps=100, advance=lambda: advance(1))
    pieces = marked(screened, targets)
    refined: list[TriggerBank] = []
    with progress.stage("invert", profile.generator_steps + len(pieces) * profile.screen_steps) as advance:
        generator = decoupled_generator(
            suspect, mask, images, features, compute,
            steps=profile.generator_steps, seed=seed, advance=lambda: advance(1),
        )  # fmt: skip
        for i, piece in enumerate(pieces):
            pieces[i], bank = screening.refine(
                suspect, piece, split.train, split.held_out, compute,
                steps=profile.screen_steps, seed=seed + 1, advance=lambda: advance(1),
            )  # fmt: skip
            refined.append(bank)
    return Inverted(
        screened=screened,
        marked=pieces,
        refined=refined,
        verdict=verdict,
        targets=targets,
        generator=generator,
        votes=votes(suspect, generator, *split.held_out, compute).tolist(),
        mask_mean=float(mask.mean()),
    )


def marked(screened: list[Screened], targets: tuple[int, ...]) -> list[Evidence]:
    """What is inverted again and again: the evidence, and weaker signs in other families for the same targets."""
    pieces = [e for e in screening.evidence(screened, below=screening.WEAK) if e.target in targets]
    return pieces[:MOST_MARKED]


def say_found(found: Inverted, classes: tuple[str, ...], progress: Progress) -> None:
    """Tell what the inversion found, in words."""
    names = ", ".join(f"{t} ({classes[t]})" for t in found.targets) or "none"
    progress.note(f"verdict: {found.verdict}; suspected target labels: {names}")
    for piece in found.marked:
        progress.note(
            f"  {piece.family} to {classes[piece.target]}: z {piece.z:.1f}, cost {piece.cost:.3f},"
            f" works on {piece.success:.0%} of held-out images"
        )


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
    """Train the purifier on what stood out; on a suspect that looks clean, on the cheapest classes, more shortly."""
    pool = Pool(compute)
    pool.add_round(
        [s.found.bank.pick(s.cheapest(3)) for s in found.screened] + [found.generator, *found.refined]
    )
    if not found.marked:
        profile = replace(profile, purify_steps=profile.purify_steps // 2, rounds=1)
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
    purified: Purified,
    began: float,
    progress: Progress,
) -> Outcome:
    """Export, calibrate on the exported graph, gate, write the version, promote."""
    suspect, pre = given.suspect.cpu(), given.preprocess
    shape = (pre.channels, *pre.size)
    x, y = split.unseen
    with progress.stage("export", 3) as advance:
        classifier = raise_opset(given.graph, OPSET)
        opset = default_opset(classifier)
        purifier = to_onnx(purified.purifier, shape, "purified", opset)
        advance()
        best = found.marked[0].bank if found.marked else found.generator
        generator = to_onnx(Triggered(best.cpu()), shape, "triggered", opset)
        advance()
        protected = build_protected(
            purifier, classifier,
            layout=suspect.spec.layout, softmax=suspect.spec.softmax, mean=pre.mean, std=pre.std,
            n_classes=suspect.n_classes, classes=pre.classes, threshold=0.0,
        )  # fmt: skip
        outputs = run(protected, x, ["logits", "logits_raw", "flag_score", "purified"])
        difference = check_against_torch(suspect, purified, x, outputs)
        advance()
    with progress.stage("calibrate", 1) as advance:
        clean = Clean(*outputs[:3])
        threshold, alpha = conformal_threshold(clean.flag_score)
        set_threshold(protected, threshold)
        advance()
    with progress.stage("gate", 1) as advance:
        gate, metrics = judge(protected, clean, x, y, found.marked)
        advance()
    metrics |= {
        "flag_rate_calibration": float((clean.flag_score > threshold).mean()),
        "export_difference": difference,
        "mask_mean": found.mask_mean,
        "generator_largest_vote": max(found.votes),
        **{
            f"calibration_score_p{q}": float(np.percentile(clean.flag_score, q)) for q in (10, 25, 50, 75, 90)
        },
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
        flag=Flag(threshold=threshold, alpha=alpha, n_calibration=len(y)),
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
            report = report_of(manifest, found, purified)
            (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
            (folder / "report.html").write_text(render(manifest, report, sheets_of(x, found, pre, protected)))
            store.publish(folder, manifest)
        promoted = options.promote and gate.passed
        if promoted:
            store.promote(manifest.id, by="job", reason=f"gate passed, verdict {found.verdict}")
        advance()
    return Outcome(
        manifest.id, found.verdict, found.targets, gate.passed, promoted, metrics, time.monotonic() - began
    )


def check_against_torch(suspect: Suspect, purified: Purified, x: Pixels, exported: list[Pixels]) -> float:
    """Largest difference between torch in float32 and the exported graph, over purified images and logits."""
    with torch.no_grad():
        parts = [torch.from_numpy(part) for part in np.array_split(x, -(-len(x) // 128))]
        images = torch.cat([purified.purifier(part) for part in parts])
        logits = torch.cat([suspect(part) for part in images.split(128)])
    return max(
        check_same("purifier", images.numpy(), exported[3]),
        check_same("protected graph", logits.numpy(), exported[0]),
    )


def set_threshold(protected: onnx.ModelProto, threshold: float) -> None:
    """Write the calibrated flag threshold into the graph's metadata."""
    for prop in protected.metadata_props:
        if prop.key == "detrigger.flag_threshold":
            prop.value = repr(threshold)


def report_of(manifest: Manifest, found: Inverted, purified: Purified) -> dict[str, Any]:
    """report.json: what each step saw."""
    return {
        "version": manifest.id,
        "verdict": manifest.verdict,
        "target_labels": [{"index": t, "label": manifest.classes[t]} for t in manifest.target_labels],
        "strong_z": screening.STRONG,
        "screen": {
            s.family.family: {
                "z": s.z.tolist(), "cost": s.found.cost.tolist(), "success": s.found.success.tolist()
            }
            for s in found.screened
        },
        "generator_votes": found.votes,
        "remaining": purified.remaining,
        "gate": manifest.gate.model_dump(),
        "metrics": manifest.metrics,
    }  # fmt: skip


def sheets_of(
    x: Pixels, found: Inverted, pre: Preprocess, protected: onnx.ModelProto
) -> dict[str, Image.Image]:
    """The report's pictures: six unseen images with each inverted trigger, before and after purification."""
    clean = x[:: max(1, len(x) // 6)][:6]
    first = torch.zeros(len(clean), dtype=torch.long)
    banks = {f"Inverted trigger: {e.family} to {pre.classes[e.target]}": e.bank for e in found.marked}
    banks = banks or {"No trigger stood out; this is what the generator of Eq. 2 does": found.generator}
    sheets = {}
    for heading, bank in banks.items():
        with torch.no_grad():
            triggered = bank.cpu()(torch.from_numpy(clean), first).clamp(0, 1).numpy()
        sheets[heading] = contact_sheet(clean, triggered, run(protected, triggered, ["purified"])[0])
    return sheets


def tools() -> dict[str, str]:
    """Versions of what made this, for the manifest."""
    names = ("detrigger", "torch", "onnx", "onnx2fx", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def as_float(x: Any) -> Pixels:
    """uint8 (N, H, W, C) to float32 (N, C, H, W) in [0, 1]."""
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
