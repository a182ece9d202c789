"""ONNX Runtime: one loaded version of the protected graph, and the batches that it runs.

Everything here blocks and is called on the engine's threads, never on the event loop.
"""

import base64
import ctypes
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from time import perf_counter

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from detrigger.models.errors import BadInput
from detrigger.models.manifest import Manifest
from detrigger.service.batcher import Pixels
from detrigger.service.binding import Bound
from detrigger.service.settings import Device, Settings

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
OUTPUTS = ("logits", "logits_raw", "flag_score")
PURIFIED = "purified"
_SEVERAL = 4  # images of a batch that shows that the graph takes batches
_BURST = 1.0
"""Seconds between two looks whether memory that larger batches took can go back."""
_QUICK = 0.01
"""Seconds that the event loop may wait for a lone image where nothing else is going on."""
_DEARER = 4
"""How many times as long an image may take that is purified where others are not."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the protected graph says about n images, in their order, with the flag rule applied."""

    logits: Floats  # (n, K), of the purified image
    logits_raw: Floats  # (n, K), of the image as sent
    flag_score: Floats  # (n,), larger is more suspicious
    purified: Floats | None  # (n, C, H, W) in [0, 1], where asked for
    scores: Floats  # (n, K), softmax of `logits`
    index: Ints  # (n,), argmax of `logits`
    raw_index: Ints  # (n,), argmax of `logits_raw`
    flagged: NDArray[np.bool_]  # (n,), flag_score > the manifest's threshold

    def __len__(self) -> int:
        """How many images."""
        return len(self.logits)

    def rows(self, start: int, stop: int) -> "Outputs":
        """The images [start, stop), as views."""
        if start == 0 and stop == len(self):
            return self
        cut = slice(start, stop)
        return Outputs(
            self.logits[cut],
            self.logits_raw[cut],
            self.flag_score[cut],
            None if self.purified is None else self.purified[cut],
            self.scores[cut],
            self.index[cut],
            self.raw_index[cut],
            self.flagged[cut],
        )

    def joined(self, others: Sequence["Outputs"]) -> "Outputs":
        """These images followed by those of `others`."""
        every = (self, *others)
        pictures = [part.purified for part in every if part.purified is not None]
        return Outputs(
            np.concatenate([part.logits for part in every]),
            np.concatenate([part.logits_raw for part in every]),
            np.concatenate([part.flag_score for part in every]),
            np.concatenate(pictures) if len(pictures) == len(every) else None,
            np.concatenate([part.scores for part in every]),
            np.concatenate([part.index for part in every]),
            np.concatenate([part.raw_index for part in every]),
            np.concatenate([part.flagged for part in every]),
        )


class Model:
    """One version, loaded, warm and immutable; it is freed when the last request that runs on it has
    ended.
    """

    def __init__(
        self,
        manifest: Manifest,
        graph: bytes,
        *,
        device: Device,
        threads: int,
        batch_size: int,
        cuda_graphs: bool = False,
    ) -> None:
        """Load `graph`, the verified bytes of `protected.onnx`.

        Raises:
            BadInput: the graph cannot be loaded or is not a protected one, or CUDA was asked for and is not
            there.
        """
        self.manifest = manifest
        self.version = manifest.id
        self.name = manifest.name
        self.preprocess = manifest.preprocess
        self.classes = manifest.classes
        self.threshold = np.float32(manifest.flag.threshold)
        height, width = manifest.preprocess.size
        self.shape = (manifest.input_channels, height, width)
        self.purifies_all = manifest.purify == "every"
        cuda_graphs &= self.purifies_all  # what is replayed must not depend on the images
        self._session = open_session(graph, device, threads, cuda_graphs=cuda_graphs)
        self.provider: str = self._session.get_providers()[0]
        self._check_graph()
        self._bound = self._bind(batch_size, cuda_graphs) if self.provider == CUDA else {}
        self._binding = threading.Lock()  # the bound buffers hold one batch at a time
        self._core = pinned_cores(threads)[:1]
        self.quick = False  # whether one image takes so little that the event loop can wait for it
        self._grown_since = (
            inf  # when a batch first took more memory than a few images do, of what was not given back
        )

    def _check_graph(self) -> None:
        inputs = [node.name for node in self._session.get_inputs()]
        missing = {*OUTPUTS, PURIFIED} - {node.name for node in self._session.get_outputs()}
        if inputs != ["image"] or missing:
            raise BadInput(
                f"version {self.version}: protected.onnx has inputs {inputs} and lacks outputs"
                f" {sorted(missing)}; publish it again with `detrigger protect`",
                code="version_refused",
            )

    def _bind(self, batch_size: int, replay: bool) -> dict[int, Bound]:
        """Buffers for few fixed batch sizes, since a new shape is slow the first time on CUDA."""
        classes = (len(self.classes),)
        outputs = (*zip(OUTPUTS, (classes, classes, ()), strict=True), (PURIFIED, self.shape))
        return {
            size: Bound(self._session, size, self.shape, outputs, device="cuda", replay=replay)
            for size in batch_sizes(batch_size)
        }

    def warm(self, batch_size: int) -> None:
        """Run the graph before any request does, and time one image.

        On CUDA in every size that will come, as each is set up when it first runs. On a CPU a larger batch costs the
        same the first time as later, and a whole one would take the cores from the version that is served meanwhile.

        Raises:
            BadInput: the graph's outputs do not fit the manifest.
        """
        for size in self._bound or {1, min(batch_size, _SEVERAL)}:
            outputs = self.run([np.zeros((size, *self.shape), np.float32)], purified=True)
            shapes = [outputs.logits.shape, outputs.logits_raw.shape, outputs.flag_score.shape]
            expected = [(size, len(self.classes)), (size, len(self.classes)), (size,)]
            picture = None if outputs.purified is None else outputs.purified.shape
            if shapes != expected or picture != (size, *self.shape):
                raise BadInput(
                    f"version {self.version}: protected.onnx answers shapes {[*shapes, picture]}, its manifest says"
                    f" {[*expected, (size, *self.shape)]}; publish it again with `detrigger protect`",
                    code="version_refused",
                )
        if self.provider == CPU:
            limit = _QUICK if self.purifies_all else _QUICK / _DEARER
            self.quick = min(self._seconds_for_one() for _ in range(3)) <= limit

    def _seconds_for_one(self) -> float:
        began = perf_counter()
        self.run_here([np.zeros((1, *self.shape), np.float32)], purified=False)
        return perf_counter() - began

    def _options(self, count: int) -> ort.RunOptions | None:
        """For a run of few images after a burst: ONNX Runtime is to give back what larger batches took.

        It would keep that until the version is replaced. A large batch that gave it back would be slower.
        """
        now = perf_counter()
        if count > _SEVERAL:
            self._grown_since = min(self._grown_since, now)
        elif now - self._grown_since > _BURST:
            self._grown_since = inf
            options = ort.RunOptions()
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
            return options
        return None

    def run_here(self, parts: Sequence[Pixels], purified: bool) -> Outputs:
        """The same as `run` on a thread that is not the engine's, on the engine's core for as long as it takes."""
        if not self._core:
            return self.run(parts, purified)
        usual = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self._core)
        try:
            return self.run(parts, purified)
        finally:
            os.sched_setaffinity(0, usual)

    def run(self, parts: Sequence[Pixels], purified: bool) -> Outputs:
        """Run one batch.

        Args:
            parts: the images of each request: uint8 (n, H, W, C), or float32 (n, C, H, W) in [0, 1].
            purified: whether the purified images are to be handed back.
        """
        count = sum(map(len, parts))
        size = next((size for size in self._bound if size >= count), count)
        batch = to_float(parts, np.empty((size, *self.shape), np.float32))
        batch[count:] = 0
        names = [*OUTPUTS, PURIFIED] if purified else list(OUTPUTS)
        if self._bound:
            with self._binding:
                found = self._bound[size].run(batch, len(names))
        else:
            found = self._session.run(names, {"image": batch}, self._options(count))
        logits, raw, flag_score, *picture = (output[:count] for output in found)
        flag_score = flag_score.reshape(count)
        return Outputs(
            logits,
            raw,
            flag_score,
            picture[0] if picture else None,
            softmax(logits),
            logits.argmax(axis=1),
            raw.argmax(axis=1),
            flag_score > self.threshold,
        )


def softmax(logits: Floats) -> Floats:
    """Row-wise softmax of (n, K)."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float32)


def to_float(parts: Sequence[Pixels], out: Floats) -> Floats:
    """Write the images of every request into `out`, (n, C, H, W) in [0, 1]: bytes become `byte / 255`."""
    if all(part.dtype == np.uint8 for part in parts):  # at once: numpy's cost is by call, not by pixel
        pixels = np.concatenate(parts)
        np.divide(pixels.transpose(0, 3, 1, 2), np.float32(255), out=out[: len(pixels)])
        return out
    position = 0
    for part in parts:
        target = out[position : position + len(part)]
        if part.dtype == np.uint8:
            np.divide(part.transpose(0, 3, 1, 2), np.float32(255), out=target)
        else:
            target[:] = part
        position += len(part)
    return out


def open_session(
    graph: bytes, device: Device, threads: int, *, cuda_graphs: bool = False
) -> ort.InferenceSession:
    """A session on the device asked for; `auto` takes CUDA where it works, and says so in the log where not.

    Raises:
        BadInput: the graph does not load, or `device` is cuda and the session does not run there.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads spin for a moment between the operators of a run, which saves waking them each time; never between runs,
    # which would burn a core between sparse requests, nor for long, as others want the core.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", "100")
    if cores := pinned_cores(threads):
        options.add_session_config_entry(
            "session.intra_op_thread_affinities", ";".join(str(core + 1) for core in cores[1:])
        )
    wanted: list[str | tuple[str, dict[str, str]]] = [CPU]
    if device != "cpu" and CUDA in ort.get_available_providers() and _nvidia_driver():
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        # A retrain job may share the GPU: take what is needed, not twice as much in advance.
        cuda = {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}
        wanted.insert(0, (CUDA, cuda | {"enable_cuda_graph": str(int(cuda_graphs))}))
    try:
        session = ort.InferenceSession(graph, options, providers=wanted)
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise BadInput(
            f"ONNX Runtime cannot load protected.onnx ({error}); promote another version",
            code="version_refused",
        ) from error
    if device == "cuda" and session.get_providers()[0] != CUDA:
        raise BadInput(
            "device cuda was asked for, but ONNX Runtime has no working CUDA here; install the CUDA 13 and"
            " cuDNN 9 libraries (`pip install onnxruntime-gpu[cuda,cudnn]`) and check `nvidia-smi`, or use"
            " --device auto"
        )
    return session


def _nvidia_driver() -> bool:
    """Whether there is a driver at all. Without one, trying CUDA only fills the log with ONNX Runtime's
    complaints.
    """
    try:
        ctypes.CDLL("libcuda.so.1" if os.name == "posix" else "nvcuda.dll")
    except OSError:
        return False
    return True


def check_device(device: Device) -> str:
    """The provider that a session really gets on `device`, found by opening one on a graph of one node.

    Raises:
        BadInput: `device` is cuda and there is none.
    """
    provider: str = open_session(_IDENTITY, device, 1).get_providers()[0]
    return provider


def usable_cores() -> int:
    """CPU cores that this process may use: its affinity, and no more than the cgroup's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for path, ratio in (
        (Path("/sys/fs/cgroup/cpu.max"), True),
        (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), False),
    ):
        try:
            words = path.read_text().split()
            period = words[1] if ratio else path.with_name("cpu.cfs_period_us").read_text()
            if words[0] not in ("max", "-1"):
                cores = min(cores, max(1, int(words[0]) // int(period)))
        except (OSError, ValueError, IndexError):
            continue
    return max(1, cores)


def engine_threads(settings: Settings) -> int:
    """The engine's threads: as set, or one for each core."""
    return settings.threads or usable_cores()


def pinned_cores(threads: int) -> list[int]:
    """The core of each of the engine's `threads`, its caller's first; empty where they are left to the scheduler.

    Unpinned, the scheduler at times wakes a helper on its caller's own core, and a run takes half as long again. Only a
    service that uses all cores it may run on pins: of several that share them, all would take the same ones.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return cores if len(cores) == threads == usable_cores() > 1 else []


def pin_caller(threads: int) -> None:
    """Keep the calling thread, which runs the engine, on the core that `pinned_cores` has for it."""
    if cores := pinned_cores(threads):
        os.sched_setaffinity(0, cores[:1])


def batch_sizes(largest: int) -> tuple[int, ...]:
    """Powers of two up to `largest`, and `largest`."""
    sizes = [1]
    while sizes[-1] < largest:
        sizes.append(min(sizes[-1] * 2, largest))
    return tuple(sizes)


# An ONNX model of a single Identity node, opset 13, made with onnx.helper; so `onnx` need not be imported.
_IDENTITY = base64.b64decode(
    "CAgSADo3ChAKAWESAWIiCElkZW50aXR5EgFnWg8KAWESCgoICAESBAoCCAFiDwoBYhIKCggIARIECgIIAUIECgAQDQ=="
)
