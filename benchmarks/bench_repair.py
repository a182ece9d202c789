#!/usr/bin/env python3
"""Repair every suspect of a zoo, and measure the file that comes out.

    bench_repair.py --zoo ZOO [--models a,b] [--profile standard] [--seeds 0,1,2]

The zoo is laid out as for `bench_zoo.py`. Results go to `results/repair.json`, a row per model, profile and seed; rows
that are there are not measured again. Where the gate refused there is no file, and the row has the bare figures alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.bench_baselines import Images, Suspect, load_images, share
from offline.job import tools
from offline.progress import TerminalProgress
from offline.repair import RepairOptions, repair

RESULTS = Path(__file__).parent / "results" / "repair.json"


def figures(folder: Path, images: Images) -> dict[str, float]:
    """BA, and with triggered images ASR (of those whose true label is another) and PA, of the folder's classifier."""
    suspect = Suspect(folder)
    x, y = images.clean
    found = {"BA": share(suspect.labels(x) == y)}
    if images.bad is not None:
        x, y, target = images.bad
        labels, others = suspect.labels(x), y != target
        found |= {"ASR": share((labels == target)[others]), "PA": share((labels == y)[others])}
    return found


def measure(zoo: Path, name: str, profile: str, seed: int) -> dict[str, Any]:
    """Repair one suspect, and score it before and after."""
    folder, data = zoo / "models" / name, zoo / "data" / name.split("-")[0]
    images = load_images(zoo, name, seed)
    with tempfile.TemporaryDirectory() as temporary:
        shutil.copy(folder / "preprocess.json", temporary)
        options = RepairOptions(
            suspect=folder / "model.onnx",
            data=data / "clean_defense.npz",
            preprocess=folder / "preprocess.json",
            profile=profile,
            seed=seed,
            out=Path(temporary) / "model.onnx",
        )
        done = repair(options, TerminalProgress())
        repaired = figures(Path(temporary), images) if done.gate_passed else {}
    return {
        "verdict": done.verdict,
        "target_labels": list(done.target_labels),
        "gate_passed": done.gate_passed,
        "checks": {check["name"]: check["value"] for check in done.checks},
        **{f"{figure}_bare": value for figure, value in figures(folder, images).items()},
        **repaired,
        "seconds": done.seconds,
        "device": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "tools": tools(),
    }


def main() -> int:
    """Measure what is not measured yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--zoo", type=Path, default=os.environ.get("DETRIGGER_ZOO"))
    parser.add_argument("--models", default="")
    parser.add_argument("--profile", default="standard")
    parser.add_argument("--seeds", default="0")
    arguments = parser.parse_args()
    if arguments.zoo is None:
        print("bench_repair: no zoo given (--zoo or DETRIGGER_ZOO); nothing measured")
        return 0
    rows: list[dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    names = (
        arguments.models.split(",") if arguments.models else [p.name for p in arguments.zoo.glob("models/*")]
    )
    for seed in map(int, arguments.seeds.split(",")):
        for name in sorted(names):
            key = {"model": name, "profile": arguments.profile, "seed": seed}
            if any(key.items() <= row.items() for row in rows):
                continue
            rows.append(key | measure(arguments.zoo, name, arguments.profile, seed))
            rows.sort(key=lambda row: (row["profile"], row["model"], row["seed"]))
            RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
            print(json.dumps(rows[-1]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
