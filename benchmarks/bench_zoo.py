"""Protect every suspect of a zoo and measure the protected graph on its test images.

    python -m benchmarks.bench_zoo --zoo ZOO [--models a,b] [--profile standard] [--seeds 0,1,2] [--stores DIR]
        [--results FILE]

A zoo is a folder with `models/<set>-<attack>/{model.onnx,preprocess.json,meta.json,poison_test.npz}` and
`data/<set>/{clean_defense,clean_test}.npz`; x uint8 NHWC, y true labels, t targets. Without --zoo and DETRIGGER_ZOO
it says so and ends. Results go to `results/zoo.json` or FILE, a row per model, profile and seed; rows that are there
are not measured again. BA, ASR, PA, TPR and FPR are those of the README's glossary, on 8-bit images; the threshold is
the manifest's, so nothing is chosen on test images. With --stores the stores are kept as DIR/<model>-<profile>-<seed>,
and one that is there already, made by `detrigger protect`, is measured as it is.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks import rows
from detrigger.models.store import VersionStore
from detrigger.offline.inputs.profile import Profile
from detrigger.offline.jobs.evaluate import evaluate
from detrigger.offline.jobs.protect import ProtectOptions, protect
from detrigger.offline.progress import TerminalProgress

RESULTS = Path(__file__).parent / "results" / "zoo.json"


def main() -> int:
    """Measure what is not measured yet."""
    parser = rows.parser(__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.zoo is None:
        print("bench_zoo: no zoo given (--zoo or DETRIGGER_ZOO); nothing measured")
        return 0
    results = rows.Rows(arguments.results, ("profile", "model", "seed"))
    for seed in rows.seeds_of(arguments):
        for name in rows.models_of(arguments):
            key = {"model": name, "profile": arguments.profile, "seed": seed}
            if results.has(key):
                continue
            with tempfile.TemporaryDirectory() as temporary:
                store = Path(arguments.stores or temporary) / rows.job_name(arguments, name, seed)
                results.add(key | measure(arguments.zoo, name, arguments.profile, seed, store))
    return 0


def measure(
    zoo: Path, name: str, profile: str, seed: int, store: Path, instead: Profile | None = None
) -> dict[str, Any]:
    """Protect one suspect unless ``store`` has it, and score its protected graph.

    ``instead`` is the profile to use in place of the named one.
    """
    folder, data = zoo / "models" / name, zoo / "data" / name.split("-")[0]
    if not store.exists() or not VersionStore(store).version_ids():  # none yet where a job was killed
        options = ProtectOptions(
            suspect=folder / "model.onnx",
            data=data / "clean_defense.npz",
            store=store,
            preprocess=folder / "preprocess.json",
            profile=profile,
            seed=seed,
            name=name,
        )
        protect(options, TerminalProgress(), instead)
    opened = VersionStore(store)
    manifest = opened.manifest(opened.version_ids()[-1])
    bad = folder / "poison_test.npz"
    found = evaluate(
        opened,
        data / "clean_test.npz",
        bad if bad.exists() else None,
        TerminalProgress(),
        version=manifest.id,
    )
    row = {
        "verdict": manifest.verdict,
        "target_labels": list(manifest.target_labels),
        "gate_passed": manifest.gate.passed,
        "BA_bare": found.bare.BA,
        "BA": found.protected.BA,
        "FPR": found.FPR,
        "ASR_bare": found.bare.ASR,
        "ASR": found.protected.ASR,
        "PA": found.protected.PA,
        "PA_estimated": manifest.metrics.get("pa_estimated"),
        "TPR": found.TPR,
        "AUROC": found.AUROC,
        "floor": found.floor,
        "target": found.target,
    }
    measured = {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in row.items()
        if value is not None
    }
    return measured | {
        "seconds": manifest.seconds,
        "device": rows.device(),
        "tools": manifest.tools,
    }


if __name__ == "__main__":
    raise SystemExit(main())
