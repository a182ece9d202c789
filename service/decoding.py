"""Who decodes when: requests take turns, small images never wait for large ones, and all have a deadline.

    small lane   reads the headers of a request's images, and decodes at once those of at most 2**20 pixels; a turn is a
                 quarter of such an image, or one image, then the next request has its turn
    large lane   decodes the others, one a turn, no more than `max_decoding_pixels` of them at a time; where the system
                 lets threads differ (Linux), it works when the others leave it time
    bulk lane    reads large bodies, and stands back likewise

A request that ends early (its deadline, its client) takes its waiting images with it; the one being decoded stops at
the next 64 KB of its file. What large images can take is the large lane's threads and nothing else.
"""

import asyncio
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from detrigger.models.preprocess import Preprocess
from detrigger.service.images import ImageRefused, Limits, Opened, Stopped, read_header

SMALL_PIXELS = 2**20
_TURN_PIXELS = SMALL_PIXELS // 4
_HEADER_PIXELS = 2**12  # what reading a header is counted as
_MEMORY = 0.8  # of the measured rate, at each turn
_NICE = 10  # of the large and the bulk lane
_BULK = 2**19  # bytes

T = TypeVar("T")
Work = Callable[[], tuple[T, int]]
"""Something to do, giving its result and the pixels that it took."""
Decoded = NDArray[np.uint8] | ImageRefused


class Late(Exception):  # noqa: N818 (named for what it says)
    """The deadline passed."""


class Crowded(Exception):  # noqa: N818 (named for what it says)
    """The deadline would pass before the turn came."""


@dataclass(slots=True, eq=False)
class _Job(Generic[T]):
    """The work of one request in one lane."""

    todo: deque[tuple[int, Work[T], int]]  # position, work, pixels as far as known
    results: list[T]
    done: asyncio.Future[None]
    running: int = 0
    queued: bool = True


@dataclass(frozen=True, slots=True)
class _Turn:
    """What became of some units of a job."""

    units: list[tuple[int, Work[Any], int]]
    done: int
    pixels: int
    seconds: float
    error: Exception | None


class Lane:
    """Threads on which requests take turns. All methods belong to the event loop's thread."""

    def __init__(
        self, name: str, threads: int, turn_pixels: int, budget: int | None = None, nice: int = 0
    ) -> None:
        """Make the pool.

        Args:
            name: of the threads.
            threads: how many.
            turn_pixels: after so many pixels another request has its turn.
            budget: pixels that may be under way at a time, though always one image.
            nice: how far its threads stand back behind others, as for `nice`.
        """
        self._pool = ThreadPoolExecutor(threads, name, initializer=_stand_back, initargs=(nice,))
        self._free = self._threads = threads
        self._turn_pixels = turn_pixels
        self._budget = budget
        self._under_way = 0
        self._waiting = 0  # pixels
        self._rate = 0.0  # pixels a second of one thread; 0 until measured
        self._jobs: deque[_Job[Any]] = deque()

    def wait(self) -> float:
        """Seconds until what waits now is done, as far as can be told."""
        return (self._waiting + self._under_way) / (self._rate * self._threads) if self._rate else 0.0

    async def run(self, work: Sequence[Work[T]], pixels: Sequence[int], deadline: float) -> list[T]:
        """The results, in order.

        Args:
            work: to be done on the threads.
            pixels: of each, as far as known.
            deadline: in the event loop's time.

        Raises:
            Crowded: what waits already takes longer than until the deadline.
            Late: the deadline passes first.
        """
        loop = asyncio.get_running_loop()
        if self.wait() > deadline - loop.time():
            raise Crowded
        units = deque((k, unit, size) for k, (unit, size) in enumerate(zip(work, pixels, strict=True)))
        nothing: list[Any] = [None] * len(work)
        job: _Job[T] = _Job(units, nothing, loop.create_future())
        self._waiting += sum(pixels)
        self._jobs.append(job)
        self._dispatch()
        timer = loop.call_at(deadline, _expire, job.done)
        try:
            await job.done
        finally:
            timer.cancel()
            if job.todo:  # it ends early
                self._waiting -= sum(size for _, _, size in job.todo)
                job.todo.clear()
            if not job.done.done():
                job.done.cancel()
        return job.results

    def close(self) -> None:
        """Let the threads go."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _dispatch(self) -> None:
        while self._free and self._jobs:
            job = self._jobs[0]
            if not job.todo:
                self._jobs.popleft()
                job.queued = False
                continue
            size = job.todo[0][2]
            if self._budget is not None and self._under_way and self._under_way + size > self._budget:
                return
            units = [job.todo.popleft()]
            while job.todo and sum(unit[2] for unit in units) + job.todo[0][2] <= self._turn_pixels:
                units.append(job.todo.popleft())
            self._jobs.rotate(-1)  # the next request's turn
            known = sum(unit[2] for unit in units)
            self._waiting -= known
            self._under_way += known
            self._free -= 1
            job.running += 1
            loop = asyncio.get_running_loop()
            self._pool.submit(self._work, job, units, loop)

    def _work(
        self, job: _Job[Any], units: list[tuple[int, Work[Any], int]], loop: asyncio.AbstractEventLoop
    ) -> None:
        """One turn, on a thread."""
        began, took, done, error = perf_counter(), 0, 0, None
        try:
            while done < len(units) and took < self._turn_pixels and not job.done.done():
                position, work, _ = units[done]
                done += 1
                job.results[position], pixels = work()
                took += pixels
        except Exception as failure:
            error = failure
        if not loop.is_closed():
            turn = _Turn(units, done, took, perf_counter() - began, error)
            loop.call_soon_threadsafe(self._ended, job, turn)

    def _ended(self, job: _Job[Any], turn: "_Turn") -> None:
        self._under_way -= sum(size for _, _, size in turn.units)
        self._free += 1
        job.running -= 1
        took, seconds, error = turn.pixels, turn.seconds, turn.error
        if (
            rest := turn.units[turn.done :]
        ) and not job.done.done():  # the images were larger than their files
            job.todo.extendleft(reversed(rest))
            self._waiting += sum(size for _, _, size in rest)
            if not job.queued:
                self._jobs.append(job)
                job.queued = True
        if took >= _HEADER_PIXELS and seconds > 0:
            rate = took / seconds
            self._rate = _MEMORY * self._rate + (1 - _MEMORY) * rate if self._rate else rate
        if not job.done.done():
            if error is not None:
                job.done.set_exception(error)
            elif not job.todo and not job.running:
                job.done.set_result(None)
        self._dispatch()


def _stand_back(nice: int) -> None:
    """Lower this thread's priority; elsewhere than on Linux only a whole process has one."""
    if nice and sys.platform == "linux":
        own = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, own, min(19, os.getpriority(os.PRIO_PROCESS, own) + nice))


def _expire(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_exception(Late())


class Decoders:
    """The lanes."""

    def __init__(self, threads: int, budget: int) -> None:
        """`threads` for small images, half as many for large ones and for bodies; `budget` pixels of large images."""
        self.small = Lane("decode", threads, _TURN_PIXELS)
        self.large = Lane("decode-large", max(1, threads // 2), 1, budget, _NICE)
        self.bulk = Lane("bulk", max(1, threads // 2), 1, nice=_NICE)

    def close(self) -> None:
        """Let the threads go."""
        for lane in (self.small, self.large, self.bulk):
            lane.close()

    async def call(self, work: Callable[[], T], size: int, deadline: float) -> T:
        """Do other work that takes a while, with `size` bytes: in turn with small images, or in the bulk lane.

        Raises:
            Crowded, Late: see `Lane.run`.
        """
        lane = self.bulk if size > _BULK else self.small
        results = await lane.run([lambda: (work(), _HEADER_PIXELS)], [_HEADER_PIXELS], deadline)
        return results[0]

    async def decode(
        self, images: Sequence[bytes], pre: Preprocess, limits: Limits, most: int, deadline: float
    ) -> list[Decoded]:
        """The pixels of all images as the classifier wants them, or why one is refused, in order.

        `most` is what all images of the request together may have. Where an image is refused, none that is large is
        decoded.

        Raises:
            ImageRefused: all images together have too many pixels.
            Crowded, Late: see `Lane.run`.
        """
        stop = threading.Event()
        try:
            opened = await self.small.run(
                [_unit(data, pre, limits, stop) for data in images],
                [max(_HEADER_PIXELS, min(len(data), _TURN_PIXELS)) for data in images],
                deadline,
            )
            pixels = sum(size for _, size in opened)
            if pixels > most:
                raise ImageRefused(
                    "too_many_pixels",
                    f"the images have {pixels} pixels together; at most {most} are accepted",
                )
            found = [item for item, _ in opened]
            if any(isinstance(item, ImageRefused) for item in found):
                return [item if isinstance(item, ImageRefused) else np.empty(0, np.uint8) for item in found]
            large = [(k, item) for k, item in enumerate(found) if isinstance(item, Opened)]
            if large:
                decoded = await self.large.run(
                    [_large(item, pre) for _, item in large], [item.pixels for _, item in large], deadline
                )
                for (k, _), item in zip(large, decoded, strict=True):
                    found[k] = item
            return [item for item in found if not isinstance(item, Opened)]
        finally:
            stop.set()


def _unit(
    data: bytes, pre: Preprocess, limits: Limits, stop: threading.Event
) -> Work[tuple[Decoded | Opened, int]]:
    """Read a header, and decode where the image is small; beside the result its pixels."""

    def work() -> tuple[tuple[Decoded | Opened, int], int]:
        try:
            opened = read_header(data, limits, stop.is_set)
            size = opened.pixels
            if size > SMALL_PIXELS:
                return (opened, size), _HEADER_PIXELS
            return (opened.decode(pre), size), size
        except (ImageRefused, Stopped) as refusal:
            if isinstance(refusal, Stopped):
                refusal = ImageRefused("image_refused", "nobody waits for it")
            return (refusal, 0), _HEADER_PIXELS

    return work


def _large(opened: Opened, pre: Preprocess) -> Work[Decoded]:
    def work() -> tuple[Decoded, int]:
        try:
            return opened.decode(pre), opened.pixels
        except ImageRefused as refusal:
            return refusal, opened.pixels
        except Stopped:
            return ImageRefused("image_refused", "nobody waits for it"), opened.pixels

    return work
