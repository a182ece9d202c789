"""Image files into pixels: what Pillow can read, and what becomes of damaged ones.

Everything here comes from strangers. Whatever is wrong with a file becomes one BadInput that names it.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from detrigger.models.errors import BadInput
from detrigger.models.preprocess import IMAGE_FORMATS, MAX_IMAGE_PIXELS, MAX_SIDE, Preprocess, decode_to_array
from detrigger.offline.progress import Progress

FEW_DAMAGED = 0.05
"""Largest share of damaged files that are left out with a note; three are always few."""
_PLAIN = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".ppm", ".pgm", ".pnm", ".tif", ".tiff")
_AVIF, _HEIF = (".avif",), (".heic", ".heif")
_MAX_FILE_BYTES = 100_000_000
_CHUNK = 64
_NAMED = 3

_T = TypeVar("_T")


class Damaged(BadInput):
    """An image file that cannot be decoded, as against one that may not be."""


def suffixes() -> frozenset[str]:
    """The endings of image files that are read: AVIF and HEIC where Pillow can."""
    found = (*_PLAIN, *(_AVIF if "AVIF" in _formats() else ()), *(_HEIF if "HEIF" in _formats() else ()))
    return frozenset(found)


def first_size(files: Sequence[Path]) -> tuple[int, int]:
    """Height and width of the first image that is not damaged, where no preprocessing says them."""
    for file in files:
        with suppress(Damaged):
            width, height = _open(file, lambda image: image.size)
            if max(width, height) > MAX_SIDE:
                raise _bad_image(
                    file, f"it is {width}x{height}; without --preprocess {MAX_SIDE} pixels a side are allowed"
                )
            return height, width
    return _open(files[0], lambda image: image.size)  # raises what is wrong with it


def read_one(path: Path, pre: Preprocess) -> NDArray[np.uint8]:
    """One image file at the classifier's size, uint8 (H, W, C); BadInput names it where it cannot be used."""
    return _open(path, lambda image: decode_to_array(image, pre))


def decode(
    files: Sequence[Path], pre: Preprocess, progress: Progress, *, same_size: bool, strict: bool
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The images that are not damaged, uint8 (N, H, W, C), and which of the files (len(files),) they are.

    Args:
        files: what to read.
        pre: how to bring them to one size.
        progress: is told of each image, and which ones were left out.
        same_size: refuse images that have another size already.
        strict: refuse the first damaged file; otherwise refused are more than FEW_DAMAGED.
    """
    height, width = pre.size
    x = np.empty((len(files), height, width, pre.channels), np.uint8)
    damaged: dict[int, Damaged] = {}
    with progress.stage("data", len(files)) as advance:
        for index, image in _decode_all(files, pre, same_size=same_size):
            if not isinstance(image, Damaged):
                x[index] = image
            elif strict:
                raise image
            else:
                damaged[index] = image
            advance()
    kept = np.array([index not in damaged for index in range(len(files))])
    if not damaged:
        return x, kept
    first = next(iter(damaged.values()))
    if len(damaged) > max(_NAMED, FEW_DAMAGED * len(files)):
        raise bad_data(f"{len(damaged)} of {len(files)} images are damaged; the first: {first}")
    shown = "; ".join(str(error).partition(";")[0] for error in list(damaged.values())[:_NAMED])
    more = f" and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
    progress.note(
        f"{counted(len(damaged), 'damaged image')} left out ({shown}{more}); --strict refuses them instead"
    )
    return x[kept], kept


def counted(number: int, what: str) -> str:
    """For notes: "1 file was", "2 files were"."""
    return f"{number} {what}{' was' if number == 1 else 's were'}"


def bad_data(message: str) -> BadInput:
    """A refusal of the data as a whole."""
    return BadInput(message, code="bad_data")


def _decode_all(
    files: Sequence[Path], pre: Preprocess, *, same_size: bool
) -> Iterator[tuple[int, NDArray[np.uint8] | Damaged]]:
    """All images in order; Pillow lets go of the interpreter while it decodes, so threads help."""

    def decode_one(image: Image.Image) -> NDArray[np.uint8]:
        if same_size and (image.height, image.width) != pre.size:
            raise bad_data(
                f"it is {image.width}x{image.height} and the first image {pre.size[1]}x{pre.size[0]};"
                " give --preprocess with the size to bring them to"
            )
        return decode_to_array(image, pre)

    def work(start: int) -> list[NDArray[np.uint8] | Damaged]:
        return [_or_damaged(file, decode_one) for file in files[start : start + _CHUNK]]

    starts = range(0, len(files), _CHUNK)
    workers = min(8, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(workers)
    try:
        # A few chunks ahead only: what is decoded waits in memory.
        ahead: list[Future[list[NDArray[np.uint8] | Damaged]]] = [
            pool.submit(work, s) for s in starts[: 2 * workers]
        ]
        for position, start in enumerate(starts):
            images = ahead[position].result()
            ahead[position] = Future()
            if position + 2 * workers < len(starts):
                ahead.append(pool.submit(work, starts[position + 2 * workers]))
            yield from enumerate(images, start)
    finally:
        pool.shutdown(cancel_futures=True)


def _or_damaged(path: Path, use: Callable[[Image.Image], _T]) -> _T | Damaged:
    try:
        return _open(path, use)
    except Damaged as error:
        return error


def _open(path: Path, use: Callable[[Image.Image], _T]) -> _T:
    """Open an image file and `use` it; BadInput naming the file for whatever is wrong with it."""
    try:
        size = path.stat().st_size
        if size == 0:
            raise _damaged_image(path, "it is empty (0 bytes)")
        if size > _MAX_FILE_BYTES:
            raise _bad_image(path, f"it has {size} bytes, {_MAX_FILE_BYTES} are allowed")
        with Image.open(path, formats=_formats()) as image:
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
        raise _damaged_image(path, f"not a readable {', '.join(_formats())} image ({reason})") from error


def _formats() -> tuple[str, ...]:
    return (*IMAGE_FORMATS, *(("AVIF",) if features.check("avif") else ()), *(("HEIF",) if _HAS_HEIF else ()))


def _register_heif() -> bool:
    """Whether the plugin for HEIC is installed; we do not depend on it."""
    try:
        import pillow_heif  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


_HAS_HEIF = _register_heif()


def _bad_image(path: Path, reason: str) -> BadInput:
    return BadInput(f"the image {path} cannot be used: {reason}; replace or remove it", code="bad_image")


def _damaged_image(path: Path, reason: str) -> Damaged:
    return Damaged(f"the image {path} cannot be used: {reason}; replace or remove it", code="bad_image")
