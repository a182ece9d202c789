#!/usr/bin/env python3
"""What protection costs at serving: the protected graph with flags against the bare classifier.

    bench_cost.py --stores DIR [--batches 1,8,32,64]

Both graphs of every store in DIR run in ONNX Runtime in this process on the same random images, in turns, batch size
by batch size. A row of `results/cost.json` holds images a second, medians over `ROUNDS` turns, and their ratio at
each graph's own best batch. Rows are made anew for the stores given.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import rows
from models.store import VersionStore
from models.suspect import describe, free_batch

RESULTS = Path(__file__).parent / "results" / "cost.json"
ROUNDS = 7
SECONDS = 0.4
"""Time that one graph computes at one batch size in one turn."""


def main() -> int:
    """Measure every store in the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stores", type=Path)
    parser.add_argument("--batches", default="1,8,32,64")
    arguments = parser.parse_args()
    if arguments.stores is None:
        print("bench_cost: no --stores given; nothing measured")
        return 0
    results: dict[str, Any] = {}
    if RESULTS.exists():
        results = {row["store"]: row for row in json.loads(RESULTS.read_text())}
    for path in sorted(arguments.stores.iterdir()):
        results[path.name] = measure(
            VersionStore(path), path.name, [int(n) for n in arguments.batches.split(",")]
        )
        print(json.dumps(results[path.name]))
        RESULTS.write_text(
            json.dumps(sorted(results.values(), key=lambda row: row["store"]), indent=1) + "\n"
        )
    return 0


def measure(store: VersionStore, name: str, batches: list[int]) -> dict[str, Any]:
    """Images a second of both graphs of the newest version."""
    version = store.version_ids()[-1]
    bare = free_batch(onnx.load_from_string(store.read_file(version, "classifier.onnx")))
    spec = describe(bare)
    size = store.manifest(version).preprocess.size
    shape = (spec.channels, *size) if spec.layout == "NCHW" else (*size, spec.channels)
    protected = session(store.read_file(version, "protected.onnx"))
    graphs = {
        "bare": (session(bare.SerializeToString()), spec.input_name, shape),
        "protected": (protected, "image", (spec.channels, *size)),
    }
    rates: dict[str, dict[int, list[float]]] = {graph: {n: [] for n in batches} for graph in graphs}
    for _ in range(ROUNDS):
        for n in batches:
            for graph, (run, entry, dims) in graphs.items():
                x = np.random.default_rng(0).random((n, *dims), np.float32)
                rates[graph][n].append(rate(run, entry, x.astype(np.float16) if half(run) else x))
    medians = {graph: {n: statistics.median(v) for n, v in by.items()} for graph, by in rates.items()}
    return {
        "store": name,
        "bare_images_per_s": {str(n): round(v, 1) for n, v in medians["bare"].items()},
        "protected_images_per_s": {str(n): round(v, 1) for n, v in medians["protected"].items()},
        "ratio": round(max(medians["protected"].values()) / max(medians["bare"].values()), 3),
        "device": rows.device(),
        "tools": {"onnxruntime": ort.__version__},
    }


def session(model: bytes) -> ort.InferenceSession:
    """A CPU session on all cores, whose threads spin in its own runs only, never in those of the other graph."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def half(run: ort.InferenceSession) -> bool:
    """Whether the graph takes half precision."""
    return str(run.get_inputs()[0].type) == "tensor(float16)"


def rate(run: ort.InferenceSession, entry: str, x: npt.NDArray[Any]) -> float:
    """Images a second over ``SECONDS``, after one unmeasured run."""
    run.run(None, {entry: x})
    done, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < SECONDS:
        run.run(None, {entry: x})
        done += len(x)
    return done / spent


if __name__ == "__main__":
    raise SystemExit(main())
