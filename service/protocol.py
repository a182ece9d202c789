"""HTTP/1.1 up to the end of the head: uvicorn's protocol on httptools, with limits of its own.

    bytes come      the head may have `max_head_bytes` and `max_headers`, and must be whole `head_timeout` seconds after
                    its first byte; what frames a body (chunk sizes, trailers) is bounded by the body
    head is whole   an inference that could not be answered in time is refused here, from ready-made bytes: neither its
                    body is read nor a task made for it
    answer is sent  the connection is idle, for `keep_alive` seconds; so long it may also take to fetch the answer

Refused requests are answered with a problem where nothing else is being answered on the connection. What the client
still sends is discarded for a moment before the connection is closed, as closing at once would also take the answer
away from it. It is read with pauses, and what is not a request is answered after one: a flood waits at its sender.
"""

import asyncio
import logging
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from detrigger.service.connections import Guard
from detrigger.service.metrics import INFER, PREDICT, Metrics
from detrigger.service.middleware import DISCARDED_BODY, REQUEST_ID
from detrigger.service.problem import Problem, is_v2
from detrigger.service.settings import Settings

log = logging.getLogger("service.request")

INFERENCE = rb"(?:/predict|/v2/models/[^? ]+/infer)(?:\?[^ ]*)?"
"""The targets that have images to classify, as a regular expression without groups."""
_INFERENCE = re.compile(INFERENCE)
_LINGER_SECONDS = 2.0
_DISCARD_PAUSE = 0.05  # seconds after each piece that is discarded
_REFUSED_AFTER = 0.2  # seconds: who sends what is no request over and over again is slowed down by waiting
_FLUSH_SECONDS = 5.0
_MAX_PIPELINED = 64
_ID = b"%(id)s"
CLOSE = (b"connection", b"close")
_IDLE, _HEAD, _BODY = "idle", "head", "body"  # what the parser expects next


class Doorman:
    """What all connections share: limits, the guard, the question whether there is room, and ready-made answers.

    ``crowded`` has to be asked once for each inference, as it counts how many were turned away.
    """

    def __init__(
        self, settings: Settings, metrics: Metrics, guard: Guard, crowded: Callable[[], Problem | None]
    ) -> None:
        self.guard = guard
        self.crowded = crowded
        self.metrics = metrics
        self.access_log = settings.access_log
        self.max_head_bytes = settings.max_head_bytes
        self.max_headers = settings.max_headers
        self.max_body_bytes = settings.max_body_bytes
        self.head_timeout = settings.head_timeout
        self.keep_alive = settings.keep_alive
        self._answers: dict[tuple[str, str, bool], tuple[bytes, bytes]] = {}

    def turn_away(
        self, problem: Problem, url: bytes, request_id: bytes, fields: Sequence[tuple[bytes, bytes]]
    ) -> bytes:
        """Count and log an inference that is refused.

        Args:
            request_id: what the client sent, empty or unusable too.
            fields: header fields to add.

        Returns:
            the whole response.
        """
        if not REQUEST_ID.fullmatch(request_id):
            request_id = secrets.token_hex(8).encode()
        route = INFER if url.startswith(b"/v2") else PREDICT
        self.metrics.request_ended(route, "POST", problem.status_code, 0.0)
        if self.access_log:
            extra = {"request_id": request_id.decode(), "status": problem.status_code}
            log.info("%s answered", "POST", extra=extra)
        return self.answer(problem, url.decode("latin-1"), request_id, fields)

    def no_place(self, fields: Sequence[tuple[bytes, bytes]]) -> bytes:
        """The whole response to a connection that nobody has a place for."""
        problem = Problem("too_many_connections", "no more connections are taken; try again in a moment")
        return self.answer(problem, "/", secrets.token_hex(8).encode(), [*fields, CLOSE])

    def answer(
        self, problem: Problem, path: str, request_id: bytes, fields: Sequence[tuple[bytes, bytes]]
    ) -> bytes:
        """The whole response except the end of the status line: made once for each problem, then only filled in."""
        key = (problem.code, problem.detail, is_v2(path))
        ready = self._answers.get(key)
        if ready is None:
            response = problem.response(path, _ID.decode())
            names = [pair for pair in response.raw_headers if pair[0] != b"content-length"]
            head = b"".join(b"%s: %s\r\n" % pair for pair in names)
            ready = self._answers[key] = (STATUS_LINE[problem.status_code] + head, bytes(response.body))
        head, body = ready
        body = body.replace(_ID, request_id)
        extra = b"".join(b"%s: %s\r\n" % pair for pair in fields)
        return b"%scontent-length: %d\r\nx-request-id: %s\r\n%s\r\n%s" % (
            head, len(body), request_id, extra, body,
        )  # fmt: skip


class LimitedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, doorman: Doorman, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.doorman = doorman
        self.due: float | None = None
        self.address = ""
        self._expects = _IDLE
        self._began = False  # whether bytes came that are no request yet
        self._served = False  # whether a request was answered
        self._closed = False  # whether what comes is discarded: something was refused for good
        self._skipping = False  # whether the body that comes is that of a refused request
        self._fault: Problem | None = None  # what a callback found, for `data_received`
        self._reason = "malformed"
        self._heads = 0  # heads begun
        self._head_bytes = 0  # of the present head, in fields that are whole
        self._raw_bytes = 0  # of the present head, as far as it is known
        self._body_bytes = 0
        self._framing_bytes = 0

    # --- the life of a connection ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it in, or turn it away."""
        super().connection_made(transport)
        self.address = self.client[0] if self.client else "unix"
        self._wait(self.doorman.head_timeout)
        if not self.doorman.guard.joined(self):
            self.transport.write(self.doorman.no_place(self.server_state.default_headers))
            self._closed = True
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self.doorman.guard.left(self)
        super().connection_lost(exc)

    def make_room(self) -> None:
        """Close, as another one needs the place."""
        self._closed = True
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def overdue(self) -> None:
        """Nothing came, or nothing was fetched, for too long."""
        doorman = self.doorman
        if self._closed or self.transport.is_closing() or self._expects is _BODY:
            self.transport.abort()
        elif self.transport.get_write_buffer_size():
            doorman.guard.note("unread", self.address, "an answer was not fetched")
            self.transport.abort()
        elif self._began:
            detail = f"the request line and headers must arrive within {doorman.head_timeout:g} seconds"
            self._refuse("head_timeout", Problem("head_timeout", detail))
        else:
            if not self._served:
                doorman.guard.note("silent", self.address, "a connection without a request was closed")
            self._closed = True
            self._wait(_FLUSH_SECONDS)
            self.transport.close()

    def _wait(self, seconds: float) -> None:
        self.due = self.loop.time() + seconds

    # --- bytes come -----------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse, at most a head's length at once, and look after each piece whether it is too much."""
        limit = self.doorman.max_head_bytes
        if len(data) <= limit:
            self._take(data)
            return
        for start in range(0, len(data), limit):
            self._take(data[start : start + limit])

    def _take(self, data: bytes) -> None:
        if not self._closed:
            self._parse(data)
            return
        self._body_bytes += len(data)
        if self._body_bytes > self.doorman.max_body_bytes:
            self.transport.abort()
        elif not self.flow.read_paused:
            self.flow.pause_reading()
            self.loop.call_later(_DISCARD_PAUSE, self._read_on)

    def _read_on(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def _parse(self, data: bytes) -> None:
        before, heads, body = self._expects, self._heads, self._body_bytes
        if before is _IDLE and not self._began:
            self._began = True
            self.doorman.guard.busy(self)
            if self.cycle is None or self.cycle.response_complete:
                self._wait(self.doorman.head_timeout)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # To a protocol that is not spoken here: the request is answered, then nothing can be understood any more.
            if self.cycle is not None:
                self.cycle.keep_alive = False
        except httptools.HttpParserError:
            if self._closed:
                return
            fault = self._fault or Problem("bad_request", "the request is no valid HTTP/1.1")
            self._refuse(self._reason, fault)
            return
        if self._expects is _HEAD:
            if before is _HEAD and self._heads == heads:
                self._raw_bytes += len(data)
            elif before is _IDLE and self._heads == heads + 1:
                self._raw_bytes = len(data)
            else:
                self._raw_bytes = self._head_bytes  # some of `data` belongs to what came before
            if self._raw_bytes > self.doorman.max_head_bytes:
                self._refuse("head_too_large", self._head_too_large())
        elif before is _BODY and self._expects is _BODY and self._heads == heads:
            self._framing_bytes += len(data) - (self._body_bytes - body)
            if self._framing_bytes > self.doorman.max_head_bytes + self._body_bytes // 8:
                self.doorman.guard.note(
                    "framing", self.address, "chunk sizes or trailers far beyond the body's size"
                )
                self._closed = True
                self.transport.abort()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        if self._closed:
            raise ValueError("what comes after the end")
        self._heads += 1
        self._expects = _HEAD
        self._head_bytes = self._body_bytes = self._framing_bytes = 0
        if len(self.pipeline) >= _MAX_PIPELINED:
            self._stop("pipelined", Problem("bad_request", f"more than {_MAX_PIPELINED} requests at once"))

    def on_url(self, url: bytes) -> None:
        """A piece of the request line's target."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header or a trailer."""
        self._count(len(name) + len(value) + 4)
        if len(self.headers) >= self.doorman.max_headers:
            most = self.doorman.max_headers
            self._stop(
                "too_many_headers", Problem("head_too_large", f"a request may have {most} headers at most")
            )
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self.doorman.max_head_bytes:
            self._stop("head_too_large", self._head_too_large())

    def _head_too_large(self) -> Problem:
        most = self.doorman.max_head_bytes
        return Problem("head_too_large", f"request line and headers may have {most} bytes at most")

    def _stop(self, reason: str, problem: Problem) -> None:
        """End the parser's work from within a callback of it."""
        self._reason, self._fault = reason, problem
        raise ValueError(problem.detail)

    # --- the head is whole ----------------------------------------------------------------------------------

    def on_headers_complete(self) -> None:
        """Refuse an inference that there is no room for; else let the application begin."""
        self._expects = _BODY
        self._began = False
        if (
            not self.pipeline
            and (self.cycle is None or self.cycle.response_complete)
            and self.parser.get_method() == b"POST"
            and _INFERENCE.fullmatch(self.url)
        ):
            problem = self.doorman.crowded()
            if problem is not None:
                self._refuse_inference(problem)
                return
        self.due = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._body_bytes += len(body)
        if not self._skipping:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """A body ends."""
        self._expects = _IDLE
        if self._skipping:
            self._skipping = False
            self._rest()
        else:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Begin the next request of the pipeline, or be idle."""
        self.server_state.total_requests += 1
        self._served = True
        if self.transport.is_closing():
            self._wait(_FLUSH_SECONDS)
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        elif self._closed:
            self._wait(_FLUSH_SECONDS)
            self.transport.close()
        else:
            self._rest()

    def _rest(self) -> None:
        if self._closed:
            return
        if self._expects is _IDLE and not self._began:
            self._wait(self.doorman.keep_alive)
            self.doorman.guard.idle(self)
        else:  # the rest of a body that nobody reads, or the beginning of the next head
            self._wait(self.doorman.head_timeout)

    # --- refusals -------------------------------------------------------------------------------------------

    def _refuse_inference(self, problem: Problem) -> None:
        doorman, headers = self.doorman, dict(self.headers)
        length = headers.get(b"content-length", b"0")
        keep = (
            self.parser.should_keep_alive()
            and b"transfer-encoding" not in headers
            and not self.expect_100_continue
            and length.isdigit()
            and int(length[:20]) <= DISCARDED_BODY
        )
        given = headers.get(b"x-request-id", b"")
        self.transport.write(doorman.turn_away(problem, self.url, given, self._fields(close=not keep)))
        self._served = True
        self._skipping = True
        self._wait(doorman.head_timeout)
        if not keep:
            self._linger()

    def _refuse(self, reason: str, problem: Problem) -> None:
        """Answer what is not a request, where nothing else is being answered, and understand nothing after it."""
        self.doorman.guard.note(reason, self.address, problem.detail)
        if self.cycle is not None and not self.cycle.response_complete:
            self._closed = True
            if self.cycle.more_body:  # its body will never be whole
                self.transport.abort()
            else:
                self.cycle.keep_alive = False
            return
        self._closed = True
        if self._expects is _BODY:  # what it belongs to was answered
            self._linger()
        else:
            self._wait(_REFUSED_AFTER + _LINGER_SECONDS)
            self.flow.pause_reading()
            self.loop.call_later(_REFUSED_AFTER, self._tell, problem)

    def _tell(self, problem: Problem) -> None:
        if not self.transport.is_closing():
            self._say(problem)
            self._linger()
            self.flow.resume_reading()

    def _linger(self) -> None:
        self._closed = True
        self._body_bytes = 0
        self._wait(_LINGER_SECONDS)
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _say(self, problem: Problem) -> None:
        """Answer something that is refused for good."""
        path = self.url.decode("latin-1") if getattr(self, "url", b"") else "/"
        request_id = secrets.token_hex(8).encode()
        self.transport.write(self.doorman.answer(problem, path, request_id, self._fields(close=True)))

    def _fields(self, *, close: bool) -> list[tuple[bytes, bytes]]:
        return [*self.server_state.default_headers, *([CLOSE] if close else [])]


def protocol_class(doorman: Doorman) -> type[asyncio.Protocol]:
    """What uvicorn makes for each connection."""

    def make(*args: Any, **keywords: Any) -> LimitedProtocol:
        return LimitedProtocol(*args, doorman=doorman, **keywords)

    return cast(type[asyncio.Protocol], make)
