"""/v2: the Open Inference Protocol, for Triton's and KServe's clients. Errors here are `{"error": "..."}`."""

from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from detrigger.service import oip
from detrigger.service.api.predict import leaving_with_client
from detrigger.service.core import Core
from detrigger.service.engine import Model, Outputs
from detrigger.service.metrics import Metrics
from detrigger.service.middleware import info_of
from detrigger.service.problem import Problem
from detrigger.service.registry import Registry
from detrigger.service.settings import Settings

_HEADER = "inference-header-content-length"
_ERROR = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/OipError"}}}}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/OipRequest"}}},
    }
}


def router(
    settings: Settings, core: Core, registry: Registry, metrics: Metrics, package_version: str
) -> APIRouter:
    """The routes, bound to the parts that they use."""
    routes = APIRouter(prefix="/v2", tags=["open inference protocol"])
    offered = offered_outputs(settings)
    read_seconds, encode_seconds = metrics.stages["read"], metrics.stages["encode"]

    def served(name: str, version: str | None) -> Model:
        model = registry.active
        if model is None:
            raise registry.unavailable()
        if name != model.name or version not in (None, model.version):
            raise Problem("not_found", f"what is served is model {model.name}, version {model.version}")
        return model

    def describe(model: Model) -> dict[str, Any]:
        tensors = oip.tensors(model.shape, len(model.classes), offered)
        return {"name": model.name, "versions": [model.version], "platform": "onnx_onnxv1", **tensors}

    async def infer(request: Request, name: str, version: str | None) -> Response:
        info = info_of(request.scope)
        core.check_room()
        model = served(name, version)
        length = request.headers.get(_HEADER)
        if length is not None and not (length.isascii() and length.isdigit() and len(length) < 12):
            raise Problem("malformed_body", "Inference-Header-Content-Length must be a number")
        body = await request.body()
        header = None if length is None else int(length)
        parse = partial(oip.parse, body, header, model.shape, offered, settings.max_images)
        try:
            inference = await core.off_loop(len(body), parse, info)
        except Problem as problem:
            metrics.rejected(problem.code, 0)
            raise
        read_seconds.observe(perf_counter() - info.started)
        purified = any(output == "purified" for output, _ in inference.outputs)
        with leaving_with_client(request.receive, metrics):
            result = await core.infer(inference.pixels, model, info, purified=purified)
        began = perf_counter()
        index = policy_index(settings, result.outputs)
        write = partial(oip.answer, model.name, model.version, inference, result.outputs, index)
        content, head = await core.off_loop(inference.pixels.nbytes if purified else 0, write, info)
        encode_seconds.observe(perf_counter() - began)
        if head is None:
            return Response(content, media_type="application/json")
        return Response(content, media_type="application/octet-stream", headers={_HEADER: str(head)})

    @routes.get("")
    async def server() -> dict[str, Any]:
        """Name, version and extensions of the server."""
        return {"name": "detrigger", "version": package_version, "extensions": ["binary_tensor_data"]}

    @routes.get("/health/live")
    async def live() -> dict[str, bool]:
        """Whether the process answers."""
        return {"live": True}

    @routes.get("/health/ready", responses={503: {"description": "not ready"}})
    async def ready(response: Response) -> dict[str, bool]:
        """Whether the model is loaded and warm."""
        is_ready = registry.status()[0] == "ready"
        response.status_code = 200 if is_ready else 503
        return {"ready": is_ready}

    @routes.get("/models/{name}", responses={404: _ERROR, 503: _ERROR})
    async def model_metadata(name: str) -> dict[str, Any]:
        """Inputs and outputs of the served version."""
        return describe(served(name, None))

    @routes.get("/models/{name}/versions/{version}", responses={404: _ERROR, 503: _ERROR})
    async def version_metadata(name: str, version: str) -> dict[str, Any]:
        """Inputs and outputs, when `version` is the served one."""
        return describe(served(name, version))

    @routes.get("/models/{name}/ready", responses={404: _ERROR, 503: _ERROR})
    async def model_ready(name: str, response: Response) -> dict[str, Any]:
        """Whether the model answers."""
        served(name, None)
        return {"name": name, **await ready(response)}

    @routes.get("/models/{name}/versions/{version}/ready", responses={404: _ERROR, 503: _ERROR})
    async def version_ready(name: str, version: str, response: Response) -> dict[str, Any]:
        """Whether `version` is the served one and answers."""
        served(name, version)
        return {"name": name, **await ready(response)}

    failures: dict[int | str, dict[str, Any]] = {
        status: {"description": "refused", **_ERROR}
        for status in (400, 404, 408, 413, 415, 422, 429, 500, 503, 504)
    }

    @routes.post("/models/{name}/infer", openapi_extra=_BODY, responses=failures)
    async def infer_model(request: Request, name: str) -> Response:
        """Run the protected graph on `image`, FP32 (n, C, H, W) in [0, 1]; JSON or binary tensors."""
        return await infer(request, name, None)

    @routes.post("/models/{name}/versions/{version}/infer", openapi_extra=_BODY, responses=failures)
    async def infer_version(request: Request, name: str, version: str) -> Response:
        """The same, refused with 404 when `version` is not the served one."""
        return await infer(request, name, version)

    return routes


def offered_outputs(settings: Settings) -> tuple[str, ...]:
    """The outputs that the deployment gives away: all, or without what would undo its policy or its
    detail.
    """
    if settings.response_detail == "label":
        return ("index", "flagged")
    if settings.policy == "reject":
        return ("index", "flagged")  # a score would tell how near to the threshold a refused image came
    return ("logits", "logits_raw", "purified", "flag_score", "index", "flagged")


def policy_index(settings: Settings, outputs: Outputs) -> NDArray[np.int64]:
    """The class of each image: of the purified image, of the bare one (shadow), or -1 for refused ones
    (reject).
    """
    if settings.policy == "shadow":
        return outputs.raw_index
    if settings.policy == "reject":
        return np.where(outputs.flagged, -1, outputs.index)
    return outputs.index
