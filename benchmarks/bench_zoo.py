#!/usr/bin/env python3
"""Protect every suspect of a zoo and measure the protected graph on its test images.

    bench_zoo.py --zoo ZOO [--models a,b] [--profile standard] [--seeds 0,1,2] [--stores DIR]

A zoo is a folder with `models/<set>-<attack>/{model.onnx,preprocess.json,meta.json,poison_test.npz}` and
`data/<set>/{clean_defense,clean_test}.npz`; x uint8 NHWC, y true labels, t targets. Without --zoo and DETRIGGER_ZOO
it says so and ends. Results go to `results/zoo.json`, a row per model, profile and seed; rows that are there are not
measured again. BA, ASR, PA, TPR and FPR are those of the README's glossary, on 8-bit images; the threshold is the
manifest's, so nothing is chosen on test images. With --stores the stores are kept as DIR/<model>-<profile>-<seed>,
and one that is there already, made by `detrigger protect`, is measured as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from models.store import VersionStore
from offline.job import ProtectOptions, protect
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
    parser.add_argument("--stores", type=Path)
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
            with tempfile.TemporaryDirectory() as temporary:
                store = Path(arguments.stores or temporary) / f"{name}-{arguments.profile}-{seed}"
                rows.append(key | measure(arguments.zoo, name, arguments.profile, seed, store))
            rows.sort(key=lambda row: (row["profile"], row["model"], row["seed"]))
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
            print(json.dumps(rows[-1]))
    return 0


def measure(zoo: Path, name: str, profile: str, seed: int, store: Path) -> dict[str, Any]:
    """Protect one suspect unless ``store`` has it, and score its protected graph."""
    folder, data = zoo / "models" / name, zoo / "data" / name.split("-")[0]
    if not store.exists():
        options = ProtectOptions(
            suspect=folder / "model.onnx",
            data=data / "clean_defense.npz",
            store=store,
            preprocess=folder / "preprocess.json",
            profile=profile,
            seed=seed,
            name=name,
        )
        protect(options, TerminalProgress())
    opened = VersionStore(store)
    manifest = opened.manifest(opened.version_ids()[-1])
    model, threshold = opened.read_file(manifest.id, "protected.onnx"), manifest.flag.threshold
    run = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    clean = np.load(data / "clean_test.npz")
    label, raw, flagged = answers(run, clean["x"], threshold)
    row = {
        "verdict": manifest.verdict,
        "target_labels": list(manifest.target_labels),
        "gate_passed": manifest.gate.passed,
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
        "seconds": manifest.seconds,
        "device": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "tools": manifest.tools,
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
