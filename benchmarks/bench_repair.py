"""Repair every suspect of a zoo that has triggered images, and measure the file that comes out.

    python -m benchmarks.bench_repair --zoo ZOO [--models a,b] [--profile standard] [--seeds 0,1,2]

The zoo is laid out as for `bench_zoo.py`. Results go to `results/repair.json`, a row per model, profile and seed; rows
that are there are not measured again. Where the gate refused there is no file, and the row has the bare figures alone.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import rows
from benchmarks.bench_baselines import Images, Suspect, load_images, share
from detrigger.offline.jobs.repair import RepairOptions, repair
from detrigger.offline.jobs.results import tools
from detrigger.offline.progress import TerminalProgress

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
        "device": rows.device(),
        "tools": tools(),
    }


def main() -> int:
    """Measure what is not measured yet."""
    arguments = rows.parser(__doc__).parse_args()
    if arguments.zoo is None:
        print("bench_repair: no zoo given (--zoo or DETRIGGER_ZOO); nothing measured")
        return 0
    results = rows.Rows(RESULTS, ("profile", "model", "seed"))
    for seed in rows.seeds_of(arguments):
        for name in rows.attacked(arguments):
            key = {"model": name, "profile": arguments.profile, "seed": seed}
            if not results.has(key):
                results.add(key | measure(arguments.zoo, name, arguments.profile, seed))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
