"""What the quarantine holds, on disk and as an index in memory.

    ROOT/lock                          held by the service that writes here
    ROOT/<day>/<digest>.json           what is known of an image; written last, removed first
    ROOT/<day>/<digest>.png            its pixels as the classifier got them

Whatever else lies there is left alone; half of a pair is removed at the next start. Files are readable by their owner
only. The index belongs to one lock, and is rebuilt from the files at each start.
"""

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from detrigger.models.files import read_regular
from detrigger.models.manifest import Sha256, UtcTime, VersionId
from detrigger.service import pictures

BLOCK = 4096
"""A disk gives space in blocks of this size; caps count them."""

_MAX_RECORD, _MAX_PICTURE = 64 * 1024, 2**26
_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)

Kind = Literal["flagged", "sample"]
Verdict = Literal["poisoned", "clean"]


class Review(BaseModel):
    """What a person said of an image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Verdict
    by: Annotated[str, Field(max_length=200)]
    time: UtcTime
    note: Annotated[str, Field(max_length=500)] = ""


class Kept(BaseModel):
    """One image and the answer that it got when it was first seen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    digest: Sha256 = Field(description="sha256 of the pixels")
    kind: Kind = Field(description="flagged, or from the random sample of images that were not")
    time: UtcTime = Field(description="when it was first seen")
    seen: Annotated[int, Field(ge=1)] = Field(
        default=1, description="how often; on disk it is brought up to date at powers of two"
    )
    label: str = Field(description="class of the purified image")
    label_index: int
    raw_label: str = Field(description="class of the image as sent")
    raw_index: int
    score: FiniteFloat
    flag_score: FiniteFloat
    threshold: FiniteFloat
    version: VersionId
    request_id: str
    review: Review | None = None

    @property
    def day(self) -> str:
        """The day that it was first seen, UTC; the name of its folder."""
        return self.time[:10]

    @property
    def group(self) -> object:
        """Images that share places."""
        return self.raw_index if self.kind == "flagged" else "sample"


class Folder:
    """The files. OSError where the disk fails."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def load(self) -> Iterator[tuple[Kept, int]]:
        """Every whole pair with its bytes on disk, oldest day first; halves are removed."""
        for day in sorted(path for path in self.root.iterdir() if is_day(path.name) and path.is_dir()):
            names = {path.name for path in day.iterdir()}
            for name in sorted(names):
                digest, _, ending = name.rpartition(".")
                if ending != "json" or not _SHA256.fullmatch(digest):
                    continue
                item = self._record(day / name, digest)
                if item is not None and item.day == day.name and f"{digest}.png" in names:
                    names.discard(f"{digest}.png")
                    yield item, self.bytes_of(item)
                else:
                    (day / name).unlink(missing_ok=True)
            for name in names:
                digest, _, ending = name.rpartition(".")
                half = ending == "png" and _SHA256.fullmatch(digest)
                if half or name.startswith(".new-"):
                    (day / name).unlink(missing_ok=True)
            self._drop_if_empty(day)

    def add(self, item: Kept, picture: bytes) -> int:
        """Write a pair, the record last; its bytes on disk."""
        path = self._path(item)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            self._write(path.with_suffix(".png"), picture)
            self.update(item)
        except OSError:
            self.remove(item)
            raise
        return self.bytes_of(item)

    def update(self, item: Kept) -> None:
        """Write a record anew, as a whole or not at all."""
        self._write(self._path(item).with_suffix(".json"), item.model_dump_json().encode() + b"\n")

    def remove(self, item: Kept) -> None:
        """Remove a pair, the record first."""
        path = self._path(item)
        for ending in (".json", ".png"):
            path.with_suffix(ending).unlink(missing_ok=True)
        self._drop_if_empty(path.parent)

    def picture(self, item: Kept) -> pictures.Picture:
        """The pixels, held against their digest."""
        found = pictures.from_png(read_regular(self._path(item).with_suffix(".png"), _MAX_PICTURE))
        if pictures.digest(found) != item.digest:
            raise OSError("the picture is not the one that was kept")
        return found

    def bytes_of(self, item: Kept) -> int:
        """What a pair takes on disk, in whole blocks."""
        path = self._path(item)
        return sum(blocks(path.with_suffix(ending).stat().st_size) for ending in (".json", ".png"))

    def _path(self, item: Kept) -> Path:
        return self.root / item.day / item.digest

    @staticmethod
    def _record(path: Path, digest: str) -> Kept | None:
        try:
            item = Kept.model_validate_json(read_regular(path, _MAX_RECORD))
        except (OSError, ValidationError):
            return None
        return item if item.digest == digest else None

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        temporary = path.with_name(f".new-{path.name}")
        try:
            with temporary.open("wb") as file:
                temporary.chmod(0o600)
                file.write(data)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    @staticmethod
    def _drop_if_empty(day: Path) -> None:
        with contextlib.suppress(OSError):
            day.rmdir()


def blocks(size: int) -> int:
    """Bytes in whole blocks."""
    return -(-size // BLOCK) * BLOCK


def is_day(text: str) -> bool:
    """Whether this names a day."""
    return _DAY.fullmatch(text) is not None


def oldest_kept(days: float) -> str:
    """The time before which images are too old, as records write it."""
    return (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")
