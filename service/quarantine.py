"""The quarantine: flagged images, and a few that were not flagged, kept for a person to look at.

    offer   (event loop)   flagged images, and a random share of the others, into a fair queue; never waits
    writer  (thread)       digest -> seen before? -> make room -> write; at most so many a second
    review  (admin)        poisoned | clean, by whom and when
    export, erase (admin)  a folder per label; by digest or by day

Caps hold at any moment: images, bytes on disk, age. A tenth of both belongs to the sample of images that were not
flagged. Room is made in the raw label that has most images, oldest first, so that an attack on one label pushes out
only itself. Reviewed images stay until they are too old; what then finds no room is not kept, and counted.
"""

import io
import logging
import random
import threading
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from detrigger.models.errors import BadInput, StoreBusy
from detrigger.models.files import exclusive_lock, folder_name
from detrigger.models.manifest import utc_now
from detrigger.service import pictures
from detrigger.service.batcher import Pixels
from detrigger.service.engine import Model, Outputs
from detrigger.service.fair import FairQueue
from detrigger.service.kept import Folder, Kept, Kind, Review, Verdict, blocks, oldest_kept
from detrigger.service.metrics import Metrics
from detrigger.service.settings import Settings

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

log = logging.getLogger(__name__)

SAMPLE_SHARE = 0.1
"""Of the caps, what images may take that were not flagged."""
_WAITING, _WAITING_BYTES = 256, 64 * 2**20
_SWEEP_SECONDS = 60.0
_RECORD_BYTES = blocks(1)


@dataclass(frozen=True, slots=True)
class _Offered:
    """One image on its way to the writer."""

    model: Model
    pixels: Pixels  # (1, ...), a copy
    outputs: Outputs  # one row
    request_id: str
    kind: Kind


class Quarantine:
    """The quarantine of one service."""

    def __init__(self, settings: Settings, metrics: Metrics, root: Path) -> None:
        """Take the folder; nothing is read or written before `start`.

        Raises:
            BadInput: it cannot be used, or another service has it.
        """
        self._metrics = metrics
        self._max_images, self._max_bytes = settings.quarantine_max_images, settings.quarantine_max_bytes
        self.max_days = settings.quarantine_max_days
        self._sample, self._pause = settings.quarantine_sample, 1 / settings.quarantine_rate
        self._folder = Folder(root)
        self._held = ExitStack()
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._held.enter_context(exclusive_lock(root / "lock"))
        except StoreBusy as error:
            raise BadInput(
                f"the quarantine {root} belongs to another service; name another folder"
            ) from error
        except OSError as error:
            raise BadInput(
                f"the quarantine {root} cannot be used: {error.strerror}; name another folder"
            ) from error
        self._queue: FairQueue[_Offered] = FairQueue(_WAITING)
        self._thread = threading.Thread(target=self._run, name="quarantine", daemon=True)
        self._loaded = threading.Event()
        self._lock = threading.Lock()
        self._items: dict[str, Kept] = {}
        self._groups: dict[object, OrderedDict[str, int]] = {}  # digest -> bytes on disk, oldest first
        self._taken = 0  # bytes on disk
        self._failing = False
        metrics.quarantine_images.set_function(lambda: len(self._items))
        metrics.quarantine_bytes.set_function(lambda: self._taken)

    def start(self) -> None:
        """Begin to keep."""
        self._thread.start()

    def close(self) -> None:
        """Keep what waits, without pauses, and end."""
        self._queue.close()
        if self._thread.is_alive():
            self._thread.join(10)
        self._held.close()

    # --- the way in ---------------------------------------------------------------------------------------

    def offer(self, model: Model, pixels: Pixels, outputs: Outputs, request_id: str) -> None:
        """Look at the answers of one request and take what is to be kept; never waits."""
        chosen: list[tuple[int, Kind]] = []
        if self._sample or outputs.flagged.any():
            for row, flagged in enumerate(outputs.flagged.tolist()):
                if flagged:
                    chosen.append((row, "flagged"))
                elif random.random() < self._sample:  # noqa: S311 - nobody gains by guessing it
                    chosen.append((row, "sample"))
        for row, kind in chosen:
            picture = pixels[row : row + 1].copy()
            self._queue.capacity = max(8, min(_WAITING, _WAITING_BYTES // picture.nbytes))
            item = _Offered(model, picture, outputs.rows(row, row + 1), request_id, kind)
            group = int(outputs.raw_index[row]) if kind == "flagged" else "sample"
            if dropped := self._queue.put(group, item):
                self._metrics.quarantine_dropped.labels("busy").inc(dropped)

    def _run(self) -> None:
        try:
            self._load()
        except OSError as error:
            log.error("the quarantine cannot be read: %s", error)  # noqa: TRY400
        self._loaded.set()
        swept = time.monotonic()
        while True:
            offered = self._queue.take(_SWEEP_SECONDS)
            if offered is None and self._queue.closed:
                return
            if time.monotonic() - swept >= _SWEEP_SECONDS:
                self._sweep()
                swept = time.monotonic()
            if offered is not None and self._keep(offered) and not self._queue.closed:
                time.sleep(self._pause)

    def _load(self) -> None:
        for item, size in self._folder.load():
            with self._lock:
                self._enter(item, size)
        self._sweep()
        with self._lock:
            for kind in ("flagged", "sample"):
                self._make_room(kind, 0, 0)

    def _keep(self, offered: _Offered) -> bool:
        """Write one image unless it is known; whether the disk was written."""
        picture = pictures.as_bytes(offered.pixels)[0]
        digest = pictures.digest(picture)
        try:
            with self._lock:
                if digest in self._items:
                    return self._see_again(digest)
            data = pictures.to_png(picture)
            size = _RECORD_BYTES + blocks(len(data))
            with self._lock:
                if not self._make_room(offered.kind, 1, size):
                    self._metrics.quarantine_dropped.labels("full").inc()
                    return True
                item = _record(offered, digest)
                self._enter(item, self._folder.add(item, data))
            self._metrics.quarantine_kept.labels(offered.kind).inc()
            self._failing = False
        except OSError as error:
            self._metrics.quarantine_dropped.labels("disk").inc()
            if not self._failing:  # once, not once an image
                log.error("the quarantine cannot be written: %s; answers go on", error.strerror)  # noqa: TRY400
            self._failing = True
        return True

    def _see_again(self, digest: str) -> bool:
        item = self._items[digest]
        item = self._items[digest] = item.model_copy(update={"seen": item.seen + 1})
        if item.seen & (item.seen - 1):
            return False
        self._folder.update(item)
        return True

    # --- room (with the lock held) ------------------------------------------------------------------------

    def _enter(self, item: Kept, size: int) -> None:
        self._items[item.digest] = item
        self._groups.setdefault(item.group, OrderedDict())[item.digest] = size
        self._taken += size

    def _leave(self, item: Kept, reason: str) -> None:
        self._folder.remove(item)
        del self._items[item.digest]
        group = self._groups[item.group]
        self._taken -= group.pop(item.digest)
        if not group:
            del self._groups[item.group]
        self._metrics.quarantine_removed.labels(reason).inc()

    def _make_room(self, kind: Kind, images: int, size: int) -> bool:
        """Remove images of this kind until there is room for so much more; False when that cannot be."""
        share = SAMPLE_SHARE if kind == "sample" else 1 - SAMPLE_SHARE
        most, most_bytes = max(1, int(share * self._max_images)), int(share * self._max_bytes)
        groups = {name: it for name, it in self._groups.items() if (name == "sample") == (kind == "sample")}
        count = sum(map(len, groups.values()))
        taken = sum(sum(group.values()) for group in groups.values())
        while count + images > most or taken + size > most_bytes:
            victim = self._victim(groups)
            if victim is None:
                return images == 0
            count, taken = count - 1, taken - groups[victim.group][victim.digest]
            self._leave(victim, "room")
        return True

    def _victim(self, groups: dict[object, OrderedDict[str, int]]) -> Kept | None:
        """The oldest image without a review, of the largest group that has one."""
        for group in sorted(groups.values(), key=len, reverse=True):
            for digest in group:
                if self._items[digest].review is None:
                    return self._items[digest]
        return None

    def _sweep(self) -> None:
        """Erase what is too old."""
        limit = oldest_kept(self.max_days)
        with self._lock:
            for item in [item for item in self._items.values() if item.time < limit]:
                try:
                    self._leave(item, "age")
                except OSError as error:
                    log.error("an image that is too old cannot be erased: %s", error)  # noqa: TRY400

    # --- for people; these block for a moment -------------------------------------------------------------

    def find(self, wanted: Callable[[Kept], bool] = lambda _: True) -> list[Kept]:
        """The images for which `wanted` holds, newest first."""
        self._loaded.wait(30)
        with self._lock:
            items = [item for item in self._items.values() if wanted(item)]
        return sorted(items, key=lambda item: (item.time, item.digest), reverse=True)

    def get(self, digest: str) -> Kept:
        """One image's record. KeyError: it is not there, or no longer."""
        self._loaded.wait(30)
        return self._items[digest]

    def picture(self, digest: str) -> pictures.Picture:
        """Its pixels (H, W, C). KeyError: not there, or its file is not what was kept."""
        try:
            return self._folder.picture(self.get(digest))
        except OSError as error:
            raise KeyError(digest) from error

    def review(self, digest: str, verdict: Verdict | None, by: str, note: str = "") -> Kept:
        """Set or take back a review. KeyError: there is no such image. OSError: the disk refuses."""
        self._loaded.wait(30)
        with self._lock:
            said = (
                None if verdict is None else Review(verdict=verdict, by=by[:200], time=utc_now(), note=note)
            )
            item = self._items[digest].model_copy(update={"review": said})
            self._folder.update(item)
            self._items[digest] = item
        return item

    def erase(self, wanted: Callable[[Kept], bool]) -> int:
        """Erase every image for which `wanted` holds, reviewed or not; how many. OSError: the disk refuses."""
        self._loaded.wait(30)
        with self._lock:
            gone = [item for item in self._items.values() if wanted(item)]
            for item in gone:
                self._leave(item, "erased")
        return len(gone)

    def reviewed(self) -> Iterator[tuple[str, bytes]]:
        """The reviewed images, as path and PNG: `poisoned/<raw label>/<digest>.png`, `clean/<label>/<digest>.png`.

        What cannot be read is left out, and logged.
        """
        for item in reversed(self.find(lambda item: item.review is not None)):
            try:
                data = pictures.to_png(self.picture(item.digest))
            except KeyError:
                log.warning("image %s cannot be read and is not exported", item.digest)
                continue
            poisoned = item.review is not None and item.review.verdict == "poisoned"
            label = item.raw_label if poisoned else item.label
            yield f"{'poisoned' if poisoned else 'clean'}/{folder_name(label)}/{item.digest}.png", data

    def export(self, folder: Path) -> int:
        """Write `reviewed` under a new folder that others may not look into; how many images.

        OSError: the disk refuses.
        """
        folder.mkdir(mode=0o700)
        count = 0
        for path, data in self.reviewed():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            count += 1
        return count

    def archive(self) -> Iterator[bytes]:
        """Chunks of a zip file of `reviewed`; nothing is held but one image."""
        sink = _Sink()
        with zipfile.ZipFile(sink, "w") as file:
            for path, data in self.reviewed():
                file.writestr(path, data)
                yield sink.taken()
        yield sink.taken()


class _Sink(io.RawIOBase):
    """What zipfile writes to; it cannot seek, so that the chunks can go out at once."""

    def __init__(self) -> None:
        super().__init__()
        self._chunks: list[bytes] = []

    def write(self, data: "Buffer", /) -> int:
        self._chunks.append(bytes(data))
        return len(self._chunks[-1])

    def taken(self) -> bytes:
        chunks, self._chunks = self._chunks, []
        return b"".join(chunks)


def _record(offered: _Offered, digest: str) -> Kept:
    outputs, model = offered.outputs, offered.model
    index, raw = int(outputs.index[0]), int(outputs.raw_index[0])
    return Kept(
        digest=digest,
        kind=offered.kind,
        time=utc_now(),
        label=model.classes[index],
        label_index=index,
        raw_label=model.classes[raw],
        raw_index=raw,
        score=float(outputs.scores[0, index]),
        flag_score=float(outputs.flag_score[0]),
        threshold=float(model.threshold),
        version=model.version,
        request_id=offered.request_id,
    )
