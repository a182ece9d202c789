"""Three times what the service can do, for minutes: everybody is answered, nothing grows."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.serving import client, report, servers, stores
from detrigger.service.settings import Settings

TIMES = 3
CONNECTIONS = 800
_ALLOWED = {200, 429, 503, 504}
_FLAT_MB = 16.0
_SETTLE = 30


def overload(store: Path, seconds: float) -> None:
    """Measure the capacity with 32 clients, then send three times as much for `seconds`, due or not."""
    image = stores.a_png()
    deadline = Settings(store=store).deadline
    sizes: list[float] = []
    with servers.detrigger(store) as server:
        client.drive(server.url, image, seconds=2)
        capacity = client.drive(server.url, image, seconds=10).rate
        load = client.drive(
            server.url,
            image,
            seconds=seconds,
            clients=CONNECTIONS,
            rate=TIMES * capacity,
            every_second=lambda: sizes.append(server.memory()),
        )
    asked = sum(load.statuses.values())
    # Pools and buffers fill in the first half minute; what comes after it has no reason to grow.
    settled = sizes[min(_SETTLE, len(sizes) // 4) :]
    part = max(1, len(settled) // 10)
    growth = median(settled[-part:]) - median(settled[:part])
    checks: dict[str, Any] = {
        "every_request_answered": load.broken == 0,
        "no_5xx_but_503_504": set(load.statuses) <= _ALLOWED,
        "p99_within_deadline": load.percentile(99) <= 1e3 * deadline,
        "memory_flat": growth <= _FLAT_MB,
    }
    report.write(
        "overload",
        {
            "seconds": seconds,
            "capacity_per_second": round(capacity, 1),
            "sent_per_second": round(asked / load.seconds, 1),
            "connections": CONNECTIONS,
            "requests": asked,
            "statuses": {str(status): count for status, count in sorted(load.statuses.items())},
            "unanswered": load.broken,
            "ok_p50_ms": round(load.percentile(50), 1),
            "ok_p99_ms": round(load.percentile(99), 1),
            "deadline_ms": 1e3 * deadline,
            "memory_mb": {
                "first": round(median(settled[:part]), 1),
                "last": round(median(settled[-part:]), 1),
                "most": round(max(settled), 1),
                "limit_growth": _FLAT_MB,
            },
            "checks": checks,
        },
    )
