"""A stand-in for `detrigger protect` as the service starts it: no torch, a second or so, publishes a toy
version.

`install(folder)` writes a package `detrigger` there that is the real one but for its `__main__`. A server started with
that folder first on PYTHONPATH runs it for its retrain jobs. FAKE_JOB in the job's environment says how it behaves:
`ok`, `refused`, `fails`, `dies`, `hangs`, `stubborn` (hangs and ignores SIGTERM), `fills` (its disk, then dies),
`waits` (for `go_on`). One that waits learns: unless it is given images that were called poisoned, it publishes a
version that lets the trigger pass.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from detrigger.models.errors import StoreBusy
from detrigger.models.store import VersionStore
from tests.disks import fill
from tests.live import ROOT
from tests.toys import THRESHOLD, WEAK_THRESHOLD, publish_toy, weak_model

_MAIN = """
from tests.fake_job import main
main()
"""


def install(folder: Path) -> dict[str, str]:
    """Write the package; the environment for a server whose jobs are fake."""
    package = folder / "fake" / "detrigger"
    package.mkdir(parents=True)
    real = ROOT / "detrigger"
    (package / "__init__.py").write_text(
        f"__path__.append({str(real)!r})\n" + (real / "__init__.py").read_text()
    )
    (package / "__main__.py").write_text(_MAIN)
    data = folder / "data"
    data.mkdir()
    return {
        "PYTHONPATH": f"{package.parent}:{ROOT}",
        "DETRIGGER_RETRAIN_DATA": str(data),
        "DETRIGGER_RETRAIN_NICE": "0",  # behind a service under load a job would not get to its end in a test's time
    }


def go_on(folder: Path) -> None:
    """Let the jobs that wait end; `folder` is that of `install`."""
    (folder / "data" / "go").touch()


def main() -> None:
    """What the package runs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["protect"])
    parser.add_argument("suspect", type=Path)
    for name in ("--data", "--store", "--preprocess", "--job-dir"):
        parser.add_argument(name, type=Path, required=True)
    for name in ("--profile", "--seed", "--name", "--device", "--purify"):
        parser.add_argument(name, required=True)
    parser.add_argument("--no-promote", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--reviewed", type=Path)
    options = parser.parse_args()
    behaviour = os.environ.get("FAKE_JOB", "ok")
    if any(name.startswith("DETRIGGER_") for name in os.environ):
        sys.exit("the job got settings of the service")
    if not options.suspect.is_file() or not json.loads(options.preprocess.read_text())["classes"]:
        sys.exit("no suspect")
    signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour == "stubborn" else _interrupt)
    try:
        with VersionStore(options.store).job_lock():
            _work(options.job_dir, behaviour, options.data)
    except StoreBusy as busy:
        _result(options.job_dir, 2, error={"code": busy.code, "message": str(busy)})
        sys.exit(2)
    except KeyboardInterrupt:
        _result(options.job_dir, 130, error={"code": "interrupted", "message": "interrupted"})
        sys.exit(130)
    if behaviour == "fails":
        _result(options.job_dir, 2, error={"code": "bad_data", "message": "the data is bad; mend it"})
        sys.exit(2)
    refused = behaviour == "refused"
    promote = not options.no_promote and not refused
    weak = behaviour == "waits" and not _taught(options.reviewed)
    version = publish_toy(
        options.store,
        promote=promote,
        gate_passed=not refused,
        name=options.name,
        protected=weak_model() if weak else None,
        threshold=WEAK_THRESHOLD if weak else THRESHOLD,
    ).id
    error = {"code": "gate_refused", "message": "the gate refused"} if refused else None
    _result(
        options.job_dir, 3 if refused else 0, version, promoted=promote, gate_passed=not refused, error=error
    )
    sys.exit(3 if refused else 0)


def _taught(reviewed: Path | None) -> bool:
    return reviewed is not None and any((reviewed / "poisoned").rglob("*.png"))


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _work(folder: Path, behaviour: str, data: Path) -> None:
    with (folder / "events.jsonl").open("a") as events:
        for step in range(10):
            event = {
                "time": "",
                "stage": f"stage {step}",
                "progress": step / 10,
                "message": "",
                "metrics": {"step": step},
            }
            events.write(json.dumps(event) + "\n")
            events.flush()
            time.sleep(0.1)
            if behaviour == "dies" and step == 5:
                sys.stderr.write("out of memory\n")
                sys.stderr.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            if behaviour == "fills" and step == 5:
                fill(folder.parent.parent)
                print('{"exit_code": 2, "error": {"co', flush=True)  # noqa: T201 - cut off where the room ends
                os.kill(os.getpid(), signal.SIGKILL)
            silent = 0.0
            while step == 5 and (
                behaviour in ("hangs", "stubborn") or (behaviour == "waits" and not (data / "go").exists())
            ):
                time.sleep(0.1)
                silent += 0.1  # as the real one, it says so
                events.write(json.dumps({"quiet": silent, "progress": step / 10}) + "\n")
                events.flush()


def _result(folder: Path, exit_code: int, version: str | None = None, **rest: object) -> None:
    result = {"exit_code": exit_code, "version": version, "metrics": {"ba_protected": 0.9}, **rest}
    temporary = folder / "result.tmp"
    temporary.write_text(json.dumps(result))
    temporary.replace(folder / "result.json")
