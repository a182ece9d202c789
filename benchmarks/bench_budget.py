"""The defence with fewer clean images: protect suspects of a zoo with parts of their clean set.

    python -m benchmarks.bench_budget --zoo ZOO --models a,b [--images 2500,500,250] \
        [--profile standard] [--seeds 0,1,2]

The zoo is laid out as for `bench_zoo.py`, whose figures these are; of 50,000 training images 2,500 are 5%. Every class
keeps its share. Results go to `results/budget.json`, a row per model, number of images, profile and seed; rows that are
there are not measured again.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import rows
from benchmarks.bench_zoo import measure

RESULTS = Path(__file__).parent / "results" / "budget.json"


def main() -> int:
    """Measure what is not measured yet."""
    parser = rows.parser(__doc__)
    parser.add_argument("--images", default="2500,500,250")
    arguments = parser.parse_args()
    if arguments.zoo is None or not arguments.models:
        print("bench_budget: no zoo or no models given; nothing measured")
        return 0
    results = rows.Rows(RESULTS, ("model", "profile", "images", "seed"))
    for seed in rows.seeds_of(arguments):
        for name in rows.models_of(arguments):
            for images in map(int, arguments.images.split(",")):
                key = {"model": name, "images": images, "profile": arguments.profile, "seed": seed}
                if not results.has(key):
                    results.add(key | with_few(arguments.zoo, name, images, arguments.profile, seed))
    return 0


def with_few(zoo: Path, name: str, images: int, profile: str, seed: int) -> dict[str, Any]:
    """`bench_zoo.measure` on a zoo of one suspect and so many clean images."""
    with tempfile.TemporaryDirectory() as temporary:
        small = Path(temporary)
        few_images(zoo, name, images, seed, small)
        return measure(small, name, profile, seed, small / "store")


def few_images(zoo: Path, name: str, images: int, seed: int, small: Path) -> None:
    """Lay out a zoo of one suspect in the folder ``small``, its clean set so many images drawn class by class."""
    data = zoo / "data" / name.split("-")[0]
    (small / "models").mkdir()
    (small / "models" / name).symlink_to((zoo / "models" / name).resolve())
    folder = small / "data" / data.name
    folder.mkdir(parents=True)
    (folder / "clean_test.npz").symlink_to((data / "clean_test.npz").resolve())
    with np.load(data / "clean_defense.npz", allow_pickle=False) as every:
        x, y = every["x"], every["y"]
    draw = np.random.default_rng(seed)
    share = images / len(y)
    own = [draw.permutation(np.flatnonzero(y == label)) for label in np.unique(y)]
    chosen = np.sort(np.concatenate([which[: max(1, round(share * len(which)))] for which in own]))
    np.savez(folder / "clean_defense.npz", x=x[chosen], y=y[chosen])


if __name__ == "__main__":
    raise SystemExit(main())
