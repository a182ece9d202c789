"""Hours at half load with another version every minute or two: nothing fails, and memory stays where it was.

Memory before a swap is the median of a sample a second since the swap before it: a single one has the batch in it that
happens to run.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving import client, report, servers, stores
from benchmarks.serving.swaps import activate, versions_of

SWAPS = 60
_WARM_SWAPS = 5
_TOLERANCE = 0.02
_SETTINGS = {"DETRIGGER_POLL_INTERVAL": "60"}


def soak(folder: Path, seconds: float, seed: int) -> None:
    """Half of what 32 clients got for 10 seconds, sent for `seconds`, with 60 swaps evenly between."""
    store = stores.make(folder / "soak", "cifar", seed, versions=2)
    image = stores.a_png()
    every = seconds / (SWAPS + 1)
    memory: list[float] = []
    most: list[float] = []
    with servers.detrigger(store, servers.ADMIN | _SETTINGS) as server:
        versions = versions_of(server)
        client.drive(server.url, image, seconds=2)
        capacity = client.drive(server.url, image, seconds=10).rate

        def rest(until: float) -> None:
            samples = [server.memory()]
            while (left := until - time.perf_counter()) > 0:
                time.sleep(min(left, 1.0))
                samples.append(server.memory())
            most.append(max(samples))
            memory.append(float(np.median(samples)))

        def swap() -> None:
            began = time.perf_counter()
            for turn in range(SWAPS):
                rest(began + (turn + 1) * every)
                activate(server, versions[turn % len(versions)])
            rest(began + (SWAPS + 1) * every)

        swapper = threading.Thread(target=swap)
        swapper.start()
        parts = [client.drive(server.url, image, seconds=seconds, clients=64, rate=capacity / 2)]
        while swapper.is_alive():  # on a busy machine swaps take longer than planned
            parts.append(client.drive(server.url, image, seconds=10, clients=64, rate=capacity / 2))
    settled, later = memory[_WARM_SWAPS], memory[_WARM_SWAPS + 1 :]
    load = client.Load(seconds=sum(part.seconds for part in parts))
    for part in parts:
        load.statuses += part.statuses
        load.latencies += part.latencies
        load.broken += part.broken
    requests = sum(load.statuses.values())
    checks: dict[str, Any] = {
        "no_request_failed": load.broken == 0 and set(load.statuses) == {200},
        "memory_within_tolerance": max(later) <= settled * (1 + _TOLERANCE),
    }
    report.write(
        "soak",
        {
            "seconds": round(load.seconds, 1),
            "seed": seed,
            "swaps": SWAPS,
            "capacity_per_second": round(capacity, 1),
            "sent_per_second": round(requests / load.seconds, 1),
            "requests": requests,
            "failed": load.broken + requests - load.statuses[200],
            "ok_p50_ms": round(load.percentile(50), 1),
            "ok_p99_ms": round(load.percentile(99), 1),
            "memory_mb": {
                "after_5_swaps": round(settled, 1),
                "most_after_that": round(max(later), 1),
                "last": round(later[-1], 1),
                "most_of_all_samples": round(max(most), 1),
                "before_each_swap": [round(value, 1) for value in memory],
            },
            "checks": checks,
        },
    )
