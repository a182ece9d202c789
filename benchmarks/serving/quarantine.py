"""What the quarantine costs while every image is flagged, and whether its caps hold.

Pairs of servers on the same store, one with a quarantine and one without, each asked at full load for as many different
images as ``IMAGES``, and every one of them is flagged. The caps are so small that room has to be made all the time.
Images and bytes on disk are counted about once a second.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.serving import client, report, servers, stores

IMAGES = 10_000
DIFFERENT = 2_500
MOST_IMAGES, MOST_BYTES = 1_000, 6 * 2**20
LARGEST_COST = 0.05


def quarantine(store: Path, repeats: int) -> None:
    """Measure ``repeats`` pairs, the order within a pair alternating."""
    bodies = [stores.a_png(seed) for seed in range(DIFFERENT)]
    rates: dict[bool, list[float]] = {False: [], True: []}
    kept: list[tuple[int, int]] = []
    for turn in range(repeats):
        for on in (turn % 2 == 0, turn % 2 == 1):
            rates[on].append(_rate(store, bodies, kept if on else None))
            print(f"quarantine {'on' if on else 'off'}: {rates[on][-1]:.1f}/s", flush=True)
    cost = 1 - median(rates[True]) / median(rates[False])
    images, taken = (max(each) for each in zip(*kept, strict=True))
    checks: dict[str, Any] = {
        "costs_less": cost < LARGEST_COST,
        "caps_hold": images <= MOST_IMAGES and taken <= MOST_BYTES,
        "something_was_kept": images > 0,
    }
    report.write(
        "quarantine",
        {
            "flagged_images": IMAGES,
            "different_images": DIFFERENT,
            "per_second_off": [round(rate, 1) for rate in rates[False]],
            "per_second_on": [round(rate, 1) for rate in rates[True]],
            "cost": round(cost, 4),
            "largest_cost": LARGEST_COST,
            "most_images": images,
            "cap_images": MOST_IMAGES,
            "most_bytes": taken,
            "cap_bytes": MOST_BYTES,
            "checks": checks,
        },
    )


def _rate(store: Path, bodies: list[bytes], kept: list[tuple[int, int]] | None) -> float:
    """Answers a second to ``IMAGES`` images; what lies on disk meanwhile goes to ``kept``."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "kept"
        settings = {} if kept is None else {
            "DETRIGGER_QUARANTINE": str(folder),
            "DETRIGGER_QUARANTINE_MAX_IMAGES": str(MOST_IMAGES),
            "DETRIGGER_QUARANTINE_MAX_BYTES": str(MOST_BYTES),
        }  # fmt: skip
        with servers.detrigger(store, settings) as server:
            client.drive(server.url, bodies[0], seconds=2)
            answered, seconds = 0, 0.0
            while answered < IMAGES:
                load = client.drive(
                    server.url,
                    bodies,
                    seconds=5,
                    every_second=lambda: None if kept is None else kept.append(_on_disk(folder)),
                )
                answered, seconds = answered + load.statuses[200], seconds + load.seconds
                if load.broken or set(load.statuses) != {200}:
                    raise RuntimeError(f"answers: {dict(load.statuses)}, broken {load.broken}")
    return answered / seconds


def _on_disk(folder: Path) -> tuple[int, int]:
    """Pictures, and bytes of all files in whole blocks."""
    files = [path for path in folder.rglob("*") if path.suffix in (".png", ".json")]
    sizes = []
    for path in files:
        try:
            sizes.append(-(-path.stat().st_size // 4096) * 4096)
        except OSError:  # it has just made room
            continue
    return sum(path.suffix == ".png" for path in files), sum(sizes)
