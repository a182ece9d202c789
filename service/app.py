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
from starlette.types import ASGIApp

from detrigger.service import problem
from detrigger.service.api import admin, document, health, predict, v2
from detrigger.service.connections import Guard, Room
from detrigger.service.core import Core
from detrigger.service.front import Cors, Heads
from detrigger.service.jobs.runner import Runner
from detrigger.service.metrics import Metrics
from detrigger.service.middleware import AdminGate, BodyLimits, Observe
from detrigger.service.protocol import Doorman, protocol_class
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
    protocol: type[asyncio.Protocol]  # of its connections


def create_app(settings: Settings, room: Room) -> App:
    """The service, not yet running.

    Raises:
        BadInput: the admin token is unusable, or traces are asked for that cannot be made. Everything else that may
        be wrong shows at /readyz.
    """
    tokens = settings.tokens()
    traces = Traces(settings.otlp_endpoint, package_version()) if settings.otlp_endpoint else None
    metrics = Metrics(package_version())
    registry = Registry(settings, metrics)
    core = Core(settings, metrics, registry)
    guard = Guard(room, metrics)
    runner = Runner(settings, metrics)
    registry.stuck_for = core.batcher.stuck_for

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        core.start()
        follow = asyncio.create_task(registry.run(), name="registry")
        verify = asyncio.create_task(registry.keep_verifying(), name="verify")
        watch = asyncio.create_task(guard.watch(), name="connections")
        if tokens:
            await runner.start()
        try:
            yield
        finally:
            registry.draining = True
            await runner.stop()
            follow.cancel()
            verify.cancel()
            watch.cancel()
            await asyncio.gather(follow, verify, watch, return_exceptions=True)
            await core.close()
            await registry.close()
            if traces is not None:
                await asyncio.to_thread(traces.close)

    api = FastAPI(
        title="Detrigger",
        version=package_version(),
        description="Answers from purified images and flags inputs that carry a trigger.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    api.include_router(health.router(settings, registry, metrics, package_version()))
    api.include_router(v2.router(settings, core, registry, metrics, package_version()))
    if tokens:
        api.include_router(admin.router(settings, registry, runner))
    problem.install(api)
    document.install(api)
    routed = predict.PredictFirst(predict.Predict(settings, core, metrics), api)
    gated = AdminGate(Heads(routed), tokens=tokens, port=settings.admin_port, metrics=metrics)
    limited = BodyLimits(gated, settings=settings, metrics=metrics)
    observed = Observe(
        Cors(limited, settings.origins()),
        settings=settings,
        metrics=metrics,
        draining=lambda: registry.draining,
        ended=traces.ended if traces is not None else None,
    )
    doorman = Doorman(settings, metrics, guard, core.crowded)
    return App(observed, api, registry, protocol_class(doorman))
