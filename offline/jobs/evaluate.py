"""``detrigger evaluate``: what a published version is worth on test images whose truth is known (no torch here).

    BA    share of clean images classified right
    ASR   share of triggered images, true label not the target, classified as the target
    PA    share of triggered images classified as their true label
    TPR   share of triggered images flagged;  FPR   share of clean images flagged
    AUROC chance that a triggered image scores higher than a clean one, a half where they score the same

All on 8-bit images, with the version's own threshold and its digest-checked protected.onnx; "bare" is the suspect's
answer to the image as it is, which that graph gives as well (``logits_raw``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from detrigger.models.errors import BadInput, StoreError
from detrigger.models.manifest import Manifest
from detrigger.models.store import VersionStore
from detrigger.offline.inputs.data import MAX_DATASET_BYTES, load_test_images
from detrigger.offline.inputs.npz import read_targets
from detrigger.offline.progress import Advance, Progress

BATCH, PIXELS = 128, 2**20
"""Most images, and most pixels, that are answered in one run."""
_OUTPUTS = ["logits_raw", "logits", "flag_score"]

Target = int | Literal["all-to-all"] | None
"""The target label; "all-to-all": each image's label + 1; None: as the images or the manifest say."""


@dataclass(frozen=True)
class Shares:
    """What one classifier scores, in shares; ASR and PA are None without triggered images."""

    BA: float
    ASR: float | None = None
    PA: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """The figures of one version; those that need triggered images are None without them.

    ``target`` is the label that ASR counts, "all-to-all", or "per image" where the images name several. ``n_asr`` of
    the ``n_triggered`` images have a true label that is not their target; ASR is over these. ``floor`` is the share of
    clean images of other labels that the bare classifier takes for a single target. A purifier that undoes the trigger
    perfectly leaves this much of ASR.
    """

    version: str
    threshold: float
    target: int | str | None
    n_clean: int
    n_triggered: int
    n_asr: int
    bare: Shares
    protected: Shares
    FPR: float
    TPR: float | None = None
    AUROC: float | None = None
    floor: float | None = None


@dataclass(frozen=True)
class Answers:
    """Labels (N,) of the images as they are and purified, and flag scores (N,)."""

    bare: NDArray[np.int64]
    protected: NDArray[np.int64]
    score: NDArray[np.float32]


def evaluate(
    store: VersionStore,
    clean: Path,
    triggered: Path | None,
    progress: Progress,
    *,
    version: str | None = None,
    target: Target = None,
) -> Evaluation:
    """Measure a version, the promoted one unless named.

    Args:
        clean, triggered: a folder of class folders by true label, or an .npz with x (uint8 NHWC), y (true labels)
            and, for triggered images, t (target labels) if it has it. Classes may be missing.

    Raises:
        BadInput: for images that do not fit, and where nothing says what the target is.
        StoreError: for a version that is not there or damaged.
    """
    version = version or store.current()
    if version is None:
        raise StoreError(f"the store {store.root} promotes no version: name one with --version")
    manifest = store.manifest(version)
    protected = store.read_file(version, "protected.onnx")
    x, y = load_test_images(clean, manifest.preprocess, progress)
    x_bad, y_bad, t = x[:0], y[:0], y[:0]
    if triggered is not None:
        x_bad, y_bad = load_test_images(triggered, manifest.preprocess, progress)
        t = targets(triggered, y_bad, manifest, target)
    with progress.stage("evaluate", len(x) + len(x_bad)) as advance:
        session = load(protected, version)
        good, bad = answers(session, x, advance), answers(session, x_bad, advance)
    other = y_bad != t

    def shares(clean_labels: NDArray[np.int64], bad_labels: NDArray[np.int64]) -> Shares:
        asr = share((bad_labels == t)[other])
        return Shares(BA=float((clean_labels == y).mean()), ASR=asr, PA=share(bad_labels == y_bad))

    threshold = manifest.flag.threshold
    return Evaluation(
        version=version,
        threshold=threshold,
        target=_shown(t, target),
        n_clean=len(x),
        n_triggered=len(x_bad),
        n_asr=int(other.sum()),
        bare=shares(good.bare, bad.bare),
        protected=shares(good.protected, bad.protected),
        FPR=float((good.score > threshold).mean()),
        TPR=share(bad.score > threshold),
        AUROC=auroc(good.score, bad.score) if len(x_bad) else None,
        floor=share((good.bare == t[0])[y != t[0]]) if len(t) and (t == t[0]).all() else None,
    )


def targets(path: Path, y: NDArray[np.int64], manifest: Manifest, target: Target) -> NDArray[np.int64]:
    """The target label of every triggered image (N,): as asked, else the file's ``t``, else the manifest's only one."""
    n_classes = len(manifest.classes)
    if target == "all-to-all":
        return (y + 1) % n_classes
    if target is None and path.is_file() and (t := read_targets(path, MAX_DATASET_BYTES)) is not None:
        if t.dtype.kind not in "iu" or t.shape != y.shape:
            raise BadInput(
                f"t of {path} is {t.dtype} of shape {t.shape}: it must be integers of shape ({len(y)},), the target"
                " label of each image",
                code="bad_data",
            )
        wanted: NDArray[np.int64] = t.astype(np.int64)
    elif target is None and len(manifest.target_labels) != 1:
        found = ", ".join(map(str, manifest.target_labels)) or "none"
        raise BadInput(
            f"the target label is not known (version {manifest.id} suspects: {found}): give --target N or --all-to-all"
        )
    else:
        wanted = np.full_like(y, manifest.target_labels[0] if target is None else target)
    if not (wanted.min() >= 0 and wanted.max() < n_classes):
        raise BadInput(f"target labels must lie in 0..{n_classes - 1}, not {wanted.min()}..{wanted.max()}")
    return wanted


def load(protected: bytes, version: str) -> ort.InferenceSession:
    """The graph on the CPU, as every version was calibrated there."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(protected, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise StoreError(
            f"protected.onnx of version {version} cannot be loaded: {error}", code="damaged_version"
        ) from error


def answers(session: ort.InferenceSession, x: NDArray[np.uint8], advance: Advance) -> Answers:
    """What the graph says of 8-bit images (N, H, W, C)."""
    parts: list[list[NDArray[np.float32]]] = [[], [], []]
    batch = max(1, min(BATCH, PIXELS // math.prod(x.shape[1:3])))
    for start in range(0, len(x), batch):
        image = x[start : start + batch].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        for part, out in zip(parts, session.run(_OUTPUTS, {"image": image}), strict=True):
            part.append(out)
        advance(len(image))
    if not len(x):
        return Answers(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    logits_raw, logits, score = (np.concatenate(part) for part in parts)
    return Answers(logits_raw.argmax(1), logits.argmax(1), score)


def share(hits: NDArray[np.bool_]) -> float | None:
    """Mean of booleans, None of none."""
    return float(hits.mean()) if len(hits) else None


def auroc(clean: NDArray[np.float32], triggered: NDArray[np.float32]) -> float:
    """Area under the ROC curve, from the ranks (Mann-Whitney U)."""
    ordered = np.sort(clean)
    below = np.searchsorted(ordered, triggered, "left")
    not_above = np.searchsorted(ordered, triggered, "right")
    return float((below + not_above).mean() / (2 * len(clean)))


def _shown(t: NDArray[np.int64], target: Target) -> int | str | None:
    if target == "all-to-all" or not len(t):
        return target if len(t) else None
    return int(t[0]) if (t == t[0]).all() else "per image"
