"""/admin: retraining, versions, rollback. The token was checked by `middleware.AdminGate` before anything
here runs.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Body, Path, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from detrigger.models.promotions import Promotion
from detrigger.models.store import VersionStore
from detrigger.service.api import schemas
from detrigger.service.audit import Audit
from detrigger.service.jobs.records import ENDED, Job
from detrigger.service.jobs.runner import Runner
from detrigger.service.problem import Problem
from detrigger.service.registry import Registry
from detrigger.service.settings import Profile, Settings

_EVENT_SECONDS = 0.5
_KEEP_ALIVE_LOOKS = 30  # a comment every 15 s keeps proxies from closing a silent stream

JobId = Annotated[str, Path(max_length=64)]
VersionId = Annotated[str, Path(max_length=64)]


def _integral(value: object) -> object:
    """JSON has one kind of number: 7.0 is the integer 7."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Seed = Annotated[int, Field(ge=0, le=2**31 - 1), BeforeValidator(_integral)]


class Retrain(BaseModel):
    """The optional body of POST /admin/retrain."""

    model_config = ConfigDict(extra="forbid", strict=True)

    profile: Profile | None = Field(default=None, description="null takes the configured profile")
    seed: Seed | None = Field(default=None, description="null draws one; the job says which")
    activate: Literal["auto", "manual"] = Field(
        default="auto", description="manual publishes without promoting"
    )


class Reason(BaseModel):
    """The optional body of the calls that change what is served."""

    model_config = ConfigDict(extra="forbid", strict=True)

    reason: str = Field(default="", max_length=500, description="stands in the promotion log")
    force: bool = Field(default=False, description="promote although the gate did not pass")


def router(settings: Settings, registry: Registry, runner: Runner, audit: Audit) -> APIRouter:
    """The routes, bound to the parts that they use."""
    routes = APIRouter(prefix="/admin", tags=["admin"], responses=schemas.problems(401, 403, 404, 429, 500))

    def job_or_404(job_id: str) -> Job:
        try:
            return runner.find(job_id)
        except KeyError:
            raise Problem("job_unknown", "GET /admin/jobs lists the jobs") from None

    @routes.post("/retrain", status_code=202, responses=schemas.problems(409, 422, 507))
    async def retrain(
        request: Request, response: Response, options: Annotated[Retrain | None, Body()] = None
    ) -> Job:
        """Start the offline job on the configured data, with the quarantine's reviewed images; 409 with the running
        job's id when there is one.
        """
        options = options or Retrain()
        base = registry.active
        if base is None:
            raise Problem("nothing_promoted", "there is no version to refresh; run `detrigger protect` first")
        profile = options.profile or settings.retrain_profile
        job = await runner.submit(base.version, profile, options.seed, options.activate)
        audit.record(
            request.scope,
            "admin",
            "retrain",
            job=job.id,
            profile=profile,
            seed=job.seed,
            activate=options.activate,
            reviewed=job.reviewed,
        )
        response.headers["Location"] = f"/admin/jobs/{job.id}"
        return job

    @routes.get("/jobs")
    async def jobs() -> schemas.Jobs:
        """All jobs that are remembered, newest first."""
        stored = await asyncio.to_thread(runner.records.all)
        return schemas.Jobs(jobs=[schemas.JobView(**runner.find(job.id).model_dump()) for job in stored])

    @routes.get("/jobs/{job}")
    async def show_job(job: JobId) -> Job:
        """State, progress 0..1, stage, metrics, and how it ended."""
        return job_or_404(job)

    @routes.get(
        "/jobs/{job}/events",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}}},
    )
    async def events(request: Request, job: JobId) -> StreamingResponse:
        """The job's progress as server-sent events, from its beginning or from `Last-Event-ID`, until it
        ends.
        """
        job_or_404(job)
        last = request.headers.get("last-event-id", "")
        start = int(last) if last.isascii() and last.isdigit() and len(last) < 12 else 0
        return StreamingResponse(
            _stream(job, start), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    async def _stream(job_id: str, offset: int) -> AsyncIterator[bytes]:
        silent = 0
        while not registry.draining:
            ended = runner.find(job_id).state in ENDED
            found = await asyncio.to_thread(list, runner.records.events(job_id, offset))
            for end, event in found:
                offset = end
                yield f"id: {end}\nevent: progress\ndata: {json.dumps(event)}\n\n".encode()
            if ended:
                yield f"event: end\ndata: {runner.find(job_id).model_dump_json()}\n\n".encode()
                return
            silent = 0 if found else silent + 1
            if silent % _KEEP_ALIVE_LOOKS == _KEEP_ALIVE_LOOKS - 1:
                yield b": still running\n\n"
            await asyncio.sleep(_EVENT_SECONDS)

    @routes.delete("/jobs/{job}", responses=schemas.problems(409))
    async def cancel(request: Request, job: JobId) -> Job:
        """End a running job; 409 when it has ended already."""
        job_or_404(job)
        cancelled = await runner.cancel(job)
        audit.record(request.scope, "admin", "cancel", job=job)
        return cancelled

    @routes.get("/versions", responses=schemas.problems(409))
    async def versions() -> schemas.Versions:
        """The store: every version with its manifest (gate results, verdict, digests), and which one is
        served.
        """
        store = VersionStore(settings.store)
        stored, damaged, promoted = await asyncio.to_thread(
            lambda: (store.versions(), store.damaged(), store.current())
        )
        active = registry.active.version if registry.active else None
        return schemas.Versions(
            active=active,
            promoted=promoted,
            versions=[schemas.StoredVersion(id=it.id, active=it.id == active, manifest=it) for it in stored],
            damaged=damaged,
        )

    @routes.post("/versions/{version}/activate", responses=schemas.problems(409, 422, 507))
    async def activate(
        request: Request, version: VersionId, options: Annotated[Reason | None, Body()] = None
    ) -> Promotion:
        """Load and warm a version, then promote and serve it; if it cannot be loaded nothing changes."""
        options = options or Reason()
        entry = await registry.activate(
            version, "admin", options.reason or "activated over HTTP", force=options.force
        )
        audit.record(
            request.scope,
            "admin",
            "activate",
            version=version,
            number=entry.number,
            force=options.force,
            reason=options.reason,
        )
        return entry

    @routes.post("/rollback", responses=schemas.problems(409, 422, 507))
    async def rollback(request: Request, options: Annotated[Reason | None, Body()] = None) -> Promotion:
        """Serve the version that was served before; twice goes back two versions."""
        options = options or Reason()
        entry = await registry.rollback("admin", options.reason or "rolled back over HTTP")
        audit.record(
            request.scope,
            "admin",
            "rollback",
            version=entry.version,
            number=entry.number,
            reason=options.reason,
        )
        return entry

    return routes
