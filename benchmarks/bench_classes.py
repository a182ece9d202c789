"""What the job costs, and achieves, with more classes and with larger images.

    python -m benchmarks.bench_classes [--classes 10,43,100,1000] [--sides 32] [--profile standard] [--seeds 0]

Every suspect is a small residual network with a BadNets patch, trained here on synthetic pictures: a smooth random
drawing for each class, seen shifted, faded and over a background. The same number of clean images but where classes
would get less than five. Results go to `results/classes.json`, a row per number of classes, side in pixels, profile and
seed, with the job's seconds and its CPU seconds; rows that are there are not measured again.
"""

from __future__ import annotations

import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import rows
from benchmarks.architectures import small_resnet
from benchmarks.attacks import Patch
from benchmarks.bench_zoo import measure
from benchmarks.make_zoo import make, write_data
from benchmarks.poison import Backdoor
from benchmarks.suspects import Shape, Suspect, checkers, smooth
from benchmarks.zoo_data import I64, U8, Dataset

RESULTS = Path(__file__).parent / "results" / "classes.json"
TRAIN, CLEAN, TEST = 24_000, 2_500, 2_000
"""Images to train the suspect, at 32x32; for the defender; and to measure with."""
EPOCHS = 6


def main() -> int:
    """Measure what is not measured yet."""
    parser = rows.parser(__doc__)
    parser.add_argument("--classes", default="10,43,100,1000")
    parser.add_argument("--sides", default="32")
    arguments = parser.parse_args()
    results = rows.Rows(RESULTS, ("profile", "side", "classes", "seed"))
    for seed in rows.seeds_of(arguments):
        for classes, side in product(*(map(int, v.split(",")) for v in (arguments.classes, arguments.sides))):
            key = {"classes": classes, "side": side, "profile": arguments.profile, "seed": seed}
            if not results.has(key):
                results.add(key | with_classes(classes, side, arguments.profile, seed))
    return 0


def with_classes(classes: int, side: int, profile: str, seed: int) -> dict[str, Any]:
    """Train a suspect with so many classes, protect it, and measure."""

    def patch(shape: Shape, _: torch.Generator) -> list[Backdoor]:
        return [Backdoor(Patch(checkers(shape[0], 3 * side // 32)), 1, 0.05)]

    suspect = Suspect("drawings-badnets", "badnets", small_resnet, EPOCHS, patch)
    data = drawings(classes, side, seed)
    with tempfile.TemporaryDirectory() as temporary:
        zoo = Path(temporary)
        write_data(data, zoo / "data" / suspect.dataset)
        make(suspect, data, zoo / "models" / suspect.name, suspect.epochs, seed)
        began = time.process_time()
        row = measure(zoo, suspect.name, profile, seed, zoo / "store")
        return {"images": len(data.defence[1]), "cpu_seconds": round(time.process_time() - began, 1)} | row


def drawings(classes: int, side: int, seed: int) -> Dataset:
    """A data set of synthetic pictures; fewer large ones to train with, as each has more pixels."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(classes, 3, 6, 6, generator=g)
    shapes = smooth(coarse, (side + side // 4, side + side // 4))

    def part(n: int) -> tuple[U8, I64]:
        y = torch.arange(n) % classes
        top, left = torch.randint(side // 4 + 1, (2, n), generator=g)
        pixels = []
        for labels, rows_at, columns_at in zip(y.split(500), top.split(500), left.split(500), strict=True):
            k = len(labels)
            across = torch.arange(side)
            x = shapes[
                labels[:, None, None, None],
                torch.arange(3)[None, :, None, None],
                rows_at[:, None, None, None] + across[None, None, :, None],
                columns_at[:, None, None, None] + across[None, None, None, :],
            ]
            behind = smooth(torch.rand(k, 3, 5, 5, generator=g), (side, side))
            kept, light = (low + (1 - low) * torch.rand(k, 1, 1, 1, generator=g) for low in (0.6, 0.7))
            x = (kept * x + (1 - kept) * behind) * light + 0.03 * torch.randn(x.shape, generator=g)
            pixels.append((x.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy())
        return np.concatenate(pixels), y.numpy()

    return Dataset(
        classes=tuple(f"drawing {k}" for k in range(classes)),
        mean=(0.4,) * 3,
        std=(0.25,) * 3,
        train=part(max(TRAIN * 32**2 // side**2, 3000, 40 * classes)),
        defence=part(max(CLEAN, 5 * classes)),
        clean_test=part(TEST),
        attack_pool=part(TEST),
    )


if __name__ == "__main__":
    raise SystemExit(main())
