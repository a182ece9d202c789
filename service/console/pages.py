"""What the console shows. Everything here only reads; `acts` changes things."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import Field, model_validator

from detrigger.models.manifest import VERSION_ID
from detrigger.models.promotions import serving_stack
from detrigger.models.store import VersionStore
from detrigger.service.api.flagged import Digest, Filter, Which, drawn, known
from detrigger.service.audit import Audit
from detrigger.service.console import charts
from detrigger.service.console.live import Live
from detrigger.service.console.session import Session, Sessions
from detrigger.service.console.view import View
from detrigger.service.core import Core
from detrigger.service.jobs.records import ENDED
from detrigger.service.jobs.runner import Runner
from detrigger.service.middleware import info_of
from detrigger.service.problem import Problem
from detrigger.service.quarantine import Quarantine
from detrigger.service.registry import Registry
from detrigger.service.settings import Settings

VersionId = Annotated[str, Path(pattern=VERSION_ID)]
JobId = Annotated[str, Path(max_length=64)]

PER_PAGE = 48
_LOG_BYTES, _LOG_LINES = 16 * 1024, 80
_ACTS = 200
# The report of a version is a whole page of its own with styles inside; it may do nothing else.
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"
)


@dataclass(frozen=True)
class Parts:
    """What the console looks at and acts on."""

    settings: Settings
    sessions: Sessions
    core: Core
    registry: Registry
    runner: Runner
    quarantine: Quarantine | None
    audit: Audit
    live: Live
    view: View


def router(parts: Parts) -> APIRouter:
    """The pages, bound to the parts that they show."""
    routes = APIRouter(default_response_class=HTMLResponse)
    view, registry = parts.view, parts.registry
    LoggedIn = Annotated[Session, Depends(parts.sessions.of)]

    def show(request: Request, session: Session, name: str, **values: Any) -> HTMLResponse:
        return view.page(request, name, session=session, model=registry.active, **values)

    @routes.get("/")
    async def overview(request: Request, session: LoggedIn) -> HTMLResponse:
        """What happens now."""
        return show(request, session, "overview.html", **live())

    @routes.get("/live")
    async def live_part(request: Request, session: LoggedIn) -> HTMLResponse:
        """The part of the overview that is asked for again and again."""
        return show(request, session, "live.html", **live())

    def live() -> dict[str, Any]:
        intervals = parts.live.intervals()
        model = registry.active
        counted = parts.core.watch.flagged_labels()
        labels = [(model.classes[index] if model else str(index), n) for index, n in counted.most_common(8)]
        concentration, about = parts.core.watch.concentration()
        return {
            "state": registry.status(),
            "error": registry.error,
            "now": parts.live.lately(),
            "totals": parts.live.totals(),
            "traffic": charts.lines(intervals, ["images_per_second"], 1.0),
            "rate": charts.lines(intervals, ["flagged_share"], 0.05),
            "latency": charts.lines(intervals, ["p50", "p99"], 0.01),
            "labels": labels,
            "flags": counted.total(),
            "gathered": counted[about],
            "concentration": concentration,
            "about": model.classes[about] if model and about >= 0 else None,
            "targets": {model.classes[t] for t in model.manifest.target_labels} if model else set(),
            "waiting": parts.core.places.taken,
            "settings": parts.settings,
            "box": (charts.WIDTH, charts.HEIGHT),
        }

    @routes.get("/versions")
    async def versions(request: Request, session: LoggedIn) -> HTMLResponse:
        """The store, newest first."""
        store = VersionStore(parts.settings.store)
        stored, damaged, log = await asyncio.to_thread(
            lambda: (store.versions(), store.damaged(), store.promotions())
        )
        stack = serving_stack(log)
        before = stack[-2] if len(stack) > 1 else None
        return show(request, session, "versions.html", versions=stored[::-1], damaged=damaged, before=before)

    @routes.get("/versions/{version}")
    async def version(request: Request, session: LoggedIn, version: VersionId) -> HTMLResponse:
        """One version: its gate and figures."""
        store = VersionStore(parts.settings.store)
        manifest = await asyncio.to_thread(store.manifest, version)
        return show(request, session, "version.html", it=manifest)

    @routes.get("/versions/{version}/report")
    async def report(session: LoggedIn, version: VersionId) -> Response:
        """The version's report, as published."""
        del session
        data = await asyncio.to_thread(VersionStore(parts.settings.store).read_file, version, "report.html")
        return Response(data, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})

    @routes.get("/jobs")
    async def jobs(request: Request, session: LoggedIn) -> HTMLResponse:
        """Retraining: start it, and what became of earlier runs."""
        stored = await asyncio.to_thread(parts.runner.records.all)
        found = [parts.runner.find(job.id) for job in stored]
        reviewed = 0
        if parts.quarantine is not None:
            reviewed = len(await asyncio.to_thread(parts.quarantine.find, lambda it: it.review is not None))
        return show(request, session, "jobs.html", jobs=found, settings=parts.settings, reviewed=reviewed)

    @routes.get("/jobs/{job}")
    async def job(request: Request, session: LoggedIn, job: JobId) -> HTMLResponse:
        """One job, live while it runs."""
        return show(request, session, "job.html", **await progress(job))

    @routes.get("/jobs/{job}/progress")
    async def job_progress(request: Request, session: LoggedIn, job: JobId) -> HTMLResponse:
        """The part of a job's page that changes."""
        return show(request, session, "progress.html", **await progress(job))

    async def progress(job_id: str) -> dict[str, Any]:
        try:
            found = parts.runner.find(job_id)
            folder = parts.runner.records.path(job_id)
        except KeyError:
            raise Problem("job_unknown", "the list of jobs shows what is remembered") from None
        text = await asyncio.to_thread(tail, folder / "log.txt")
        return {"job": found, "ended": found.state in ENDED, "log": text}

    @routes.get("/quarantine")
    async def gallery(request: Request, session: LoggedIn, query: Annotated[Shown, Query()]) -> HTMLResponse:
        """What was flagged, to be looked at."""
        if parts.quarantine is None:
            return show(request, session, "gallery.html", off=True)
        every = await asyncio.to_thread(parts.quarantine.find)
        found = [item for item in every if query.wants(item)]
        start = PER_PAGE * (query.page - 1)
        return show(
            request,
            session,
            "gallery.html",
            off=False,
            query=query,
            items=found[start : start + PER_PAGE],
            total=len(found),
            everything=len(every),
            labels=sorted({item.raw_label for item in every}),
            days=sorted({item.day for item in every}, reverse=True),
            pages=-(-len(found) // PER_PAGE),
            settings=parts.settings,
        )

    @routes.get("/quarantine/{digest}")
    async def image(request: Request, session: LoggedIn, digest: Digest) -> HTMLResponse:
        """One image: as sent, purified, the difference, and all that is known of it."""
        item = await known(lambda: kept().get(digest))
        drawing = charts.scores(parts.core.watch.scores(), item.threshold, item.flag_score)
        return show(
            request, session, "image.html", it=item, scores=drawing, box=(charts.WIDTH, charts.HEIGHT)
        )

    @routes.get("/quarantine/{digest}/{which}.png", response_class=Response)
    async def picture(request: Request, session: LoggedIn, digest: Digest, which: Which) -> Response:
        """Its pictures, encoded anew."""
        del session
        data = await drawn(kept(), parts.core, info_of(request.scope), digest, which)
        return Response(data, media_type="image/png")

    @routes.get("/log")
    async def log(request: Request, session: LoggedIn) -> HTMLResponse:
        """Who did what."""
        store = VersionStore(parts.settings.store)
        acts, promotions = await asyncio.to_thread(
            lambda: (parts.audit.last(_ACTS), store.promotions()[-_ACTS:][::-1])
        )
        return show(request, session, "log.html", acts=acts, promotions=promotions)

    @routes.get("/try")
    async def trial(request: Request, session: LoggedIn) -> HTMLResponse:
        """Try an image."""
        return show(request, session, "try.html", look=None)

    def kept() -> Quarantine:
        if parts.quarantine is None:
            raise Problem("quarantine_off", "set DETRIGGER_QUARANTINE to a folder to keep flagged images")
        return parts.quarantine

    return routes


class Shown(Filter):
    """The query of the gallery; an empty field of its form asks for everything."""

    page: int = Field(default=1, ge=1, le=10**6)

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, given: object) -> object:
        return {k: v for k, v in given.items() if v != ""} if isinstance(given, dict) else given


def tail(path: FilePath) -> str:
    """The end of a log file; of a progress bar that was drawn over and over, the last state."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _LOG_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").split("\n")]
    return "\n".join(lines[-_LOG_LINES:]).strip()
