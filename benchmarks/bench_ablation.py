"""What each part of the method brings: the job with one of them taken out.

    python -m benchmarks.bench_ablation --zoo ZOO --models a,b [--variants repair,synthetic] \
        [--profile standard] [--seeds 0,1,2]

The zoo is laid out as for `bench_zoo.py`, whose rows are the job with all its parts; what the penalty brings is in
those of `bench_penalty.py`. Results go to `results/ablation.json`, a row per model, part left out, profile and seed;
rows that are there are not measured again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks import rows
from benchmarks.bench_zoo import measure
from detrigger.offline.inputs.profile import PROFILES, Part, Profile

RESULTS = Path(__file__).parent / "results" / "ablation.json"


def _without(part: Part) -> Callable[[Profile], Profile]:
    return lambda profile: replace(profile, parts=profile.parts - {part})


VARIANTS: dict[str, Callable[[Profile], Profile]] = {
    "purifier": _without("purifier"),
    "repair": _without("repair"),
    "generator": _without("generator"),
    "inverted": _without("inverted"),
    "synthetic": _without("synthetic"),
    "rounds": lambda profile: replace(profile, purify_rounds=1),
    "copies as found": _without("copies as found"),
    "refinement": _without("refinement"),
    "stronger copies": lambda profile: replace(profile, max_strength=1.0),
    "random on top": _without("random on top"),
    "many candidates": lambda profile: replace(
        profile, restarts=profile.restarts // 3, images_each=profile.images_each * 3
    ),
    "weights of kinds": _without("weights of kinds"),
}


def main() -> int:
    """Measure what is not measured yet."""
    parser = rows.parser(__doc__)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    arguments = parser.parse_args()
    if arguments.zoo is None or not arguments.models:
        print("bench_ablation: no zoo or no models given; nothing measured")
        return 0
    results = rows.Rows(RESULTS, ("model", "without", "seed"))
    for seed in rows.seeds_of(arguments):
        for model in rows.models_of(arguments):
            for without in arguments.variants.split(","):
                key = {"model": model, "without": without, "profile": arguments.profile, "seed": seed}
                if results.has(key):
                    continue
                instead = VARIANTS[without](PROFILES[arguments.profile])
                with tempfile.TemporaryDirectory() as temporary:
                    store = Path(temporary) / "store"
                    row = measure(arguments.zoo, model, arguments.profile, seed, store, instead)
                results.add(key | row)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
