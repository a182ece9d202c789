"""``--budget``: what a job may spend, and what it left out to keep to it.

Steps decide nothing by the clock while they run. Before a part begins they ask whether it fits: ``allows`` for what can
be left out, ``demand`` for what cannot, ``fitted`` for training that can be shorter. How long a part takes is told from
what the same job has taken before: ``pace`` for inversions, ``timed`` for a step of training.

Without a budget everything fits and nothing is timed. With one that is large enough everything fits as well, and the
results are the same, because ``timed`` leaves the random numbers as they were.

Limitation: these are estimates. A machine that becomes much slower halfway ends late.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from detrigger.models.errors import BadInput
from detrigger.offline.compute import Compute

Clock = Callable[[], float]
"""Seconds since whenever, as ``time.monotonic``."""
MARGIN, SLACK = 1.3, 0.05
"""How much longer than estimated a part may take, and the share of a budget that nothing is planned for."""
MOST_SHORTENED, ENOUGH = 0.25, 0.5
"""Shares of the steps of a training: without fewer than the first it is not done at all, and rounds of inversion beyond
the first take none of the second. Both are set by hand."""
TIMED = 3
"""Steps that are timed, after one that is not: the first of its kind takes longer."""


@dataclass(frozen=True)
class Training:
    """How long something is trained: ``steps`` in ``rounds``, with ``between`` steps of inversion before a round.

    The first round has them only with ``before_first``.
    """

    steps: int
    rounds: int
    between: int
    before_first: bool = False

    def total(self) -> int:
        """All steps, those of the inversions among them."""
        return self.steps + self.between * (self.rounds - (not self.before_first))

    def least(self) -> Training:
        """The shortest that is worth anything."""
        return replace(self, steps=math.ceil(MOST_SHORTENED * self.steps), rounds=1)

    def within(self, most: float) -> Training:
        """The same in at most so many steps: with fewer rounds, then with fewer steps; never below ``least``."""
        for rounds in range(self.rounds, 0, -1):
            left = most - (replace(self, rounds=rounds).total() - self.steps)
            if left >= ENOUGH * self.steps:
                return replace(self, rounds=rounds, steps=min(self.steps, int(left)))
        shortest = self.least()
        spare = int(most - shortest.total())
        return replace(shortest, steps=min(self.steps, shortest.steps + max(0, spare)))


class Pace:
    """How long a unit of work takes: by a first guess, and by what was done once something was."""

    def __init__(self) -> None:
        self._guess = self._seconds = self._done = 0.0

    def guess(self, seconds: float) -> None:
        """Of one unit, until something is measured."""
        self._guess = seconds

    def seconds(self, work: float) -> float:
        """How long so much work takes."""
        return work * (self._seconds / self._done if self._done else self._guess)

    def add(self, seconds: float, work: float) -> None:
        """So much work took so long."""
        self._seconds += seconds
        self._done += work


class Budget:
    """The time of one job from now on, and what was ``left_out`` for it, in words and in the order of the job.

    ``now`` is its clock. ``pace`` is that of inversions: the unit is an image through the suspect, with its gradient.
    ``step`` is what a step of the purifier's training takes, in seconds, once that is known.
    """

    def __init__(self, minutes: float | None = None, clock: Clock = time.monotonic) -> None:
        """``minutes`` above 0 (``Options`` checks it), or None for as long as it takes."""
        self.minutes, self.limited = minutes, minutes is not None
        self.left_out: list[str] = []
        self.pace, self.step = Pace(), 0.0
        self.now, self._began, self._kept, self._share = clock, clock(), 0.0, 1.0

    def left(self) -> float:
        """Seconds that what runs now may take, less those that are kept for something else; inf without a budget."""
        if self.minutes is None:
            return math.inf
        return (1 - SLACK) * 60 * self.minutes - (self.now() - self._began) - self._kept

    def keep(self, seconds: float) -> None:
        """For the end of the job: these are left to nobody else."""
        self._kept += seconds

    @contextmanager
    def keeping(self, seconds: float) -> Iterator[None]:
        """Within, so many seconds are kept for what comes after."""
        before, self._kept = self._kept, self._kept + seconds
        try:
            yield
        finally:
            self._kept = before

    @contextmanager
    def part(self, share: float) -> Iterator[None]:
        """Within, at most this share of what is left may be spent."""
        before, self._share = self._share, share * self._share
        try:
            with self.keeping(max(0.0, (1 - share) * self.left()) if self.limited else 0.0):
                yield
        finally:
            self._share = before

    def allows(self, what: str, seconds: float) -> bool:
        """Whether a part of so many seconds fits; if not, ``what`` was left out."""
        fits = not self.limited or MARGIN * seconds <= self.left()
        if not fits:
            self.left_out.append(what)
        return fits

    def demand(self, what: str, seconds: float) -> None:
        """BadInput where a part of so many seconds, without which there is no result, does not fit."""
        if self.minutes is not None and (missing := MARGIN * seconds - self.left()) > 0:
            enough = self.minutes + missing / 60 / self._share / (1 - SLACK)
            raise BadInput(
                f"--budget {self.minutes:g} is too short: no time would be left for {what}; give at least about"
                f" {math.ceil(10 * enough) / 10:g}, or a faster --profile"
            )

    def timed(self, step: Callable[[], object], compute: Compute) -> float:
        """Seconds that ``step`` takes, 0 without a budget; it may draw random numbers, but change nothing else."""
        if not self.limited:
            return 0.0
        with compute.aside():
            step()
            compute.finish()
            began = self.now()
            for _ in range(TIMED):
                step()
            compute.finish()
            return (self.now() - began) / TIMED

    def fitted(self, what: str, training: Training, seconds: float) -> Training:
        """The training with as many steps of so many seconds as fit; what is cut of it was left out."""
        if not self.limited or MARGIN * seconds * training.total() <= self.left():
            return training
        cut = training.within(self.left() / (MARGIN * max(seconds, 1e-9)))
        steps, rounds = training.steps - cut.steps, training.rounds - cut.rounds
        parts = [f"{steps} of {training.steps} steps"] if steps else []
        parts += [f"{rounds} of {training.rounds} rounds"] if rounds else []
        if parts:
            self.left_out.append(f"{' and '.join(parts)} of {what}")
        return cut

    def in_words(self) -> str:
        """What was left out, for people; empty where nothing was."""
        if not self.left_out:
            return ""
        return f"the budget of {self.minutes:g} min left no time for {'; '.join(self.left_out)}"
