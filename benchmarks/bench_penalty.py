"""What the penalty on suspected labels, and the say of a doubtful suspect after it, bring and cost in the same graphs.

    python -m benchmarks.bench_penalty --zoo ZOO --stores DIR [--models a,b] [--profile standard] [--seeds 0,1,2]

They are the graph's last steps, so the answers before them are outputs that only have to be asked for. ZOO is laid out
as for `bench_zoo.py`, and DIR holds the stores that it keeps. Results go to `results/penalty.json`, a row per model,
profile and seed: BA, ASR and PA without both (as `_without`), with the penalty (`_penalised`) and with both, on the
test images; rows that are there are not measured again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks import rows
from detrigger.models.store import VersionStore
from detrigger.offline.graph.to_onnx import run
from detrigger.offline.inputs.split import as_float

RESULTS = Path(__file__).parent / "results" / "penalty.json"


def measure(zoo: Path, name: str, store: Path) -> dict[str, Any]:
    """All three answers of one store's last version."""
    opened = VersionStore(store)
    version = opened.version_ids()[-1]
    graph = onnx.load_from_string(opened.read_file(version, "protected.onnx"))
    steps = {"_without": "answers", "_penalised": "penalised", "": "logits"}
    for output in ("answers", "penalised"):
        graph.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    penalty = next(numpy_helper.to_array(t) for t in graph.graph.initializer if t.name == "penalty")

    def answers(x: NDArray[np.uint8]) -> list[NDArray[np.int64]]:
        return [logits.argmax(1) for logits in run(graph, as_float(x), [*steps.values()])]

    clean = np.load(zoo / "data" / name.split("-")[0] / "clean_test.npz")
    bad = np.load(zoo / "models" / name / "poison_test.npz")
    row: dict[str, Any] = {"penalty": float(penalty.max())}
    for suffix, on_clean, on_bad in zip(steps, answers(clean["x"]), answers(bad["x"]), strict=True):
        row |= {
            f"BA{suffix}": round(float((on_clean == clean["y"]).mean()), 4),
            f"ASR{suffix}": round(float((on_bad == bad["t"]).mean()), 4),
            f"PA{suffix}": round(float((on_bad == bad["y"]).mean()), 4),
        }
    return row


def main() -> int:
    """Measure what is not measured yet."""
    arguments = rows.parser(__doc__).parse_args()
    if arguments.zoo is None or arguments.stores is None:
        print("bench_penalty: no zoo or no stores given; nothing measured")
        return 0
    zoo, results = Path(arguments.zoo), rows.Rows(RESULTS, ("model", "profile", "seed"))
    for seed in rows.seeds_of(arguments):
        for name in rows.attacked(arguments):
            key = {"model": name, "profile": arguments.profile, "seed": seed}
            if results.has(key):
                continue
            store = arguments.stores / rows.job_name(arguments, name, seed)
            if store.exists() and VersionStore(store).version_ids():
                results.add(key | measure(zoo, name, store))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
