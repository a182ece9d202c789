"""Offered load from half the capacity to ten times it: what is answered, how fast, and when nothing is.

The server has one core, the clients another. The capacity is what 32 clients get that ask again as soon as they are
answered. Then requests come at their own times (see `open_loop`), polite and rude, at each load in turn.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from benchmarks.serving import client, open_loop, report, servers, stores
from detrigger.models.store import VersionStore
from detrigger.service.settings import Settings

SERVER_CORE, CLIENT_CORE = 0, 1
TIMES = (0.5, 0.8, 1.0, 1.5, 3.0, 10.0)
_WARM = 2.0
_CAPACITY = 8.0
Start = Callable[[], AbstractContextManager[servers.Server]]


def loads(store: Path, seconds: float, seed: int) -> None:
    """Measure Detrigger and LitServe."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CLIENT_CORE})
    rows = []
    for name, start, live in contenders(store):
        for kind in ("polite", "rude"):
            with start() as server:
                rows.append({"server": name, "clients": kind, **_sweep(server, live, kind, seconds, seed)})
    settings = {"seconds": seconds, "seed": seed, "server_core": SERVER_CORE, "client_core": CLIENT_CORE}
    os.sched_setaffinity(0, cores)  # the machine is described with all of them
    report.write("loads", {**settings, "deadline": Settings(store=store).deadline, "rows": rows})


def contenders(store: Path) -> list[tuple[str, Start, str]]:
    """Name, how it is started on its core, and what it has for /livez."""
    opened = VersionStore(store)
    version = opened.current()
    if version is None:
        raise SystemExit(f"{store} has no promoted version")
    graph = opened.open_version(version, ["protected.onnx"]) / "protected.onnx"
    threshold = opened.manifest(version).flag.threshold
    return [
        ("Detrigger", lambda: servers.detrigger(store, core=SERVER_CORE), "/livez"),
        ("LitServe", lambda: servers.other("litserve_app", graph, 1, threshold, core=SERVER_CORE), "/health"),
    ]


def _sweep(server: servers.Server, live: str, kind: str, seconds: float, seed: int) -> dict[str, Any]:
    image = stores.a_png()
    request = client.request_of(server.url, image)
    client.drive(server.url, image, seconds=_WARM)
    closed = client.drive(server.url, image, seconds=_CAPACITY)
    steps = []
    for times in TIMES:
        others = OthersOnCore(server)
        seen = open_loop.run(
            server.url, request, rate=times * closed.rate, seconds=seconds, kind=kind, live=live, seed=seed
        )
        steps.append({"times": times, **seen.row(), "others_share_of_core": others.share()})
        print(name_of(steps[-1]), flush=True)
    return {
        "capacity_per_second": round(closed.rate, 1),
        "capacity_p99_ms": round(closed.percentile(99), 1),
        "steps": steps,
    }


class OthersOnCore:
    """How much of the server's core others take, from now on: what the measurement cannot be blamed for."""

    def __init__(self, server: servers.Server) -> None:
        self.server = server
        self.began, self.busy, self.own = time.perf_counter(), _busy_seconds(), server.cpu_seconds()

    def share(self) -> float:
        """Since then, 0..1."""
        busy, own = _busy_seconds() - self.busy, self.server.cpu_seconds() - self.own
        return round(max(0.0, busy - own) / (time.perf_counter() - self.began), 2)


def _busy_seconds() -> float:
    """CPU time of everything on the server's core so far."""
    line = next(
        line for line in Path("/proc/stat").read_text().splitlines() if line.startswith(f"cpu{SERVER_CORE} ")
    )
    user, nice, system, _, _, irq, softirq = map(int, line.split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def name_of(step: dict[str, Any]) -> str:
    """A step in a line, for whoever watches."""
    return ", ".join(f"{name} {value}" for name, value in step.items())
