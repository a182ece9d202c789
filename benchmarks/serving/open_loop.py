"""Requests that are sent when they are due, whether or not earlier ones were answered, by two kinds of clients.

polite   keep their connections, wait for every answer, and open a connection only where none is free
rude     a new connection for each request, hung up with a reset where no answer came within a second

One thread, one epoll. `/livez` (or what the server has of it) is asked twenty times a second beside them.
"""

from __future__ import annotations

import errno
import gc
import math
import resource
import select
import socket
import struct
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

PATIENCE = {"polite": 30.0, "rude": 1.0}
_RESET = struct.pack("ii", 1, 0)
_LIVE_EVERY = 0.05
_MOST = 4000  # connections
_REFUSED_EVERYTHING = 20.0


@dataclass
class Seen:
    """What the clients saw."""

    seconds: float
    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    good: int = 0  # 200s within the deadline, while requests were being sent
    ok: list[float] = field(default_factory=list)  # seconds from due to answered, of the 200s
    late: int = 0  # answers that came more than the deadline after the request was sent
    unanswered: int = 0  # broken off by the server, or given up
    not_sent: int = 0  # the client had no connection left
    live: list[float] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """The same for a result."""
        return {
            "sent_per_second": round(self.sent / self.seconds, 1),
            "goodput_per_second": round(self.good / self.seconds, 1),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "p50_ms": percentile(self.ok, 50),
            "p99_ms": percentile(self.ok, 99),
            "answers_after_deadline": self.late,
            "unanswered": self.unanswered,
            "not_sent": self.not_sent,
            "livez_p99_ms": percentile(self.live, 99),
            "livez_max_ms": percentile(self.live, 100),
        }


def percentile(seconds: list[float], q: float) -> float | None:
    """Milliseconds; None of nothing."""
    return round(1e3 * float(np.percentile(seconds, q)), 1) if seconds else None


class _Line:
    """One connection with at most one request under way."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.socket.connect_ex(address) not in (0, errno.EINPROGRESS):
            raise ConnectionError
        self.unsent = memoryview(b"")
        self.due = self.sent = 0.0
        self.live = False
        self.received = b""

    def flush(self) -> bool:
        """Whether all is sent."""
        while self.unsent:
            try:
                self.unsent = self.unsent[self.socket.send(self.unsent) :]
            except BlockingIOError:
                return False
        return True

    def answer(self) -> tuple[int, bool] | None:
        """Status, and whether the connection can be used on; None while the answer is not whole."""
        chunk = self.socket.recv(65536)
        if not chunk:
            raise ConnectionError
        self.received += chunk
        head = self.received.find(b"\r\n\r\n")
        if head < 0:
            return None
        fields = self.received[:head].lower()
        at = fields.find(b"content-length:")
        if at < 0:
            raise ConnectionError
        length = int(fields[at + 15 :].split(b"\r\n", 1)[0])
        if len(self.received) < head + 4 + length:
            return None
        status = int(self.received[9:12])
        self.received = b""
        return status, b"connection: close" not in fields


class _Run:
    def __init__(self, url: str, request: bytes, live: str, kind: str, deadline: float) -> None:
        split = urlsplit(url)
        self.address = (split.hostname or "", split.port or 80)
        self.request = request
        self.live_request = f"GET {live} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        self.kind, self.patience, self.deadline = kind, PATIENCE[kind], deadline
        self.poll = select.epoll()
        self.lines: dict[int, _Line] = {}
        self.free: deque[_Line] = deque()
        self.waiting: deque[_Line] = deque()  # by the time they were sent
        self.live_line: _Line | None = None
        self.until = math.inf  # when no more requests are sent

    def line(self) -> _Line | None:
        while self.kind == "polite" and self.free:
            line = self.free.pop()
            if line.socket.fileno() in self.lines:
                return line
        if len(self.lines) >= _MOST:
            return None
        try:
            line = _Line(self.address)
        except OSError:
            return None
        self.lines[line.socket.fileno()] = line
        self.poll.register(line.socket, select.EPOLLIN)
        return line

    def drop(self, line: _Line, *, reset: bool = False) -> None:
        self.lines.pop(line.socket.fileno(), None)
        if reset:
            line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        line.socket.close()
        line.due = math.inf
        if line is self.live_line:
            self.live_line = None

    def send(self, line: _Line, what: bytes, due: float, now: float) -> bool:
        line.unsent, line.due, line.sent = memoryview(what), due, now
        try:
            done = line.flush()
        except OSError:
            self.drop(line)
            return False
        self.poll.modify(line.socket, select.EPOLLIN if done else select.EPOLLIN | select.EPOLLOUT)
        return True

    def ask_live(self, now: float) -> None:
        """Once the last one is answered."""
        line = self.live_line
        if line is not None and line.due:
            return
        if line is None:
            kind, self.kind = self.kind, "live"
            line = self.line()
            self.kind = kind
            if line is None:
                return
            line.live = True
            self.live_line = line
        self.send(line, self.live_request, now, now)

    def take(self, line: _Line, events: int, seen: Seen) -> None:
        try:
            if events & select.EPOLLOUT and line.flush():
                self.poll.modify(line.socket, select.EPOLLIN)
            found = line.answer() if events & ~select.EPOLLOUT else None
        except BlockingIOError:
            return
        except OSError:
            if line.due and not line.live:
                seen.unanswered += 1
            elif line.due:
                seen.live.append(time.perf_counter() - line.due)
            self.drop(line)
            return
        if found is None:
            return
        now = time.perf_counter()
        status, usable = found
        if line.live:
            seen.live.append(now - line.due)
        else:
            seen.statuses[status] += 1
            seen.late += now - line.sent > self.deadline + 0.1
            if status == 200:
                seen.ok.append(now - line.due)
                seen.good += now <= self.until and now - line.sent <= self.deadline
        line.due = 0.0
        if line.live and usable:
            return
        if self.kind == "rude" or not usable:
            self.drop(line)
        else:
            self.free.append(line)

    def give_up(self, now: float, seen: Seen) -> None:
        while self.waiting and self.waiting[0].sent + self.patience < now:
            line = self.waiting.popleft()
            if line.due and line.due != math.inf and line.sent + self.patience < now:
                seen.unanswered += 1
                self.drop(line, reset=True)


def run(
    url: str,
    request: bytes,
    *,
    rate: float,
    seconds: float,
    kind: str = "polite",
    live: str = "/livez",
    deadline: float = 10.0,
    seed: int = 0,
) -> Seen:
    """Send `rate` requests a second for `seconds`, Poisson; then wait for what is still out.

    Garbage is collected afterwards: with thousands of connections that pauses the clients for a third of a second, and
    then all their requests come at once.
    """
    gc.collect()
    gc.disable()
    try:
        return _run(url, request, rate, seconds, kind, live, deadline, seed)
    finally:
        gc.enable()


def _run(
    url: str, request: bytes, rate: float, seconds: float, kind: str, live: str, deadline: float, seed: int
) -> Seen:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 3 * _MOST), hard), hard))
    dice = np.random.default_rng(seed)
    state = _Run(url, request, live, kind, deadline)
    seen = Seen(seconds)
    began = now = time.perf_counter()
    due, live_due = began + dice.exponential(1 / rate), began
    until = state.until = began + seconds
    while now < until or any(line.due and not line.live for line in state.lines.values()):
        if now > until + state.patience + _REFUSED_EVERYTHING:
            break
        while due <= now < until:
            line = state.line()
            if line is None or not state.send(line, request, due, now):
                seen.not_sent += 1
            else:
                state.waiting.append(line)
            seen.sent += 1
            due += dice.exponential(1 / rate)
        if live_due <= now < until:
            state.ask_live(now)
            live_due += _LIVE_EVERY
        wait = max(0.0, min(due, live_due) - now) if now < until else 0.05
        for number, events in state.poll.poll(min(wait, 0.05)):
            if (line := state.lines.get(number)) is not None:
                state.take(line, events, seen)
        now = time.perf_counter()
        state.give_up(now, seen)
    for line in list(state.lines.values()):
        line.socket.close()
    return seen
