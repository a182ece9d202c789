"""`create_app(settings)`: makes the parts and wires them; threads and tasks exist only inside the
lifespan.

    Observe -> Cors -> BodyLimits -> AdminGate -> Heads -> PredictFirst -> /predict
                                                                        -> FastAPI: every other path, and the lifespan
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from starlette.types import ASGIApp

from detrigger.service import problem
from detrigger.service.access import Access
from detrigger.service.api import admin, document, flagged, health, predict, v2
from detrigger.service.audit import Audit
from detrigger.service.connections import Guard, Room
from detrigger.service.console import app as console
from detrigger.service.console.live import Live
from detrigger.service.console.pages import Parts
from detrigger.service.console.session import Sessions
from detrigger.service.console.view import View
from detrigger.service.core import Core
from detrigger.service.decisions import Decisions
from detrigger.service.front import Cors, Heads
from detrigger.service.jobs.runner import Runner
from detrigger.service.metrics import Metrics
from detrigger.service.middleware import AdminGate, BodyLimits, Observe
from detrigger.service.protocol import Doorman
from detrigger.service.quarantine import Quarantine
from detrigger.service.registry import Registry
from detrigger.service.settings import Settings
from detrigger.service.traces import Traces


def package_version() -> str:
    """The installed version of Detrigger."""
    try:
        return version("detrigger")
    except PackageNotFoundError:
        return "0+unknown"


@dataclass(frozen=True)
class App:
    """The service as an ASGI app, and the parts of it that others ask for."""

    asgi: ASGIApp
    api: FastAPI  # every path but /predict
    registry: Registry
    doorman: Doorman  # for its connections


def create_app(settings: Settings, room: Room) -> App:
    """The service, not yet running.

    Raises:
        BadInput: the admin token is unusable, or traces are asked for that cannot be made. Everything else that may
        be wrong shows at /readyz.
    """
    traces = Traces(settings.otlp_endpoint, package_version()) if settings.otlp_endpoint else None
    metrics = Metrics(package_version())
    access = Access(settings, metrics)
    registry = Registry(settings, metrics)
    core = Core(settings, metrics, registry)
    guard = Guard(room, metrics)
    quarantine = Quarantine(settings, metrics, settings.quarantine) if settings.quarantine else None
    decisions = Decisions(settings, metrics, settings.decision_log) if settings.decision_log else None
    keepers = [keeper for keeper in (quarantine, decisions) if keeper is not None]
    core.offers += [keeper.offer for keeper in keepers]
    runner = Runner(settings, metrics, quarantine.export if quarantine is not None else None)
    audit = Audit(settings.store)
    live = Live(metrics)
    registry.stuck_for = core.batcher.stuck_for

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        core.start()
        for keeper in keepers:
            keeper.start()
        tasks = [
            asyncio.create_task(registry.run(), name="registry"),
            asyncio.create_task(registry.keep_verifying(), name="verify"),
            asyncio.create_task(guard.watch(), name="connections"),
        ]
        if access.enabled:
            await runner.start()
            tasks.append(asyncio.create_task(live.run(), name="live"))
        try:
            yield
        finally:
            registry.draining = True
            await runner.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await core.close()
            await registry.close()
            for keeper in keepers:
                await asyncio.to_thread(keeper.close)
            if traces is not None:
                await asyncio.to_thread(traces.close)

    api = FastAPI(
        title="Detrigger",
        version=package_version(),
        description="Answers from purified images and flags inputs that carry a trigger.",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's would load scripts from elsewhere; see `document`
        redoc_url=None,
    )
    api.include_router(health.router(settings, registry, metrics, package_version()))
    api.include_router(v2.router(settings, core, registry, metrics, package_version()))
    if access.enabled:
        api.include_router(admin.router(settings, registry, runner, audit))
        api.include_router(flagged.router(quarantine, core, audit))
        view = View(package_version())
        parts = Parts(settings, Sessions(access), core, registry, runner, quarantine, audit, live, view)
        api.mount("/console", console.create(parts, access))
        api.add_api_route("/console", lambda: RedirectResponse("/console/", 303), include_in_schema=False)
    problem.install(api)
    document.install(api)
    routed = predict.PredictFirst(predict.Predict(settings, core, metrics), api)
    gated = AdminGate(Heads(routed), access)
    limited = BodyLimits(gated, settings=settings, metrics=metrics)
    observed = Observe(
        Cors(limited, settings.origins()),
        settings=settings,
        metrics=metrics,
        draining=lambda: registry.draining,
        ended=traces.ended if traces is not None else None,
    )
    doorman = Doorman(settings, metrics, guard, core.crowded)
    return App(observed, api, registry, doorman)
