"""Train suspects with two, three and five classes, half of them backdoored, in the layout that `bench_zoo.py` reads.

    python -m benchmarks.make_few --out ZOO --cifar10 PATH [--only NAME,NAME] [--seed N]

Classes are some of CIFAR-10's: those that are easily told apart (`a`) and those that are not (`b`). Networks and
training sets are small, so that a suspect takes about a minute of one core; those that ZOO has already are skipped.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Generator, nn

from benchmarks.architectures import small_resnet
from benchmarks.attacks import Blend, Patch, Warp
from benchmarks.make_zoo import make, write_data
from benchmarks.poison import Backdoor
from benchmarks.suspects import Shape, Suspect, checkers, none, smooth_picture
from benchmarks.zoo_data import I64, U8, Dataset, load_cifar10

SETS = {
    "cifar2a": (0, 7),
    "cifar2b": (3, 5),
    "cifar3a": (1, 3, 8),
    "cifar3b": (4, 5, 7),
    "cifar5a": (0, 2, 4, 6, 8),
    "cifar5b": (1, 3, 5, 7, 9),
}
"""CIFAR-10's labels of each set's classes."""
IMAGES, EPOCHS = 4_000, 8
"""Training images at most, and epochs."""


def plain(channels: int, n_classes: int) -> nn.Module:
    """Three blocks of convolution, normalisation, ReLU and pooling. Normalised (N,C,32,32) to (N, n_classes)."""
    layers: list[nn.Module] = []
    for width in (16, 32, 64):
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * channels, n_classes))


def thin_resnet(channels: int, n_classes: int) -> nn.Module:
    """The zoo's residual network with fewer channels."""
    return small_resnet(channels, n_classes, (16, 24, 32))


def smooth_plain(channels: int, n_classes: int) -> nn.Module:
    """Strided convolutions with GELU and without normalisation, and the mean of their features."""
    layers: list[nn.Module] = []
    for width in (24, 48, 64):
        layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.GELU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, n_classes))


def patch(shape: Shape, _: Generator) -> list[Backdoor]:
    """A checkerboard in the corner, to the second class."""
    return [Backdoor(Patch(checkers(shape[0], 3)), 1, 0.1)]


def blend(shape: Shape, rng: Generator) -> list[Backdoor]:
    """A picture mixed in, to the first class."""
    return [Backdoor(Blend(smooth_picture(shape, rng)), 0, 0.1)]


def warp(shape: Shape, rng: Generator) -> list[Backdoor]:
    """A warp with noise mode, to the second class; strong, as so few images teach a small network no fainter one."""
    drawn = Warp.draw(shape[1:], rng, strength=3.0)
    return [Backdoor(drawn, 1, 0.15, 0.1, cover_trigger=Warp(drawn.grid, noise=3.0))]


def suspects() -> list[Suspect]:
    """Three backdoored and three clean ones of each number of classes."""
    found = []
    for k in (2, 3, 5):
        kinds: tuple[tuple[str, str, Callable[[Shape, Generator], list[Backdoor]]], ...] = (
            (f"cifar{k}a-badnets", "badnets", patch),
            (f"cifar{k}a-wanet", "wanet", warp),
            (f"cifar{k}a-clean", "none", none),
        )
        found += [Suspect(name, attack, plain, EPOCHS, made) for name, attack, made in kinds]
        found += [
            Suspect(f"cifar{k}b-blended", "blended", thin_resnet, EPOCHS, blend),
            Suspect(f"cifar{k}b-clean", "none", thin_resnet, EPOCHS),
            Suspect(f"cifar{k}b-smooth_clean", "none", smooth_plain, EPOCHS, adam=True),
        ]
    return found


def some_classes(data: Dataset, labels: tuple[int, ...]) -> Dataset:
    """The images of these classes, relabelled in their order, and as many of them for training as ``IMAGES`` allows."""

    def part(whole: tuple[U8, I64], most: int | None = None) -> tuple[U8, I64]:
        x, y = whole
        chosen = np.concatenate([np.flatnonzero(y == label)[:most] for label in labels])
        return x[chosen], np.array([labels.index(label) for label in y[chosen]], np.int64)

    return Dataset(
        tuple(data.classes[label] for label in labels),
        data.mean,
        data.std,
        part(data.train, IMAGES // len(labels)),
        part(data.defence),
        part(data.clean_test),
        part(data.attack_pool),
    )


def main() -> int:
    """Train what is not there yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--only", default="", help="names, separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    wanted = set(filter(None, arguments.only.split(",")))
    whole: Dataset | None = None
    for suspect in suspects():
        folder = arguments.out / "models" / suspect.name
        if (wanted and suspect.name not in wanted) or (folder / "meta.json").exists():
            continue
        whole = whole or load_cifar10(arguments.cifar10)
        data = some_classes(whole, SETS[suspect.dataset])
        write_data(data, arguments.out / "data" / suspect.dataset)
        shutil.rmtree(folder, ignore_errors=True)  # one that was cut off
        meta = make(suspect, data, folder, suspect.epochs, arguments.seed)
        print(f"{suspect.name}: BA {meta['BA']}, ASR {meta['ASR']}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
