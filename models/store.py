"""The version store: immutable versions with digests, and the log that says which one is served.

    STORE/store.json                 marks the folder as a store
    STORE/versions/<id>/             immutable; manifest.json and the files that it lists
    STORE/promotions/00000012.json   append-only (see `promotions`)
    STORE/staging/<id>-<random>/     what a running job is writing; no reader looks here
    STORE/job.lock                   held (flock) by the running job

A version is written under staging, synced, and renamed into place, so it is there as a whole or not at all.
Readers need no lock. Writers that stage hold the job lock, which dies with its process; what a killed job
left under staging is removed when the lock is next taken. Made for a local disk: rename, hard link and flock
must work as POSIX says.
"""

import hashlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Self

from detrigger.models import signing
from detrigger.models.errors import GateRefused, StoreError
from detrigger.models.files import (
    TEMPORARY,
    create_only,
    disk_full,
    exclusive_lock,
    is_disk_full,
    os_errors,
    read_regular,
    sha256_of,
    sync,
    write_new,
)
from detrigger.models.manifest import VERSION_ID, File, Manifest, NewerSchema
from detrigger.models.promotions import Promotion, PromotionLog, serving_stack

_MARKER = b'{"schema_version": 1}\n'
_MAX_MANIFEST_BYTES = 8_000_000
_STALE_SECONDS = 3600.0


class VersionStore:
    """A store that exists already; `VersionStore.create` makes one.

    Not for use by several threads at once as far as staging and publishing go; reading is free of state.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._log = PromotionLog(self.root / "promotions")
        self._locked = False
        try:
            marker = read_regular(self.root / "store.json", 4096)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StoreError(
                f"{root} is no version store: give the folder that `detrigger protect --store` wrote to",
                code="no_store",
            ) from error
        except OSError as error:
            raise StoreError(f"cannot read the store {root}: {error.strerror}", code="no_store") from error
        if b"".join(marker.split()) != b"".join(_MARKER.split()):
            raise StoreError(
                f"{root}/store.json is not of schema version 1: use the Detrigger that wrote this store, or"
                " restore the file from a backup",
                code="no_store",
            )

    @classmethod
    def create(cls, root: Path) -> Self:
        """Open the store at `root`, making it first where there is nothing or an empty folder."""
        with os_errors("create the store", root):
            if not (root / "store.json").exists():
                root.mkdir(parents=True, exist_ok=True)
                if any(not path.name.startswith(TEMPORARY) for path in root.iterdir()):
                    raise StoreError(
                        f"{root} is not empty and no version store: give a new or empty folder",
                        code="no_store",
                    )
                # Losing a race for the marker is fine: both write the same bytes.
                with _ignoring_existing():
                    create_only(root / "store.json", _MARKER)
        return cls(root)

    # --- reading ------------------------------------------------------------------------------------------

    def version_ids(self) -> list[str]:
        """The ids of all versions, oldest first, damaged ones included."""
        with os_errors("read the store", self.root):
            try:
                with os.scandir(self.root / "versions") as folder:
                    names = [item.name for item in folder if item.is_dir(follow_symlinks=False)]
            except FileNotFoundError:
                return []
        return sorted(name for name in names if _is_version_id(name))

    def versions(self) -> list[Manifest]:
        """The manifests of all versions, oldest first; those that `damaged` lists are left out."""
        return [
            found for found in map(self._manifest_or_error, self.version_ids()) if isinstance(found, Manifest)
        ]

    def damaged(self) -> dict[str, str]:
        """The versions whose manifest is not as it was published, each with the reason. Reads no models."""
        found = {version: self._manifest_or_error(version) for version in self.version_ids()}
        return {version: str(error) for version, error in found.items() if isinstance(error, StoreError)}

    def manifest(self, version: str) -> Manifest:
        """A version's manifest. StoreError: `bad_version_id`, `unknown_version` or `damaged_version`."""
        path = self._folder(version) / "manifest.json"
        try:
            manifest = Manifest.read(read_regular(path, _MAX_MANIFEST_BYTES))
        except OSError as error:
            raise _damaged(version, "manifest.json", error.strerror or str(error)) from error
        except NewerSchema as error:
            raise StoreError(f"version {version} cannot be read: {error}", code="version_refused") from error
        except ValueError as error:
            raise _damaged(version, "manifest.json", str(error)) from error
        if manifest.id != version:
            raise _damaged(version, "manifest.json", f"it is the manifest of {manifest.id}")
        return manifest

    def read_file(self, version: str, name: str) -> bytes:
        """The content of one file of a version, after its size and sha256 were found right.

        Use these bytes: a path that is opened again later may by then be another file.
        """
        expected = self.manifest(version).files.get(name)
        if expected is None:
            raise StoreError(f"version {version} has no file {name}", code="unknown_version")
        try:
            data = read_regular(self._folder(version) / name, expected.size)
        except OSError as error:
            raise _damaged(version, name, error.strerror or str(error)) from error
        if len(data) != expected.size or hashlib.sha256(data).hexdigest() != expected.sha256:
            raise _damaged(version, name, "its digest is not the published one")
        return data

    def open_version(self, version: str, files: Sequence[str] = ()) -> Path:
        """The folder of a version, after the named files (all, when none is named) were found right."""
        manifest = self.manifest(version)
        folder = self._folder(version)
        for name in files or manifest.files:
            expected = manifest.files.get(name)
            if expected is None:
                raise StoreError(f"version {version} has no file {name}", code="unknown_version")
            try:
                found = sha256_of(folder / name)
            except OSError as error:
                raise _damaged(version, name, error.strerror or str(error)) from error
            if found != (expected.sha256, expected.size):
                raise _damaged(version, name, "its digest is not the published one")
        return folder

    # --- publishing ---------------------------------------------------------------------------------------

    @contextmanager
    def job_lock(self) -> Iterator[None]:
        """Hold the store's job lock; StoreBusy at once when another job has it. Clears staging leftovers."""
        with exclusive_lock(self.root / "job.lock"):
            with os_errors("clear what an earlier job left in", self.root):
                self._remove_leftovers()
            self._locked = True
            try:
                yield
            finally:
                self._locked = False

    @contextmanager
    def stage(self, version: str) -> Iterator[Path]:
        """An empty folder to write a version's files into; gone afterwards unless `publish` took it.

        Takes the job lock unless this object holds it already. A full disk inside the block: StoreError.
        """
        _check_id(version)
        with nullcontext() if self._locked else self.job_lock():
            folder = self.root / "staging" / f"{version}-{secrets.token_hex(4)}"
            with os_errors("write to", self.root):
                folder.mkdir(parents=True)
            try:
                yield folder
            except OSError as error:
                if is_disk_full(error):
                    # A job writes here and, on its way, to the system's folder for temporary files.
                    raise disk_full(error, self.root, Path(tempfile.gettempdir())) from error
                raise
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def publish(self, staging: Path, manifest: Manifest) -> Manifest:
        """Make the staged files a version: all of it appears at once. Returns the manifest as written."""
        _check_id(manifest.id)
        target = self.root / "versions" / manifest.id
        if target.exists():
            raise StoreError(
                f"version {manifest.id} exists already and is immutable: run again for a new id",
                code="version_exists",
            )
        with os_errors("publish a version in", self.root):
            files: dict[str, File] = {}
            for path in sorted(staging.iterdir()):
                digest, size = sha256_of(path)
                files[path.name] = File(sha256=digest, size=size)
                path.chmod(path.stat().st_mode & ~0o222)
                sync(path)
            sealed = manifest.sealed(files)
            write_new(staging / "manifest.json", sealed.model_dump_json(indent=1).encode() + b"\n")
            signing.sign(staging)
            sync(staging)
            target.parent.mkdir(exist_ok=True)
            staging.rename(target)
            sync(target.parent)
            sync(staging.parent)
        return sealed

    # --- promotion ----------------------------------------------------------------------------------------

    def last_promotion(self) -> Promotion | None:
        """The newest entry of the promotion log. Cheap: made to be polled."""
        return self._log.last()

    def current(self) -> str | None:
        """The id of the version to be served, None before the first promotion."""
        last = self._log.last()
        return last.version if last else None

    def promotions(self) -> list[Promotion]:
        """The whole promotion log, oldest first."""
        return self._log.entries()

    def promote(self, version: str, by: str, reason: str, *, force: bool = False) -> Promotion:
        """Serve `version` from now on; nothing is written when it is served already.

        A damaged version is refused (StoreError), one whose gate did not pass as well (GateRefused) unless
        `force` is set.
        """
        self.open_version(version)
        if not (force or self.manifest(version).gate.passed):
            raise GateRefused(
                f"version {version} did not pass its gate (see its report.html); promote another one, or"
                " insist with --force"
            )
        while True:
            last = self._log.last()
            if last is not None and last.version == version:
                return last
            if entry := self._log.append(last, "promote", version, by, reason):
                return entry

    def rollback(self, by: str, reason: str) -> Promotion:
        """Serve the version that was promoted before the current one; twice goes back two versions."""
        while True:
            entries = self._log.entries()
            stack = serving_stack(entries)
            if len(stack) < 2:
                raise StoreError(
                    "there is no version to roll back to: promote one by its id (`detrigger versions`)",
                    code="nothing_to_roll_back",
                )
            self.open_version(stack[-2])
            if entry := self._log.append(entries[-1], "rollback", stack[-2], by, reason):
                return entry

    # --- inside -------------------------------------------------------------------------------------------

    def _folder(self, version: str) -> Path:
        _check_id(version)
        folder = self.root / "versions" / version
        if folder.is_symlink() or not folder.is_dir():
            raise StoreError(
                f"the store has no version {version}: `detrigger versions` lists them", code="unknown_version"
            )
        return folder

    def _manifest_or_error(self, version: str) -> Manifest | StoreError:
        try:
            return self.manifest(version)
        except StoreError as error:
            return error

    def _remove_leftovers(self) -> None:
        """Remove what killed jobs and writers left; only with the job lock held."""
        staging = self.root / "staging"
        for leftover in staging.iterdir() if staging.is_dir() else ():
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
        # Promoting needs no lock, so a temporary file is only known to be left over when it is old.
        for folder in (self.root, self._log.folder):
            for temporary in folder.glob(f"{TEMPORARY}*"):
                if time.time() - temporary.lstat().st_mtime > _STALE_SECONDS:
                    temporary.unlink(missing_ok=True)


def _is_version_id(text: str) -> bool:
    return re.fullmatch(VERSION_ID, text) is not None


def _check_id(version: str) -> None:
    # Ids come from URLs and command lines and become paths.
    if not _is_version_id(version):
        raise StoreError(
            f"{version[:80]!r} is no version id (like 20250131T120000Z-1a2b3c4d)", code="bad_version_id"
        )


def _damaged(version: str, name: str, reason: str) -> StoreError:
    return StoreError(
        f"version {version} is damaged at {name}: {reason}; restore it from a backup or promote another"
        " version",
        code="damaged_version",
    )


@contextmanager
def _ignoring_existing() -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        return
