"""One client's attack, while an ordinary one sends 128-pixel JPEGs at a quarter of the capacity.

headers      one connection sends a header that never ends, 32 MB of it, and again
many headers one connection sends 100,000 headers, and again
slow         500 connections send a byte of a header each second
idle         3,000 connections send nothing, and are opened again when they are closed
pixels       one connection sends tall PNGs of 16.8 million pixels, 65 KB each; 32 in a request where the server takes
             several
largest      one connection sends the largest PNGs that Detrigger takes, 4096x4096, two in a request where possible

The server has one core; clients and attackers share another, where the client goes first: what an attacker takes from
the client is not the server's doing. That core is kept busy in every row, the calm one too, because cores may share a
processor: else the server would seem slower wherever an attacker computes. For each attack the server starts anew.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import resource
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from benchmarks.serving import client, open_loop, report, servers
from benchmarks.serving.loads import CLIENT_CORE, SERVER_CORE, OthersOnCore, contenders

SHARE = 0.25
SIDE = 128
_WARM = 2.0
_STANDS_BACK = 10
_BEFORE = 1.0  # seconds that an attack goes on before anything is measured
Address = tuple[str, int]


def hostile(store: Path, seconds: float, seed: int) -> None:
    """Measure Detrigger and LitServe, calm and under each attack."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CLIENT_CORE})
    with _beside(_spin):
        rows = _rows(store, seconds, seed)
    settings = {"seconds": seconds, "seed": seed, "server_core": SERVER_CORE, "client_core": CLIENT_CORE}
    os.sched_setaffinity(0, cores)  # the machine is described with all of them
    report.write("hostile", {**settings, "rows": rows})


def _rows(store: Path, seconds: float, seed: int) -> list[dict[str, Any]]:
    jpeg = a_jpeg(seed)
    rows = []
    for name, start, live in contenders(store):
        rate = 0.0
        for attack, work in {"none": None, **attacks(several=name == "Detrigger")}.items():
            with start() as server:
                if not rate:
                    client.drive(server.url, jpeg, seconds=_WARM)
                    rate = SHARE * client.drive(server.url, jpeg, seconds=2 * _WARM).rate
                row = _one(server, work, jpeg, rate=rate, seconds=seconds, live=live, seed=seed)
            rows.append({"server": name, "attack": attack, "rate": round(rate, 1), **row})
            print(rows[-1], flush=True)
    return rows


@contextlib.contextmanager
def _beside(work: Callable[..., None], *given: Any) -> Iterator[None]:
    """Something that goes on in a process of its own until then."""
    process = multiprocessing.get_context("fork").Process(target=work, args=given, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _spin() -> None:
    """Keep the core busy, but give way to everything else."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    while True:
        pass


def _one(
    server: servers.Server, attack: Callable[[Address], None] | None, jpeg: bytes, **options: Any
) -> dict[str, Any]:
    request = client.request_of(server.url, jpeg)
    client.drive(server.url, jpeg, seconds=_WARM)
    before, most, ended = server.memory_of_all(), 0.0, threading.Event()
    others = OthersOnCore(server)

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.1):
            most = max(most, server.memory_of_all())

    watcher = threading.Thread(target=watch)
    with _attacked(server, attack):
        watcher.start()
        seen = open_loop.run(server.url, request, **options)
        ended.set()
        watcher.join()
    memory = {"memory_before_mb": round(before, 1), "memory_most_mb": round(most, 1)}
    return {**seen.row(), **memory, "others_share_of_core": others.share()}


@contextlib.contextmanager
def _attacked(server: servers.Server, attack: Callable[[Address], None] | None) -> Iterator[None]:
    if attack is None:
        yield
        return
    split = urlsplit(server.url)
    with _beside(_last, attack, (split.hostname, split.port)):
        time.sleep(_BEFORE)
        yield


def _last(attack: Callable[[Address], None], address: Address) -> None:
    os.nice(_STANDS_BACK)
    attack(address)


def a_jpeg(seed: int) -> bytes:
    """128x128, some 3 KB."""
    dice = np.random.default_rng(seed)
    pixels = dice.integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def a_png(width: int, height: int) -> bytes:
    """Black, so that a few kilobytes are millions of pixels."""
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


def attacks(several: bool) -> dict[str, Callable[[Address], None]]:
    """By name; `several` says whether the server takes more than one image in a request."""
    return {
        "headers": endless_header,
        "many headers": many_headers,
        "slow": slow,
        "idle": idle,
        "pixels": images(a_png(1, 2**24), 32 if several else 1),
        "largest": images(a_png(4096, 4096), 2 if several else 1),
    }


# --- the attackers, each a process of its own -------------------------------------------------------------------


def _again(address: Address, attack: Callable[[socket.socket], None]) -> None:
    while True:
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=60) as connection:
            attack(connection)


def endless_header(address: Address) -> None:
    """32 MB of one header."""
    flood = b"y" * 2**20

    def attack(connection: socket.socket) -> None:
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        for _ in range(32):
            connection.sendall(flood)

    _again(address, attack)


def many_headers(address: Address) -> None:
    """100,000 headers."""
    flood = b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: y\r\n" % k for k in range(100_000)) + b"\r\n"

    def attack(connection: socket.socket) -> None:
        connection.sendall(flood)
        connection.recv(65536)

    _again(address, attack)


def slow(address: Address) -> None:
    """500 connections, a byte a second each."""
    _hold(address, 500, b"GET / HTTP/1.1\r\nX: ", b"y")


def idle(address: Address) -> None:
    """3,000 connections."""
    _hold(address, 3000, b"", b"")


def _hold(address: Address, count: int, first: bytes, then: bytes) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 2 * count), hard), hard))
    held: dict[int, socket.socket] = {}
    poll = select.epoll()
    while True:
        began = time.perf_counter()
        for number, _ in poll.poll(0):
            held.pop(number).close()
        for _ in range(count - len(held)):
            with contextlib.suppress(OSError):
                connection = socket.create_connection(address, timeout=1)
                connection.setblocking(False)
                held[connection.fileno()] = connection
                poll.register(connection, select.EPOLLIN | select.EPOLLHUP)
                if first:
                    connection.send(first)
        if then:
            for connection in held.values():
                with contextlib.suppress(OSError):
                    connection.send(then)
        time.sleep(max(0.0, began + 1 - time.perf_counter()))


def images(png: bytes, count: int) -> Callable[[Address], None]:
    """An attacker that sends the same PNG for ever, `count` of them in a request."""
    if count == 1:
        kind, body = b"image/png", png
    else:
        part = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + png + b"\r\n"
        kind, body = b"multipart/form-data; boundary=b", part * count + b"--b--\r\n"
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
    request = head % (kind, len(body)) + body

    def attack(connection: socket.socket) -> None:
        while True:
            connection.sendall(request)
            if not connection.recv(65536):
                return

    return lambda address: _again(address, attack)
