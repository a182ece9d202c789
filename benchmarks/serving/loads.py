"""Offered load from half the capacity to ten times it: what is answered, how fast, and when nothing is.

The server has one core, the clients another. The capacity is what 32 clients get that ask again as soon as they are
answered. Then requests come at their own times (see `open_loop`), polite and rude, at each load in turn.
"""

from __future__ import annotations

import os
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
    os.sched_setaffinity(0, {CLIENT_CORE})
    rows = []
    for name, start, live in contenders(store):
        for kind in ("polite", "rude"):
            with start() as server:
                rows.append({"server": name, "clients": kind, **_sweep(server, live, kind, seconds, seed)})
    settings = {"seconds": seconds, "seed": seed, "server_core": SERVER_CORE, "client_core": CLIENT_CORE}
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
        before = server.cpu_seconds()
        seen = open_loop.run(
            server.url, request, rate=times * closed.rate, seconds=seconds, kind=kind, live=live, seed=seed
        )
        spent = server.cpu_seconds() - before
        steps.append({"times": times, **seen.row(), "server_cpu_seconds": round(spent, 1)})
        print(name_of(steps[-1]), flush=True)
    return {
        "capacity_per_second": round(closed.rate, 1),
        "capacity_p99_ms": round(closed.percentile(99), 1),
        "steps": steps,
    }


def name_of(step: dict[str, Any]) -> str:
    """A step in a line, for whoever watches."""
    return ", ".join(f"{name} {value}" for name, value in step.items())
