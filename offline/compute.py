"""Where and how the job computes: device, reduced precision, memory layout, seeded random numbers."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress

import torch
from torch import Tensor

from detrigger.models.errors import BadInput

MOST_PIXELS = 400_000
"""Pixels whose activations are held at once: 7 images of 224x224. A batch of small images stays whole. More take more
memory and no less time (docs/experiments.md, Cost)."""
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


class Compute:
    """One for a job. Random numbers come from a CPU generator, so that a seed means the same on every device."""

    def __init__(self, device: str, seed: int) -> None:
        """``device`` is "auto", "cpu" or "cuda". Raises BadInput where "cuda" is asked for and missing."""
        if device == "cuda" and not torch.cuda.is_available():
            raise BadInput("--device cuda: PyTorch finds no CUDA device here; use --device auto or cpu")
        self.device = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
        self.generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        if self.device.type == "cpu":
            torch.set_num_threads(len(os.sched_getaffinity(0)))
            _keep_memory()
        self.reduced = self.device.type == "cuda" or cpu_has_bf16()

    def autocast(self) -> AbstractContextManager[None]:
        """bfloat16 where the processor has it: about twice as fast, the same ASR and BA."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.reduced)

    def channels_last(self, x: Tensor) -> Tensor:
        """The batch in the memory layout that convolutions are fastest in."""
        return x.contiguous(memory_format=torch.channels_last)

    def most_at_once(self, size: Sequence[int]) -> int:
        """How many images of ``size`` (..., H, W) may be worked on in one batch."""
        return at_once(size[-2], size[-1])

    def pieces(self, n: int, size: Sequence[int]) -> list[slice]:
        """How n images of ``size`` (..., H, W) are worked on, so that memory stays bounded.

        The pieces are interleaved: each is a fair sample of a batch that is sorted by kind.
        """
        count = max(1, -(-n // self.most_at_once(size)))
        return [slice(first, n, count) for first in range(count)]

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What runs within draws random numbers that nothing else misses."""
        own = self.generator.get_state()
        try:
            with torch.random.fork_rng([torch.cuda.current_device()] if self.device.type == "cuda" else []):
                yield
        finally:
            self.generator.set_state(own)

    def finish(self) -> None:
        """Wait until the device has done what it was asked for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def randint(self, high: int, n: int) -> Tensor:
        """(n,) uniform integers below ``high``."""
        return torch.randint(high, (n,), generator=self.generator).to(self.device)


def at_once(height: int, width: int) -> int:
    """How many images of this size may be worked on in one batch."""
    return max(1, MOST_PIXELS // (height * width))


def cpu_has_bf16() -> bool:
    """Whether bfloat16 is faster than float32 on this processor; emulated it is far slower."""
    capability = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capability.get("avx512_bf16") or capability.get("amx_bf16"))


def _keep_memory() -> None:
    """Let the C library keep large blocks that are freed, instead of mapping fresh ones at every operator.

    Fresh pages have to be zeroed by the kernel, which takes as long as the arithmetic where images are large. A
    library without ``mallopt`` (not glibc) goes on as it is.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 1 << 26)):
        mallopt(parameter, value)


def release_memory() -> None:
    """Give back what is free now: the blocks of the next stage have other sizes, and would lie beside the free ones."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
