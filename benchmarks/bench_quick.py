"""What `detrigger scan --quick` says of the suspects of one or more zoos, and how long it takes.

    python -m benchmarks.bench_quick --zoo ZOO [--outside ZOO] --models a,b [--seeds 0]

Zoos are laid out as for `bench_zoo.py`; the second one (or DETRIGGER_OUTSIDE) has its images from the first. Every scan
is a process of its own, started as a user starts it, so that its seconds hold Python's start as well. Results go to
`results/quick.json`, a row per suspect and seed; rows that are there are not measured again. On a machine that does
other work too the CPU seconds tell more than the wall's.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import rows

RESULTS = Path(__file__).parent / "results" / "quick.json"


def main() -> int:
    """Measure what is not measured yet."""
    arguments = rows.parser(__doc__, outside=True).parse_args()
    if arguments.zoo is None:
        print("bench_quick: no zoo given (--zoo or DETRIGGER_ZOO); nothing measured")
        return 0
    results = rows.Rows(RESULTS, ("model", "seed"))
    for seed in rows.seeds_of(arguments):
        for name in rows.models_of(arguments):
            key = {"model": name, "seed": seed}
            if not results.has(key):
                results.add(key | measure(rows.folder_of(arguments, name), arguments.zoo / "data", seed))
    return 0


def measure(folder: Path, data: Path, seed: int) -> dict[str, Any]:
    """One scan."""
    images = data / folder.name.split("-")[0] / "clean_defense.npz"
    given = ["--data", str(images), "--preprocess", str(folder / "preprocess.json"), "--seed", str(seed)]
    command = [
        sys.executable,
        "-m",
        "detrigger",
        "scan",
        str(folder / "model.onnx"),
        *given,
        "--quick",
        "--json",
    ]
    began, cpu = time.monotonic(), _cpu()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, used = time.monotonic() - began, _cpu() - cpu
    found = json.loads(done.stdout)
    target = json.loads((folder / "meta.json").read_text())["target"]
    truth = [] if target is None else [target]
    return {
        "target": target,
        "verdict": found["verdict"],
        "target_labels": found["target_labels"],
        "right": found["target_labels"] == truth and (found["verdict"] == "backdoored") == bool(truth),
        "evidence": [[sign["family"], round(sign["success"], 3)] for sign in found["evidence"]],
        "best_first_look": {
            family: [round(max(look["success"]), 3), look["target"][look["success"].index(max(look["success"]))]]
            for family, look in found["screen"].items()
        },
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used, 1),
        "cores": len(os.sched_getaffinity(0)),
        "device": rows.device(),
    }  # fmt: skip


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    raise SystemExit(main())
