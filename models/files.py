"""Small file operations for stores: durable writes, create-only writes, bounded reads without symlinks."""

import errno
import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from detrigger.models.errors import StoreBusy, StoreError

TEMPORARY = ".tmp-"
_CHUNK = 1 << 20
_NO_ROOM = 64 * 1024
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that a disk or quota is used up."""
    return isinstance(error, OSError) and error.errno in _NO_SPACE


def disk_full(error: BaseException, *places: Path) -> StoreError:
    """The refusal for a full disk, which names the file system.

    Args:
        error: names the file where it can: opening one does, writing to it does not.
        places: the folders that may have been written to; of their file systems the fullest is named.
    """
    named = getattr(error, "filename", None)
    if isinstance(named, str):
        places = (Path(named),)
    full = min(map(file_system, places), key=_free_bytes)
    return StoreError(
        f"the file system {full} is full or its quota used up: free some space there and run again",
        code="disk_full",
    )


def file_system(path: Path) -> Path:
    """Where the file system is mounted that holds `path`, which need not exist."""
    path = path.resolve()
    while not path.is_mount():
        path = path.parent
    return path


def is_full(path: Path) -> bool:
    """Whether there is no room left to speak of where `path` is."""
    return _free_bytes(file_system(path)) < _NO_ROOM


def _free_bytes(mounted: Path) -> int:
    found = os.statvfs(mounted)
    # Without a free inode nothing can be made, whatever the space.
    return found.f_bavail * found.f_frsize if found.f_favail or not found.f_files else 0


@contextmanager
def os_errors(doing: str, where: Path) -> Iterator[None]:
    """Turn OSError into a StoreError of one line: `doing` completes "cannot ..."."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(error, where) from error
        reason = error.strerror or str(error)
        mend = "; check its owner and permissions" if error.errno in _NO_PERMISSION else ""
        raise StoreError(f"cannot {doing} {where}: {reason}{mend}") from error


def sync(path: Path) -> None:
    """Force a file's or folder's content to the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_new(path: Path, data: bytes) -> None:
    """Write and sync a file that must not exist yet (FileExistsError)."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def create_only(path: Path, data: bytes) -> None:
    """Make `path` appear with all of `data`, or raise FileExistsError and leave it as it is."""
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
    try:
        write_new(temporary, data)
        os.link(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    sync(path.parent)


def replace(path: Path, data: bytes) -> None:
    """Make `path` hold all of `data`, whatever it was before; readers see the old or the new content."""
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
    try:
        write_new(temporary, data)
        temporary.replace(path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    sync(path.parent)


def open_regular(path: Path) -> int:
    """Open a regular file for reading; symlinks, pipes and devices are refused with OSError."""
    # O_NONBLOCK: opening a pipe that somebody put there must not wait for a writer.
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file")
    return handle


def read_regular(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes; OSError otherwise."""
    with os.fdopen(open_regular(path), "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes")
    return data


def sha256_of(path: Path) -> tuple[str, int]:
    """Digest and size of a regular file."""
    digest = hashlib.sha256()
    size = 0
    with os.fdopen(open_regular(path), "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold a lock file; StoreBusy at once when another process (or this one) holds it.

    The kernel frees it when its holder ends, however that ends; the file itself stays, and names the last
    holder's process id.
    """
    with os_errors("open the lock", path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        with os_errors("lock", path):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                owner = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
                raise StoreBusy(
                    f"another job (pid {owner}) is working on the store {path.parent}: wait for it to end or"
                    " stop it, then run again"
                ) from error
            # Only told to the next one who asks: a full disk must not keep the holder from clearing it.
            with suppress(OSError):
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def folder_name(label: str) -> str:
    """A class name as the name of a folder: `/`, `%`, control characters and a leading dot become `%XX`."""
    escaped = "".join(f"%{ord(c):02X}" if c in "/\\%" or ord(c) < 32 else c for c in label)
    return f"%2E{escaped[1:]}" if escaped.startswith(".") else escaped or "%"
