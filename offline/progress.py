"""How a job tells where it is: bars on a terminal, plain lines elsewhere, and a file for the service.

A step says `with progress.stage("purify", total) as advance: ... advance(1, loss=0.2)` and knows nothing of
who listens. The stages of the job and their usual share of its time are in `WEIGHTS`.
"""

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TextIO

from tqdm import tqdm

WEIGHTS = {
    "data": 0.01,
    "import": 0.01,
    "accuracy": 0.01,
    "changes": 0.03,
    "screen": 0.26,
    "invert": 0.05,
    "decouple": 0.01,
    "purify": 0.34,
    "unlearn": 0.19,
    "attack": 0.03,
    "export": 0.03,
    "calibrate": 0.01,
    "gate": 0.01,
    "publish": 0.01,
}
_LINE_SECONDS = 1.5
_EVENT_SECONDS = 0.5
_BEAT_SECONDS = 2.0
_SAYS_LITTLE = 0.02


class Advance(Protocol):
    """Called by a step for each `n` units done, with the figures that a watcher would like to see."""

    def __call__(self, n: int = 1, **metrics: float) -> None: ...


class Progress(Protocol):
    """Who listens to a job."""

    def stage(self, name: str, total: int) -> AbstractContextManager[Advance]:
        """Enter a stage of `total` units (0: not known)."""
        ...

    def note(self, text: str) -> None:
        """One line worth telling."""
        ...


class SilentProgress:
    """Nobody listens."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Advance]:  # noqa: ARG002
        """Enter a stage."""

        def advance(n: int = 1, **metrics: float) -> None: ...

        yield advance

    def note(self, text: str) -> None:
        """Do nothing."""


class TerminalProgress:
    """A bar per stage where `stream` (standard error) is a terminal, a line every few seconds elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._bars = self._stream.isatty()

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Advance]:
        """Enter a stage."""
        if self._bars:
            width = _columns(self._stream)
            with tqdm(total=total or None, desc=f"{name:<9}", file=self._stream, ncols=width) as bar:

                def advance(n: int = 1, **metrics: float) -> None:
                    if metrics:
                        bar.set_postfix({k: f"{v:.4g}" for k, v in metrics.items()}, refresh=False)
                    bar.update(n)

                with _beating(bar.refresh):
                    yield advance
            return
        lines = _Lines(name, total, self._line)
        with _beating(lines.beat):
            yield lines.advance
        lines.end()

    def note(self, text: str) -> None:
        """Write the line without tearing a bar."""
        if self._bars:
            tqdm.write(text, file=self._stream)
        else:
            self._line(text)

    def _line(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()


class _Lines:
    """One stage as plain lines."""

    def __init__(self, name: str, total: int, write: "_Write") -> None:
        self._name, self._total, self._write = name, total, write
        self._done = 0
        self._metrics: dict[str, float] = {}
        self._start = self._last = time.monotonic()
        self._writing = threading.Lock()

    def advance(self, n: int = 1, **metrics: float) -> None:
        self._done += n
        self._metrics = self._metrics | metrics
        self.beat()

    def beat(self) -> None:
        """A line where the last one is old, also from a step that says nothing for long."""
        with self._writing:
            now = time.monotonic()
            if now - self._last < _LINE_SECONDS:
                return
            self._last = now
            share = min(self._done / self._total, 1) if self._total else 0.0
            shown = f"{share:4.0%}" if self._total else f"{self._done}"
            left = seconds_left(share, now - self._start)
            if left is not None:
                shown += f", {left:.0f} s left"
            self._write(f"{self._name}: {shown}{_figures(self._metrics)}")

    def end(self) -> None:
        seconds = time.monotonic() - self._start
        self._write(f"{self._name}: done in {seconds:.1f} s{_figures(self._metrics)}")


class _Write(Protocol):
    def __call__(self, text: str) -> None: ...


class JobProgress:
    """Passes everything on to `inner` and appends it to `<job_dir>/events.jsonl` for the service.

    A line is `{"time","stage","progress","message","metrics","seconds_left","quiet"}`. `progress` is that of the whole
    job, 0..1, and never goes back. `seconds_left` goes by it, null while there is too little to say. Where a step says
    nothing for two seconds a line comes all the same: `quiet` is how long the step has been silent, so that a job that
    hangs is not taken for one that works.
    """

    def __init__(self, job_dir: Path, inner: Progress) -> None:
        job_dir.mkdir(parents=True, exist_ok=True)
        self._path = job_dir / "events.jsonl"
        self._inner = inner
        self._stage = ""
        self._progress = 0.0
        self._began = self._moved = self._written = time.monotonic()
        self._writing = threading.Lock()

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Advance]:
        """Enter a stage; its events are thinned out to two a second."""
        start, end = _span(name, self._progress)
        done = 0
        self._stage = name
        self._event(start, f"{name} started", {})
        with self._inner.stage(name, total) as pass_on, _beating(self._beat):
            figures: dict[str, float] = {}

            def advance(n: int = 1, **metrics: float) -> None:
                nonlocal done
                pass_on(n, **metrics)
                done += n
                figures.update(metrics)
                self._moved = time.monotonic()
                if self._moved - self._written >= _EVENT_SECONDS:
                    share = min(done / total, 1.0) if total else 0.0
                    self._event(start + share * (end - start), "", figures)

            yield advance
        self._event(end, f"{name} done", figures)

    def note(self, text: str) -> None:
        """Pass the line on as an event."""
        self._inner.note(text)
        self._event(self._progress, text, {})

    def _beat(self) -> None:
        if time.monotonic() - self._written >= _BEAT_SECONDS * 0.75:
            self._write(self._progress, "", {})

    def _event(self, progress: float, message: str, metrics: dict[str, float]) -> None:
        self._moved = time.monotonic()
        self._write(progress, message, metrics)

    def _write(self, progress: float, message: str, metrics: dict[str, float]) -> None:
        with self._writing:
            self._progress = max(self._progress, progress)
            self._written = now = time.monotonic()
            left = seconds_left(self._progress, now - self._began)
            event = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "stage": self._stage,
                "progress": round(self._progress, 4),
                "message": message,
                # JSON has no NaN: a loss that is one shall not make the line unreadable.
                "metrics": {name: float(value) for name, value in metrics.items() if math.isfinite(value)},
                "seconds_left": None if left is None else round(left, 1),
                "quiet": round(now - self._moved, 1),
            }
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")


@contextmanager
def _beating(beat: Callable[[], object]) -> Iterator[None]:
    """Call ``beat`` every now and then from a thread of its own, as a step may say nothing for long."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(_BEAT_SECONDS / 4):
            with suppress(OSError):  # the step's own next line says what is wrong
                beat()

    thread = threading.Thread(target=run, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def seconds_left(share: float, seconds: float) -> float | None:
    """The rest of a job whose `share`, 0..1, took so many seconds; None while that says little."""
    return seconds * (1 - share) / share if share >= _SAYS_LITTLE else None


def _span(name: str, now: float) -> tuple[float, float]:
    """Where a stage starts and ends in the whole job; a stage without a weight stands still."""
    if name not in WEIGHTS:
        return now, now
    names = list(WEIGHTS)
    start = sum(WEIGHTS[earlier] for earlier in names[: names.index(name)])
    return start, start + WEIGHTS[name]


def _figures(metrics: dict[str, float]) -> str:
    return "".join(f" {name}={value:.4g}" for name, value in metrics.items())


def _columns(stream: TextIO) -> int:
    try:
        # A terminal without a size, as containers give, says 0, and tqdm would then draw nothing.
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80
