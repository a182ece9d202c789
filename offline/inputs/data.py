"""The clean images: a folder per class, or an `.npz` with `x` uint8 NHWC and `y` int.

Everything here comes from strangers. Whatever is wrong with it becomes one BadInput that names the file.
No array is made before its size is known to be within `MAX_DATASET_BYTES`, and no pickle is ever read.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detrigger.models.preprocess import Preprocess
from detrigger.offline.inputs import folders
from detrigger.offline.inputs.images import bad_data, decode, first_size
from detrigger.offline.inputs.npz import read_arrays
from detrigger.offline.progress import Progress, SilentProgress

MAX_DATASET_BYTES = 4 * 1024**3
MOST_JOB_BYTES = 192 * 1024**2
"""Bytes of the images that a job takes of a folder. It holds them as floats as well, which takes four times as much."""
MIN_PER_CLASS = 2
UNLABELLED = (
    "the images came without classes, and the suspect's own answers stand for them; what that cannot see: whether the"
    " suspect is right, whether it gets its images as it was trained on them, and triggers on these images themselves"
)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Labelled images as they go into `/predict`: 8 bits, before mean and std.

    x: uint8 (N, H, W, C), 0..255. y: int64 (N,), 0..len(classes)-1, every class at least MIN_PER_CLASS
    times. digest: sha256 over classes, shape, x and y. labelled: false where y are a classifier's own answers;
    classes that it never gives may then have no images.
    """

    x: NDArray[np.uint8]
    y: NDArray[np.int64]
    classes: tuple[str, ...]
    digest: str
    labelled: bool = True

    def __len__(self) -> int:
        return len(self.y)


def load_dataset(
    path: Path, pre: Preprocess | None, progress: Progress | None = None, *, strict: bool = False
) -> Dataset:
    """Load a folder of class folders or an `.npz`.

    Images of a folder are brought to `pre.size` and `pre.channels`; without `pre` all must already have the
    first image's size, and are read as RGB. An `.npz` must fit `pre` as it is. Classes are `pre.classes`,
    else the sorted folder names, else "0", "1", ... What was not read, and few damaged files that were left out, are
    notes for `progress`; with `strict` a damaged file is refused.

    BadInput for anything that cannot be used, with the file's name and the mend.
    """
    progress = progress if progress is not None else SilentProgress()
    x, y, classes = _load(path, pre, progress, complete=True, strict=strict)
    counts = np.bincount(y, minlength=len(classes))
    short = np.flatnonzero(counts < MIN_PER_CLASS)
    if len(short):
        label = int(short[0])
        raise bad_data(
            f"class {classes[label]!r} of {path} has {counts[label]} images ({len(short)} of {len(classes)}"
            f" classes are short): at least {MIN_PER_CLASS} are needed for each"
        )
    return Dataset(x, y, classes, _digest(x, y, classes))


def load_unlabelled(
    path: Path, pre: Preprocess | None, progress: Progress, *, strict: bool = False
) -> NDArray[np.uint8]:
    """The images x of a folder, whatever folders inside it they lie in, or of an `.npz`, whose y is not looked at."""
    with folders.listing(path):
        is_folder = path.is_dir()
    if is_folder:
        return _decoded(folders.list_unlabelled(path), path, pre, progress, strict=strict)[0]
    return _load(path, pre, progress, complete=False, strict=strict)[0]


def with_answers(x: NDArray[np.uint8], answers: NDArray[np.int64], classes: tuple[str, ...]) -> Dataset:
    """Images with a classifier's own answers for labels; those of classes with fewer than MIN_PER_CLASS images go.

    BadInput where fewer than two classes are left.
    """
    counts = np.bincount(answers, minlength=len(classes))
    kept = counts[answers] >= MIN_PER_CLASS
    if (counts >= MIN_PER_CLASS).sum() < 2:
        raise bad_data(
            "the model gives all these images the same answer: give images of all its classes, and check the"
            " preprocessing"
        )
    x, answers = x[kept], answers[kept]
    return Dataset(x, answers, classes, _digest(x, answers, classes), labelled=False)


def load_test_images(
    path: Path, pre: Preprocess, progress: Progress
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images x and labels y like `load_dataset`'s, of which some of the classes `pre.classes` may have none."""
    x, y, _ = _load(path, pre, progress, complete=False, strict=False)
    return x, y


def _load(
    path: Path, pre: Preprocess | None, progress: Progress, *, complete: bool, strict: bool
) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    with folders.listing(path):
        is_folder, is_file = path.is_dir(), path.is_file()
    if is_folder:
        return _load_folder(path, pre, progress, complete=complete, strict=strict)
    if is_file:
        with progress.stage("data", 1) as advance:
            loaded = _load_npz(path, pre, complete=complete)
            advance()
        return loaded
    raise bad_data(f"there is no {path}: give a folder with one folder of images per class, or an .npz file")


def check_against_logits(dataset: Dataset, n_logits: int) -> None:
    """BadInput when the data's classes cannot be the classifier's."""
    if len(dataset.classes) != n_logits:
        raise bad_data(
            f"the data has {len(dataset.classes)} classes and the model answers with {n_logits} logits: give"
            " the data that the model was made for, one class per logit, in the model's order"
        )


def _load_folder(
    root: Path, pre: Preprocess | None, progress: Progress, *, complete: bool, strict: bool
) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    classes, found = folders.list_classes(root, pre.classes if pre else (), complete=complete)
    if complete:
        found = _drawn(found, pre, len(classes), progress)
    x, y = _decoded(found, root, pre, progress, strict=strict)
    return x, y, classes


def _drawn(found: folders.Found, pre: Preprocess | None, n_classes: int, progress: Progress) -> folders.Found:
    """As many images of each class as ``MOST_JOB_BYTES`` allows, always the same ones, before any is decoded."""
    height, width = pre.size if pre else first_size(found.files)
    each = height * width * (pre.channels if pre else 3)
    of_class = max(MIN_PER_CLASS, MOST_JOB_BYTES // each // n_classes)
    if len(found.files) * each <= MOST_JOB_BYTES:
        return found
    labels = np.array(found.labels)
    order = np.random.default_rng(0).permutation(len(labels))
    kept = np.sort(np.concatenate([order[labels[order] == label][:of_class] for label in range(n_classes)]))
    progress.note(
        f"{len(kept)} of {len(labels)} clean images are used, at most {of_class} of a class; more would need too much"
        " memory"
    )
    return replace(found, files=[found.files[i] for i in kept], labels=labels[kept].tolist())


def _decoded(
    found: folders.Found, root: Path, pre: Preprocess | None, progress: Progress, *, strict: bool
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    same_size = pre is None
    if pre is None:
        pre = Preprocess.plain(*first_size(found.files), 3)
    height, width = pre.size
    _check_bytes(len(found.files) * height * width * pre.channels, root)
    if said := found.note():
        progress.note(said)
    x, kept = decode(found.files, pre, progress, same_size=same_size, strict=strict)
    return x, np.array(found.labels, np.int64)[kept]


# --- .npz -------------------------------------------------------------------------------------------------


def _load_npz(
    path: Path, pre: Preprocess | None, *, complete: bool
) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    x, y = read_arrays(path, MAX_DATASET_BYTES)
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] not in (1, 3) or 0 in x.shape:
        raise bad_data(
            f"x of {path} is {x.dtype} of shape {x.shape}: it must be uint8 of shape (N, H, W, C), C = 1 or 3"
        )
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise bad_data(
            f"y of {path} is {y.dtype} of shape {y.shape}: it must be integers of shape ({len(x)},), one"
            " label for each image"
        )
    if pre is not None and x.shape[1:] != (*pre.size, pre.channels):
        wanted = _by((*pre.size, pre.channels))
        raise bad_data(
            f"the images of {path} are {_by(x.shape[1:])} and the classifier takes {wanted} (height x width x"
            " channels): resize them, or give them as image files, which are resized"
        )
    lowest, highest = int(y.min()), int(y.max())
    limit = len(pre.classes) if pre and pre.classes else len(x)
    if lowest < 0 or highest >= limit:
        raise bad_data(
            f"y of {path} holds labels {lowest}..{highest}: they must lie in 0..{limit - 1}, in the order of"
            " the classifier's outputs"
        )
    if lowest == highest and complete:
        raise bad_data(
            f"{path} has images of one class only ({lowest}): give images of all classes of the model"
        )
    classes = pre.classes if pre and pre.classes else tuple(str(label) for label in range(highest + 1))
    return x.astype(np.uint8, copy=False), y.astype(np.int64), classes


# --- common -----------------------------------------------------------------------------------------------


def _digest(x: NDArray[np.uint8], y: NDArray[np.int64], classes: Sequence[str]) -> str:
    digest = hashlib.sha256(json.dumps([list(classes), x.shape]).encode())
    digest.update(np.ascontiguousarray(x).data)
    digest.update(y.astype("<i8").data)
    return digest.hexdigest()


def _check_bytes(n_bytes: int, path: Path) -> None:
    if n_bytes > MAX_DATASET_BYTES:
        raise bad_data(
            f"{path} needs {n_bytes / 1024**3:.1f} GiB of memory, {MAX_DATASET_BYTES / 1024**3:.0f} GiB are"
            " allowed: give fewer images, some thousands are enough"
        )


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
