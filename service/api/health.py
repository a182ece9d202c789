"""/livez, /readyz, /version and /metrics; and what leads on from `/` and `/health`."""

import json
from datetime import UTC, datetime

import onnxruntime
from fastapi import APIRouter, Response

from detrigger.service.api import schemas
from detrigger.service.engine import engine_threads
from detrigger.service.metrics import Metrics
from detrigger.service.registry import Registry
from detrigger.service.settings import Settings

_ROOT = json.dumps(
    {
        "service": "detrigger",
        "classify": "POST /predict with an image as the body",
        "documentation": "/docs",
        "health": ["/livez", "/readyz"],
        "see also": ["/version", "/metrics", "/v2"],
    }
).encode()


def router(settings: Settings, registry: Registry, metrics: Metrics, version: str) -> APIRouter:
    """The routes, bound to the parts that they use."""
    routes = APIRouter(tags=["health"])

    @routes.get("/livez", response_model=schemas.Live)
    async def livez() -> Response:
        """Whether the process answers at all; never asks the model."""
        return Response(b'{"status":"alive"}', media_type="application/json")

    @routes.get("/readyz", response_model=schemas.Ready, responses={503: {"model": schemas.Ready}})
    async def readyz(response: Response) -> schemas.Ready:
        """Whether to send requests here: a model is loaded and warm, and the service is not shutting down."""
        status, reason = registry.status()
        if status != "ready":
            response.status_code = 503
            response.headers["Retry-After"] = "5"
        return schemas.Ready.model_validate({"status": status, "reason": reason})

    @routes.get("/health", include_in_schema=False)
    async def health(response: Response) -> schemas.Ready:
        """/readyz under the name that many look for; a redirect would look healthy to them whatever is the case."""
        response.headers["Link"] = '</readyz>; rel="canonical", </livez>; rel="alternate"'
        return await readyz(response)

    @routes.get("/", include_in_schema=False)
    async def root() -> Response:
        """Where to go from here, for people with a browser and with curl."""
        return Response(_ROOT, 307, {"Location": "/docs"}, "application/json")

    @routes.get("/version")
    async def show_version() -> schemas.Version:
        """What runs here: program, model, the engine really used, policy and limits."""
        model = registry.active
        served = None
        if model is not None:
            manifest = model.manifest
            served = schemas.ServedModel(
                name=model.name,
                version=model.version,
                created=manifest.created,
                loaded=datetime.fromtimestamp(registry.loaded_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                verdict=manifest.verdict,
                sha256=manifest.files["protected.onnx"].sha256,
                flag_threshold=manifest.flag.threshold,
                purify=manifest.purify,
                suspected=manifest.flag.suspected,
                given_up=manifest.given_up,
                classes=len(manifest.classes),
                size=manifest.preprocess.size,
            )
        return schemas.Version(
            detrigger=version,
            status=registry.status()[0],
            model=served,
            error=registry.error,
            damage=registry.damage,
            engine=schemas.Engine(
                device_asked=settings.device,
                provider=model.provider if model else None,
                onnxruntime=onnxruntime.__version__,
                threads=engine_threads(settings),
            ),
            policy=settings.policy,
            response_detail=settings.response_detail,
            limits=schemas.Limits(
                max_body_bytes=settings.max_body_bytes,
                max_images=settings.max_images,
                max_pixels=settings.max_pixels,
                max_side=settings.max_side,
                max_request_pixels=settings.max_request_pixels,
                max_head_bytes=settings.max_head_bytes,
                max_connections=settings.max_connections,
                queue_images=settings.queue_images,
                batch_size=settings.batch_size,
                deadline=settings.deadline,
            ),
        )

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def show_metrics() -> Response:
        """Everything that is counted, for Prometheus."""
        metrics.ready.set(registry.status()[0] == "ready")
        text, content_type = metrics.exposition()
        return Response(text, headers={"Content-Type": content_type})

    return routes
