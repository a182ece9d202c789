"""Turns, deadlines and limits of decoding."""

import asyncio
import io
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
from PIL import Image

from detrigger.models.preprocess import Preprocess
from detrigger.service.decoding import Crowded, Decoders, Lane, Late, Work
from detrigger.service.images import ImageRefused, Limits, Stopped, read_header

PRE = Preprocess.plain(8, 8, 3, ("a", "b"))
LIMITS = Limits(2**24)


def encoded(image: Image.Image, image_format: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, image_format)
    return file.getvalue()


def noise(side: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def in_lane(lane: Lane, scenario: Callable[[], Awaitable[None]]) -> None:
    try:
        asyncio.run(asyncio.wait_for(scenario(), 30))
    finally:
        lane.close()


def soon() -> float:
    return asyncio.get_running_loop().time() + 20


def test_requests_take_turns() -> None:
    lane = Lane("test", 1, turn_pixels=10)
    gate, order = threading.Event(), list[str]()

    def unit(name: str) -> Work[str]:
        def work() -> tuple[str, int]:
            gate.wait(10)
            order.append(name)
            return name, 10

        return work

    async def scenario() -> None:
        many = asyncio.create_task(lane.run([unit("a")] * 8, [10] * 8, soon()))
        await asyncio.sleep(0)
        one = asyncio.create_task(lane.run([unit("b")], [10], soon()))
        await asyncio.sleep(0)
        gate.set()
        assert await one == ["b"]
        assert await many == ["a"] * 8
        assert order.index("b") <= 2

    in_lane(lane, scenario)


def test_images_larger_than_their_files_do_not_hold_a_turn() -> None:
    """Units that are announced as small and turn out large end the turn; what is left of them comes later."""
    lane = Lane("test", 1, turn_pixels=100)
    order = list[str]()

    def unit(name: str) -> Work[str]:
        def work() -> tuple[str, int]:
            time.sleep(0.005)
            order.append(name)
            return name, 1000

        return work

    async def scenario() -> None:
        many = asyncio.create_task(lane.run([unit("a")] * 8, [1] * 8, soon()))
        await asyncio.sleep(0)
        one = asyncio.create_task(lane.run([unit("b")], [1], soon()))
        assert await one == ["b"]
        assert await many == ["a"] * 8
        assert order.index("b") <= 2

    in_lane(lane, scenario)


def test_only_so_many_pixels_are_under_way() -> None:
    lane = Lane("test", 4, turn_pixels=1, budget=100)
    lock, under_way, most = threading.Lock(), 0, 0

    def work() -> tuple[None, int]:
        nonlocal under_way, most
        with lock:
            under_way += 50
            most = max(most, under_way)
        time.sleep(0.02)
        with lock:
            under_way -= 50
        return None, 50

    async def scenario() -> None:
        await asyncio.gather(*(lane.run([work] * 3, [50] * 3, soon()) for _ in range(3)))
        assert most == 100

    in_lane(lane, scenario)


def test_who_cannot_be_done_in_time_is_told_at_once_and_late_work_is_dropped() -> None:
    lane = Lane("test", 1, turn_pixels=1)
    ran = 0

    def work() -> tuple[None, int]:
        nonlocal ran
        ran += 1
        time.sleep(0.05)
        return None, 10_000

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(Late):
            await lane.run([work] * 100, [10_000] * 100, loop.time() + 0.2)
        await asyncio.sleep(0.2)
        assert ran < 20
        waiting = asyncio.create_task(lane.run([work] * 40, [10_000] * 40, soon()))
        await asyncio.sleep(0)
        with pytest.raises(Crowded):
            await lane.run([work], [10_000], loop.time() + 0.1)
        waiting.cancel()

    in_lane(lane, scenario)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own on Linux alone")
def test_large_images_stand_back_behind_small_ones_and_the_engine() -> None:
    decoders, here = Decoders(2, 2**24), os.nice(0)

    async def niceness(lane: Lane) -> int:
        [found] = await lane.run(
            [lambda: (os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), 1)], [1], soon()
        )
        return found

    async def scenario() -> None:
        assert await niceness(decoders.small) == here
        assert await niceness(decoders.large) > here

    try:
        asyncio.run(asyncio.wait_for(scenario(), 30))
    finally:
        decoders.close()


def test_decoding_ends_within_an_image() -> None:
    stopped = False
    opened = read_header(encoded(noise(600)), LIMITS, lambda: stopped)
    stopped = True
    with pytest.raises(Stopped):
        opened.decode(PRE)


def test_refusals_stand_in_their_places_and_pixels_are_summed() -> None:
    decoders = Decoders(2, 2**24)
    good = encoded(noise(16))

    async def scenario() -> None:
        found = await decoders.decode([good, b"no image", good, b""], PRE, LIMITS, 2**25, soon())
        assert [isinstance(item, ImageRefused) for item in found] == [False, True, False, True]
        large = encoded(Image.new("RGB", (1100, 1000)))
        small, big = await decoders.decode([good, large], PRE, LIMITS, 2**25, soon())
        assert isinstance(big, np.ndarray)
        assert isinstance(small, np.ndarray)
        assert big.shape == small.shape == (8, 8, 3)
        with pytest.raises(ImageRefused, match="together"):
            await decoders.decode([large, large], PRE, LIMITS, 2 * 10**6, soon())

    try:
        asyncio.run(scenario())
    finally:
        decoders.close()
