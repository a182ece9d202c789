"""What ``--profile fast``, ``standard`` and ``thorough`` mean: every count of steps of the job."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

MAX_DIVERGENCE = {1.3: 0.034, 1.2: 0.034, 1.1: 0.034, 1.0: 0.07, 0.9: math.inf}
"""How far repaired weights may go, by how far their answers to clean images may diverge from the suspect's, in nats.
What tuning left of a mark goes where they go on. BA itself does not serve: few images tell it badly.
Measured: docs/experiments.md, Repair."""


Part = Literal[
    "purifier",
    "repair",
    "generator",
    "inverted",
    "synthetic",
    "copies as found",
    "refinement",
    "random on top",
    "weights of kinds",
]
"""Parts of the method that can be left out, to measure what each is worth (``benchmarks/bench_ablation.py``)."""
PARTS: frozenset[Part] = frozenset(get_args(Part))


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How weights are tuned: steps of the optimiser, rounds, and steps of each new inversion.

    ``rate``: Adam's largest step relative to the root mean square of a tensor, as suspects come in every scale.
    ``clean_images``: how many images of a batch carry no trigger.
    ``lengths``: how far the weights may go along their way in the end, where tuning ends at 1 (``unlearn.go_along``).
    """

    steps: int
    rounds: int
    refresh_steps: int
    rate: float
    clean_images: int
    lengths: dict[float, float]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A point on the curve of time against quality.

    ``restarts`` candidates share the inversion of a lead, and each sees ``images_each`` images a step. Many that see
    few cover what an attacker may use better than few that see many (docs/experiments.md, Purify). ``max_strength``:
    an attacker's blend, warp, sine, tone or kernel may be this many times as strong as the cheapest that works.
    ``unscreened``: names of families that are not asked, to measure what the others do without them.

    ``repair`` tunes weights that stand alone. ``copy`` tunes weights behind a purifier: smaller steps are enough there,
    and most of what tuning unlearns goes with the first ones.
    """

    screen_steps: int
    images_per_class: int
    generator_steps: int
    opinion_steps: int
    twin_steps: int
    purify_steps: int
    purify_rounds: int
    refresh_steps: int
    repair: Tuning
    copy: Tuning
    restarts: int = 12
    images_each: int = 4
    max_strength: float = 2.5
    parts: frozenset[Part] = PARTS
    unscreened: frozenset[str] = frozenset()


def _alone(steps: int, rounds: int, refresh_steps: int) -> Tuning:
    return Tuning(
        steps=steps,
        rounds=rounds,
        refresh_steps=refresh_steps,
        rate=8e-3,
        clean_images=32,
        lengths=MAX_DIVERGENCE,
    )


def _behind(steps: int, rounds: int, refresh_steps: int) -> Tuning:
    return Tuning(
        steps=steps,
        rounds=rounds,
        refresh_steps=refresh_steps,
        rate=3e-3,
        clean_images=40,
        lengths={0.7: math.inf},
    )


LARGE, AT_LARGE, IMAGES_AT_LARGE = 96, 0.5, 2 / 3
"""Images with a side of so many pixels get these shares of the steps, and of the images in a step of the screening. A
step costs as much more as the image has pixels, and a gradient that is a mean over more pixels needs fewer of them."""


def at_size(profile: Profile, size: tuple[int, int]) -> Profile:
    """The profile for images of ``size`` (H, W): fewer steps for large ones, with fewer images."""
    if max(size) < LARGE:
        return profile
    names = (
        "screen_steps",
        "generator_steps",
        "opinion_steps",
        "twin_steps",
        "purify_steps",
        "refresh_steps",
    )
    return replace(
        profile,
        **{name: round(getattr(profile, name) * AT_LARGE) for name in names},
        images_per_class=max(2, round(profile.images_per_class * IMAGES_AT_LARGE)),
        repair=_shorter(profile.repair),
        copy=_shorter(profile.copy),
    )


def _shorter(tuning: Tuning) -> Tuning:
    steps, refresh_steps = (round(n * AT_LARGE) for n in (tuning.steps, tuning.refresh_steps))
    return replace(tuning, steps=steps, refresh_steps=refresh_steps)


PROFILES = {
    "fast": Profile(
        screen_steps=50,
        images_per_class=5,
        generator_steps=30,
        opinion_steps=100,
        twin_steps=600,
        purify_steps=350,
        purify_rounds=3,
        refresh_steps=40,
        repair=_alone(200, 3, 50),
        copy=_behind(100, 2, 30),
    ),
    "standard": Profile(
        screen_steps=70,
        images_per_class=6,
        generator_steps=60,
        opinion_steps=150,
        twin_steps=600,
        purify_steps=400,
        purify_rounds=3,
        refresh_steps=50,
        repair=_alone(300, 4, 50),
        copy=_behind(130, 2, 30),
    ),
    "thorough": Profile(
        screen_steps=120,
        images_per_class=12,
        generator_steps=120,
        opinion_steps=250,
        twin_steps=1200,
        purify_steps=1000,
        purify_rounds=6,
        refresh_steps=100,
        repair=_alone(800, 6, 100),
        copy=_behind(500, 4, 60),
    ),
}
