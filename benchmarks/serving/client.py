"""A load client that costs little, since it shares the cores with what it measures.

One thread, one epoll, ready-made bytes: some 25 microseconds a request. Every answer is counted by status.
"""

from __future__ import annotations

import itertools
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np

_GIVE_UP = 60.0


@dataclass
class Load:
    """What a run of `drive` saw."""

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    """Of the answers 200, in seconds: from the moment the request was due, so that waiting for a free connection
    counts."""
    broken: int = 0
    """Connections that ended in the middle of a request, and requests without an answer."""

    @property
    def rate(self) -> float:
        """Answers 200 per second."""
        return self.statuses[200] / self.seconds

    def percentile(self, q: float) -> float:
        """Milliseconds."""
        return 1e3 * float(np.percentile(self.latencies, q)) if self.latencies else float("nan")


class _Connection:
    """One keep-alive connection, with at most one request under way."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0
        self._received = b""

    def send(self, request: bytes, due: float) -> None:
        """Send one request; `due` is when it should have gone."""
        self.due = due
        self.socket.sendall(request)

    def receive(self) -> int | None:
        """The status of the answer; None while it is not whole. ConnectionError where it ended."""
        chunk = self.socket.recv(65536)
        if not chunk:
            raise ConnectionError
        self._received = received = self._received + chunk if self._received else chunk
        head = received.find(b"\r\n\r\n")
        if head < 0:
            return None
        at = received.lower().find(b"content-length:", 0, head)
        if at < 0:
            raise ConnectionError("an answer without a length")
        length = int(received[at + 15 : received.index(b"\r\n", at)])
        if len(received) < head + 4 + length:
            return None
        self._received = b""
        return int(received[9:12])


def request_of(url: str, body: bytes) -> bytes:
    """POST /predict with one PNG or JPEG."""
    host, kind = urlsplit(url).netloc, "jpeg" if body.startswith(b"\xff\xd8") else "png"
    head = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/{kind}\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


def drive(
    url: str,
    body: bytes | Sequence[bytes],
    *,
    seconds: float,
    clients: int = 32,
    rate: float | None = None,
    every_second: Callable[[], None] = lambda: None,
) -> Load:
    """Ask for `seconds`, then wait for the answers that are still out.

    Args:
        url: of a server on this machine.
        body: one encoded image, or several that are sent in turn.
        seconds: how long requests are sent.
        clients: connections; without `rate` each sends as soon as it was answered.
        rate: requests per second, sent when due whether or not earlier ones were answered, as far as there are
            connections.
        every_second: called about once a second.
    """
    split = urlsplit(url)
    address = (split.hostname or "", split.port or 80)
    bodies = [body] if isinstance(body, bytes) else body
    requests = itertools.cycle([request_of(url, each) for each in bodies])
    connections: dict[int, _Connection] = {}
    idle: deque[_Connection] = deque()
    poll = select.epoll()

    def connect() -> None:
        connection = _Connection(address)
        connections[connection.socket.fileno()] = connection
        poll.register(connection.socket, select.EPOLLIN)
        idle.append(connection)

    for _ in range(clients):
        connect()
    load = Load()
    sent = 0
    began = now = time.perf_counter()
    until, tick = began + seconds, began + 1
    while now < until or (len(idle) < len(connections) and now < until + _GIVE_UP):
        if now < until:
            while idle and (rate is None or began + sent / rate <= now):
                idle.popleft().send(next(requests), now if rate is None else began + sent / rate)
                sent += 1
        for number, _ in poll.poll(0.001 if rate else 0.1):
            connection = connections[number]
            try:
                status = connection.receive()
            except OSError:
                load.broken += 1
                connections.pop(number).socket.close()
                connect()
                continue
            if status is not None:
                load.statuses[status] += 1
                if status == 200:
                    load.latencies.append(time.perf_counter() - connection.due)
                idle.append(connection)
        now = time.perf_counter()
        if now >= tick:
            tick += 1
            every_second()
    load.seconds = now - began
    load.broken += len(connections) - len(idle)
    for connection in connections.values():
        connection.socket.close()
    return load


def ask_now_and_then(url: str, body: bytes, *, count: int, pause: float) -> list[float]:
    """Milliseconds of `count` single requests with pauses between them, on one connection."""
    split = urlsplit(url)
    connection = _Connection((split.hostname or "", split.port or 80))
    request = request_of(url, body)
    took = []
    for _ in range(count):
        time.sleep(pause)
        connection.send(request, time.perf_counter())
        while (status := connection.receive()) is None:
            pass
        took.append(1e3 * (time.perf_counter() - connection.due))
        if status != 200:
            raise RuntimeError(f"{url} answered {status}")
    connection.socket.close()
    return took
