"""The OpenAPI document: what FastAPI derives from the routes, and what it cannot know; and /docs, a page to try it."""

import copy
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.staticfiles import StaticFiles

from detrigger.service.api.predict import Query
from detrigger.service.api.schemas import OipError, OipRequest, Predictions, ProblemBody, problems
from detrigger.service.headers import POLICY, Headers, headers
from detrigger.service.images import MEDIA_TYPES
from detrigger.service.metrics import PREDICT

_STATIC = Path(__file__).parent.with_name("static")
_REF = "#/components/schemas/{model}"
_PROBLEM = {"application/problem+json": {"schema": {"$ref": _REF.format(model="ProblemBody")}}}
_OIP_PROBLEM = {"application/json": {"schema": {"$ref": _REF.format(model="OipError")}}}
_EVERYWHERE = {"400": "malformed request", "408": "body too slow", "413": "body too large"}
_WITH_BODY = {"415": "content type or encoding not accepted", "429": "too much at once"}


_BINARY = {"schema": {"type": "string", "format": "binary"}}
_PREDICT: dict[str, Any] = {
    "tags": ["predict"],
    "summary": "Classify images after purifying them",
    "description": (
        "The body is one encoded image, `multipart/form-data` with parts named `file`, or JSON "
        '`{"images": ["<base64>"]}`. Either all images are answered, in the order sent, or the request is refused.'
    ),
    "operationId": "predict",
    "parameters": [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in Query.model_json_schema()["properties"].items()
    ],
    "requestBody": {
        "required": True,
        "content": {
            **dict.fromkeys(MEDIA_TYPES, _BINARY),
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "array", "items": _BINARY["schema"]}},
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
    },
    "responses": {
        "200": {
            "description": "one prediction per image",
            "content": {"application/json": {"schema": {"$ref": _REF.format(model="Predictions")}}},
        },
        **problems("422", "500", "503", "504"),
    },
}


def install(app: FastAPI) -> None:
    """Make `app.openapi()` the whole document, built once."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(
                get_openapi(
                    title=app.title, version=app.version, description=app.description, routes=app.routes
                )
            )
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    # Swagger UI from files of our own: /docs has the origin of /admin, and is to work without the internet.
    app.mount("/docs/static", Headers(StaticFiles(directory=_STATIC), headers(POLICY)))
    page = (_STATIC / "docs.html").read_bytes()

    async def docs() -> Response:
        return Response(page, media_type="text/html", headers=headers(POLICY))

    app.add_api_route("/docs", docs, include_in_schema=False)


def _complete(document: dict[str, Any]) -> dict[str, Any]:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    models: tuple[type[BaseModel], ...] = (Predictions, ProblemBody, OipError, OipRequest)
    for model in models:
        schema = model.model_json_schema(ref_template=_REF)
        schemas |= schema.pop("$defs", {})
        schemas[model.__name__] = schema
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    document["paths"] = {PREDICT: {"post": copy.deepcopy(_PREDICT)}} | document["paths"]
    for path, methods in document["paths"].items():
        problem = _OIP_PROBLEM if path.startswith("/v2") else _PROBLEM
        for method, operation in methods.items():
            responses = operation["responses"]
            common = _EVERYWHERE | (_WITH_BODY if method == "post" else {})
            for status, text in common.items():
                responses.setdefault(status, {"description": text, "content": problem})
            if "HTTPValidationError" in str(responses.get("422", "")):
                responses["422"] = {"description": "parameter out of range", "content": problem}
            if path.startswith("/admin"):
                operation["security"] = [{"token": []}]
    if any(path.startswith("/admin") for path in document["paths"]):
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return document
