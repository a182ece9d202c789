"""Quantised twins of suspects: do they get the verdict of the float file, and does the defence hold?

    python -m benchmarks.bench_quantised --zoo ZOO [--outside ZOO] --stores DIR --models a,b [--profile fast]
        [--seeds 0] [--protect dynamic,qdq]

Every suspect is quantised by ONNX Runtime (dynamically, QDQ per tensor and per channel) and kept in DIR/quantised, in a
zoo of its own. Float files and twins are scanned alike. With `--protect` these twins are protected as well, and their
protected graphs are measured on the triggered images. Results go to `results/quantised.json`, a row per suspect, twin
(`float` is the file itself), what was done, profile and seed; rows that are there are not measured again.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks import rows
from benchmarks.bench_zoo import measure
from benchmarks.twins import CALIBRATION, twins
from detrigger.models.preprocess import Preprocess
from detrigger.offline.inputs.split import as_float
from detrigger.offline.jobs.scan import ScanOptions, scan
from detrigger.offline.progress import TerminalProgress

RESULTS = Path(__file__).parent / "results" / "quantised.json"
KINDS = ("dynamic", "qdq", "qdq_per_channel")


def main() -> int:
    """Measure what is not measured yet."""
    parser = rows.parser(__doc__, outside=True)
    parser.add_argument("--protect", default="", help="twins to protect as well")
    arguments = parser.parse_args()
    if arguments.zoo is None or arguments.stores is None:
        print("bench_quantised: no zoo given (--zoo or DETRIGGER_ZOO), or no --stores; nothing measured")
        return 0
    results = rows.Rows(RESULTS, ("did", "profile", "model", "twin", "seed"))
    work = arguments.stores / "quantised"
    for name in rows.models_of(arguments):
        for seed in rows.seeds_of(arguments):
            for twin in ("float", *KINDS):
                key = {"model": name, "twin": twin, "profile": arguments.profile, "seed": seed}
                asked = ["scan", *(["protect"] if twin in arguments.protect.split(",") else [])]
                for did in asked:
                    if results.has({"did": did} | key):
                        continue
                    own = quantised(rows.folder_of(arguments, name), arguments.zoo / "data", work)[twin]
                    if did == "scan":
                        row = scanned(work, own, arguments.profile, seed)
                    else:
                        store = work / "stores" / f"{own}-{arguments.profile}-{seed}"
                        row = measure(work, own, arguments.profile, seed, store)
                    results.add({"did": did} | key | row)
    return 0


def quantised(folder: Path, data: Path, work: Path) -> dict[str, str]:
    """The suspect and its twins as suspects of the zoo ``work``: their names there by what they are."""
    pre = Preprocess.load(folder / "preprocess.json")
    part = folder.name.split("-")[0]
    if not (work / "data" / part).exists():
        shutil.copytree(data / part, work / "data" / part)
    with np.load(data / part / "clean_defense.npz") as held:
        x = as_float(held["x"][:: max(1, len(held["x"]) // CALIBRATION)][:CALIBRATION])
    mean, std = (np.array(v, np.float32).reshape(1, -1, 1, 1) for v in (pre.mean, pre.std))
    made = work / "made" / folder.name / "model.onnx"
    if not made.exists():
        made.parent.mkdir(parents=True)
        shutil.copyfile(folder / "model.onnx", made)
    names = {}
    for twin, path in [("float", made), *twins(made, (x - mean) / std, KINDS)]:
        names[twin] = f"{folder.name}-{twin}"
        place = work / "models" / names[twin]
        if place.exists():
            continue
        place.mkdir(parents=True)
        shutil.copyfile(path, place / "model.onnx")
        for file in ("preprocess.json", "meta.json", "poison_test.npz"):
            if (folder / file).exists():
                shutil.copyfile(folder / file, place / file)
    return names


def scanned(zoo: Path, name: str, profile: str, seed: int) -> dict[str, Any]:
    """Scan one suspect, and measure how right its file is in ONNX Runtime."""
    folder, data = zoo / "models" / name, zoo / "data" / name.split("-")[0]
    options = ScanOptions(
        suspect=folder / "model.onnx",
        data=data / "clean_defense.npz",
        preprocess=folder / "preprocess.json",
        profile=profile,
        seed=seed,
    )
    found = scan(options, TerminalProgress())
    return {
        "target": json.loads((folder / "meta.json").read_text())["target"],
        "verdict": found.verdict,
        "target_labels": list(found.target_labels),
        "reason": found.reason,
        "accuracy": found.accuracy and round(found.accuracy["overall"], 4),
        "seconds": found.seconds,
        "device": rows.device(),
        "onnxruntime": ort.__version__,
    }


if __name__ == "__main__":
    raise SystemExit(main())
