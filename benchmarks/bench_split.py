"""What the suspected labels' own threshold brings, and what purifying their images alone brings and gives up.

    python -m benchmarks.bench_split --zoo ZOO --stores DIR [--models a,b] [--profile fast] [--seeds 0]

A job runs once on each suspect, up to its last step. Three versions of it are published as DIR/<model>-<profile>-<seed>
with a suffix: `-alike` flags images of all labels by one rule, `-split` has a threshold for the suspected labels, and
`-suspected` purifies no others. ZOO is laid out as for `bench_zoo.py`. Results go to `results/split.json`, a row per
model, profile, seed and version: the shares of `detrigger evaluate` on the test images, and TPR among the triggered
images that fool the bare suspect (`TPR_fooled`). `speed` is images a second at a batch of 32 beside the bare graph's:
clean test images as they come, those with a suspected label alone, and those without. Rows that are there are not
measured again.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks import rows
from benchmarks.bench_cost import rate, session
from detrigger.models.store import VersionStore
from detrigger.models.suspect import describe, free_batch
from detrigger.offline.compute import Compute
from detrigger.offline.inputs.split import as_float
from detrigger.offline.jobs.evaluate import evaluate
from detrigger.offline.jobs.protect import ProtectOptions, suspected_labels
from detrigger.offline.jobs.publish import publish
from detrigger.offline.progress import TerminalProgress
from detrigger.offline.steps.candidates import Defence
from detrigger.offline.steps.find import find_triggers
from detrigger.offline.steps.penalty import choose_penalty
from detrigger.offline.steps.purify import purify
from detrigger.offline.steps.run import begin
from detrigger.offline.steps.unlearn import repaired_copy

RESULTS = Path(__file__).parent / "results" / "split.json"
VERSIONS = ("alike", "split", "suspected")
BATCH, ROUNDS = 32, 5


def main() -> int:
    """Measure what is not measured yet."""
    arguments = rows.parser(__doc__).parse_args()
    if arguments.zoo is None or arguments.stores is None:
        print("bench_split: no zoo or no stores given; nothing measured")
        return 0
    results = rows.Rows(RESULTS, ("model", "profile", "seed", "version"))
    for seed in rows.seeds_of(arguments):
        for name in rows.models_of(arguments):
            key = {"model": name, "profile": arguments.profile, "seed": seed}
            if results.has(key):
                continue
            stores = {v: arguments.stores / f"{rows.job_name(arguments, name, seed)}-{v}" for v in VERSIONS}
            if not stores["alike"].exists():
                make(arguments.zoo, name, arguments.profile, seed, stores)
            for version, store in stores.items():
                if store.exists():
                    results.add(key | {"version": version} | measure(arguments.zoo, name, store))
    return 0


def make(zoo: Path, name: str, profile: str, seed: int, stores: dict[str, Path]) -> None:
    """Run the job once and publish what the verdict allows of the three versions."""
    folder, data = zoo / "models" / name, zoo / "data" / name.split("-")[0]
    options = ProtectOptions(
        suspect=folder / "model.onnx",
        data=data / "clean_defense.npz",
        store=stores["alike"],
        preprocess=folder / "preprocess.json",
        profile=profile,
        seed=seed,
    )
    run = begin(options, Compute(options.device, seed), TerminalProgress())
    findings = find_triggers(run)
    purified = purify(run, findings)
    repaired = repaired_copy(run, findings, purified.purifier)
    penalty = choose_penalty(run, findings, repaired.classifier, purified.purifier)
    defence = Defence(kind="purified", purified=purified, repaired=repaired, penalty=penalty)
    publish(run, findings, defence, VersionStore.create(stores["alike"]), name)
    if suspected := suspected_labels(run, findings):
        for version in VERSIONS[1:]:
            kind = replace(defence, suspected=suspected, only=version == "suspected")
            publish(run, findings, kind, VersionStore.create(stores[version]), name)


def measure(zoo: Path, name: str, store: Path) -> dict[str, Any]:
    """The shares and the speed of a store's newest version."""
    opened = VersionStore(store)
    manifest = opened.manifest(opened.version_ids()[-1])
    bad = zoo / "models" / name / "poison_test.npz"
    clean = zoo / "data" / name.split("-")[0] / "clean_test.npz"
    found = evaluate(opened, clean, bad if bad.exists() else None, TerminalProgress(), version=manifest.id)
    runner = session(opened.read_file(manifest.id, "protected.onnx"))
    row: dict[str, Any] = {
        "target_labels": list(manifest.target_labels),
        "gate_passed": manifest.gate.passed,
        "alpha": round(manifest.flag.alpha, 5),
        "threshold": round(manifest.flag.threshold, 4),
        "BA_bare": found.bare.BA,
        "BA": found.protected.BA,
        "FPR": found.FPR,
    }
    x = np.load(clean)["x"]
    if bad.exists():
        poisoned = np.load(bad)
        raw, score = answers(runner, as_float(poisoned["x"]))
        fooled = raw.argmax(1) == poisoned["t"]
        row |= {
            "ASR_bare": found.bare.ASR,
            "ASR": found.protected.ASR,
            "PA": found.protected.PA,
            "TPR": found.TPR,
            "TPR_fooled": round(float((score[fooled] > manifest.flag.threshold).mean()), 4),
        }
    classifier = free_batch(onnx.load_from_string(opened.read_file(manifest.id, "classifier.onnx")))
    bare = session(classifier.SerializeToString()), describe(classifier).input_name
    labels = answers(runner, as_float(x))[0].argmax(1)
    asked = np.isin(labels, manifest.flag.suspected or manifest.target_labels)
    mixes = {"as_they_come": x, "suspected_alone": x[asked], "others_alone": x[~asked]}
    return row | {
        "share_asked": round(float(asked.mean()), 4),
        "speed": {mix: speed(bare, runner, as_float(of)) for mix, of in mixes.items() if len(of)},
        "device": rows.device(),
    }


def answers(runner: Any, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Raw logits (N, K) and flag scores (N,)."""
    parts = [
        runner.run(["logits_raw", "flag_score"], {"image": part})
        for part in np.array_split(x, -(-len(x) // 128))
    ]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def speed(bare: tuple[Any, str], protected: Any, x: NDArray[np.float32]) -> float:
    """Images a second of the protected graph beside the bare one, on batches drawn from ``x``; the median of turns."""
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(ROUNDS):
        batch = x[rng.integers(0, len(x), BATCH)]
        ratios.append(rate(protected, "image", batch) / rate(*bare, batch))
    return round(statistics.median(ratios), 3)


if __name__ == "__main__":
    raise SystemExit(main())
