"""A bounded queue that no one can fill for the others: places are shared out by group, and taken out in turns."""

import threading
from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """At most `capacity` items. When it is full, a group with fewer items displaces the newest of the largest."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._groups: OrderedDict[object, deque[T]] = OrderedDict()
        self._count = 0
        self._ready = threading.Condition()
        self.closed = False

    def put(self, group: object, item: T) -> int:
        """Add an item, without waiting; how many items had no place: 0, or 1 (this one or another)."""
        with self._ready:
            dropped = 0
            if self._count >= self.capacity:
                largest = max(self._groups, key=lambda name: len(self._groups[name]))
                if len(self._groups[largest]) <= len(self._groups.get(group, ())) + 1:
                    return 1
                self._groups[largest].pop()
                self._count -= 1
                dropped = 1
            self._groups.setdefault(group, deque()).append(item)
            self._count += 1
            self._ready.notify()
            return dropped

    def take(self, seconds: float) -> T | None:
        """The oldest item of the group whose turn it is; waits so long for one, or until the queue is closed."""
        with self._ready:
            self._ready.wait_for(lambda: self._count or self.closed, seconds)
            if not self._count:
                return None
            group, items = self._groups.popitem(last=False)
            item = items.popleft()
            if items:
                self._groups[group] = items  # at the end: the others come first
            self._count -= 1
            return item

    def close(self) -> None:
        """Let `take` end when nothing is left."""
        with self._ready:
            self.closed = True
            self._ready.notify_all()
