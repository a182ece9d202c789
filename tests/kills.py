"""SIGKILL at every step of publishing, promoting and swapping: placed there, not by chance.

`python -m tests.kills publish|promote|swap FOLDER REPEATS` prints one JSON object: each step, and how often the process
died there and left everything as it was before or as it was to be. A step of publishing and promoting is a call that
changes the file system; a write dies half done as well. A step of a swap is the entry of a function of the store, the
registry, the engine or the metrics, in a real server that is asked over HTTP to activate a version. Each death is that
of a process of its own, forked from this one, which has imported everything and runs no threads.
"""

import json
import os
import shutil
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from detrigger.models.store import VersionStore
from detrigger.service.main import run as serve
from detrigger.service.registry import load
from detrigger.service.settings import Settings
from tests.live import TOKEN
from tests.toys import publish_toy, toy_manifest

CALLS = ("open", "write", "fsync", "link", "mkdir", "rename", "replace", "unlink", "rmdir", "chmod", "pwrite")
WATCHED = tuple(f"service/{name}.py" for name in ("registry", "engine", "metrics")) + tuple(
    f"models/{name}.py" for name in ("store", "promotions", "files")
)
OLD, NEW, NEXT = (f"20250131T12000{n}Z-0000000{n}" for n in range(3))
_LAST_STEP = "metrics Metrics.request_ended"
_PATIENCE = 60.0


def die() -> None:
    """No handler runs, nothing is flushed."""
    os.kill(os.getpid(), signal.SIGKILL)


def fork(work: Callable[[], object]) -> int:
    """Run in a process of its own; its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
        finally:
            os._exit(code)
    return pid


def wait(pid: int) -> int:
    """How it ended: 0, or the signal as a negative number."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def hook_calls(at: int | None) -> list[str]:
    """From now on die at the `at`-th step; the list names the steps as they are done."""
    done: list[str] = []

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if name == "open" and not arguments[1] & os.O_CREAT:
                return real(*arguments, **options)
            if len(done) == at:
                die()
            done.append(name)
            if name == "write":
                if len(done) == at:
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                    die()
                done.append("half a write")
            return real(*arguments, **options)

        return call

    for name in CALLS:
        setattr(os, name, wrap(name, getattr(os, name)))
    return done


def hook_functions(at: str | None, log: Path) -> None:
    """Die at the step `at` of a swap; without it, write the names of all steps to `log`.

    The last is the one that counts the request when it has been answered.
    """
    seen: set[str] = set()
    begun = False

    def look(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal begun
        code = frame.f_code
        if event != "call" or not code.co_filename.endswith(WATCHED) or code.co_name.startswith("<"):
            return
        begun = begun or code.co_qualname == "Registry.activate"
        step = f"{Path(code.co_filename).stem} {code.co_qualname}"
        if not begun or step in seen or _LAST_STEP in seen:
            return
        seen.add(step)
        if step == at:
            die()
        if at is None:
            with log.open("a") as file:
                file.write(f"{step}\n")

    threading.setprofile(look)
    sys.setprofile(look)


def publish(root: Path) -> None:
    """Stage and publish `NEW`."""
    store = VersionStore(root)
    with store.stage(NEW) as staging:
        for name in ("protected.onnx", "classifier.onnx"):
            shutil.copyfile(root / "versions" / OLD / name, staging / name)
        store.publish(staging, toy_manifest(NEW))


def promote(root: Path) -> None:
    """Promote `NEW`, which is published."""
    VersionStore(root).promote(NEW, "test", "kills")


def check(root: Path) -> None:
    """Nothing is lost, nothing is half there, what is promoted can be served, and work goes on."""
    store = VersionStore(root)
    assert store.version_ids() in ([OLD], [OLD, NEW])
    assert store.damaged() == {}
    for version in store.version_ids():
        store.open_version(version)
    served = [entry.version for entry in store.promotions()]
    assert served in ([OLD], [OLD, NEW])
    load(Settings(store=root, device="cpu", threads=1), served[-1])
    with store.job_lock():
        assert not list((root / "staging").glob("*"))
    publish_toy(root, version=NEXT)
    assert store.current() == NEXT


def fresh(folder: Path, source: Path) -> Path:
    """A copy of a store."""
    root = folder / "store"
    shutil.rmtree(root, ignore_errors=True)
    return Path(shutil.copytree(source, root))


def kill_calls(operation: Callable[[Path], None], folder: Path, source: Path, repeats: int) -> dict[str, int]:
    """Kill `operation` at each of its steps; how often each was survived."""
    names = folder / "steps"

    def rehearse() -> None:
        root = fresh(folder, source)
        done = hook_calls(None)
        operation(root)
        names.write_text("\n".join(done))

    assert wait(fork(rehearse)) == 0
    survived: dict[str, int] = {}
    for at, name in enumerate(names.read_text().split("\n")):
        for _ in range(repeats):
            root = fresh(folder, source)

            def victim(at: int = at, root: Path = root) -> None:
                hook_calls(at)
                operation(root)

            assert wait(fork(victim)) == -signal.SIGKILL, name
            assert wait(fork(lambda root=root: check(root))) == 0, name  # type: ignore[misc]
        survived[f"{at} {name}"] = repeats
    return survived


def swap(folder: Path, source: Path, at: str | None) -> int:
    """A server is asked to activate `NEW`; how it ended."""
    root = fresh(folder, source)
    log = folder / "server.log"
    log.unlink(missing_ok=True)

    def server() -> None:
        output = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 2)
        hook_functions(at, folder / "steps")
        serve(Settings(store=root, port=0, device="cpu", threads=1, poll_interval=600, drain_delay=0,
                       admin_token=TOKEN))  # type: ignore[arg-type]  # fmt: skip

    pid = fork(server)
    until = time.monotonic() + _PATIENCE
    while "serving version" not in (text := log.read_text() if log.exists() else ""):
        assert time.monotonic() < until, text
        time.sleep(0.02)
    address = text.partition("listening on ")[2].split()[0]
    request = urllib.request.Request(  # noqa: S310 - an address of ours
        f"{address}/admin/versions/{NEW}/activate",
        method="POST",
        headers={"Authorization": f"Bearer {TOKEN}"},
    )
    try:
        urllib.request.urlopen(request, timeout=_PATIENCE).read()  # noqa: S310
    except OSError:
        assert at is not None
    until = time.monotonic() + _PATIENCE
    while at is None and _LAST_STEP not in (folder / "steps").read_text():
        assert time.monotonic() < until
        time.sleep(0.02)
    if at is None:
        os.kill(pid, signal.SIGKILL)
        return wait(pid)
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > until:
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.02)
    return wait(pid)


def kill_swap(folder: Path, source: Path, repeats: int) -> dict[str, int]:
    """Kill a server at each step of a swap."""
    swap(folder, source, None)
    survived: dict[str, int] = {}
    for name in (folder / "steps").read_text().splitlines():
        for _ in range(repeats):
            assert swap(folder, source, name) == -signal.SIGKILL, name
            assert wait(fork(lambda: check(folder / "store"))) == 0, name
        survived[name] = repeats
    return survived


def main() -> None:
    """Kill."""
    operation, folder, repeats = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    source = folder / "source"
    publish_toy(source, version=OLD)
    if operation != "publish":
        publish_toy(source, version=NEW, promote=False)
    if operation == "swap":
        survived = kill_swap(folder, source, repeats)
    else:
        survived = kill_calls({"publish": publish, "promote": promote}[operation], folder, source, repeats)
    sys.stdout.write(json.dumps(survived) + "\n")


if __name__ == "__main__":
    main()
