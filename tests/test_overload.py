"""A burst fills the queue and is worked off; in a flood few wait, and what it queued at first gives way."""

from __future__ import annotations

from detrigger.service.admission import Places
from detrigger.service.overload import STANDING, Overload

FEW = 16


class Queue:
    """Runs of 4 images, batches of 32: few are 16."""

    batch_size = 32

    def __init__(self) -> None:
        self.seconds = 0.0
        self.kept: list[int] = []

    def room(self) -> int:
        return 4

    def without_rest(self) -> float:
        return self.seconds

    def shed(self, keep: int) -> None:
        self.kept.append(keep)


def waiting(images: int, seconds: float, capacity: int = 256) -> tuple[Overload, Queue]:
    """So many images wait, and the engine has had no rest for so long."""
    queue, places = Queue(), Places(capacity)
    if images:
        assert places.admit(images) is not None
    queue.seconds = seconds
    return Overload(queue, places), queue


def test_a_burst_may_fill_the_queue() -> None:
    assert not waiting(255, 0.9 * STANDING)[0].full()
    assert waiting(256, 0.9 * STANDING)[0].full()


def test_after_a_stall_of_the_machine_what_gathered_is_worked_off() -> None:
    assert not waiting(2 * FEW - 1, 5 * STANDING)[0].full()
    assert waiting(2 * FEW, 5 * STANDING)[0].full()


def test_in_a_flood_few_may_wait_and_what_it_queued_at_first_gives_way() -> None:
    queue, places = Queue(), Places(256)
    overload, queue.seconds = Overload(queue, places), 1.5 * STANDING
    waits = [places.admit(1) for _ in range(2 * FEW)]
    for _ in range(FEW + 1):
        assert overload.full()
    assert queue.kept == []
    assert overload.full()
    assert queue.kept == [FEW]
    for permit in waits[FEW:]:
        assert permit is not None
        permit.give_back(1)
    assert overload.full()
    assert waits[0] is not None
    waits[0].give_back(1)
    assert not overload.full()


def test_after_a_rest_a_burst_may_fill_the_queue_again() -> None:
    overload, queue = waiting(200, 3 * STANDING)
    for _ in range(3 * FEW):
        assert overload.full()
    assert queue.kept
    queue.seconds = 0.0
    assert not overload.full()
    queue.seconds, queue.kept = 1.5 * STANDING, []
    assert overload.full()
    assert queue.kept == []


def test_a_small_queue_stays_as_small_as_it_is() -> None:
    assert waiting(8, 3 * STANDING, capacity=8)[0].full()
