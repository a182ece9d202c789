"""POST /predict: images in, labels of the purified images and flags out.

This is the hot path: the body is read and the JSON written by hand, and nothing is looked up that could be
bound.
"""

import asyncio
import base64
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import pydantic_core
from fastapi import APIRouter, Query, Request, Response
from numpy.typing import NDArray
from PIL import Image

from service import forms
from service.api.schemas import Predictions, problems
from service.core import Answer, Core
from service.images import MEDIA_TYPES
from service.metrics import Metrics
from service.middleware import info_of
from service.problem import Problem
from service.settings import Settings

_WATCH_AFTER = 0.25
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            **dict.fromkeys(MEDIA_TYPES, _BINARY),
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "array", "items": {"type": "string", "format": "binary"}}
                    },
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "additionalProperties": False,
                    "properties": {
                        "images": {
                            "type": "array",
                            "minItems": 1,
                            "items": {"type": "string", "format": "byte"},
                        }
                    },
                }
            },
        },
    }
}


def router(settings: Settings, core: Core, metrics: Metrics) -> APIRouter:
    """The route, bound to the parts that it uses."""
    routes = APIRouter(tags=["predict"])
    max_images = settings.max_images
    encode = Encoder(settings)
    read_seconds, encode_seconds = metrics.stages["read"], metrics.stages["encode"]

    @routes.post(
        "/predict",
        response_model=Predictions,
        responses=problems(400, 408, 413, 415, 422, 429, 500, 503, 504),
        openapi_extra=_BODY,
    )
    async def predict(
        request: Request,
        top_k: Annotated[int, Query(ge=1, le=10, description="how many classes to list per image")] = 1,
        purified: Annotated[bool, Query(description="also send each purified image as PNG")] = False,
    ) -> Response:
        """Classify 1 to 32 images after purifying them.

        The body is one encoded image, `multipart/form-data` with parts named `file`, or JSON
        `{"images": ["<base64>"]}`. Either all images are answered, in the order sent, or the request is
        refused.
        """
        info = info_of(request.scope)
        core.check_room()
        body = await request.body()
        split = partial(forms.split, request.headers.get("content-type", ""), body, max_images)
        try:
            images = await core.off_loop(len(body), split)
        except Problem as problem:
            metrics.rejected(problem.code, 0)
            raise
        read_seconds.observe(perf_counter() - info.started)
        with leaving_with_client(request, metrics):
            answer = await core.classify(images, info, purified=purified)
        began = perf_counter()
        if answer.outputs.purified is None:
            content = encode(answer, info.id, top_k, ())
        else:
            pictures = partial(to_png, answer.outputs.purified)
            content = encode(
                answer, info.id, top_k, await core.off_loop(answer.outputs.purified.nbytes, pictures)
            )
        encode_seconds.observe(perf_counter() - began)
        return Response(content, media_type="application/json")

    return routes


class Encoder:
    """Writes answers as JSON, with the deployment's policy and detail applied."""

    def __init__(self, settings: Settings) -> None:
        self.shadow = settings.policy == "shadow"
        self.reject = settings.policy == "reject"
        self.full = settings.response_detail == "full"

    def __call__(self, answer: Answer, request_id: str, top_k: int, pictures: tuple[str, ...]) -> bytes:
        """The JSON of `schemas.Predictions`.

        Policy `purify` answers from the purified image; `shadow` answers what the bare model says (flags
        are still reported, so a roll-out can be watched before it changes answers); `reject` gives no
        label to flagged images.
        """
        outputs, model = answer.outputs, answer.model
        scores = softmax(outputs.logits_raw) if self.shadow else outputs.scores
        best = (outputs.raw_index if self.shadow else outputs.index).tolist()
        flagged = outputs.flagged.tolist()
        flag_scores = outputs.flag_score.tolist()
        classes = model.classes
        predictions: list[dict[str, Any]] = []
        for row, index in enumerate(best):
            suspicious = flagged[row]
            flag_score = round(flag_scores[row], 6) if self.full else None
            if self.reject and suspicious:
                top: list[dict[str, Any]] = []
                first: dict[str, Any] = {"index": None, "label": None, "score": None}
            else:
                ranks = [index] if top_k == 1 else (-scores[row]).argsort(kind="stable")[:top_k].tolist()
                top = [
                    {
                        "index": rank,
                        "label": classes[rank],
                        "score": round(float(scores[row, rank]), 6) if self.full else None,
                    }
                    for rank in ranks
                ]
                first = top[0]
            predictions.append(
                {
                    **first,
                    "top_k": top,
                    "flagged": suspicious,
                    "flag_score": flag_score,
                    "purified_png": pictures[row] if pictures else None,
                }
            )
        return pydantic_core.to_json(
            {
                "model": {"name": model.name, "version": model.version},
                "predictions": predictions,
                "request_id": request_id,
            }
        )


@contextmanager
def leaving_with_client(request: Request, metrics: Metrics) -> Iterator[None]:
    """Give a request up when its client goes away while it waits.

    Starlette does not cancel handlers. Watching costs a task, so it begins only once a request has waited
    a while.
    """
    task = asyncio.current_task()
    gone = False
    watcher: asyncio.Task[None] | None = None

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        if task is not None:
            task.cancel()

    def begin() -> None:
        nonlocal watcher
        watcher = asyncio.get_running_loop().create_task(watch(), name="disconnect watch")

    timer = asyncio.get_running_loop().call_later(_WATCH_AFTER, begin)
    try:
        yield
    except asyncio.CancelledError:
        if not gone or task is None:
            raise
        task.uncancel()
        metrics.shed.labels("client_gone").inc()
        raise Problem("bad_request", "the client closed the connection") from None
    finally:
        timer.cancel()
        if watcher is not None:
            watcher.cancel()


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Row-wise softmax."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float32)


def to_png(purified: NDArray[np.float32]) -> tuple[str, ...]:
    """Purified images, (n, C, H, W) in [0, 1], as base64 of 8-bit PNGs."""
    pixels = np.rint(purified.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    texts: list[str] = []
    for picture in pixels:
        out = BytesIO()
        Image.fromarray(np.ascontiguousarray(picture.squeeze(2) if picture.shape[2] == 1 else picture)).save(
            out, "PNG"
        )
        texts.append(base64.b64encode(out.getvalue()).decode())
    return tuple(texts)
