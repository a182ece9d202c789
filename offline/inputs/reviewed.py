"""Reviewed images: what people said of images that the service kept, as its quarantine exports them.

    DIR/poisoned/<raw label>/<digest>.png     carries a trigger, and the bare classifier gave it this label
    DIR/clean/<label>/<digest>.png            carries none

Either folder may be missing. The service keeps what the classifier got, so an image is taken as it is, without the
preprocessing of clean images. One of another size is resized.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detrigger.models.preprocess import Preprocess
from detrigger.offline.inputs import folders
from detrigger.offline.inputs.images import bad_data, decode
from detrigger.offline.progress import Progress

MOST = 2000
"""Images of each verdict that are taken, spread evenly over the folder's: enough, and bounded."""


@dataclass(frozen=True)
class Reviewed:
    """Images x uint8 (N, H, W, C) that people called ``poisoned``, with labels y int64 (N,), and those called clean.

    ``source`` is the folder's name.
    """

    source: str
    poisoned: tuple[NDArray[np.uint8], NDArray[np.int64]] | None = None
    clean: NDArray[np.uint8] | None = None


def load_reviewed(root: Path, pre: Preprocess, progress: Progress) -> Reviewed:
    """Read DIR for a classifier whose classes ``pre`` names.

    BadInput where there is no such folder, where it holds neither of the two, or where the model lacks a class of it.
    """
    with folders.listing(root):
        present = [name for name in ("poisoned", "clean") if (root / name).is_dir()]
    if not present:
        raise bad_data(
            f"{root} has neither a folder 'poisoned' nor 'clean': give the folder of an unpacked export of the"
            " quarantine (GET /admin/flagged/export)"
        )
    found = {name: _read(root / name, pre, progress) for name in present}
    clean = found.get("clean")
    return Reviewed(root.resolve().name, found.get("poisoned"), None if clean is None else clean[0])


def _read(
    folder: Path, pre: Preprocess, progress: Progress
) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
    with folders.listing(folder):
        if not any(path.is_dir() for path in folder.iterdir()):
            return None
    found = folders.list_classes(folder, pre.classes, complete=False)[1]
    if len(found.files) > MOST:
        chosen = np.linspace(0, len(found.files) - 1, MOST).astype(int)
        found.files = [found.files[i] for i in chosen]
        found.labels = [found.labels[i] for i in chosen]
        progress.note(f"{folder} holds more than {MOST} images; {MOST} of them are taken")
    if said := found.note():
        progress.note(said)
    as_kept = Preprocess.plain(*pre.size, pre.channels)
    x, kept = decode(found.files, as_kept, progress, same_size=False, strict=False)
    return x, np.array(found.labels, np.int64)[kept]
