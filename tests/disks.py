"""Small file systems that are really full: a tmpfs of a few pages. Needs root, as CI's containers have it."""

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE = 4096


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """Mount a tmpfs on `folder`; the test is skipped where that is not allowed."""
    folder.mkdir(exist_ok=True)
    options = f"size={kilobytes}k"
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounts a small tmpfs: needs Linux and root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)],  # noqa: S607
        check=False,
        capture_output=True,
    )
    if mounted.returncode != 0:
        pytest.skip("may not mount a tmpfs here")
    try:
        yield folder
    finally:
        # Lazily: a server that is about to end may still have its log open there.
        subprocess.run(["umount", "-l", str(folder)], check=True)  # noqa: S607


def fill(folder: Path, leave: int = 0) -> Path:
    """Use up the disk that holds `folder` but for `leave` pages; the file to remove for room."""
    path = folder / "filler"
    with path.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(PAGE))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        file.truncate(max(0, file.tell() - leave * PAGE))
    return path
