#!/usr/bin/env python3
"""Protect every suspect of a zoo and measure the protected graph on its test images.

    bench_zoo.py --zoo ZOO [--models a,b] [--profile standard] [--seeds 0,1,2]

A zoo is a folder with `models/<set>-<attack>/{model.onnx,preprocess.json,meta.json,poison_test.npz}` and
`data/<set>/{clean_defense,clean_test}.npz`; x uint8 NHWC, y true labels, t targets. Without --zoo and DETRIGGER_ZOO
it says so and ends. Results go to `results/zoo.json`, a row per model, profile and seed; rows that are there are not
measured again. BA, ASR, PA, TPR and FPR are those of the README's glossary, on 8-bit images; the threshold is the
manifest's, so nothing is chosen on test images.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from models.store import VersionStore
from offline.job import ProtectOptions, protect, tools
from offline.progress import TerminalProgress

RESULTS = Path(__file__).parent / "results" / "zoo.json"


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
        print("bench_zoo: no zoo given (--zoo or DETRIGGER_ZOO); nothing measured")
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
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
            print(json.dumps(rows[-1]))
    return 0


def measure(zoo: Path, name: str, profile: str, seed: int) -> dict[str, Any]:
    """Protect one suspect in a store of its own, and score its protected graph."""
    folder, data = zoo / "models" / name, zoo / "data" / name.split("-")[0]
    with tempfile.TemporaryDirectory() as temporary:
        options = ProtectOptions(
            suspect=folder / "model.onnx",
            data=data / "clean_defense.npz",
            store=Path(temporary) / "store",
            preprocess=folder / "preprocess.json",
            profile=profile,
            seed=seed,
            name=name,
            promote=False,
        )
        began = time.monotonic()
        outcome = protect(options, TerminalProgress())
        seconds = time.monotonic() - began
        store = VersionStore(options.store)
        model = store.read_file(outcome.version, "protected.onnx")
        threshold = store.manifest(outcome.version).flag.threshold
    run = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    clean = np.load(data / "clean_test.npz")
    label, raw, flagged = answers(run, clean["x"], threshold)
    row = {
        "verdict": outcome.verdict,
        "target_labels": list(outcome.target_labels),
        "gate_passed": outcome.gate_passed,
        "BA_bare": share(raw == clean["y"]),
        "BA": share(label == clean["y"]),
        "FPR": share(flagged),
    }
    if (folder / "poison_test.npz").exists():
        bad = np.load(folder / "poison_test.npz")
        label, raw, flagged = answers(run, bad["x"], threshold)
        row |= {
            "ASR_bare": share(raw == bad["t"]),
            "ASR": share(label == bad["t"]),
            "PA": share(label == bad["y"]),
            "TPR": share(flagged),
            "target": int(bad["t"][0]),
        }
    return row | {
        "seconds": round(seconds, 1),
        "device": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "tools": tools(),
    }


def answers(run: ort.InferenceSession, x: Any, threshold: float) -> tuple[Any, Any, Any]:
    """Label after purification, raw label, and whether flagged, for uint8 images (N, H, W, C)."""
    parts = []
    for start in range(0, len(x), 100):
        image = x[start : start + 100].transpose(0, 3, 1, 2).astype(np.float32) / 255
        logits, raw, score = run.run(["logits", "logits_raw", "flag_score"], {"image": image})
        parts.append((logits.argmax(1), raw.argmax(1), score > threshold))
    label, raw, flagged = (np.concatenate(column) for column in zip(*parts, strict=True))
    return label, raw, flagged


def share(hits: Any) -> float:
    """Mean of booleans, to four digits."""
    return round(float(hits.mean()), 4)


if __name__ == "__main__":
    raise SystemExit(main())
