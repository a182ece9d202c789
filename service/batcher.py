"""Requests into batches: what gathered while the engine was busy is the next batch, nobody waits for company.

    submit     appends the request, for which places were taken (see `admission`), and waits for its rows,
               until the request's deadline
    loop       for ever: wait for a free engine slot, then for a request; take up to `batch_size` images,
               but no more than a run of bearable length holds, oldest first (a large request is split, its rows
               are joined again); run on a thread, or here where that is quicker; hand out rows

What holds at all times, and is property-tested: every waiter is answered exactly once (rows, the batch's
error, its deadline or the closing of the batcher); rows come back in the order sent; a waiter that has gone
is skipped, and its places are free at once; an error of one batch ends that batch's requests and nothing else.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from time import perf_counter
from typing import Any, Generic, Protocol, Self, TypeVar

from numpy.typing import NDArray

from detrigger.service.admission import Permit

log = logging.getLogger(__name__)

Pixels = NDArray[Any]  # rows first: uint8 (n, H, W, C), or float32 (n, C, H, W) in [0, 1]


class Rows(Protocol):
    """What an engine gives back for a batch: something with rows, in the order of the images."""

    def __len__(self) -> int: ...

    def rows(self, start: int, stop: int) -> Self:
        """The rows of one request."""

    def joined(self, others: Sequence[Self]) -> Self:
        """These rows and those of `others`, for a request that was split."""


R = TypeVar("R", bound=Rows)
M = TypeVar("M")
_RESTED = 0.005
"""Seconds without a run after which traffic counts as sparse."""
_RUN_SECONDS = 0.1
"""Seconds that a run should take at most: a larger batch brings no more throughput by then, but a longer wait."""
_FEWEST = 2
"""Images that a run may have, however long it takes."""
_LEARNT = 0.3
"""How far the last run counts for the seconds that an image is expected to take."""
Run = Callable[[M, Sequence[Pixels], bool], R]
"""(model, images of every request in the batch, whether somebody wants the purified images) -> rows."""


class DeadlineExceeded(Exception):  # noqa: N818 (named for what it says)
    """The request's deadline came before its rows."""


class EngineError(Exception):
    """The engine failed on the batch; the cause is logged, and not for clients."""


class Shed(Exception):  # noqa: N818 (named for what it says)
    """The request gave way, as others come faster than the engine runs."""


class Closed(Exception):  # noqa: N818 (named for what it says)
    """The batcher is shutting down."""


@dataclass(slots=True, eq=False)
class _Request(Generic[M, R]):
    """One request in the queue."""

    model: M
    pixels: Pixels | None  # None as soon as nobody waits
    permit: Permit
    deadline: float
    purified: bool
    future: asyncio.Future[R]
    size: int
    taken: int = 0  # images already given to the engine
    done: int = 0  # images whose rows are here
    parts: dict[int, R] = field(default_factory=dict)  # by first image: pieces may end in any order
    queued_at: float = field(default_factory=perf_counter)

    def fail(self, error: Exception) -> None:
        """Answer with an error, unless it was answered."""
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(slots=True, eq=False)
class _Slice(Generic[M, R]):
    """The images of a request, from `start` on, that are in one batch."""

    request: _Request[M, R]
    pixels: Pixels
    start: int


class Batcher(Generic[M, R]):
    """Collects requests on the event loop and runs them in batches on the engine's threads."""

    def __init__(
        self,
        run: Run[M, R],
        executor: Executor,
        *,
        batch_size: int,
        slots: int = 1,
        on_batch: Callable[[int, float], None] = lambda _images, _seconds: None,
        on_wait: Callable[[float], None] = lambda _seconds: None,
        on_shed: Callable[[str], None] = lambda _reason: None,
        run_here: Run[M, R] | None = None,
        quick: Callable[[M], bool] = lambda _model: True,
    ) -> None:
        """Make an idle batcher; `start()` inside the event loop sets it going.

        With `run_here` a lone image that comes after a rest runs on the event loop, where its model is `quick`: two
        changes of thread take as long as a small model.

        `on_batch(images, seconds)` is told of each run, `on_wait(seconds)` of each request's time in the
        queue, `on_shed(reason)` of each request that ended without running ("deadline").
        """
        self._run = run
        self._executor = executor
        self.batch_size = batch_size
        self._slots = slots
        self._on_batch = on_batch
        self._on_wait = on_wait
        self._on_shed = on_shed
        self._run_here = run_here
        self._quick = quick
        self._resting_since = 0.0
        self._idle_at = perf_counter()  # when the engine last had nothing to do
        self._pace = 0.0  # seconds an image, over the last batches; 0 until measured
        self.restarts = 0  # times the loop had to be set going again
        self._queue: deque[_Request[M, R]] = deque()
        self._arrived = asyncio.Event()
        self._running: dict[asyncio.Task[None], tuple[float, list[_Slice[M, R]]]] = {}
        self._loop_task: asyncio.Task[None] | None = None
        self._closed = False

    def start(self) -> None:
        """Set the loop going."""
        self._loop_task = asyncio.get_running_loop().create_task(self._supervise(), name="batcher")

    async def close(self) -> None:
        """Answer everybody who still waits with `Closed`, and stop."""
        self._closed = True
        error = Closed("the service is shutting down")
        batches = [batch for _, batch in self._running.values()]
        tasks = [task for task in (self._loop_task, *self._running) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for part in chain.from_iterable(batches):
            part.request.fail(error)
        self._fail_queued(error)

    def room(self) -> int:
        """Images of the next run, if so many wait: `batch_size`, or what a run of bearable length can hold."""
        bearable = max(_FEWEST, round(_RUN_SECONDS / self._pace)) if self._pace else self.batch_size
        return min(self.batch_size, bearable)

    def without_rest(self) -> float:
        """Seconds for which the engine has had no rest; 0 where it has one."""
        return perf_counter() - self._idle_at if self._running or self._queue else 0.0

    def shed(self, keep: int) -> None:
        """Answer the oldest requests with `Shed`, until no more than `keep` images wait.

        The oldest would be answered late, and everybody behind them as well.
        """
        waiting = sum(request.size - request.taken for request in self._queue)
        begun = [self._queue.popleft()] if self._queue and self._queue[0].taken else []
        while self._queue and waiting > keep:
            request = self._queue.popleft()
            waiting -= request.size
            request.fail(Shed("others come faster than the engine runs"))
        self._queue.extendleft(begun)

    def seconds_for(self, images: int) -> float:
        """How long so many images take on top of those that run, as far as can be told."""
        running = sum(len(part.pixels) for _, batch in self._running.values() for part in batch)
        return self._pace * (images + running)

    def stuck_for(self) -> float:
        """Seconds that the longest of the running batches has taken so far; 0 when none runs."""
        return max((perf_counter() - since for since, _ in self._running.values()), default=0.0)

    async def submit(
        self, model: M, pixels: Pixels, permit: Permit, deadline: float, *, purified: bool = False
    ) -> R:
        """Wait for the rows of `pixels`, all of them in order.

        `model` is handed on to `run`, and a batch never mixes two of them. The places of `permit`, at least as
        many as images, are free again as soon as the engine takes these. `deadline` is in the loop's time.

        Raises:
            DeadlineExceeded, EngineError, Shed, Closed: instead of rows.
        """
        if self._closed:
            raise Closed("the service is shutting down")
        if not 0 < len(pixels) <= permit.held:
            raise ValueError(f"{len(pixels)} images with places for {permit.held}")
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        request: _Request[M, R] = _Request(model, pixels, permit, deadline, purified, future, len(pixels))
        if not self._queue and not self._running:
            self._idle_at = perf_counter()
        self._queue.append(request)
        self._arrived.set()
        # A timer that fails the future, rather than asyncio.timeout: a fourth of its cost, on every request.
        timer = asyncio.get_running_loop().call_at(deadline, self._expire, future)
        try:
            return await future
        finally:
            timer.cancel()
            # However this ends, the request holds nothing more, even if its entry still stands in the queue.
            if not future.cancel() and not future.cancelled():
                future.exception()  # seen, also where the deadline came in the same turn of the loop
            request.pixels = None
            permit.give_back(permit.held)

    def _expire(self, future: asyncio.Future[R]) -> None:
        if not future.done():
            self._on_shed("deadline")
            future.set_exception(DeadlineExceeded("the deadline of the request passed"))

    async def _supervise(self) -> None:
        """Keep the loop going: an error in it (a bug) fails who waits now, not who comes later."""
        while True:
            try:
                await self._serve()
            except Exception as error:
                log.exception("the batching loop failed and is set going again")
                self.restarts += 1
                self._fail_queued(EngineError(repr(error)))

    async def _serve(self) -> None:
        slots = asyncio.Semaphore(self._slots)
        while True:
            await slots.acquire()
            batch = await self._next_batch()
            if self._run_here is not None and self._sparse(batch):
                self._execute_here(batch, self._run_here)
                slots.release()
                del batch
                continue
            task = asyncio.get_running_loop().create_task(self._execute(batch))
            self._running[task] = (perf_counter(), batch)
            task.add_done_callback(partial(self._ended, slots))
            del batch, task  # else the last batch, and with it its model, would live until the next one comes

    def _ended(self, slots: asyncio.Semaphore, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._resting_since = perf_counter()
        slots.release()

    def _sparse(self, batch: list[_Slice[M, R]]) -> bool:
        """Whether this is one image of a quick model, with nobody behind it and nobody shortly before."""
        return (
            len(batch) == 1
            and len(batch[0].pixels) == 1
            and not self._queue
            and not self._running
            and perf_counter() - self._resting_since > _RESTED
            and self._quick(batch[0].request.model)
        )

    async def _next_batch(self) -> list[_Slice[M, R]]:
        while True:
            if not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
                # Requests whose bytes came in the same turn of the event loop still join, at no wait.
                await asyncio.sleep(0)
            batch = self._take()
            if batch:
                return batch

    def _take(self) -> list[_Slice[M, R]]:
        """Up to `batch_size` images from the head of the queue, all for the same model."""
        batch: list[_Slice[M, R]] = []
        room = self.room()
        now = asyncio.get_running_loop().time()
        while self._queue and room:
            request = self._queue[0]
            pixels = request.pixels
            if pixels is None or request.future.done() or request.deadline <= now:
                self._queue.popleft()  # its waiter has gone, or is about to be told of its deadline
                continue
            if batch and request.model is not batch[0].request.model:
                break
            if not request.taken:
                self._on_wait(perf_counter() - request.queued_at)
            start = request.taken
            stop = min(len(pixels), start + room)
            request.taken = stop
            request.permit.give_back(stop - start)
            room -= stop - start
            if stop == len(pixels):
                self._queue.popleft()
            batch.append(_Slice(request, pixels[start:stop], start))
        return batch

    async def _execute(self, batch: list[_Slice[M, R]]) -> None:
        """Run one batch on a thread and answer its requests."""
        began = perf_counter()
        try:
            rows = await asyncio.get_running_loop().run_in_executor(
                self._executor, self._run, *_arguments(batch)
            )
            self._answer(batch, rows, perf_counter() - began)
        except Exception as error:
            self._fail(batch, error)

    def _execute_here(self, batch: list[_Slice[M, R]], run: Run[M, R]) -> None:
        """The same on the event loop."""
        began = perf_counter()
        try:
            self._answer(batch, run(*_arguments(batch)), perf_counter() - began)
        except Exception as error:
            self._fail(batch, error)
        self._resting_since = perf_counter()

    def _answer(self, batch: list[_Slice[M, R]], rows: R, seconds: float) -> None:
        images = sum(len(part.pixels) for part in batch)
        if len(rows) != images:
            raise RuntimeError(f"the engine gave {len(rows)} rows for {images} images")
        self._on_batch(images, seconds)
        if images >= _FEWEST:  # a single one, after a rest, says little of a batch
            self._pace += (_LEARNT if self._pace else 1.0) * (seconds / images - self._pace)
        position = 0
        for part in batch:
            end = position + len(part.pixels)
            self._deliver(part, rows.rows(position, end))
            position = end

    def _fail(self, batch: list[_Slice[M, R]], error: Exception) -> None:
        log.error("a batch of %d images failed", sum(len(part.pixels) for part in batch), exc_info=error)
        failure = EngineError(f"the engine failed on this batch: {error!r}")
        for part in batch:
            part.request.fail(failure)

    def _deliver(self, part: _Slice[M, R], rows: R) -> None:
        request = part.request
        if request.future.done():
            return
        request.parts[part.start] = rows
        request.done += len(part.pixels)
        if request.done == request.size:
            first, *others = (request.parts[start] for start in sorted(request.parts))
            request.future.set_result(first.joined(others) if others else first)

    def _fail_queued(self, error: Exception) -> None:
        while self._queue:
            self._queue.popleft().fail(error)


def _arguments(batch: list[_Slice[M, R]]) -> tuple[M, list[Pixels], bool]:
    """What the engine is called with."""
    purified = any(part.request.purified for part in batch)
    return batch[0].request.model, [part.pixels for part in batch], purified
