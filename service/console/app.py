"""The console as an app of its own, to be mounted at /console: pages, acts, static files, headers for all of them."""

from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from detrigger.models.errors import DetriggerError
from detrigger.service.access import Access
from detrigger.service.console import acts, pages
from detrigger.service.console.pages import Parts
from detrigger.service.console.session import NotLoggedIn
from detrigger.service.headers import POLICY, Headers, headers
from detrigger.service.problem import Problem, from_domain


def create(parts: Parts, access: Access) -> FastAPI:
    """The console, bound to the parts that it shows and changes."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.include_router(acts.router(parts, access))
    app.include_router(pages.router(parts))
    app.mount("/static", StaticFiles(directory=Path(__file__).with_name("static")))
    app.add_middleware(Headers, values=headers(POLICY))

    async def not_logged_in(request: Request, _error: Exception) -> Response:
        if request.headers.get("hx-request"):
            return Response(status_code=401, headers={"HX-Redirect": "/console/login"})
        if request.method == "GET":
            return RedirectResponse("/console/login", 303)
        return failed(request, Problem("unauthorized", "the session has ended; log in again"))

    async def refused(request: Request, error: Exception) -> Response:
        if isinstance(error, DetriggerError):
            error = from_domain(error)
        if isinstance(error, RequestValidationError):
            error = Problem("validation_failed", "the address or the form has a value that is not allowed")
        if not isinstance(error, Problem):
            assert isinstance(error, HTTPException)  # noqa: S101 - nothing else is handled here
            codes = {404: "not_found", 405: "method_not_allowed"}
            error = Problem(
                codes.get(error.status_code, "bad_request"), str(error.detail), headers=error.headers
            )
        return failed(request, error)

    def failed(request: Request, problem: Problem) -> Response:
        page = parts.view.page(request, "problem.html", problem.status_code, problem=problem)
        page.headers.update({k: v for k, v in (problem.headers or {}).items() if k != "WWW-Authenticate"})
        return page

    app.add_exception_handler(NotLoggedIn, not_logged_in)
    for kind in (HTTPException, DetriggerError, RequestValidationError):
        app.add_exception_handler(kind, refused)
    return app
