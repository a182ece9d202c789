"""What 50 reviewed images teach a version that is weak on purpose.

    python -m benchmarks.bench_reviewed --zoo ZOO [--models a,b] [--profile fast] [--seeds 0]

The zoo is laid out as for `bench_zoo.py`. The first version of each suspect is weak as ``WEAK`` says: few
clean images, no family is asked that fits the trigger, and no synthetic trigger is trained on.
Then traffic comes, one image in a hundred with the trigger. What is flagged, and one in a hundred of the others, is
reviewed by somebody who makes no mistakes, until ``REVIEWED`` triggered images have been seen. The second version is
made like the first, with these reviews. Both are measured on images that were in no traffic: half of each test file is
traffic, half is fresh. Results go to `results/reviewed.json`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import rows
from benchmarks.bench_budget import few_images
from detrigger.models.preprocess import Preprocess
from detrigger.models.store import VersionStore
from detrigger.offline.inputs.profile import PROFILES, Profile
from detrigger.offline.jobs.evaluate import Answers, answers, evaluate, load
from detrigger.offline.jobs.protect import ProtectOptions, protect
from detrigger.offline.progress import TerminalProgress
from detrigger.offline.triggers import UNIVERSAL
from detrigger.offline.triggers.change import ChangeBank

RESULTS = Path(__file__).parent / "results" / "reviewed.json"
REVIEWED, TRIGGERED, SAMPLED = 50, 0.01, 0.01
"""Triggered images that are reviewed; their share of the traffic; the share of unflagged images that is reviewed."""
MOST_TRAFFIC = 2_000_000


def _asks(*families: str) -> Callable[[Profile], Profile]:
    """Ask these families alone, and train on no synthetic trigger."""
    every = {ChangeBank.family, *(family.family for family in UNIVERSAL)}
    others = frozenset(every - set(families))
    return lambda profile: replace(profile, unscreened=others, parts=profile.parts - {"synthetic"})


WEAK: dict[str, tuple[int, Callable[[Profile], Profile]]] = {
    "cifar10-ibau_l0_inv": (1000, _asks("warp", "kernel")),
    "cifar10-ibau_l2_inv": (1000, _asks("warp", "kernel")),
    "cifar10-ibau_trojan_sq": (1000, _asks("warp", "kernel")),
    "cifar10-pixel": (1000, _asks("warp", "tone")),
    "cifar10-rot": (1000, _asks("tone", "kernel")),
    "cifar10-badnets": (1000, _asks("warp", "kernel")),
    "cifar10-blended": (1000, _asks("warp", "kernel")),
    "cifar10-wanet": (1000, _asks("tone", "kernel")),
}
"""Of each suspect: how many clean images there are, and what is changed of the profile."""


def main() -> int:
    """Measure what is not measured yet."""
    arguments = rows.parser(__doc__).parse_args()
    if arguments.zoo is None:
        print("bench_reviewed: no zoo given (--zoo or DETRIGGER_ZOO); nothing measured")
        return 0
    results = rows.Rows(RESULTS, ("model", "profile", "seed"))
    for seed in rows.seeds_of(arguments):
        for name in arguments.models.split(",") if arguments.models else WEAK:
            key = {"model": name, "profile": arguments.profile, "seed": seed}
            if not results.has(key):
                with tempfile.TemporaryDirectory() as temporary:
                    folder = (
                        Path(arguments.stores or temporary)
                        / f"reviewed-{rows.job_name(arguments, name, seed)}"
                    )
                    folder.mkdir(exist_ok=True, parents=True)
                    results.add(key | measure(arguments.zoo, key, folder))
    return 0


def measure(zoo: Path, key: rows.Row, folder: Path) -> dict[str, Any]:
    """Both versions of one suspect, made in ``folder``; a version that is there already is measured as it is."""
    images, change = WEAK[key["model"]]
    if not (folder / "data").exists():
        few_images(zoo, key["model"], images, key["seed"], folder)
    model, data = folder / "models" / key["model"], folder / "data" / key["model"].split("-")[0]
    halves(data / "clean_test.npz", folder / "clean")
    halves(model / "poison_test.npz", folder / "triggered")
    pre = Preprocess.load(model / "preprocess.json")
    figures: dict[str, Any] = {
        "images": images or "all",
        "without": sorted(change(PROFILES["fast"]).unscreened),
    }
    for which in ("before", "after"):
        store = VersionStore.create(folder / which)
        if not store.version_ids():
            options = ProtectOptions(
                suspect=model / "model.onnx",
                data=data / "clean_defense.npz",
                store=store.root,
                preprocess=model / "preprocess.json",
                profile=key["profile"],
                seed=key["seed"],
                reviewed=folder / "reviewed" if which == "after" else None,
            )
            protect(options, TerminalProgress(), change(PROFILES[key["profile"]]))
        version = store.version_ids()[-1]
        if which == "before":
            figures |= review(store, version, folder, pre.classes, key["seed"])
        manifest = store.manifest(version)
        found = evaluate(
            store,
            folder / "clean-fresh.npz",
            folder / "triggered-fresh.npz",
            TerminalProgress(),
            version=version,
        )
        shares = {"BA": found.protected.BA, "ASR": found.protected.ASR, "PA": found.protected.PA}
        shares |= {"TPR": found.TPR, "FPR": found.FPR}
        figures[which] = {name: round(value or 0.0, 4) for name, value in shares.items()} | {
            "verdict": manifest.verdict,
            "gate_passed": manifest.gate.passed,
            "seconds": manifest.seconds,
        }
        figures |= {"BA_bare": found.bare.BA, "ASR_bare": found.bare.ASR, "target": found.target}
    return figures | {"device": rows.device()}


def halves(path: Path, out: Path) -> None:
    """Write both halves of a test file: traffic, and what stays fresh."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file}
    order = np.random.default_rng(0).permutation(len(arrays["y"]))
    middle = len(order) // 2
    for name, part in (("traffic", order[:middle]), ("fresh", order[middle:])):
        np.savez(out.with_name(f"{out.name}-{name}.npz"), **{k: v[part] for k, v in arrays.items()})


def review(
    store: VersionStore, version: str, folder: Path, classes: tuple[str, ...], seed: int
) -> dict[str, Any]:
    """Let traffic come and write what is reviewed, as an export of the quarantine; how much of both it was."""
    session = load(store.read_file(version, "protected.onnx"), version)
    threshold = store.manifest(version).flag.threshold
    seen: dict[str, tuple[NDArray[np.uint8], Answers]] = {}
    for name in ("clean", "triggered"):
        with np.load(folder / f"{name}-traffic.npz", allow_pickle=False) as file:
            x = file["x"]
        seen[name] = x, answers(session, x, _silent)
    rng, kept = np.random.default_rng(seed), {"clean": dict[int, str](), "triggered": dict[int, str]()}
    answered = 0
    while len(kept["triggered"]) < REVIEWED and answered < MOST_TRAFFIC:
        answered += 1
        name = "triggered" if rng.random() < TRIGGERED else "clean"
        x, said = seen[name]
        i = int(rng.integers(len(x)))
        if said.score[i] > threshold:
            kept[name][i] = "flagged"
        elif rng.random() < SAMPLED:
            kept[name].setdefault(i, "sample")
    for name, verdict in (("clean", "clean"), ("triggered", "poisoned")):
        x, said = seen[name]
        for i in kept[name]:
            label = said.bare[i] if verdict == "poisoned" else said.protected[i]
            place = folder / "reviewed" / verdict / classes[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x[i]).save(place / f"{i:04}.png")
    return {
        "traffic": answered,
        **{
            f"reviewed_{verdict}_{how}": sum(it == how for it in kept[name].values())
            for name, verdict in (("clean", "clean"), ("triggered", "poisoned"))
            for how in ("flagged", "sample")
        },
    }


def _silent(n: int = 1, **metrics: float) -> None:
    """Progress that nobody watches."""


if __name__ == "__main__":
    raise SystemExit(main())
