"""The OpenAPI document: what FastAPI derives from the routes, and what it cannot know."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from service.api.schemas import OipError, OipRequest, ProblemBody

_REF = "#/components/schemas/{model}"
_PROBLEM = {"application/problem+json": {"schema": {"$ref": _REF.format(model="ProblemBody")}}}
_OIP_PROBLEM = {"application/json": {"schema": {"$ref": _REF.format(model="OipError")}}}
_EVERYWHERE = {"400": "malformed request", "408": "body too slow", "413": "body too large"}
_WITH_BODY = {"415": "content type or encoding not accepted", "429": "too much at once"}


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


def _complete(document: dict[str, Any]) -> dict[str, Any]:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    models: tuple[type[BaseModel], ...] = (ProblemBody, OipError, OipRequest)
    for model in models:
        schema = model.model_json_schema(ref_template=_REF)
        schemas |= schema.pop("$defs", {})
        schemas[model.__name__] = schema
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
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
