"""The promotion log: `STORE/promotions/00000012.json`, append-only; the highest number is what is served.

Entries are written create-only, so of two writers that want the same number one loses and tries again
with the next: this is the store's only lock-free decision and needs nothing but "create if absent".
Each entry has a digest of itself and names its predecessor's, so an edited, swapped or lost entry is noticed.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from detrigger.models.errors import StoreError, first_problem
from detrigger.models.files import create_only, os_errors, read_regular
from detrigger.models.manifest import Sha256, UtcTime, VersionId, canonical_sha256, utc_now

_NAME = re.compile(r"[0-9]{8}\.json", re.ASCII)
_MAX_ENTRY_BYTES = 65_536


class Promotion(BaseModel):
    """One entry: from `time` on, `version` is served in place of `previous`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    number: Annotated[int, Field(ge=1, le=99_999_999)]
    action: Literal["promote", "rollback"]
    version: VersionId
    previous: VersionId | None
    by: Annotated[str, Field(max_length=200)]
    reason: Annotated[str, Field(max_length=2000)]
    time: UtcTime
    previous_digest: Sha256 | None
    digest: Sha256 | None = None

    def own_digest(self) -> str:
        """The sha256 of everything in the entry but `digest`."""
        return canonical_sha256(self, exclude={"digest"})


class PromotionLog:
    """The log in one folder (which may not exist yet: an empty log)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def last(self) -> Promotion | None:
        """The entry with the highest number; StoreError when it is not as it was written."""
        numbers = self._numbers()
        return self._read(numbers[-1]) if numbers else None

    def entries(self) -> list[Promotion]:
        """All entries, oldest first; StoreError when one is missing or not as it was written."""
        entries: list[Promotion] = []
        for expected, number in enumerate(self._numbers(), start=1):
            if number != expected:
                raise self._damaged(expected, "it is missing")
            entry = self._read(number)
            before = entries[-1] if entries else None
            if entry.previous_digest != (before.digest if before else None):
                raise self._damaged(number, "it does not follow from the entry before it")
            entries.append(entry)
        return entries

    def append(
        self,
        after: Promotion | None,
        action: Literal["promote", "rollback"],
        version: str,
        by: str,
        reason: str,
    ) -> Promotion | None:
        """Write the entry that follows `after`; None when somebody else was faster: read and decide again."""
        entry = Promotion(
            number=after.number + 1 if after else 1,
            action=action,
            version=version,
            previous=after.version if after else None,
            by=by[:200],
            reason=reason[:2000],
            time=utc_now(),
            previous_digest=after.digest if after else None,
        )
        entry = entry.model_copy(update={"digest": entry.own_digest()})
        with os_errors("write the promotion log in", self.folder):
            self.folder.mkdir(exist_ok=True)
            try:
                create_only(self._path(entry.number), entry.model_dump_json(indent=1).encode() + b"\n")
            except FileExistsError:
                return None
        return entry

    def _numbers(self) -> list[int]:
        with os_errors("read the promotion log in", self.folder):
            try:
                names = [path.name for path in self.folder.iterdir()]
            except FileNotFoundError:
                return []
        return sorted(int(name[:8]) for name in names if _NAME.fullmatch(name))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.json"

    def _read(self, number: int) -> Promotion:
        try:
            entry = Promotion.model_validate_json(read_regular(self._path(number), _MAX_ENTRY_BYTES))
        except OSError as error:
            raise self._damaged(number, error.strerror or str(error)) from error
        except ValidationError as error:
            raise self._damaged(number, first_problem(error)) from error
        if entry.number != number:
            raise self._damaged(number, f"it says that it is number {entry.number}")
        if entry.digest != entry.own_digest():
            raise self._damaged(number, "it was edited after it was written")
        return entry

    def _damaged(self, number: int, reason: str) -> StoreError:
        return StoreError(
            f"the promotion log is damaged at {self._path(number)}: {reason}; restore the file from a backup,"
            " or delete it and every higher number and promote a version again",
            code="damaged_log",
        )


def serving_stack(entries: Sequence[Promotion]) -> list[str]:
    """The versions that rolling back would walk through, the served one last.

    A promotion puts a version on the stack and a rollback takes one off, so that rolling back twice goes
    back two versions instead of to and fro.
    """
    stack: list[str] = []
    for entry in entries:
        if entry.action == "promote":
            stack.append(entry.version)
        elif stack:
            stack.pop()
    return stack
