"""Runs one retrain job at a time as a subprocess, watches it, and survives its own death.

The job is the command that a person would type (`detrigger protect`), in a session of its own and behind
the service in priority. It takes the store's job lock itself, so it also runs alone against a job started
by hand. A job whose service was killed runs on; the next service finds it by pid and start time and
watches it again.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from detrigger.models.errors import DetriggerError, StoreBusy, StoreError
from detrigger.models.files import file_system, is_full, os_errors
from detrigger.models.store import VersionStore
from detrigger.service.jobs import records
from detrigger.service.jobs.records import ENDED, REVIEWED, Job, JobError, Records
from detrigger.service.metrics import Metrics
from detrigger.service.problem import Problem
from detrigger.service.settings import Profile, Settings

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
_SAVE_SECONDS = 5.0
_INTERRUPTED = 130
_TERM_SECONDS = 5.0


class Runner:
    """The jobs of one service. Methods belong to the event loop; disk and process work goes to threads."""

    def __init__(
        self, settings: Settings, metrics: Metrics, export: Callable[[Path], int] | None = None
    ) -> None:
        """Run nothing yet. ``export`` writes the reviewed images into a folder, for a job to learn from; how many."""
        self._export = export
        self._settings = settings
        self._metrics = metrics
        self.records = Records(settings.store)
        self._submitting = asyncio.Lock()
        self._job: Job | None = None  # the one that runs
        self._process: subprocess.Popen[bytes] | None = None  # None for a job that an earlier service started
        self._watch: asyncio.Task[None] | None = None
        self._last_event = 0.0  # when the running job last said something, in monotonic time
        self._unsaved: dict[str, Job] = {}  # ended jobs whose record found no room on the disk yet
        self._saving: asyncio.Task[None] | None = None
        metrics.job_event_age.set_function(self._event_age)

    async def start(self) -> None:
        """Settle the jobs of an earlier service: watch again what still runs, close what does not."""
        for job in await asyncio.to_thread(self.records.all):
            if job.state in ENDED:
                continue
            if _alive(job):
                log.warning("job %s of an earlier service still runs (pid %s), watching it", job.id, job.pid)
                self._follow(job)
            else:
                await self._close(job)
        succeeded = [job for job in await asyncio.to_thread(self.records.all) if job.state == "succeeded"]
        if succeeded and succeeded[0].ended:
            self._metrics.job_success.set(_timestamp(succeeded[0].ended))

    async def stop(self) -> None:
        """The service ends: a running job ends with it."""
        if self._job is not None:
            job = self._job
            log.warning("stopping job %s, since the service stops", job.id)
            job.error = JobError(code="service_stopped", message="the service was stopped while the job ran")
            await self._kill(job)
        if self._watch is not None:
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                await asyncio.wait_for(self._watch, 2 * _LOOK_SECONDS + 2)
        if self._saving is not None:
            self._saving.cancel()
            await self._save_ended()

    async def submit(self, base_version: str, profile: Profile, seed: int | None, activate: str) -> Job:
        """Start a job on the data that the operator configured.

        Args:
            base_version: the version whose suspect and preprocessing are taken.
            profile: how thorough.
            seed: of everything random; None draws one.
            activate: "auto" promotes when the gate passes, "manual" only publishes.

        Raises:
            Problem: a job is running (with its id), or retraining is not configured.
            DetriggerError: the store cannot be used.
        """
        async with self._submitting:
            if self._job is not None:
                running = self._job.id
                raise Problem(
                    "job_running",
                    f"job {running} is running",
                    job=running,
                    headers={"Location": f"/admin/jobs/{running}"},
                )
            data = self._settings.retrain_data
            if data is None:
                raise Problem(
                    "retrain_not_configured", "set DETRIGGER_RETRAIN_DATA to a folder of clean images"
                )
            job = Job(
                id=self.records.new_id(),
                profile=profile,
                seed=secrets.randbelow(2**31) if seed is None else seed,
                seed_given=seed is not None,
                activate="manual" if activate == "manual" else "auto",
                base_version=base_version,
                created=records.now(),
            )
            await asyncio.to_thread(self._launch, job, data)
            self._follow(job)
            await asyncio.to_thread(self.records.prune, self._settings.retrain_keep_jobs)
            return job

    def find(self, job_id: str) -> Job:
        """One job, as it is known in memory where the disk may not know it yet.

        Raises:
            KeyError: there is no such job.
        """
        if self._job is not None and self._job.id == job_id:
            return self._job
        return self._unsaved.get(job_id) or self.records.load(job_id)

    async def cancel(self, job_id: str) -> Job:
        """End a running job; nothing that it wrote becomes visible unless it was published already.

        Raises:
            KeyError: there is no such job.
            Problem: it has ended already.
        """
        job = self.find(job_id)
        if job is not self._job:
            raise Problem("job_finished", f"job {job_id} has ended: {job.state}")
        watch = self._watch
        job.cancel_requested = True
        await self._kill(job)
        if watch is not None:
            await asyncio.wait({watch}, timeout=2 * _LOOK_SECONDS + 2)
        return self.find(job_id)

    # --- inside -------------------------------------------------------------------------------------------

    def _launch(self, job: Job, data: Path) -> None:
        settings = self._settings
        store = VersionStore(settings.store)
        try:
            with store.job_lock():
                pass  # a job started by hand answers here, not only in the log of ours
        except StoreBusy as error:
            raise Problem("job_running", str(error), job=None) from error
        suspect = store.open_version(job.base_version, ("classifier.onnx",)) / "classifier.onnx"
        folder = self.records.path(job.id)
        manifest = store.manifest(job.base_version)
        argv = [
            sys.executable, "-P", "-m", "detrigger", "protect", str(suspect),
            "--data", str(data), "--store", str(store.root), "--preprocess", str(folder / "preprocess.json"),
            "--device", settings.retrain_device, "--profile", job.profile, "--seed", str(job.seed),
            "--purify", manifest.purify, "--name", manifest.name, "--job-dir", str(folder), "--json",
        ]  # fmt: skip
        if settings.signing_key is not None:
            argv += ["--sign", str(settings.signing_key.absolute())]
        if job.activate == "manual":
            argv.append("--no-promote")
        # The job needs none of the service's settings, least of all its token.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DETRIGGER_")}
        try:
            self.records.save(job)
            with os_errors("start a job in", folder):
                (folder / "preprocess.json").write_text(manifest.preprocess.model_dump_json(), "utf-8")
                job.reviewed = self._export(folder / REVIEWED) if self._export is not None else 0
                if job.reviewed:
                    argv += ["--reviewed", str(folder / REVIEWED)]
                with (folder / "log.txt").open("wb") as output:
                    self._process = subprocess.Popen(
                        argv,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        env=environment,
                        start_new_session=True,
                    )
            # Niceness from outside: code between fork and exec is not safe in a process with threads.
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, self._process.pid, settings.retrain_nice)
            job.state, job.started = "running", records.now()
            job.pid, job.pid_start = self._process.pid, records.start_time(self._process.pid)
            self.records.save(job)
        except DetriggerError:
            # Who asked is told; a process that no record names would be nobody's.
            if self._process is not None:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
                self._process = None
            self.records.remove(job.id)
            raise

    def _follow(self, job: Job) -> None:
        self._job = job
        self._last_event = time.monotonic()
        self._metrics.job_running.set(1)
        self._watch = asyncio.get_running_loop().create_task(self._watch_job(job), name=f"job {job.id}")

    def _event_age(self) -> float:
        return time.monotonic() - self._last_event if self._job is not None else 0.0

    async def _watch_job(self, job: Job) -> None:
        """Read the job's events until its process is gone; end it where it says nothing for too long."""
        offset = 0
        try:
            while True:
                ended = not self._runs(job)
                offset = await asyncio.to_thread(self._read_events, job, offset)
                if ended:
                    break
                if self._event_age() > self._settings.retrain_stall and job.error is None:
                    limit = self._settings.retrain_stall
                    job.error = JobError(
                        code="job_stalled", message=f"the job said nothing for {limit:g} s and was ended"
                    )
                    log.error("job %s said nothing for %g s, ending it", job.id, limit)
                    await self._kill(job)
                await asyncio.sleep(_LOOK_SECONDS)
            await self._close(job)
        finally:
            self._forget(job)

    def _runs(self, job: Job) -> bool:
        if self._process is not None:
            return self._process.poll() is None
        return _alive(job)

    def _read_events(self, job: Job, offset: int) -> int:
        before = job.model_copy(deep=True)
        for end, event in self.records.events(job.id, offset):
            records.apply_event(job, event)
            self._last_event = max(self._last_event, time.monotonic() - records.quiet_of(event))
            offset = end
        if job != before:
            with contextlib.suppress(StoreError):  # a full disk must not end the watch; memory has it all
                self.records.save(job)
        return offset

    def _forget(self, job: Job) -> None:
        if self._job is job:
            self._job = self._process = None
            self._metrics.job_running.set(0)

    async def _close(self, running: Job) -> None:
        """Write how a job ended whose process is gone, and count it."""
        job = running.model_copy(deep=True)  # whoever looks meanwhile sees it run
        told = job.error  # by whoever ended it
        result, otherwise = await asyncio.to_thread(lambda: (self.records.result(job.id), self._death(job)))
        if result is not None and result.get("exit_code") == _INTERRUPTED:
            result = None
        records.apply_result(job, result, told or otherwise)
        if result is None and told is None and job.cancel_requested:
            job.error = JobError(code="cancelled", message="the job was cancelled")
        if result is None and job.error is not None and job.error.code in ("cancelled", "service_stopped"):
            job.state = "cancelled"
        job.ended = records.now()
        if job.pid_start is not None and (seconds := records.seconds_since(job.pid_start)) >= 0:
            job.seconds = round(seconds, 1)
        await asyncio.to_thread(self.records.drop_reviewed, job.id)
        self._unsaved[job.id] = job
        self._forget(running)
        refused = job.error is not None and job.error.code == "gate_refused"
        self._metrics.jobs.labels("refused" if refused else job.state).inc()
        if job.seconds is not None:
            self._metrics.job_duration.set(job.seconds)
        if job.state == "succeeded":
            self._metrics.job_success.set(time.time())
        log.info(
            "job %s ended: %s", job.id, job.state, extra={"version": job.version, "promoted": job.promoted}
        )
        await self._save_ended()
        if self._unsaved and (self._saving is None or self._saving.done()):
            log.error("no room for the record of job %s, which ended: %s; trying again", job.id, job.state)
            self._saving = asyncio.get_running_loop().create_task(self._keep_saving(), name="job records")

    def _death(self, job: Job) -> JobError:
        """What can be told of a job that left no result."""
        code = self._process.returncode if self._process is not None else None
        how = "the job ended without a result"
        if code is not None:
            how += f", killed by {signal.Signals(-code).name}" if code < 0 else f", exit code {code}"
        if line := self.records.last_line(job.id):
            how += f"; the last line of its log: {line}"
        for place in (self.records.folder, Path(tempfile.gettempdir())):
            if is_full(place):
                how += f"; the file system {file_system(place)} is full: free some space there and run again"
                return JobError(code="disk_full", message=how)
        return JobError(code="job_died", message=how)

    async def _save_ended(self) -> None:
        for job in list(self._unsaved.values()):
            with contextlib.suppress(StoreError):  # memory has it all
                await asyncio.to_thread(self.records.save, job)
                del self._unsaved[job.id]

    async def _keep_saving(self) -> None:
        while self._unsaved:
            await asyncio.sleep(_SAVE_SECONDS)
            await self._save_ended()
        log.info("the records of all ended jobs are written")

    async def _kill(self, job: Job) -> None:
        """TERM to the job's whole process group, KILL to what is left of it after a while."""
        with contextlib.suppress(StoreError):
            await asyncio.to_thread(self.records.save, job)
        for sign, patience in ((signal.SIGTERM, _TERM_SECONDS), (signal.SIGKILL, 1.0)):
            if job.pid is None or not self._runs(job):
                return
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(job.pid, sign)
            until = time.monotonic() + patience
            while time.monotonic() < until and self._runs(job):
                await asyncio.sleep(0.05)


def _alive(job: Job) -> bool:
    return job.pid is not None and job.pid_start is not None and records.start_time(job.pid) == job.pid_start


def _timestamp(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
