"""Which version is served: follows the store's promotion log, loads, warms and swaps.

    every `poll_interval`:  last entry of the log changed?
        load + warm the new version on a thread       (requests go on with the old one)
        swap the reference                            (requests that come now take the new one)
        the old model goes with the last request that holds it

    every `verify_interval`, and on SIGHUP:  are the files of what is served, and the log, as they were written?

A version that cannot be loaded leaves the old one serving; the reason is shown by /version, the log and
`detrigger_model_swaps_total{result="failed"}`, and the load is tried again now and then.
"""

import asyncio
import contextlib
import logging
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TypeVar

from detrigger.models import signing
from detrigger.models.errors import DetriggerError, StoreError
from detrigger.models.promotions import Promotion, serving_stack
from detrigger.models.store import VersionStore
from detrigger.service import images, memory
from detrigger.service.engine import CUDA, Model, engine_threads
from detrigger.service.metrics import Metrics
from detrigger.service.problem import Problem
from detrigger.service.settings import Settings

log = logging.getLogger(__name__)

_RETRY_SECONDS = 30.0
_STUCK_SECONDS = 60.0
_NO_SUCH_VERSION = ("unknown_version", "bad_version_id")  # a slip of whoever asked
_TIDY_AFTER = (1.0, 5.0)
"""Seconds after the finalizer of an old version is called. Its session goes a moment later, and the new version gives
back what its warm-up took a second after that."""
T = TypeVar("T")


class Registry:
    """Holds the active model. All methods belong to the event loop's thread; blocking work goes to one
    thread.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Hold nothing yet; `run` sets it going."""
        self._settings = settings
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, "registry")
        self._changing = asyncio.Lock()
        self._failed_at = 0.0
        self._failed_version: str | None = None
        self.active: Model | None = None
        self.loaded_at = 0.0
        self.draining = False
        self.error: str | None = None  # why the version that should be served is not
        self.damage: str | None = None  # what is wrong on the disk with the version that is served
        self._verify_now = asyncio.Event()
        self._older_damage = False  # of the log, in other entries than the last
        self.first_look = asyncio.Event()  # set after the first attempt to load, successful or not
        self.first_error: DetriggerError | None = None
        self.stuck_for: Callable[[], float] = lambda: 0.0

    # --- what others ask ------------------------------------------------------------------------------------

    def status(self) -> tuple[str, str]:
        """`starting`, `ready`, `draining` or `failed`, and a reason for people."""
        if self.draining:
            return "draining", "the service is shutting down"
        if self.active is None:
            if self.error is not None:
                return "failed", self.error
            if self.first_look.is_set():
                return "starting", "no version has been promoted yet: run `detrigger protect`"
            return "starting", "the model is being loaded"
        if self.stuck_for() > _STUCK_SECONDS:
            return "failed", f"the engine has not answered for {_STUCK_SECONDS:g} seconds"
        return "ready", ""

    def unavailable(self) -> Problem:
        """Why a request cannot be served."""
        status, reason = self.status()
        return Problem(
            status if status in ("starting", "failed", "draining") else "starting", reason or "starting"
        )

    # --- following the log ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow the promotion log until cancelled."""
        while True:
            try:
                await self.refresh()
            except DetriggerError as error:
                self._note(error, None)
            except Exception as error:
                log.exception("looking at the store failed")
                self._note(
                    DetriggerError(f"looking at the store failed ({type(error).__name__}), see the log"), None
                )
            self.first_look.set()
            await asyncio.sleep(self._settings.poll_interval)

    async def refresh(self) -> None:
        """Look at the log once, and serve what it says.

        Raises:
            DetriggerError: the store or the version cannot be used; what is served stays as it is.
        """
        async with self._changing:
            entry = await self._last_promotion()
            if entry is None or (self.active is not None and entry.version == self.active.version):
                self.error = None
                return
            if entry.version == self._failed_version and time.monotonic() - self._failed_at < _RETRY_SECONDS:
                return
            try:
                self._swap(await self._load(entry.version))
            except DetriggerError as error:
                self._metrics.swaps.labels("failed").inc()
                self._note(error, entry.version)

    def verify_soon(self) -> None:
        """Look at the files of what is served without waiting for the next time."""
        self._verify_now.set()

    async def keep_verifying(self) -> None:
        """Look at them regularly until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.verify_interval):
                    await self._verify_now.wait()
            self._verify_now.clear()
            await self._verify()

    async def activate(self, version: str, by: str, reason: str, *, force: bool = False) -> Promotion:
        """Load and warm `version`; only if that works promote it; then serve it.

        Raises:
            DetriggerError: it cannot be loaded or may not be promoted; nothing has changed.
        """
        async with self._changing:
            model = await self._candidate(version)
            store = VersionStore(self._settings.store)
            entry = await self._off_loop(lambda: store.promote(version, by, reason, force=force))
            self._swap(model)
            return entry

    async def rollback(self, by: str, reason: str) -> Promotion:
        """Load and warm the version that was served before; then roll back to it and serve it.

        Raises:
            DetriggerError: there is none or it cannot be loaded; nothing has changed.
        """
        async with self._changing:
            store = VersionStore(self._settings.store)
            stack = serving_stack(await self._off_loop(store.promotions))
            if len(stack) < 2:
                raise StoreError("there is no earlier version to roll back to", code="nothing_to_roll_back")
            model = await self._candidate(stack[-2])
            entry = await self._off_loop(lambda: store.rollback(by, reason))
            if entry.version == model.version:
                self._swap(model)
            return entry  # else somebody promoted in between, and the next look at the log follows that

    async def close(self) -> None:
        """Forget the model and let the thread go."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self.active = None

    # --- inside ---------------------------------------------------------------------------------------------

    async def _last_promotion(self) -> Promotion | None:
        try:
            entry = await self._off_loop(lambda: VersionStore(self._settings.store).last_promotion())
        except StoreError as error:
            if error.code == "damaged_log":
                self._metrics.log_damaged.set(1)
            raise
        if not self._older_damage:
            self._metrics.log_damaged.set(0)
        return entry

    async def _verify(self) -> None:
        """Compare the files of the version that is served, and the log, with their digests. What is served was read
        and checked when it was loaded, so it goes on; a restart or a rollback might not.
        """
        model = self.active
        if model is None:
            return
        found: dict[str, str] = {}

        def look() -> None:
            for name, check in (
                ("version", lambda store: store.open_version(model.version)),
                ("log", VersionStore.promotions),
            ):
                try:
                    check(VersionStore(self._settings.store))
                except DetriggerError as error:
                    found[name] = str(error)

        await asyncio.to_thread(look)
        self._older_damage = "log" in found
        self._metrics.log_damaged.set("log" in found)
        if self.active is not model:
            return
        before, self.damage = self.damage, found.get("version")
        self._metrics.version_damaged.set(self.damage is not None)
        if self.damage is None:
            self._metrics.version_verified.set(time.time())
        for problem in found.values():
            log.error("%s; what is served was loaded before that and goes on", problem)
        if not found:
            log.log(
                logging.WARNING if before else logging.DEBUG,
                "version %s and the log are as published",
                model.version,
            )

    async def _candidate(self, version: str) -> Model:
        if self.active is not None and self.active.version == version:
            return self.active
        try:
            return await self._load(version)
        except DetriggerError as error:
            if error.code not in _NO_SUCH_VERSION:
                self._metrics.swaps.labels("failed").inc()
            raise

    async def _load(self, version: str) -> Model:
        return await self._off_loop(lambda: load(self._settings, version))

    def _swap(self, model: Model) -> None:
        before = self.active
        self.active = model
        self.error = self._failed_version = None
        if before is model:
            return
        self.loaded_at = time.time()
        self.damage = None
        self._metrics.version_damaged.set(0)
        self._metrics.version_verified.set(self.loaded_at)
        created = datetime.fromisoformat(model.manifest.created).timestamp()
        self._metrics.serves(
            {
                "name": model.name,
                "version": model.version,
                "digest8": model.manifest.files["protected.onnx"].sha256[:8],
                "provider": model.provider,
                "device": self._settings.device,
                "policy": self._settings.policy,
            },
            self.loaded_at,
            created,
            model.manifest.flag.alpha,
        )
        if before is not None:
            self._metrics.swaps.labels("succeeded").inc()
            loop = asyncio.get_running_loop()
            gone = weakref.finalize(before, loop.call_soon_threadsafe, self._tidy_soon, loop)
            gone.atexit = False
        log.info(
            "serving version %s of %s", model.version, model.name,
            extra={"provider": model.provider, "before": before.version if before else None},
        )  # fmt: skip
        if self._settings.device == "auto" and model.provider != CUDA:
            log.warning("device auto: no working CUDA, running on %s", model.provider)

    def _note(self, error: DetriggerError, version: str | None) -> None:
        if self.error != str(error):  # the poll comes every second; the log need not
            log.error("%s; still serving %s", error, self.active.version if self.active else "nothing")
        self.error = str(error)
        self._failed_version, self._failed_at = version, time.monotonic()
        if not self.first_look.is_set():
            self.first_error = error

    def _tidy_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        for seconds in _TIDY_AFTER:
            loop.call_later(seconds, self._tidy)

    def _tidy(self) -> None:
        """After a swap, when the old model's last request has ended: give its memory back to the system."""
        with contextlib.suppress(RuntimeError):  # the thread is gone when the service is stopping
            self._thread.submit(memory.trim)

    async def _off_loop(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def load(settings: Settings, version: str) -> Model:
    """Verify, load and warm one version; blocks for as long as that takes.

    Raises:
        DetriggerError: the version is damaged, or cannot run here.
    """
    store = VersionStore(settings.store)
    manifest = store.manifest(version)
    if settings.require_signature is not None:
        signing.require(store.root / "versions" / version, manifest, settings.require_signature)
    graph = store.read_file(version, "protected.onnx")
    threads = engine_threads(settings)
    model = Model(
        manifest,
        graph,
        device=settings.device,
        threads=threads,
        batch_size=settings.batch_size,
        cuda_graphs=settings.cuda_graphs,
    )
    model.warm(settings.batch_size)
    images.warm()
    return model
