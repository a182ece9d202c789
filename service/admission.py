"""Places in the queue, counted in images: taken before any work is done for a request, given back however
it ends.
"""

from typing import Self


class Places:
    """How many images may wait for the engine, and how many do."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.taken = 0

    def admit(self, count: int) -> "Permit | None":
        """Places for `count` images, to be used as a context manager; None when so many are not free."""
        if self.taken + count > self.capacity:
            return None
        self.taken += count
        return Permit(self, count)


class Permit:
    """Places for images, held from before decoding until the engine takes them or the caller leaves."""

    __slots__ = ("_places", "held")

    def __init__(self, places: Places, count: int) -> None:
        self._places = places
        self.held = count

    def give_back(self, count: int) -> None:
        """Free `count` of the places, or as many as are left."""
        count = min(count, self.held)
        self.held -= count
        self._places.taken -= count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back(self.held)
