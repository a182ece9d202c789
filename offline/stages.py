"""What each stage of a job cost: seconds, passes through the suspect, and memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from detrigger.offline.compute import release_memory
from detrigger.offline.progress import Advance, Progress

_UNIT = 1 if sys.platform == "darwin" else 1024
"""Of ``ru_maxrss``, in bytes."""


class Stages:
    """A ``Progress`` that passes everything on and keeps an account of the stages, in the order of their ends.

    Memory that a stage leaves free goes back to the system.

    ``rows`` has for each stage: ``seconds``; ``forward`` and ``backward``, the images that went through the watched
    network, and those of them whose gradient was asked for; ``peak_mib``, the most memory that the process ever held
    until then. A stage that is entered twice adds up.
    """

    def __init__(self, inner: Progress) -> None:
        self.rows: dict[str, dict[str, float]] = {}
        self._inner = inner
        self._forward = self._backward = 0

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Advance]:
        """Enter a stage."""
        began, forward, backward = time.monotonic(), self._forward, self._backward
        with self._inner.stage(name, total) as advance:
            yield advance
        release_memory()
        row = self.rows.setdefault(name, {"seconds": 0.0, "forward": 0, "backward": 0})
        row["seconds"] = round(row["seconds"] + time.monotonic() - began, 2)
        row["forward"] += self._forward - forward
        row["backward"] += self._backward - backward
        row["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT >> 20

    def note(self, text: str) -> None:
        """Pass the line on."""
        self._inner.note(text)

    def watch(self, network: nn.Module) -> None:
        """Count what goes through ``network``; copies of a traced one are to be watched as well."""

        def count(_: nn.Module, given: tuple[Any, ...], out: Tensor) -> None:
            self._forward += len(given[0])
            if out.requires_grad:
                self._backward += len(given[0])

        network.register_forward_hook(count)
