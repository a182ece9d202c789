"""The batcher under arrivals, failures, cancellations and deadlines in any order."""

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detrigger.service.admission import Places
from detrigger.service.batcher import Batcher, Closed, DeadlineExceeded, EngineError, Pixels, Shed

POISON = -1


class Numbers(list[int]):
    """Rows that are numbers."""

    def rows(self, start: int, stop: int) -> "Numbers":
        return Numbers(self[start:stop])

    def joined(self, others: Sequence["Numbers"]) -> "Numbers":
        return Numbers(sum(others, list(self)))


@dataclass
class Engine:
    """Answers each number with itself plus 1000 times its model; fails on POISON; remembers its batches."""

    seconds: float = 0.0
    wrong_count: bool = False
    sizes: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    gate: threading.Event | None = None

    def run(self, model: int, parts: Sequence[Pixels], purified: bool) -> Numbers:
        numbers = [int(value) for part in parts for value in part]
        self.sizes.append(len(numbers))
        self.threads.append(threading.get_ident())
        if self.gate is not None:
            self.gate.wait(5)
        time.sleep(self.seconds)
        if POISON in numbers:
            raise RuntimeError("poison")
        return Numbers([number + 1000 * model for number in numbers][: -1 if self.wrong_count else None])


def array(*numbers: int) -> Pixels:
    return np.array(numbers, np.int64)


class Harness:
    """A batcher on its own threads, for one test."""

    def __init__(
        self, engine: Engine, batch_size: int = 4, capacity: int = 16, slots: int = 1, here: bool = False
    ) -> None:
        self.engine = engine
        self.shed: list[str] = []
        self.places = Places(capacity)
        self.pool = ThreadPoolExecutor(slots)
        self.batcher: Batcher[int, Numbers] = Batcher(
            engine.run,
            self.pool,
            batch_size=batch_size,
            slots=slots,
            on_shed=self.shed.append,
            run_here=engine.run if here else None,
            quick=lambda model: model == 0,
        )

    async def __aenter__(self) -> "Harness":
        self.batcher.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.batcher.close()
        self.pool.shutdown()

    async def ask(self, pixels: Pixels, seconds: float = 5.0, model: int = 0) -> Numbers | None:
        """The rows, or None when there was no room."""
        permit = self.places.admit(len(pixels))
        if permit is None:
            return None
        with permit:
            deadline = asyncio.get_running_loop().time() + seconds
            return await self.batcher.submit(model, pixels, permit, deadline)


def test_what_gathers_while_the_engine_is_busy_is_one_batch() -> None:
    async def scenario() -> None:
        gate = threading.Event()
        async with Harness(Engine(gate=gate), batch_size=8) as it:
            first = asyncio.create_task(it.ask(array(0)))
            await asyncio.sleep(0.02)
            others = [asyncio.create_task(it.ask(array(n))) for n in range(1, 6)]
            await asyncio.sleep(0.02)
            gate.set()
            assert await asyncio.gather(first, *others) == [[n] for n in range(6)]
            assert it.engine.sizes == [1, 5]

    asyncio.run(scenario())


def test_a_lone_image_after_a_rest_runs_on_the_event_loop() -> None:
    async def scenario() -> None:
        here = threading.get_ident()
        async with Harness(Engine(), here=True) as it:
            assert await it.ask(array(1)) == [1]
            assert await it.ask(array(2)) == [2]  # no rest
            await asyncio.sleep(0.02)
            assert await it.ask(array(3)) == [3]
            await asyncio.sleep(0.02)
            assert await it.ask(array(4), model=1) == [1004]  # not quick
            await asyncio.sleep(0.02)
            assert await it.ask(array(5, 6)) == [5, 6]  # not alone
            await asyncio.sleep(0.02)
            with pytest.raises(EngineError):
                await it.ask(array(POISON))
            assert await it.ask(array(7)) == [7]
        assert [thread == here for thread in it.engine.threads] == [
            True, False, True, False, False, True, False,
        ]  # fmt: skip

    asyncio.run(scenario())


def test_an_idle_engine_is_not_kept_waiting() -> None:
    async def scenario() -> None:
        async with Harness(Engine()) as it:
            began = time.perf_counter()
            for n in range(50):
                assert await it.ask(array(n)) == [n]
            assert time.perf_counter() - began < 1.0

    asyncio.run(scenario())


def test_a_large_request_is_split_and_joined_in_order() -> None:
    async def scenario() -> None:
        for slots in (1, 3):
            async with Harness(Engine(seconds=0.001), batch_size=4, capacity=64, slots=slots) as it:
                assert await it.ask(array(*range(50))) == list(range(50))
                assert max(it.engine.sizes) <= 4
                assert it.places.taken == 0

    asyncio.run(scenario())


def test_models_are_never_mixed_in_a_batch() -> None:
    async def scenario() -> None:
        async with Harness(Engine(seconds=0.005), batch_size=8) as it:
            answers = await asyncio.gather(*(it.ask(array(n), model=n % 2) for n in range(10)))
            assert answers == [[n + 1000 * (n % 2)] for n in range(10)]

    asyncio.run(scenario())


def test_no_room_is_a_value_and_room_comes_back() -> None:
    async def scenario() -> None:
        gate = threading.Event()
        async with Harness(Engine(gate=gate), batch_size=2, capacity=4) as it:
            running = asyncio.create_task(it.ask(array(1, 2)))
            await asyncio.sleep(0.02)
            waiting = asyncio.create_task(it.ask(array(3, 4, 5, 6)))
            await asyncio.sleep(0.02)
            assert await it.ask(array(7)) is None
            gate.set()
            assert await running == [1, 2]
            assert await waiting == [3, 4, 5, 6]
            assert await it.ask(array(7)) == [7]

    asyncio.run(scenario())


def test_a_failed_batch_fails_only_its_own_requests() -> None:
    async def scenario() -> None:
        async with Harness(Engine(), batch_size=1) as it:
            with pytest.raises(EngineError):
                await it.ask(array(POISON))
            assert await it.ask(array(1)) == [1]
            it.engine.wrong_count = True
            with pytest.raises(EngineError):
                await it.ask(array(1))
            it.engine.wrong_count = False
            assert await it.ask(array(2)) == [2]

    asyncio.run(scenario())


def test_the_deadline_covers_the_run_and_late_work_is_skipped() -> None:
    async def scenario() -> None:
        gate = threading.Event()
        async with Harness(Engine(gate=gate), batch_size=1) as it:
            first = asyncio.create_task(it.ask(array(1), seconds=0.05))
            await asyncio.sleep(0.01)
            second = asyncio.create_task(it.ask(array(2), seconds=0.05))
            for task in (first, second):
                with pytest.raises(DeadlineExceeded):
                    await task
            assert it.places.taken == 0
            assert it.batcher.stuck_for() > 0.04
            gate.set()
            assert await it.ask(array(3)) == [3]
            assert it.engine.sizes == [1, 1]  # the second never ran
            assert it.shed == ["deadline", "deadline"]

    asyncio.run(scenario())


def test_a_defect_of_the_loop_fails_who_waits_and_not_who_comes() -> None:
    async def scenario() -> None:
        async with Harness(Engine()) as it:
            take = it.batcher._take

            def broken() -> object:
                raise ZeroDivisionError

            setattr(it.batcher, "_take", broken)  # noqa: B010 - mypy forbids assigning to a method
            with pytest.raises(EngineError):
                await it.ask(array(1))
            setattr(it.batcher, "_take", take)  # noqa: B010
            assert await it.ask(array(2)) == [2]
            assert it.batcher.restarts == 1

    asyncio.run(scenario())


def test_closing_answers_everybody() -> None:
    async def scenario() -> None:
        gate = threading.Event()
        async with Harness(Engine(gate=gate), batch_size=1) as it:
            tasks = [asyncio.create_task(it.ask(array(n))) for n in range(4)]
            await asyncio.sleep(0.02)
            await it.batcher.close()
            gate.set()
            assert all(
                isinstance(end, Closed) for end in await asyncio.gather(*tasks, return_exceptions=True)
            )
            with pytest.raises(Closed):
                await it.ask(array(9))

    asyncio.run(scenario())


@dataclass(frozen=True)
class Arrival:
    """One request of a random history."""

    pause: int  # turns of the event loop before it comes
    size: int
    poison: bool
    model: int
    seconds: float
    cancel_after: int | None  # turns


arrivals = st.builds(
    Arrival,
    pause=st.integers(0, 3),
    size=st.integers(1, 9),
    poison=st.booleans().flatmap(lambda odd: st.just(odd) if not odd else st.booleans()),
    model=st.integers(0, 1),
    seconds=st.sampled_from([0.0, 0.002, 5.0, 5.0, 5.0]),
    cancel_after=st.none() | st.integers(0, 5),
)


@settings(max_examples=150, deadline=None)
@given(
    history=st.lists(arrivals, max_size=25),
    batch_size=st.integers(1, 8),
    capacity=st.integers(9, 20),
    slots=st.integers(1, 3),
    here=st.booleans(),
)
@mock.patch("detrigger.service.batcher._RESTED", 0.0)
def test_any_history_answers_everybody_once_in_order(
    history: list[Arrival], batch_size: int, capacity: int, slots: int, here: bool
) -> None:
    async def scenario() -> None:
        engine = Engine(seconds=0.0005)
        async with Harness(engine, batch_size, capacity, slots, here) as it:

            async def client(number: int, arrival: Arrival) -> None:
                numbers = [number * 10 + k for k in range(arrival.size)]
                if arrival.poison:
                    numbers[-1] = POISON
                task = asyncio.create_task(it.ask(array(*numbers), arrival.seconds, arrival.model))
                if arrival.cancel_after is not None:
                    for _ in range(arrival.cancel_after):
                        await asyncio.sleep(0)
                    task.cancel()
                (end,) = await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 5)
                assert it.places.taken <= capacity
                if isinstance(end, list):
                    assert end == [value + 1000 * arrival.model for value in numbers]
                    assert not arrival.poison
                elif isinstance(end, asyncio.CancelledError):
                    assert arrival.cancel_after is not None
                elif isinstance(end, DeadlineExceeded):
                    assert arrival.seconds < 1
                else:
                    assert end is None or isinstance(end, EngineError)

            clients = []
            for number, arrival in enumerate(history):
                for _ in range(arrival.pause):
                    await asyncio.sleep(0)
                clients.append(asyncio.create_task(client(number, arrival)))
            await asyncio.gather(*clients)
            assert it.places.taken == 0
            assert max(engine.sizes, default=0) <= batch_size
            assert it.batcher.restarts == 0
            assert await it.ask(array(7)) == [7]

    asyncio.run(scenario())


def test_a_run_is_no_longer_than_is_bearable() -> None:
    """32 images of a model that takes 50 ms each are not one run of 1.6 s, but several of about 0.1 s."""

    class Slow(Engine):
        def run(self, model: int, parts: Sequence[Pixels], purified: bool) -> Numbers:
            time.sleep(0.05 * sum(map(len, parts)))
            return super().run(model, parts, purified)

    async def scenario() -> None:
        async with Harness(Slow(), batch_size=32, capacity=64) as it:
            await asyncio.gather(*(it.ask(array(n)) for n in range(4)))
            await asyncio.gather(*(it.ask(array(n)) for n in range(16)))
            assert max(it.engine.sizes[1:]) <= 4
            assert it.batcher.room() < 4

    asyncio.run(scenario())


def test_the_oldest_give_way_and_what_has_begun_is_answered() -> None:
    async def scenario() -> None:
        gate = threading.Event()
        async with Harness(Engine(gate=gate), batch_size=2) as it:
            asked = [asyncio.create_task(it.ask(array(0, 1, 2)))]
            asked += [asyncio.create_task(it.ask(array(n))) for n in range(3, 8)]
            await asyncio.sleep(0.05)  # two images of the first one run
            it.batcher.shed(keep=3)
            gate.set()
            found = await asyncio.gather(*asked, return_exceptions=True)
            assert found[0] == [0, 1, 2]
            assert [type(item) for item in found[1:4]] == [Shed] * 3
            assert found[4:] == [[6], [7]]
            assert it.places.taken == 0

    asyncio.run(scenario())


def test_an_engine_without_rest_is_told_from_one_that_rests() -> None:
    async def scenario() -> None:
        async with Harness(Engine(seconds=0.05), batch_size=1, capacity=64) as it:
            assert it.batcher.without_rest() == 0
            asked = [asyncio.create_task(it.ask(array(n))) for n in range(12)]
            await asyncio.sleep(0.02)
            assert 0 < it.batcher.without_rest() < 0.2
            await asyncio.gather(*asked[:10])
            assert it.batcher.without_rest() > 0.4
            await asyncio.gather(*asked)
            await asyncio.sleep(0.02)
            assert it.batcher.without_rest() == 0

    asyncio.run(scenario())
