"""`create_app(settings)`: makes the parts and wires them; threads and tasks exist only inside the
lifespan.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI
from starlette.routing import Route

from service import problem
from service.api import admin, document, health, predict, v2
from service.core import Core
from service.jobs.runner import Runner
from service.metrics import PREDICT, Metrics
from service.middleware import AdminGate, BodyLimits, Observe
from service.registry import Registry
from service.settings import Settings
from service.traces import Traces


def package_version() -> str:
    """The installed version of Detrigger."""
    try:
        return version("detrigger")
    except PackageNotFoundError:
        return "0+unknown"


def create_app(settings: Settings) -> FastAPI:
    """The service as an ASGI app.

    Raises:
        BadInput: the admin token is unusable, or traces are asked for that cannot be made. Everything else that may
        be wrong shows at /readyz.
    """
    tokens = settings.tokens()
    traces = Traces(settings.otlp_endpoint, package_version()) if settings.otlp_endpoint else None
    metrics = Metrics(package_version())
    registry = Registry(settings, metrics)
    core = Core(settings, metrics, registry)
    runner = Runner(settings, metrics)
    registry.stuck_for = core.batcher.stuck_for

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        core.start()
        follow = asyncio.create_task(registry.run(), name="registry")
        if tokens:
            await runner.start()
        try:
            yield
        finally:
            registry.draining = True
            await runner.stop()
            follow.cancel()
            await asyncio.gather(follow, return_exceptions=True)
            await core.close()
            await registry.close()
            if traces is not None:
                await asyncio.to_thread(traces.close)

    app = FastAPI(
        title="Detrigger",
        version=package_version(),
        description="Answers from purified images and flags inputs that carry a trigger.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.registry = registry
    app.state.metrics = metrics
    app.router.routes.insert(0, Route(PREDICT, predict.Predict(settings, core, metrics), methods=["POST"]))
    app.include_router(health.router(settings, registry, metrics, package_version()))
    app.include_router(v2.router(settings, core, registry, metrics, package_version()))
    if tokens:
        app.include_router(admin.router(settings, registry, runner))
    problem.install(app)
    document.install(app)
    # The last one added is the outermost.
    app.add_middleware(AdminGate, tokens=tokens, port=settings.admin_port, metrics=metrics)
    app.add_middleware(BodyLimits, settings=settings, metrics=metrics)
    app.add_middleware(
        Observe,
        settings=settings,
        metrics=metrics,
        draining=lambda: registry.draining,
        ended=traces.ended if traces is not None else None,
    )
    return app
