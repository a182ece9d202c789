"""What protection costs at serving: the protected graph with flags against the bare classifier.

    python -m benchmarks.bench_cost --stores DIR --models a,b [--profile standard] [--seeds 0]

DIR holds the stores that `bench_zoo.py` keeps. Both graphs of a store run in ONNX Runtime in this process on the same
random images, in turns, batch size by batch size. A row of `results/cost.json` holds images a second, medians over
`ROUNDS` turns, and their ratio at each graph's own best batch; rows that are there are not measured again.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from benchmarks import rows
from detrigger.models.store import VersionStore
from detrigger.models.suspect import describe, free_batch

RESULTS = Path(__file__).parent / "results" / "cost.json"
BATCHES = (1, 8, 32, 64)
ROUNDS = 7
SECONDS = 0.4
"""Time that one graph computes at one batch size in one turn."""


def main() -> int:
    """Measure what is not measured yet."""
    arguments = rows.parser(__doc__).parse_args()
    if arguments.stores is None or not arguments.models:
        print("bench_cost: no stores or no models given; nothing measured")
        return 0
    results = rows.Rows(RESULTS, ("store",))
    for seed in rows.seeds_of(arguments):
        for model in rows.models_of(arguments):
            name = rows.job_name(arguments, model, seed)
            if not results.has({"store": name}):
                results.add(measure(VersionStore(arguments.stores / name), name))
    return 0


def measure(store: VersionStore, name: str) -> dict[str, Any]:
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
    rates: dict[str, dict[int, list[float]]] = {graph: {n: [] for n in BATCHES} for graph in graphs}
    for _ in range(ROUNDS):
        for n in BATCHES:
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
