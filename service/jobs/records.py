"""Job records in the store: `STORE/jobs/<id>/{job.json, events.jsonl, result.json, log.txt,
preprocess.json}`.

While a job runs that learns from reviewed images, `reviewed/` holds them.

`job.json` is written by the service alone, whole each time; `events.jsonl` and `result.json` by the job. A
record is all that is known of a job, so a service that starts again knows what the one before it knew.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from detrigger.models.files import os_errors, replace
from detrigger.models.manifest import utc_now
from detrigger.service.settings import Profile

State = Literal["pending", "running", "succeeded", "failed", "cancelled"]
ENDED = frozenset({"succeeded", "failed", "cancelled"})
_ID = re.compile(r"[0-9]{8}T[0-9]{6}-[0-9a-f]{6}", re.ASCII)
REVIEWED = "reviewed"
"""The folder of a running job's reviewed images."""
_MAX_EVENT_BYTES = 64 * 1024


class JobError(BaseModel):
    """Why a job did not succeed."""

    code: str
    message: str


class Job(BaseModel):
    """One job, as stored and as shown by /admin/jobs/{id}."""

    model_config = ConfigDict(extra="ignore")

    id: str
    state: State = "pending"
    profile: Profile
    seed: int
    seed_given: bool = True  # else it was drawn for this job
    activate: Literal["auto", "manual"]
    base_version: str
    created: str
    started: str | None = None
    ended: str | None = None
    seconds: float | None = None
    progress: Annotated[float, Field(ge=0, le=1)] = 0.0
    stage: str | None = None
    seconds_left: float | None = None
    message: str | None = None
    metrics: dict[str, float] = {}
    reviewed: int = Field(default=0, description="reviewed images that it was given to learn from")
    version: str | None = None
    promoted: bool | None = None
    gate_passed: bool | None = None
    exit_code: int | None = None
    error: JobError | None = None
    cancel_requested: bool = False
    # Which process it is: a pid alone may by now be somebody else's.
    pid: int | None = None
    pid_start: int | None = None


class Records:
    """The job folders of one store. Every method touches the disk and blocks for a moment."""

    def __init__(self, store: Path) -> None:
        self.folder = store / "jobs"

    def new_id(self) -> str:
        """An id that sorts by time and makes a good folder name."""
        return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"

    def path(self, job_id: str) -> Path:
        """The folder of a job; the id is checked, since it comes from URLs.

        Raises:
            KeyError: that is not a job id.
        """
        if not _ID.fullmatch(job_id):
            raise KeyError(job_id)
        return self.folder / job_id

    def load(self, job_id: str) -> Job:
        """Read one record.

        Raises:
            KeyError: there is no such job, or its record is unreadable.
        """
        try:
            job = Job.model_validate_json((self.path(job_id) / "job.json").read_bytes())
        except (OSError, ValidationError) as error:
            raise KeyError(job_id) from error
        if job.id != job_id:
            raise KeyError(job_id)
        return job

    def save(self, job: Job) -> None:
        """Write one record, whole or not at all.

        Raises:
            StoreError: `disk_full`, or the store cannot be written.
        """
        folder = self.path(job.id)
        with os_errors("write the job record", folder):
            folder.mkdir(parents=True, exist_ok=True)
            replace(folder / "job.json", job.model_dump_json(indent=1).encode())

    def remove(self, job_id: str) -> None:
        """Forget a job."""
        shutil.rmtree(self.path(job_id), ignore_errors=True)

    def drop_reviewed(self, job_id: str) -> None:
        """Remove the pictures that a job learned from; the quarantine alone keeps pictures, and erases them."""
        shutil.rmtree(self.path(job_id) / REVIEWED, ignore_errors=True)

    def all(self) -> list[Job]:
        """Every readable record, newest first."""
        jobs: list[Job] = []
        with contextlib.suppress(FileNotFoundError):
            for path in self.folder.iterdir():
                with contextlib.suppress(KeyError):
                    jobs.append(self.load(path.name))
        return sorted(jobs, key=lambda job: job.id, reverse=True)

    def prune(self, keep: int) -> None:
        """Remove the oldest ended jobs beyond `keep`."""
        ended = [job for job in self.all() if job.state in ENDED]
        for job in ended[keep:]:
            self.remove(job.id)

    def events(self, job_id: str, offset: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """The events after byte `offset`, each with the offset behind it; a line still being written is
        left out.
        """
        try:
            with (self.path(job_id) / "events.jsonl").open("rb") as file:
                file.seek(offset)
                while (line := file.readline(_MAX_EVENT_BYTES)).endswith(b"\n"):
                    offset += len(line)
                    event = _object(line)
                    if event is not None:
                        yield offset, event
        except OSError:
            return

    def result(self, job_id: str) -> dict[str, Any] | None:
        """What the job wrote as its last act; None when it did not come to that.

        Where the disk had no room for result.json, the log may have had: it ends with the same object.
        """
        try:
            return _object((self.path(job_id) / "result.json").read_bytes())
        except OSError:
            found = next((_object(line.encode()) for line in reversed(self._tail(job_id))), None)
            return found if found is not None and "exit_code" in found else None

    def last_line(self, job_id: str) -> str:
        """The last line of the job's log that is meant for people, for a job that ended without a word."""
        lines = [line for line in self._tail(job_id) if not line.startswith("{")]
        return lines[-1][:500] if lines else ""

    def _tail(self, job_id: str) -> list[str]:
        try:
            with (self.path(job_id) / "log.txt").open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - _MAX_EVENT_BYTES))
                lines = file.read().decode("utf-8", "replace").split("\n")
        except OSError:
            return []
        return [line.strip() for line in lines if line.strip()]


def apply_event(job: Job, event: dict[str, Any]) -> None:
    """Bring a record up to date with one line of events.jsonl; odd values are left out."""
    progress = event.get("progress")
    if isinstance(progress, (int, float)) and 0 <= progress <= 1:
        job.progress = float(progress)
    if isinstance(event.get("stage"), str):
        job.stage = event["stage"][:100]
    if isinstance(event.get("message"), str):
        job.message = event["message"][:500]
    job.metrics |= _numbers(event.get("metrics"))
    left = _numbers({"left": event.get("seconds_left")}).get("left")
    job.seconds_left = left if left is not None and left >= 0 else None


def quiet_of(event: dict[str, Any]) -> float:
    """For how many seconds the job's step had said nothing when this line was written."""
    return max(0.0, _numbers({"quiet": event.get("quiet")}).get("quiet", 0.0))


def apply_result(job: Job, result: dict[str, Any] | None, otherwise: JobError) -> None:
    """Set how a job ended from its result.json; without one it failed, as `otherwise` says."""
    job.seconds_left = None
    if result is None:
        job.state = "failed"
        job.error = otherwise
        return
    code = result.get("exit_code")
    job.exit_code = code if isinstance(code, int) else None
    job.version = result["version"] if isinstance(result.get("version"), str) else None
    for name in ("promoted", "gate_passed"):
        if isinstance(result.get(name), bool):
            setattr(job, name, result[name])
    job.metrics |= _numbers(result.get("metrics"))
    error = result.get("error")
    if code == 0:
        job.state, job.progress, job.error = "succeeded", 1.0, None
    else:
        job.state = "failed"
        given = error if isinstance(error, dict) else {}
        default = "gate_refused" if code == 3 else "job_failed"
        job.error = JobError(
            code=str(given.get("code", default)), message=str(given.get("message", otherwise.message))
        )


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def seconds_since(ticks: int) -> float:
    """Seconds since a `start_time`, whatever was done to the clock meanwhile."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def now() -> str:
    """The time as records show it."""
    return utc_now()


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _numbers(values: object) -> dict[str, float]:
    if not isinstance(values, dict):
        return {}
    return {
        str(name)[:100]: float(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30
    }
