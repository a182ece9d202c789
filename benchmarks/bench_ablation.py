"""What each part of the method brings: the job with one of them taken out.

    python -m benchmarks.bench_ablation --zoo ZOO --models a,b [--variants repair,synthetic] \
        [--profile standard] [--seeds 0,1,2]

The zoo is laid out as for `bench_zoo.py`, whose rows are the job with all its parts; what the penalty brings is in
those of `bench_penalty.py`. Results go to `results/ablation.json`, a row per model, part left out, profile and seed;
rows that are there are not measured again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks import rows
from benchmarks.bench_zoo import measure
from detrigger.models.networks import Purifier
from detrigger.offline import find, job, screen
from detrigger.offline.inputs import PROFILES, Given, Split
from detrigger.offline.pool import Entry, Pool
from detrigger.offline.purify import Purified
from detrigger.offline.screen import Evidence
from detrigger.offline.triggers import synthetic
from detrigger.offline.triggers.base import Jitter, TriggerBank
from detrigger.offline.triggers.generator import GeneratorBank
from detrigger.offline.unlearn import Repaired

RESULTS = Path(__file__).parent / "results" / "ablation.json"


@contextmanager
def without_generator() -> Iterator[None]:
    """Generators stay out of the pool, the one of Eq. 2 and those aimed at a sticker's target."""
    add_round = Pool.add_round

    def others(pool: Pool, entries: list[Entry]) -> None:
        add_round(pool, [entry for entry in entries if not isinstance(entry.bank, GeneratorBank)])

    with patch.object(Pool, "add_round", others):
        yield


@contextmanager
def without_inverted() -> Iterator[None]:
    """Synthetic triggers alone."""

    def trigger(pool: Pool, x: Tensor) -> Tensor:
        return synthetic.draw(x, pool._compute.generator)

    with patch.object(Pool, "trigger", trigger):
        yield


@contextmanager
def without_synthetic() -> Iterator[None]:
    """Inverted triggers alone; the images that would carry synthetic ones stay clean."""

    def nothing(x: Tensor, g: torch.Generator, weights: Tensor | None = None) -> Tensor:  # noqa: ARG001
        return x

    with patch.object(synthetic, "draw", nothing):
        yield


@contextmanager
def without_rounds() -> Iterator[None]:
    """One round: triggers are never inverted again through the purifier."""
    once = {name: replace(profile, rounds=1) for name, profile in PROFILES.items()}
    with patch.dict(PROFILES, once):
        yield


@contextmanager
def without_copies_as_found() -> Iterator[None]:
    """Every copy of an inverted trigger is moved and weakened."""

    def moved(n: int, reach: int, generator: torch.Generator, strongest: float = 1.0) -> Jitter:  # noqa: ARG001
        strength = 0.6 + 0.5 * torch.rand(n, generator=generator)
        return Jitter(strength, torch.randint(-reach, reach + 1, (n, 2), generator=generator))

    with patch.object(Jitter, "draw", moved):
        yield


@contextmanager
def without_refinement() -> Iterator[None]:
    """Evidence stays as the screening left it."""

    def as_is(_: object, piece: Evidence, *__: object, **___: object) -> tuple[Evidence, TriggerBank]:
        return piece, piece.bank

    with patch.object(screen, "refine", as_is):
        yield


@contextmanager
def without_stronger_copies() -> Iterator[None]:
    """Copies of the evidence are at most as strong as found."""
    with patch.object(find, "STRONGER", 1.0):
        yield


@contextmanager
def without_random_on_top() -> Iterator[None]:
    """Copies of blends, stripes and warps carry no random one of the same kind as well."""
    with patch("detrigger.offline.pool.OVERLAID", ()):
        yield


@contextmanager
def without_many_candidates() -> Iterator[None]:
    """Evidence is inverted again with a third of the candidates, each of which sees three times as many images."""
    with (
        patch.object(screen, "RESTARTS", screen.RESTARTS // 3),
        patch.object(screen, "PER_RESTART", screen.PER_RESTART * 3),
        patch("detrigger.offline.purify.PER_RESTART", screen.PER_RESTART * 3),
    ):
        yield


@contextmanager
def without_weights_of_kinds() -> Iterator[None]:
    """All suspects get the same mixture of synthetic triggers."""
    with patch.object(find, "weights_of_kinds", lambda *_: None):
        yield


@contextmanager
def without_purifier() -> Iterator[None]:
    """The repaired copy stands behind a purifier that does nothing."""

    def fresh(_: object, __: object, split: Split, *___: object) -> Purified:
        images = split.train[0]
        purifier = Purifier(images.shape[1], (images.shape[2], images.shape[3]))
        return Purified(purifier.to(images.device).eval().requires_grad_(False), [])

    with patch.object(job, "purify", fresh):
        yield


@contextmanager
def without_repair() -> Iterator[None]:
    """Purified images are classified by the suspect itself."""

    def itself(given: Given, *_: object) -> Repaired:
        return Repaired(given.suspect, False, [])

    with patch.object(job, "repaired_copy", itself):
        yield


VARIANTS: dict[str, Callable[[], Any]] = {
    "purifier": without_purifier,
    "repair": without_repair,
    "generator": without_generator,
    "inverted": without_inverted,
    "synthetic": without_synthetic,
    "rounds": without_rounds,
    "copies as found": without_copies_as_found,
    "refinement": without_refinement,
    "stronger copies": without_stronger_copies,
    "random on top": without_random_on_top,
    "many candidates": without_many_candidates,
    "weights of kinds": without_weights_of_kinds,
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
                with tempfile.TemporaryDirectory() as temporary, VARIANTS[without]():
                    row = measure(arguments.zoo, model, arguments.profile, seed, Path(temporary) / "store")
                results.add(key | row)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
