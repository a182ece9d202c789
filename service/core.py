"""From encoded images to outputs, whatever protocol they came by: admit, decode, batch, count.

Places in the queue are taken before the first pixel is decoded and given back however the request ends. A
request stays with the model that was active when it was admitted, so that a swap in between changes
nothing for it.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from detrigger.service.admission import Permit, Places
from detrigger.service.batcher import Batcher, Closed, DeadlineExceeded, EngineError, Pixels, Shed
from detrigger.service.decoding import Crowded, Decoded, Decoders, Late
from detrigger.service.engine import Model, Outputs, engine_threads, pin_caller, usable_cores
from detrigger.service.images import ImageRefused, Limits, cheap, decode
from detrigger.service.metrics import Metrics
from detrigger.service.middleware import RequestInfo
from detrigger.service.overload import Overload
from detrigger.service.problem import TABLE, Problem
from detrigger.service.settings import Settings
from detrigger.service.watch import Watch

_SMALL_BODY = 64 * 1024
_FULL = Problem("queue_full", "more is asked for than can be answered; try again in a moment")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request is told: the rows of its images, in order, and the model that gave them."""

    model: Model
    outputs: Outputs


@dataclass(frozen=True, slots=True)
class Look:
    """What the served model makes of one image that nobody asked about: it counts nowhere."""

    model: Model
    pixels: Pixels  # (1, ...), as the classifier got them
    outputs: Outputs

    @property
    def purified(self) -> NDArray[np.float32]:
        """(1, C, H, W) in [0, 1]."""
        assert self.outputs.purified is not None  # noqa: S101 - `look` asks for it
        return self.outputs.purified


class HasModel(Protocol):
    """The registry, as far as requests need it."""

    @property
    def active(self) -> Model | None:
        """The model for requests that come now."""

    def unavailable(self) -> Problem:
        """Why there is none."""


class Core:
    """The path of images through the service."""

    def __init__(self, settings: Settings, metrics: Metrics, registry: HasModel) -> None:
        """Make the pools; nothing runs before `start`."""
        self._limits = Limits(settings.max_pixels, settings.max_side)
        self._request_pixels = settings.max_request_pixels
        self._deadline = settings.deadline
        self._metrics = metrics
        self._registry = registry
        self._decoders = Decoders(settings.decode_threads or usable_cores(), settings.max_decoding_pixels)
        pinned = engine_threads(settings) if settings.engine_slots == 1 else 1
        self._engine = ThreadPoolExecutor(settings.engine_slots, "engine", pin_caller, (pinned,))
        stages = metrics.stages
        self.batcher: Batcher[Model, Outputs] = Batcher(
            Model.run,
            self._engine,
            batch_size=settings.batch_size,
            slots=settings.engine_slots,
            on_batch=self._count_batch,
            on_wait=stages["queue"].observe,
            on_shed=lambda reason: metrics.shed.labels(reason).inc(),
            run_here=Model.run_here,
            quick=lambda model: model.quick,
        )
        self.places = Places(settings.queue_images)
        self._overload = Overload(self.batcher, self.places)
        self.watch = Watch()
        self.offers: list[
            Callable[[Model, Pixels, Outputs, str], None]
        ] = []  # told of every answer; never wait
        metrics.flag_concentration.set_function(lambda: self.watch.concentration()[0])
        metrics.flag_concentration_label.set_function(lambda: self.watch.concentration()[1])
        metrics.flag_score_drift.set_function(self.watch.drift)
        self._full_count = metrics.shed.labels("queue_full")
        metrics.queue_capacity.set(settings.queue_images)
        metrics.queue_images.set_function(lambda: self.places.taken)
        metrics.batcher_restarts.set_function(lambda: self.batcher.restarts)

    def start(self) -> None:
        """Begin to serve; to be called inside the event loop."""
        self.batcher.start()

    async def close(self) -> None:
        """Answer who still waits, and let the threads go."""
        await self.batcher.close()
        self._decoders.close()
        self._engine.shutdown(wait=False, cancel_futures=True)

    async def off_loop(self, size: int, work: Callable[[], T], request: RequestInfo) -> T:
        """Run `work` on a decoding thread, or here when its input of `size` bytes is small.

        Raises:
            Problem: the deadline, or no room.
        """
        if size <= _SMALL_BODY:
            return work()
        with self._in_time("the deadline passed while the body waited to be read"):
            return await self._decoders.call(work, size, request.deadline)

    @contextmanager
    def _in_time(self, otherwise: str) -> Iterator[None]:
        try:
            yield
        except Late:
            self._metrics.shed.labels("deadline").inc()
            raise Problem("deadline_exceeded", otherwise) from None
        except Crowded:
            self._metrics.shed.labels("queue_full").inc()
            raise Problem("queue_full", "too many images wait to be decoded; try again in a moment") from None

    def crowded(self) -> Problem | None:
        """Why another image cannot be admitted; None where it can. For requests whose body has not been read.

        Cheap, as it is asked for every request, most of all when there are too many. The queue is full when its
        places are taken (fewer in a flood, see `overload`), and when what waits would take longer than the deadline.
        """
        if (
            self._overload.full()
            or self.batcher.seconds_for(self.places.taken) > self._deadline
            or self._decoders.small.wait() > self._deadline
        ):
            self._full_count.inc()
            return _FULL
        return None

    def check_room(self) -> None:
        """Refuse a request that could not be admitted anyway, before its body is read.

        Raises:
            Problem: no model, or no room.
        """
        if self._registry.active is None:
            raise self._registry.unavailable()
        if self.crowded() is not None:
            raise Problem(_FULL.code, _FULL.detail)

    async def classify(
        self, images: Sequence[bytes], request: RequestInfo, *, purified: bool = False
    ) -> Answer:
        """The outputs for encoded images.

        Raises:
            Problem: no model, no room, an image that is refused (then nothing is run), deadline, engine
            failure.
        """
        model = self._model()
        with self._admit(len(images)) as permit:
            began = perf_counter()
            pixels = await self._decode(images, model, request)
            request.timings["decode"] = took = perf_counter() - began
            self._metrics.stages["decode"].observe(took)
            return await self._run(model, pixels, permit, request, purified)

    async def infer(
        self, pixels: Pixels, model: Model, request: RequestInfo, *, purified: bool = False
    ) -> Answer:
        """The outputs for pixels that need no decoding: float32 (n, C, H, W) in [0, 1], of `model`'s shape.

        Raises:
            Problem: no room, deadline, engine failure.
        """
        with self._admit(len(pixels)) as permit:
            return await self._run(model, pixels, permit, request, purified)

    async def look(self, image: bytes | NDArray[np.uint8], request: RequestInfo) -> Look:
        """An encoded image, or pixels (1, H, W, C), through the served model: for people who administer.

        Neither metrics nor what `offers` feeds take note of it.

        Raises:
            Problem: as `classify`, or pixels of another size than the model's.
        """
        model = self._model()
        with self._admit(1) as permit:
            pixels = await self._decode([image], model, request) if isinstance(image, bytes) else image
            channels, height, width = model.shape
            if pixels.shape != (1, height, width, channels):
                raise Problem("version_refused", "the served version takes images of another size")
            return Look(model, pixels, await self._submit(model, pixels, permit, request, purified=True))

    def _model(self) -> Model:
        model = self._registry.active
        if model is None:
            raise self._registry.unavailable()
        return model

    def _admit(self, count: int) -> Permit:
        permit = self.places.admit(count)
        if permit is None:
            raise self._full(count)
        return permit

    def _full(self, count: int) -> Problem:
        self._metrics.shed.labels("queue_full").inc()
        return Problem("queue_full", f"no room for {count} more images; try again in a moment")

    async def _decode(self, images: Sequence[bytes], model: Model, request: RequestInfo) -> NDArray[np.uint8]:
        """The pixels of all images, (n, H, W, C), decoded here when that is cheap, else on threads."""
        pre = model.preprocess
        decoded: list[Decoded]
        try:
            if len(images) == 1 and cheap(images[0]):
                decoded = [decode(images[0], pre, self._limits)]
            else:
                with self._in_time("the deadline passed while images were decoded"):
                    decoded = await self._decoders.decode(
                        images, pre, self._limits, self._request_pixels, request.deadline
                    )
        except ImageRefused as refusal:
            if refusal.code == "too_many_pixels":
                self._metrics.rejected(refusal.code, len(images))
                raise Problem(refusal.code, refusal.detail) from None
            decoded = [refusal]
        refused = [(index, item) for index, item in enumerate(decoded) if isinstance(item, ImageRefused)]
        if refused:
            raise self._refusal(refused, len(images))
        return np.stack([item for item in decoded if not isinstance(item, ImageRefused)])

    def _refusal(self, refused: Sequence[tuple[int, ImageRefused]], count: int) -> Problem:
        index, first = refused[0]
        self._metrics.rejected(first.code, count)
        return Problem(
            first.code,
            first.detail
            if count == 1
            else f"image {index}: {first.detail}; no image of the request was classified",
            errors=[
                {
                    "index": index,
                    "code": refusal.code,
                    "title": TABLE[refusal.code][1],
                    "detail": refusal.detail,
                }
                for index, refusal in refused
            ],
        )

    async def _run(
        self, model: Model, pixels: Pixels, permit: Permit, request: RequestInfo, purified: bool
    ) -> Answer:
        began = perf_counter()
        try:
            outputs = await self._submit(model, pixels, permit, request, purified=purified)
        except Problem as problem:
            if problem.code not in ("draining", "queue_full"):
                self._metrics.images_error.inc(len(pixels))
            raise
        request.timings["defend"] = perf_counter() - began
        self._count(outputs)
        self.watch.feed(model, outputs)
        for offer in self.offers:
            offer(model, pixels, outputs, request.id)
        return Answer(model, outputs)

    async def _submit(
        self, model: Model, pixels: Pixels, permit: Permit, request: RequestInfo, *, purified: bool
    ) -> Outputs:
        try:
            return await self.batcher.submit(model, pixels, permit, request.deadline, purified=purified)
        except DeadlineExceeded:
            raise Problem("deadline_exceeded", "the deadline passed before the images were run") from None
        except EngineError as error:
            raise Problem("internal_error", "see the log of the service under this request's id") from error
        except Shed:
            self._full_count.inc()
            raise Problem(_FULL.code, _FULL.detail) from None
        except Closed:
            self._metrics.shed.labels("draining").inc()
            raise Problem("draining", "the service is shutting down; send the request again") from None

    def _count_batch(self, images: int, seconds: float) -> None:
        self._metrics.batch_size.observe(images)
        self._metrics.stages["defend"].observe(seconds)

    def _count(self, outputs: Outputs) -> None:
        metrics = self._metrics
        metrics.images_ok.inc(len(outputs))
        for score in outputs.flag_score.tolist():
            metrics.flag_score.observe(score)
        if outputs.flagged.any():
            metrics.flagged_images.inc(int(outputs.flagged.sum()))
        changed = int(np.count_nonzero(outputs.index != outputs.raw_index))
        if changed:
            metrics.label_changes.inc(changed)
