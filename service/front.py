"""What meets a client before the routes: HEAD wherever GET works, and CORS for the pages that the operator names.

Cors   tells browsers that a page of another origin may read answers; off unless DETRIGGER_CORS_ORIGINS is set, and
never for /admin and /console
Heads  answers HEAD with what GET answers, without its body
"""

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from detrigger.service.middleware import header

_HEADERS_IN = ("content-type", "x-request-id", "inference-header-content-length")
_HEADERS_OUT = ("x-request-id", "server-timing", "retry-after", "inference-header-content-length")


class Cors:
    """Starlette's CORS for the origins that are named; for all others there is none, as if it was not there."""

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        self.app = app
        self.origins = frozenset(origins)
        self.cors = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=_HEADERS_IN,
            expose_headers=_HEADERS_OUT,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection scope."""
        app = self.app
        if self.origins and scope["type"] == "http" and not scope["path"].startswith(("/admin", "/console")):
            origin = header(scope, b"origin")
            if origin is not None and ("*" in self.origins or origin.decode("latin-1") in self.origins):
                app = self.cors
        await app(scope, receive, send)


class _Told(Exception):  # noqa: N818 (named for what it says)
    """The head of the answer is sent; nobody waits for the rest of a stream."""


class Heads:
    """HEAD, answered by the routes of GET."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection scope."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        asked = {**scope, "method": "GET"}

        async def without_body(message: Message) -> None:
            if message["type"] != "http.response.body":
                await send(message)
                return
            await send({"type": "http.response.body", "body": b""})
            if message.get("more_body", False):
                raise _Told

        try:
            await self.app(asked, receive, without_body)
        except _Told:
            pass
        finally:
            if "route" in asked:
                scope["route"] = asked["route"]  # for whoever counts
