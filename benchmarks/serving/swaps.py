"""Another version twenty times while 32 clients ask; and memory over fifty swaps."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from pathlib import Path
from statistics import median

from benchmarks.serving import client, report, servers, stores

SWAPS = 20
MEMORY_SWAPS = 50
_WARM_SWAPS = 10
_SETTINGS = servers.ADMIN | {"DETRIGGER_POLL_INTERVAL": "60", "DETRIGGER_DEADLINE": "5"}
_SETTLE = 6.0


def swaps(folder: Path, repeats: int, seconds: float, seed: int) -> None:
    """A run without and a run with 20 swaps, each `seconds` long, `repeats` times; then 50 swaps for memory."""
    store = stores.make(folder / "swaps", "cifar", seed, versions=2)
    image = stores.a_png()
    calm: list[float] = []
    swapped: list[float] = []
    failed = requests = 0
    with servers.detrigger(store, _SETTINGS) as server:
        versions = versions_of(server)
        client.drive(server.url, image, seconds=2)
        for _ in range(repeats):
            load = client.drive(server.url, image, seconds=seconds)
            calm.append(load.percentile(99))
            swapper = threading.Thread(target=_swap, args=(server, versions, SWAPS, seconds / SWAPS))
            swapper.start()
            load = client.drive(server.url, image, seconds=seconds)
            swapper.join()
            swapped.append(load.percentile(99))
            requests += sum(load.statuses.values())
            failed += load.broken + sum(load.statuses.values()) - load.statuses[200]
    with servers.detrigger(store, _SETTINGS | {"DETRIGGER_DEADLINE": "0.5"}) as server:
        _swap(server, versions, _WARM_SWAPS, 0.0)
        time.sleep(_SETTLE)
        before = server.memory()
        _swap(server, versions, MEMORY_SWAPS, 0.0)
        time.sleep(_SETTLE)
        after = server.memory()
    report.write(
        "swaps",
        {
            "seed": seed,
            "repeats": repeats,
            "seconds": seconds,
            "swaps_per_run": SWAPS,
            "requests": requests,
            "failed": failed,
            "p99_calm_ms": round(median(calm), 1),
            "p99_swapping_ms": round(median(swapped), 1),
            "p99_ratio": round(median(b / a for a, b in zip(calm, swapped, strict=True)), 3),
            "memory": {"swaps": MEMORY_SWAPS, "before_mb": round(before, 1), "after_mb": round(after, 1)},
        },
    )


def _call(server: servers.Server, method: str, path: str) -> dict[str, object]:
    request = urllib.request.Request(  # noqa: S310 - an address of ours
        server.url + path, method=method, headers={"Authorization": f"Bearer {servers.TOKEN}"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        content: dict[str, object] = json.load(answer)
        return content


def versions_of(server: servers.Server) -> list[str]:
    """The ids of all versions in its store."""
    listed = _call(server, "GET", "/admin/versions")["versions"]
    assert isinstance(listed, list)
    return [version["id"] for version in listed]


def activate(server: servers.Server, version: str) -> None:
    """Have another version served; returns when it is."""
    _call(server, "POST", f"/admin/versions/{version}/activate")


def _swap(server: servers.Server, versions: list[str], count: int, every: float) -> None:
    """Activate another version `count` times, each `every` seconds or as soon as the last is done."""
    began = time.perf_counter()
    for turn in range(count):
        time.sleep(max(0.0, began + turn * every - time.perf_counter()))
        activate(server, versions[turn % len(versions)])
