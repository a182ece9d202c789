"""What a scan says of suspects with two, three and five classes, where there is no population to stand out from.

    python -m benchmarks.bench_few --zoo ZOO [--models a,b] [--profile fast] [--seeds 0]

ZOO is what `make_few.py` trains (or DETRIGGER_FEW says where it is). Results go to `results/few.json`, a row per
suspect, profile and seed, with every candidate's gap, cost and success. Rows that are there are not measured again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks import make_few, rows
from detrigger.offline.jobs.scan import ScanOptions, scan
from detrigger.offline.progress import TerminalProgress

RESULTS = Path(__file__).parent / "results" / "few.json"


def main() -> int:
    """Measure what is not measured yet."""
    parser = rows.parser(__doc__)
    every = ",".join(suspect.name for suspect in make_few.suspects())
    parser.set_defaults(zoo=os.environ.get("DETRIGGER_FEW") or None, models=every, profile="fast")
    arguments = parser.parse_args()
    if arguments.zoo is None:
        print("bench_few: no zoo given (--zoo or DETRIGGER_FEW); nothing measured")
        return 0
    results = rows.Rows(RESULTS, ("model", "profile", "seed"))
    for seed in rows.seeds_of(arguments):
        for name in rows.models_of(arguments):
            key = {"model": name, "profile": arguments.profile, "seed": seed}
            if not results.has(key):
                results.add(key | measure(arguments.zoo, name, arguments.profile, seed))
    return 0


def measure(zoo: Path, name: str, profile: str, seed: int) -> dict[str, Any]:
    """Scan one suspect."""
    folder = zoo / "models" / name
    meta = json.loads((folder / "meta.json").read_text())
    found = scan(
        ScanOptions(
            suspect=folder / "model.onnx",
            data=zoo / "data" / name.split("-")[0] / "clean_defense.npz",
            preprocess=folder / "preprocess.json",
            profile=profile,
            seed=seed,
        ),
        TerminalProgress(),
    )
    truth = "clean" if meta["target"] is None else "backdoored"
    right = found.verdict == truth and found.target_labels == (
        () if meta["target"] is None else (meta["target"],)
    )
    return {
        "classes": len(found.classes),
        "attack": meta["attack"],
        "target": meta["target"],
        "BA": meta["BA"],
        "ASR": meta["ASR"],
        "verdict": found.verdict,
        "target_labels": list(found.target_labels),
        "right": right,
        "wrong": found.verdict != "inconclusive" and not right,
        "reason": found.reason,
        "screen": {
            family: {what: [round(v, 4) for v in values] for what, values in columns.items()}
            for family, columns in found.screen.items()
        },
        "seconds": found.seconds,
        "device": rows.device(),
    }


if __name__ == "__main__":
    raise SystemExit(main())
