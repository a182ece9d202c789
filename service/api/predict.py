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
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import pydantic_core
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, Field, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from detrigger.service import forms
from detrigger.service.core import Answer, Core
from detrigger.service.engine import softmax
from detrigger.service.metrics import PREDICT, Metrics
from detrigger.service.middleware import header, info_of
from detrigger.service.problem import Problem
from detrigger.service.settings import Settings

_WATCH_AFTER = 0.25


class Query(BaseModel):
    """The query of /predict."""

    top_k: int = Field(default=1, ge=1, le=10, description="how many classes to list per image")
    purified: bool = Field(default=False, description="also send each purified image as PNG")


_DEFAULT = Query()


class PredictFirst:
    """Sends /predict straight to its endpoint, and everything else to FastAPI.

    FastAPI's own layers, which come before its routes, do a seventh of all that the service does for a small image.
    """

    def __init__(self, predict: ASGIApp, api: ASGIApp) -> None:
        self.predict, self.api = predict, api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection scope; refusals of /predict become problems here, as FastAPI does it for others."""
        if scope["type"] != "http" or scope["path"] not in (PREDICT, f"{PREDICT}/"):
            await self.api(scope, receive, send)
            return
        scope["path"] = PREDICT  # a slash too many is a slip, and a redirect would have the images sent twice
        try:
            await self.predict(scope, receive, send)
        except Problem as problem:
            await problem.response(PREDICT, info_of(scope).id)(scope, receive, send)


class Predict:
    """The endpoint, as plain ASGI; the OpenAPI document has its part from `service.api.document`.

    FastAPI's solving of dependencies and building of responses would cost as much as a small model takes.
    """

    def __init__(self, settings: Settings, core: Core, metrics: Metrics) -> None:
        self.core = core
        self.metrics = metrics
        self.max_images = settings.max_images
        self.encode = Encoder(settings)
        self.read_seconds, self.encode_seconds = metrics.stages["read"], metrics.stages["encode"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one POST.

        Raises:
            Problem: instead of an answer.
        """
        if scope["method"] != "POST":
            raise Problem("method_not_allowed", "Method Not Allowed", headers={"allow": "POST"})
        info = info_of(scope)
        query = parse_query(scope["query_string"]) if scope["query_string"] else _DEFAULT
        self.core.check_room()
        body = await read_body(receive)
        content_type = (header(scope, b"content-type") or b"").decode("latin-1")
        split = partial(forms.split, content_type, body, self.max_images)
        try:
            images = await self.core.off_loop(len(body), split, info)
        except Problem as problem:
            self.metrics.rejected(problem.code, 0)
            raise
        self.read_seconds.observe(perf_counter() - info.started)
        with leaving_with_client(receive, self.metrics):
            answer = await self.core.classify(images, info, purified=query.purified)
        began = perf_counter()
        pictures: tuple[str, ...] = ()
        if answer.outputs.purified is not None and query.purified:
            draw = partial(to_png, answer.outputs.purified)
            pictures = await self.core.off_loop(answer.outputs.purified.nbytes, draw, info)
        content = self.encode(answer, info.id, query.top_k, pictures)
        self.encode_seconds.observe(perf_counter() - began)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})


def parse_query(text: bytes) -> Query:
    """The query as typed values; unknown names are ignored, of repeated ones the last counts.

    Raises:
        Problem: a value is out of range.
    """
    try:
        return Query.model_validate(dict(parse_qsl(text.decode("latin-1"), keep_blank_values=True)))
    except ValidationError as error:
        errors = [
            {"field": f"query.{item['loc'][0]}", "code": item["type"], "detail": item["msg"]}
            for item in error.errors(include_url=False)
        ]
        first = f"{errors[0]['field']}: {errors[0]['detail']}"
        raise Problem("validation_failed", first, errors=errors) from error


async def read_body(receive: Receive) -> bytes:
    """The whole body, which `middleware.BodyLimits` bounds in size and time.

    Raises:
        Problem: the client went away.
    """
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        whole: bytes = message.get("body", b"")
        return whole
    chunks: list[bytes] = []
    while message["type"] == "http.request":
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)
        message = await receive()
    raise Problem("bad_request", "the client closed the connection")


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
            refused = self.reject and suspicious
            # Of a refused image nothing is said: a score or a picture would tell how near the next try comes.
            flag_score = round(flag_scores[row], 6) if self.full and not refused else None
            if refused:
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
                    "purified_png": pictures[row] if pictures and not refused else None,
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
def leaving_with_client(receive: Receive, metrics: Metrics) -> Iterator[None]:
    """Give a request up when its client goes away while it waits.

    Starlette does not cancel handlers. Watching costs a task, so it begins only once a request has waited
    a while.
    """
    task = asyncio.current_task()
    gone = False
    watcher: asyncio.Task[None] | None = None

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
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
