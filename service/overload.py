"""How many images may wait: a burst is worked off, a flood is not.

Where the engine has had no rest for a while, there is more work than it does: few images that wait then keep it busy,
and more would only wait longer. A stall of the machine, or a version that is being loaded, looks the same for a
moment, and what gathered meanwhile is worked off. So twice as many may wait until too many have been turned away.
"""

from __future__ import annotations

from typing import Protocol

from detrigger.service.admission import Places

STANDING = 0.25
"""Seconds without a rest of the engine after which that counts as overload, and not as a burst."""
STANDING_RUNS = 2
"""Runs of the engine that may wait in a flood."""


class Queue(Protocol):
    """The batcher, as far as it matters here."""

    batch_size: int

    def room(self) -> int:
        """Images of the next run."""

    def without_rest(self) -> float:
        """Seconds for which the engine has had no rest."""

    def shed(self, keep: int) -> None:
        """Turn away the oldest, until so many images wait."""


class Overload:
    """Asked once for each request, as it counts how many were turned away."""

    def __init__(self, queue: Queue, places: Places) -> None:
        """Nothing was turned away so far."""
        self._queue, self._places = queue, places
        self._turned_away = 0  # since the engine has had no rest for a while

    def full(self) -> bool:
        """Whether one more image would wait too long, or make others wait. What a flood queued at first is shed."""
        taken, without_rest = self._places.taken, self._queue.without_rest()
        if without_rest <= STANDING:
            self._turned_away = 0
            return taken >= self._places.capacity
        # Half a batch at least: a moment without CPU time looks like a slow model.
        few = max(STANDING_RUNS * self._queue.room(), self._queue.batch_size // 2)
        flood = self._turned_away > few
        if taken < min(few if flood else 2 * few, self._places.capacity):
            return False
        self._turned_away += 1
        if flood and taken > few:
            self._queue.shed(few)
        return True
