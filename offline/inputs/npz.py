"""Reads arrays of an `.npz` that may come from anybody.

No pickle is ever loaded, and no memory is asked for before the size is known to be within bounds.
"""

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detrigger.models.errors import BadInput


def read_arrays(path: Path, max_bytes: int) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """The arrays `x` and `y` as they stand in the file, each of at most `max_bytes`; BadInput otherwise.

    Other members are not looked at.
    """
    with _opened(path) as archive:
        return _member(archive, "x", path, max_bytes), _member(archive, "y", path, max_bytes)


def read_targets(path: Path, max_bytes: int) -> NDArray[np.generic] | None:
    """The array `t`, which test sets with triggers may have; None where there is none."""
    with _opened(path) as archive:
        return _member(archive, "t", path, max_bytes) if "t.npy" in archive.namelist() else None


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except BadInput:
        raise
    except Exception as error:  # zipfile, zlib, struct, ast and numpy: each has errors of its own
        raise _bad(
            f"{path} is not a readable .npz ({str(error)[:200] or type(error).__name__}): write it with"
            " numpy.savez(path, x=images, y=labels)"
        ) from error


def _member(archive: zipfile.ZipFile, name: str, path: Path, max_bytes: int) -> NDArray[np.generic]:
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise _bad(f"{path} has no array {name!r}: it needs x (images) and y (labels)") from None
    with archive.open(info) as file:
        old = np.lib.format.read_magic(file) == (1, 0)
        read_header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        header_bytes = file.tell()
    if dtype.hasobject:
        raise _bad(
            f"{name} of {path} holds Python objects (pickle), which are never read: save plain numbers"
        )
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes > max_bytes:
        raise _bad(
            f"{name} of {path} needs {n_bytes / 1024**3:.1f} GiB of memory, {max_bytes / 1024**3:.0f} GiB are"
            " allowed: give fewer images, some thousands are enough"
        )
    if header_bytes + n_bytes != info.file_size:
        raise _bad(f"{name} of {path} is not as long as its header says: write the file again")
    # Read to the member's end, so that the archive's checksum is compared as well.
    with archive.open(info) as file:
        array: NDArray[np.generic] = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _bad(message: str) -> BadInput:
    return BadInput(message, code="bad_data")
