"""The service against the bare graph, against LitServe and against a plain FastAPI handler.

Everything runs on the same cores, the load client among it. A round measures each server once, one after the other;
rounds are repeated and medians reported, so that a slow minute of the machine meets all of them. The others run twice,
with all threads in a run of the graph and with one, as neither is better everywhere; the better one counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.serving import client, report, servers, stores
from benchmarks.serving.plain_fastapi import open_graph
from models.store import VersionStore
from service.engine import usable_cores

CLIENTS = 32
BATCHES = (1, 2, 4, 8, 16, 32, 64)
_OUTPUTS = ["logits", "logits_raw", "flag_score"]
_WARM = 1.5
RIVALS = {"LitServe": "litserve_app", "FastAPI": "plain_fastapi"}
Start = Callable[[], AbstractContextManager[servers.Server]]


def compare(folder: Path, given: Path | None, repeats: int, seconds: float, seed: int) -> None:
    """Measure the graphs `cifar` (the promoted version of the store `given`, where there is one) and `small`."""
    rows = []
    for graph in ("cifar", "small"):
        store, source = given, f"store {given.name}" if given else ""
        if graph == "small" or store is None:
            store, source = stores.make(folder / graph, graph, seed), f"untrained, seed {seed}"
        rows.append({"graph": graph, "source": source, **_graph(store, repeats, seconds)})
    settings = {"clients": CLIENTS, "repeats": repeats, "seconds": seconds, "seed": seed}
    report.write("compare", {**settings, "rows": rows})


def _graph(store: Path, repeats: int, seconds: float) -> dict[str, Any]:
    opened = VersionStore(store)
    version = opened.current()
    if version is None:
        raise SystemExit(f"{store} has no promoted version")
    threshold = opened.manifest(version).flag.threshold
    path = opened.open_version(version, ["protected.onnx"]) / "protected.onnx"
    cores, image = usable_cores(), stores.a_png()

    def rival(module: str, threads: int) -> Start:
        return lambda: servers.other(module, path, threads, threshold)

    candidates: dict[str, Start] = {"detrigger": lambda: servers.detrigger(store)}
    for name, module in RIVALS.items():
        candidates[f"{name}, {cores} threads a run"] = rival(module, cores)
        candidates[f"{name}, 1 thread a run"] = rival(module, 1)
    bare: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    alone: list[float] = []
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in candidates}
    for _ in range(repeats):
        session = open_graph(str(path), cores)
        for batch in BATCHES:
            bare[batch].append(_images_per_second(session, batch, seconds / len(BATCHES)))
        alone.append(_alone(session))
        del session
        for name, start in candidates.items():
            with start() as server:
                runs[name].append(_measure(name, server, image, seconds))
    found = {name: _medians(rows) for name, rows in runs.items()}
    loop = {batch: median(rates) for batch, rates in bare.items()}
    best = max(loop, key=loop.__getitem__)
    rate = "requests_per_second"
    better = max(list(found)[1:], key=lambda name: found[name][rate])
    mine = [run[rate] for run in runs["detrigger"]]
    return {
        "bare": {
            "images_per_second": {str(batch): round(rate, 1) for batch, rate in loop.items()},
            "best_batch": best,
            "one_image_ms": round(median(alone), 3),
        },
        "servers": found,
        "ratios": {
            "of_bare": _ratio(mine, bare[best]),
            "better_rival": better,
            "of_better_rival": _ratio(mine, [run[rate] for run in runs[better]]),
            "p99_of_better_rival": round(found["detrigger"]["p99_ms"] / found[better]["p99_ms"], 3),
            "idle_overhead_ms": round(found["detrigger"]["idle_p50_ms"] - median(alone), 3),
        },
    }


def _measure(name: str, server: servers.Server, image: bytes, seconds: float) -> dict[str, float]:
    client.drive(server.url, image, seconds=_WARM, clients=CLIENTS)
    before = server.cpu_seconds()
    load = client.drive(server.url, image, seconds=seconds, clients=CLIENTS)
    spent = server.cpu_seconds() - before
    if set(load.statuses) != {200} or load.broken:
        raise RuntimeError(f"{name} answered {load.statuses}, {load.broken} broken")
    return {
        "requests_per_second": load.rate,
        "p50_ms": load.percentile(50),
        "p99_ms": load.percentile(99),
        "cpu_ms_per_request": 1e3 * spent / load.statuses[200],
        "idle_p50_ms": median(client.ask_now_and_then(server.url, image, count=100, pause=0.01)),
    }


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(median(row[name] for row in rows), 3) for name in rows[0]}


def _ratio(numerators: list[float], denominators: list[float]) -> float:
    """The median over rounds of the ratio within a round."""
    return round(median(a / b for a, b in zip(numerators, denominators, strict=True)), 3)


def _images_per_second(session: ort.InferenceSession, batch: int, seconds: float) -> float:
    x = np.random.default_rng(0).random((batch, 3, stores.SIDE, stores.SIDE), np.float32)
    session.run(_OUTPUTS, {"image": x})
    began, count = time.perf_counter(), 0
    while time.perf_counter() < began + seconds:
        session.run(_OUTPUTS, {"image": x})
        count += batch
    return count / (time.perf_counter() - began)


def _alone(session: ort.InferenceSession) -> float:
    """Milliseconds for one image, run after run: the least that the graph can take."""
    x = np.random.default_rng(0).random((1, 3, stores.SIDE, stores.SIDE), np.float32)
    took = []
    for _ in range(100):
        began = time.perf_counter()
        session.run(_OUTPUTS, {"image": x})
        took.append(1e3 * (time.perf_counter() - began))
    return median(took)
