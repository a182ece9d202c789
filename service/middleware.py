"""What surrounds every request, outermost first. Pure ASGI: starlette's BaseHTTPMiddleware costs 100 times
as much.

Observe      gives the request an id and a deadline, counts and times it, turns a crash into an opaque 500
BodyLimits   refuses bodies that are too large, compressed or too slow, and bounds what all bodies hold
together; reads nothing itself
AdminGate    asks for the bearer token under /admin, before a byte of the body is read
"""

import asyncio
import logging
import re
import secrets
from collections.abc import Callable
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from detrigger.service.access import Access
from detrigger.service.metrics import Metrics, route_of
from detrigger.service.problem import Problem
from detrigger.service.settings import Settings

log = logging.getLogger("service.request")

REQUEST_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")
DISCARDED_BODY = 64 * 1024
"""Bytes of a body that nobody reads which are taken in to keep the connection."""


class RequestInfo:
    """What is known of a request wherever it goes: `scope["detrigger.request"]`."""

    __slots__ = ("deadline", "id", "limit", "started", "timings")

    def __init__(self, request_id: str, now: float, limit: float) -> None:
        self.id = request_id
        self.limit = limit  # seconds
        self.started = perf_counter()
        self.deadline = now + limit  # in the event loop's time
        self.timings: dict[str, float] = {}  # stage -> seconds, shown in Server-Timing


def info_of(scope: Scope) -> RequestInfo:
    """The info that `Observe` made for this request."""
    info = scope["detrigger.request"]
    assert isinstance(info, RequestInfo)  # noqa: S101 - nobody else writes it
    return info


class Observe:
    """Request id, metrics, Server-Timing, log line, and the last net under exceptions."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: Metrics,
        draining: Callable[[], bool],
        ended: Callable[[Scope, RequestInfo, str, int, float], None] | None = None,
    ) -> None:
        self.app = app
        self.deadline = settings.deadline
        self.access_log = settings.access_log
        self.metrics = metrics
        self.draining = draining
        self.ended = ended  # told of every request: its route, status and seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection scope."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = header(scope, b"x-request-id")
        request_id = given.decode() if given and REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        info = RequestInfo(request_id, asyncio.get_running_loop().time(), self.deadline)
        scope["detrigger.request"] = info
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(b"x-request-id", info.id.encode())]
                if info.timings:
                    stages = ", ".join(f"{name};dur={1e3 * took:.2f}" for name, took in info.timings.items())
                    extra.append((b"server-timing", stages.encode()))
                if self.draining():
                    extra.append((b"connection", b"close"))
                message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)

        self.metrics.in_flight.inc()
        try:
            await self.app(scope, receive, observed)
        except Exception:
            log.exception("request %s crashed", info.id)
            if not status:
                problem = Problem("internal_error", "see the log of the service under this request's id")
                await problem.response(scope["path"], info.id)(scope, receive, observed)
        finally:
            self.metrics.in_flight.dec()
            took = perf_counter() - info.started
            route = route_of(scope)
            self.metrics.request_ended(route, scope["method"], status or 499, took)
            if self.ended is not None:
                self.ended(scope, info, route, status or 499, took)
            if self.access_log or status >= 500:
                extra = {"request_id": info.id, "route": route, "status": status, "seconds": round(took, 4)}
                log.log(
                    logging.WARNING if status >= 500 else logging.INFO,
                    "%s answered",
                    scope["method"],
                    extra=extra,
                )


class BodyLimits:
    """Bytes, encoding and time of request bodies."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app = app
        self.limit = settings.max_body_bytes
        self.timeout = settings.body_timeout
        self.budget = settings.max_buffered_bytes
        self.metrics = metrics
        self.buffered = 0  # bytes of all bodies being worked on

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection scope."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        complete = False

        async def closing(message: Message) -> None:
            # Answered without the body having been read: the rest is not taken in to keep the connection.
            if message["type"] == "http.response.start" and not complete:
                unread = _announces_more(scope, DISCARDED_BODY)
                if unread or message["status"] == 408:
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        problem = self._refusal(scope)
        if problem is not None:
            self.metrics.rejected(problem.code, 0)
            await problem.response(scope["path"], info_of(scope).id)(scope, receive, closing)
            return
        loop = asyncio.get_running_loop()
        # Later than at its deadline a request could not be answered anyway.
        arrive_by = min(loop.time() + self.timeout, info_of(scope).deadline)
        received = 0

        async def limited() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(arrive_by):
                    message = await receive()
            except TimeoutError:
                self.metrics.rejected("body_timeout", 0)
                most = min(self.timeout, info_of(scope).limit)
                raise Problem("body_timeout", f"the body must arrive within {most:g} seconds") from None
            if message["type"] == "http.request":
                size = len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if received + size > self.limit:
                    self.metrics.rejected("body_too_large", 0)
                    raise self._too_large()
                if self.buffered + size > self.budget:
                    self.metrics.shed.labels("overloaded").inc()
                    raise Problem(
                        "overloaded", "too many large bodies are being worked on; try again in a moment"
                    )
                received += size
                self.buffered += size
            return message

        try:
            await self.app(scope, limited, closing)
        finally:
            self.buffered -= received

    def _refusal(self, scope: Scope) -> Problem | None:
        encoding = header(scope, b"content-encoding")
        if encoding is not None and encoding.strip().lower() not in (b"", b"identity"):
            return Problem("content_encoding_refused", "send the body as it is, without Content-Encoding")
        length = header(scope, b"content-length")
        if length is not None and length.isdigit() and int(length[:20]) > self.limit:
            return self._too_large()
        return None

    def _too_large(self) -> Problem:
        return Problem("body_too_large", f"a body may have {self.limit} bytes at most")


class AdminGate:
    """Bearer token for everything under /admin, and whether there is an /admin or /console at all.

    The role of the token is left in `scope["detrigger.role"]`. The console asks for a session of its own.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection scope."""
        path = scope.get("path", "")
        admin = _under(path, "/admin")
        if scope["type"] != "http" or not (admin or _under(path, "/console")):
            await self.app(scope, receive, send)
            return
        problem = self._absent(scope) or (await self._refusal(scope) if admin else None)
        if problem is None:
            await self.app(scope, receive, send)
        else:
            await problem.response(path, info_of(scope).id)(scope, receive, send)

    def _absent(self, scope: Scope) -> Problem | None:
        if not self.access.enabled:
            return Problem("not_found", "no admin token is configured, so there is no administration")
        server = scope.get("server")
        if self.access.port is not None and (server is None or server[1] != self.access.port):
            return Problem("not_found", "administration has an address of its own")
        return None

    async def _refusal(self, scope: Scope) -> Problem | None:
        scheme, _, given = (header(scope, b"authorization") or b"").partition(b" ")
        role = self.access.role_of(given.strip())
        if scheme.lower() != b"bearer" or role is None:
            client = scope.get("client")
            return await self.access.refuse(given, client[0] if client else "", info_of(scope).id)
        reviews = scope["path"].endswith("/review")
        if role == "reviewer" and scope["method"] not in ("GET", "HEAD") and not reviews:
            return Problem("forbidden", "this token reads and reviews; this call needs the admin token")
        scope["detrigger.role"] = role
        return None


def _under(path: str, root: str) -> bool:
    return path == root or path.startswith(f"{root}/")


def _announces_more(scope: Scope, size: int) -> bool:
    """Whether a body of more than `size` bytes, or of unknown size, was announced."""
    if header(scope, b"expect") is not None:
        return True  # whether the client sends the body after all is its choice
    length = header(scope, b"content-length")
    if length is not None:
        return not length.isdigit() or int(length[:20]) > size
    return header(scope, b"transfer-encoding") is not None


def header(scope: Scope, name: bytes) -> bytes | None:
    """The value of a header, by its name in lower case; None where it was not sent."""
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None
