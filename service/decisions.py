"""The decision log: why an image was answered as it was, one JSON object a line, without a pixel.

    {"time", "request_id", "image", "version", "version_digest", "label", "raw_label", "score", "flag_score",
     "flagged", "policy", "image_digest"}

`image` counts the images of a request. `label` and `score` are of the purified image, `raw_label` of the image as sent,
whatever the policy lets the sender see. `version_digest` is the sha256 of protected.onnx, `image_digest` that of the
pixels (`pictures.digest`). A thread writes; requests wait for nothing. What does not fit its queue or the disk is
counted in `detrigger_decisions_dropped_total`.
"""

import contextlib
import json
import logging
import queue
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from detrigger.models.errors import BadInput
from detrigger.service import pictures
from detrigger.service.batcher import Pixels
from detrigger.service.engine import Model, Outputs
from detrigger.service.metrics import Metrics
from detrigger.service.settings import Settings

log = logging.getLogger(__name__)

_WAITING = 1024  # requests


@dataclass(frozen=True, slots=True)
class _Answered:
    """One request, as it is handed over."""

    time: float
    request_id: str
    model: Model
    outputs: Outputs
    pixels: Pixels


class Decisions:
    """The log of one service; nothing is written before `start`."""

    def __init__(self, settings: Settings, metrics: Metrics, path: Path) -> None:
        """Open the log.

        Raises:
            BadInput: the file cannot be written.
        """
        self._file = RotatedLines(path, settings.decision_log_bytes, settings.decision_log_files)
        self._policy = settings.policy
        self._metrics = metrics
        self._queue: queue.Queue[_Answered | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._write, name="decisions", daemon=True)
        self._failing = False

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def offer(self, model: Model, pixels: Pixels, outputs: Outputs, request_id: str) -> None:
        """Take note of one request; never waits."""
        try:
            self._queue.put_nowait(_Answered(time.time(), request_id, model, outputs, pixels))
        except queue.Full:
            self._metrics.decisions_dropped.inc(len(outputs))

    def close(self) -> None:
        """Write what waits, and end."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(10)
        self._file.close()

    def _write(self) -> None:
        while (answered := self._queue.get()) is not None:
            try:
                self._file.append(self._lines(answered))
                self._failing = False
            except OSError as error:
                self._metrics.decisions_dropped.inc(len(answered.outputs))
                if not self._failing:  # once, not once a request
                    log.error("the decision log cannot be written: %s", error.strerror)  # noqa: TRY400
                self._failing = True

    def _lines(self, answered: _Answered) -> bytes:
        outputs, model = answered.outputs, answered.model
        when = datetime.fromtimestamp(answered.time, UTC).isoformat(timespec="milliseconds")
        digest = model.manifest.files["protected.onnx"].sha256
        lines = []
        for row, picture in enumerate(pictures.as_bytes(answered.pixels)):
            index = int(outputs.index[row])
            lines.append(
                json.dumps(
                    {
                        "time": when,
                        "request_id": answered.request_id,
                        "image": row,
                        "version": model.version,
                        "version_digest": digest,
                        "label": model.classes[index],
                        "raw_label": model.classes[int(outputs.raw_index[row])],
                        "score": round(float(outputs.scores[row, index]), 6),
                        "flag_score": round(float(outputs.flag_score[row]), 6),
                        "flagged": bool(outputs.flagged[row]),
                        "policy": self._policy,
                        "image_digest": pictures.digest(picture),
                    }
                )
            )
        return ("\n".join(lines) + "\n").encode()


class RotatedLines:
    """A file of lines that is renamed to `FILE.1` when it is full, `FILE.1` to `FILE.2`, up to a number of files."""

    def __init__(self, path: Path, max_bytes: int, keep: int) -> None:
        self._path, self._max_bytes, self._keep = path, max_bytes, keep
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise BadInput(f"cannot write {path}: {error.strerror}; name another file") from error
        self._size = self._file.seek(0, 2)

    def append(self, lines: bytes) -> None:
        """Write whole lines; after a line that was cut off by a full disk, begin a new one.

        Raises:
            OSError: they could not be written, or only in part; nothing of them stays.
        """
        if self._size and self._size + len(lines) > self._max_bytes:
            self._rotate()
        try:
            rest = memoryview(lines)
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise
        self._size += len(lines)

    def close(self) -> None:
        """Let the file go."""
        self._file.close()

    def _rotate(self) -> None:
        for number in range(self._keep - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                self._numbered(number).replace(self._numbered(number + 1))
        self._path.replace(self._numbered(1))
        self._file.close()
        self._file = self._path.open("ab", buffering=0)
        self._size = 0

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")
