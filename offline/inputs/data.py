"""The clean images: a folder per class, or an `.npz` with `x` uint8 NHWC and `y` int.

Everything here comes from strangers. Whatever is wrong with it becomes one BadInput that names the file.
No array is made before its size is known to be within `MAX_DATASET_BYTES`, and no pickle is ever read.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detrigger.models.errors import BadInput
from detrigger.models.preprocess import IMAGE_FORMATS, MAX_IMAGE_PIXELS, MAX_SIDE, Preprocess, decode_to_array
from detrigger.offline.inputs.npz import read_arrays
from detrigger.offline.progress import Progress, SilentProgress

MAX_DATASET_BYTES = 4 * 1024**3
MIN_PER_CLASS = 2
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm"})
_MAX_FILE_BYTES = 100_000_000
_CHUNK = 64

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Dataset:
    """Labelled images as they go into `/predict`: 8 bits, before mean and std.

    x: uint8 (N, H, W, C), 0..255. y: int64 (N,), 0..len(classes)-1, every class at least MIN_PER_CLASS
    times. digest: sha256 over classes, shape, x and y.
    """

    x: NDArray[np.uint8]
    y: NDArray[np.int64]
    classes: tuple[str, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.y)


def load_dataset(path: Path, pre: Preprocess | None, progress: Progress | None = None) -> Dataset:
    """Load a folder of class folders or an `.npz`.

    Images of a folder are brought to `pre.size` and `pre.channels`; without `pre` all must already have the
    first image's size, and are read as RGB. An `.npz` must fit `pre` as it is. Classes are `pre.classes`,
    else the sorted folder names, else "0", "1", ...

    BadInput for anything that cannot be used, with the file's name and the mend.
    """
    x, y, classes = _load(path, pre, progress if progress is not None else SilentProgress(), complete=True)
    counts = np.bincount(y, minlength=len(classes))
    short = np.flatnonzero(counts < MIN_PER_CLASS)
    if len(short):
        label = int(short[0])
        raise _bad(
            f"class {classes[label]!r} of {path} has {counts[label]} images ({len(short)} of {len(classes)}"
            f" classes are short): at least {MIN_PER_CLASS} are needed for each"
        )
    return Dataset(x, y, classes, _digest(x, y, classes))


def load_test_images(
    path: Path, pre: Preprocess, progress: Progress
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images x and labels y like `load_dataset`'s, of which some of the classes `pre.classes` may have none."""
    x, y, _ = _load(path, pre, progress, complete=False)
    return x, y


def _load(
    path: Path, pre: Preprocess | None, progress: Progress, *, complete: bool
) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    with _listing(path):
        is_folder, is_file = path.is_dir(), path.is_file()
    if is_folder:
        return _load_folder(path, pre, progress, complete=complete)
    if is_file:
        with progress.stage("data", 1) as advance:
            loaded = _load_npz(path, pre, complete=complete)
            advance()
        return loaded
    raise _bad(f"there is no {path}: give a folder with one folder of images per class, or an .npz file")


def check_against_logits(dataset: Dataset, n_logits: int) -> None:
    """BadInput when the data's classes cannot be the classifier's."""
    if len(dataset.classes) != n_logits:
        raise _bad(
            f"the data has {len(dataset.classes)} classes and the model answers with {n_logits} logits: give"
            " the data that the model was made for, one class per logit, in the model's order"
        )


# --- a folder per class -----------------------------------------------------------------------------------


def _load_folder(
    root: Path, pre: Preprocess | None, progress: Progress, *, complete: bool
) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    classes = _class_folders(root, pre.classes if pre else (), complete=complete)
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = _images_in(root / name) if complete or (root / name).is_dir() else []
        if not found and complete:
            raise _bad(
                f"the class folder {root / name} holds no images ({', '.join(sorted(SUFFIXES))}): put the"
                " images of the class directly into it, or remove it"
            )
        files += found
        labels += [label] * len(found)
    if not files:
        raise _bad(f"the class folders of {root} hold no images ({', '.join(sorted(SUFFIXES))})")
    if pre is None:
        width, height = _open(files[0], lambda image: image.size)
        if max(width, height) > MAX_SIDE:
            raise _bad_image(
                files[0],
                f"it is {width}x{height}; without --preprocess {MAX_SIDE} pixels a side are allowed",
            )
        pre = Preprocess.plain(height, width, 3)
        same_size = True
    else:
        same_size = False
    height, width = pre.size
    _check_bytes(len(files) * height * width * pre.channels, root)
    x = np.empty((len(files), height, width, pre.channels), np.uint8)
    with progress.stage("data", len(files)) as advance:
        for index, image in _decode_all(files, pre, same_size=same_size):
            x[index] = image
            advance()
    return x, np.array(labels, np.int64), classes


def _images_in(folder: Path) -> list[Path]:
    with _listing(folder), os.scandir(folder) as items:
        names = [item.name for item in items if item.name[0] != "." and not Path(item).is_dir()]
    return [folder / name for name in sorted(names) if Path(name).suffix.lower() in SUFFIXES]


@contextmanager
def _listing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _bad(f"cannot read {folder}: {error.strerror}; check its permissions") from error


def _class_folders(root: Path, wanted: Sequence[str], *, complete: bool) -> tuple[str, ...]:
    with _listing(root):
        found = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    if not found:
        raise _bad(f"{root} has no class folders: it should hold one folder of images per class")
    if len(found) == 1 and complete:
        raise _bad(
            f"{root} has images of one class only ({found[0]!r}): give images of all classes of the model"
        )
    for name in found:
        # The name becomes a class label in manifests, answers and reports.
        if not name.isprintable() or len(name) > 200:
            raise _bad(
                f"the class folder {name[:80]!r} of {root} needs a printable name of 1 to 200 characters"
            )
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if wanted and (extra or (missing and complete)):
        raise _bad(
            f"the folders of {root} are not the classes of the model:"
            f" {_some('missing', missing)}{_some('unknown', extra)} rename the folders or correct 'classes'"
        )
    return tuple(wanted or found)


def _decode_all(
    files: Sequence[Path], pre: Preprocess, *, same_size: bool
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """All images in order; Pillow lets go of the interpreter while it decodes, so threads help."""

    def decode(image: Image.Image) -> NDArray[np.uint8]:
        if same_size and (image.height, image.width) != pre.size:
            raise _bad(
                f"it is {image.width}x{image.height} and the first image {pre.size[1]}x{pre.size[0]};"
                " give --preprocess with the size to bring them to"
            )
        return decode_to_array(image, pre)

    def work(start: int) -> list[NDArray[np.uint8]]:
        return [_open(file, decode) for file in files[start : start + _CHUNK]]

    starts = range(0, len(files), _CHUNK)
    workers = min(8, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(workers)
    try:
        # A few chunks ahead only: what is decoded waits in memory.
        ahead: list[Future[list[NDArray[np.uint8]]]] = [pool.submit(work, s) for s in starts[: 2 * workers]]
        for position, start in enumerate(starts):
            images = ahead[position].result()
            ahead[position] = Future()
            if position + 2 * workers < len(starts):
                ahead.append(pool.submit(work, starts[position + 2 * workers]))
            yield from enumerate(images, start)
    finally:
        pool.shutdown(cancel_futures=True)


def _open(path: Path, use: Callable[[Image.Image], _T]) -> _T:
    """Open an image file and `use` it; BadInput naming the file for whatever is wrong with it."""
    try:
        size = path.stat().st_size
        if size == 0:
            raise _bad_image(path, "it is empty (0 bytes)")
        if size > _MAX_FILE_BYTES:
            raise _bad_image(path, f"it has {size} bytes, {_MAX_FILE_BYTES} are allowed")
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise _bad_image(
                    path, f"it has {image.width}x{image.height} pixels, {MAX_IMAGE_PIXELS} are allowed"
                )
            return use(image)
    except BadInput as error:
        raise error if str(path) in str(error) else _bad_image(path, str(error)) from error
    except Image.DecompressionBombError as error:
        raise _bad_image(path, f"it has more than {MAX_IMAGE_PIXELS} pixels") from error
    except Exception as error:  # Pillow raises a dozen unrelated types on damaged files
        reason = (
            (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        )
        raise _bad_image(path, f"not a readable {', '.join(IMAGE_FORMATS)} image ({reason})") from error


# --- .npz -------------------------------------------------------------------------------------------------


def _load_npz(
    path: Path, pre: Preprocess | None, *, complete: bool
) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    x, y = read_arrays(path, MAX_DATASET_BYTES)
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] not in (1, 3) or 0 in x.shape:
        raise _bad(
            f"x of {path} is {x.dtype} of shape {x.shape}: it must be uint8 of shape (N, H, W, C), C = 1 or 3"
        )
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise _bad(
            f"y of {path} is {y.dtype} of shape {y.shape}: it must be integers of shape ({len(x)},), one"
            " label for each image"
        )
    if pre is not None and x.shape[1:] != (*pre.size, pre.channels):
        wanted = _by((*pre.size, pre.channels))
        raise _bad(
            f"the images of {path} are {_by(x.shape[1:])} and the classifier takes {wanted} (height x width x"
            " channels): resize them, or give them as image files, which are resized"
        )
    lowest, highest = int(y.min()), int(y.max())
    limit = len(pre.classes) if pre and pre.classes else len(x)
    if lowest < 0 or highest >= limit:
        raise _bad(
            f"y of {path} holds labels {lowest}..{highest}: they must lie in 0..{limit - 1}, in the order of"
            " the classifier's outputs"
        )
    if lowest == highest and complete:
        raise _bad(f"{path} has images of one class only ({lowest}): give images of all classes of the model")
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
        raise _bad(
            f"{path} needs {n_bytes / 1024**3:.1f} GiB of memory, {MAX_DATASET_BYTES / 1024**3:.0f} GiB are"
            " allowed: give fewer images, some thousands are enough"
        )


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _some(word: str, names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return f" {word}: {shown}{f' and {len(names) - 3} more' if len(names) > 3 else ''};" if names else ""


def _bad(message: str) -> BadInput:
    return BadInput(message, code="bad_data")


def _bad_image(path: Path, reason: str) -> BadInput:
    return BadInput(f"the image {path} cannot be used: {reason}; replace or remove it", code="bad_image")
