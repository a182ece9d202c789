"""Errors as clients see them: RFC 9457 `application/problem+json` with a stable `code`.

One table maps codes to status and title. Code anywhere raises `Problem(code, detail)`; whatever else is
raised becomes `internal_error` without a word about its cause (that goes to the log). Paths under /v2
speak the Open Inference Protocol instead: `{"error": "..."}` with the same status.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from detrigger.models.errors import DetriggerError

log = logging.getLogger(__name__)

TABLE: dict[str, tuple[int, str]] = {
    "bad_request": (400, "The request is malformed"),
    "malformed_body": (400, "The body could not be parsed"),
    "empty_body": (400, "The body holds no image"),
    "url_not_accepted": (400, "Images are sent, never fetched"),
    "image_undecodable": (400, "An image could not be decoded"),
    "unauthorized": (401, "A valid bearer token is needed"),
    "forbidden": (403, "The token does not allow this"),
    "not_found": (404, "There is nothing here"),
    "version_unknown": (404, "The store holds no such version"),
    "job_unknown": (404, "There is no such job"),
    "image_unknown": (404, "The quarantine holds no such image"),
    "method_not_allowed": (405, "The path does not take this method"),
    "head_timeout": (408, "The headers did not arrive in time"),
    "body_timeout": (408, "The body did not arrive in time"),
    "job_running": (409, "A retrain job is running"),
    "job_finished": (409, "The job has ended"),
    "retrain_not_configured": (409, "Retraining is not configured"),
    "quarantine_off": (409, "No images are kept"),
    "nothing_promoted": (409, "No version has been promoted"),
    "nothing_to_roll_back": (409, "There is no earlier version"),
    "version_refused": (409, "The version cannot be served"),
    "store_error": (409, "The version store refused"),
    "gate_refused": (409, "The gate refused"),
    "body_too_large": (413, "The body is too large"),
    "unsupported_media_type": (415, "The content type is not accepted"),
    "content_encoding_refused": (415, "Compressed bodies are not accepted"),
    "image_format_refused": (415, "The image format is not accepted"),
    "validation_failed": (422, "A parameter is out of range"),
    "too_many_images": (422, "Too many images in one request"),
    "image_too_large": (422, "An image has too many pixels"),
    "too_many_pixels": (422, "Too many pixels in one request"),
    "image_animated": (422, "Animated images are not accepted"),
    "tensor_refused": (400, "The tensor is not as the model wants it"),
    "image_refused": (422, "The kind of image is not accepted"),
    "queue_full": (429, "The queue is full"),
    "overloaded": (429, "Too many large bodies at once"),
    "auth_throttled": (429, "Too many failed attempts"),
    "head_too_large": (431, "The request line and headers are too large"),
    "internal_error": (500, "Something failed on our side"),
    "too_many_connections": (503, "Too many connections"),
    "starting": (503, "The service is starting"),
    "draining": (503, "The service is shutting down"),
    "failed": (503, "The service has no working model"),
    "deadline_exceeded": (504, "The answer took too long"),
    "storage_full": (507, "The disk is full"),
}
_FOR_STATUS = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
}
_RETRY_AFTER = {
    "queue_full": "1",
    "overloaded": "1",
    "too_many_connections": "1",
    "starting": "5",
    "draining": "5",
    "failed": "30",
}


class Problem(HTTPException):
    """A refusal that its receiver is told about.

    It is a starlette HTTPException so that FastAPI lets it pass wherever it is raised.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
        **members: str | int | None,
    ) -> None:
        """Raise for `code` of TABLE; `errors` lists one entry per refused image; `members` are added to
        the body.
        """
        status, self.title = TABLE[code]
        extra = dict(headers or {})
        if code in _RETRY_AFTER:
            extra.setdefault("Retry-After", _RETRY_AFTER[code])
        if status == 401:
            extra["WWW-Authenticate"] = "Bearer"
        super().__init__(status, detail, extra)
        self.code = code
        self.errors = errors
        self.members = members

    def response(self, path: str, request_id: str) -> Response:
        """The problem for a client of `path`."""
        if is_v2(path):
            body: dict[str, Any] = {"error": self.detail}
            media_type = "application/json"
        else:
            body = {
                "type": f"urn:detrigger:problem:{self.code.replace('_', '-')}",
                "title": self.title,
                "status": self.status_code,
                "detail": self.detail,
                "instance": f"urn:request:{request_id}",
                "code": self.code,
                **self.members,
            }
            if self.errors:
                body["errors"] = list(self.errors)
            media_type = "application/problem+json"
        return Response(json.dumps(body).encode(), self.status_code, self.headers, media_type)


def is_v2(path: str) -> bool:
    """Whether `path` belongs to the Open Inference Protocol."""
    return path == "/v2" or path.startswith("/v2/")


def request_id_of(scope: Mapping[str, Any]) -> str:
    """The id that the outermost middleware gave to this request."""
    info = scope.get("detrigger.request")
    return info.id if info is not None else "-"


_FOR_DOMAIN = {
    "store_busy": "job_running",
    "gate_refused": "gate_refused",
    "disk_full": "storage_full",
    "bad_version_id": "version_unknown",
    "unknown_version": "version_unknown",
    "damaged_version": "version_refused",
    "version_refused": "version_refused",
    "signature_refused": "version_refused",
    "nothing_to_roll_back": "nothing_to_roll_back",
    "no_store": "store_error",
    "store_error": "store_error",
    "damaged_log": "store_error",
}


def from_domain(error: DetriggerError) -> Problem:
    """A DetriggerError of the store or of a model as a problem; its message is made for users."""
    code = _FOR_DOMAIN.get(error.code)
    if code is None:
        return Problem("internal_error", "see the log of the service under this request's id")
    return Problem(code, str(error))


def _allowed(app: FastAPI, request: Request) -> str:
    """The methods of a path, for the Allow header: starlette names those of its first route only."""
    template = getattr(request.scope.get("route"), "path", None)
    methods = app.openapi()["paths"].get(template, {})
    return ", ".join(sorted({*map(str.upper, methods)} | ({"HEAD"} if "get" in methods else set())))


def install(app: FastAPI) -> None:
    """Answer every error of `app`'s routes as a problem: 404, 405 and validation errors as well."""

    async def on_http(request: Request, error: Exception) -> Response:
        if not isinstance(error, Problem):
            assert isinstance(error, HTTPException)  # noqa: S101 - what starlette promises for this handler
            code = _FOR_STATUS.get(
                error.status_code, "bad_request" if error.status_code < 500 else "internal_error"
            )
            headers = dict(error.headers or {})
            if error.status_code == 405 and (allowed := _allowed(app, request)):
                headers = {"allow": allowed}
            error = Problem(code, str(error.detail), headers=headers)
        return error.response(request.scope["path"], request_id_of(request.scope))

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - what FastAPI promises for this handler
        errors = [
            {"field": ".".join(map(str, item["loc"])), "code": item["type"], "detail": item["msg"]}
            for item in error.errors()
        ]
        code = (
            "malformed_body"
            if any(item["code"] == "json_invalid" for item in errors)
            else "validation_failed"
        )
        first = f"{errors[0]['field']}: {errors[0]['detail']}"
        problem = Problem(code, first, errors=errors)
        return problem.response(request.scope["path"], request_id_of(request.scope))

    async def on_domain(request: Request, error: Exception) -> Response:
        assert isinstance(error, DetriggerError)  # noqa: S101 - what starlette promises for this handler
        problem = from_domain(error)
        if problem.status_code >= 500:
            log.error("request %s: %s", request_id_of(request.scope), error)
        return problem.response(request.scope["path"], request_id_of(request.scope))

    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(DetriggerError, on_domain)
