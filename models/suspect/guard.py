"""A stranger's file is tried in a process of its own first, with bounds on memory and time.

Parsers, kernels and converters of several libraries run on the file; native ones among them may crash, and a graph may
loop for ever or ask for any amount of memory. A fork of this process does the whole import, on one thread; what it
does not survive is refused here. What it survives is done again in this process, by the same code on the same bytes.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

import torch

from detrigger.models.errors import BadInput
from detrigger.models.suspect.file import first_line

MEMORY = 4 << 30
"""Bytes that an import may need, beside ``MEMORY_FACTOR`` times the file's own."""
MEMORY_FACTOR = 16
CPU_SECONDS = 180
WALL_SECONDS = 600


def tried(work: Callable[[], object], n_bytes: int) -> None:
    """Run ``work`` in a fork; BadInput for whatever it raises, for a crash, and where it exceeds a bound.

    Only Linux forks safely beside other threads; elsewhere nothing is tried.
    """
    if sys.platform != "linux":
        return
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _in_child(work, writer, MEMORY + MEMORY_FACTOR * n_bytes)
    os.close(writer)
    said, status = _listen(reader, child)
    if said == b"ok" and status == 0:
        return
    if said.startswith(b"refused "):
        raise BadInput(said.removeprefix(b"refused ").decode(errors="replace"))
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        raise BadInput(
            f"the model cannot be imported within {CPU_SECONDS} s of computing; a loop in it may have no end"
        )
    if said == b"memory":
        raise BadInput(
            f"the model cannot be imported within {(MEMORY + MEMORY_FACTOR * n_bytes) >> 20} MiB of memory"
        )
    name = signal.Signals(-status).name if status < 0 else f"exit code {status}"
    raise BadInput(
        f"the model crashes the libraries that read it ({name}); export it again with a current torch"
    )


def _in_child(work: Callable[[], object], writer: int, memory: int) -> NoReturn:
    said = b"ok"
    try:
        signal.alarm(0)
        _limit(resource.RLIMIT_CORE, 0, 0)
        _limit(resource.RLIMIT_CPU, CPU_SECONDS, CPU_SECONDS + 5)
        with open("/proc/self/statm") as file:  # noqa: PTH123 - pages of this process
            own = int(file.read().split()[0]) * resource.getpagesize()
        _limit(resource.RLIMIT_AS, own + memory, own + memory)
        # The pools of threads did not come along; one thread needs none.
        torch.set_num_threads(1)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        work()
    except BadInput as error:
        said = b"refused " + str(error).encode()
    except MemoryError:
        said = b"memory"
    except BaseException as error:
        text = first_line(error)
        out_of_memory = "alloc" in text.lower()
        said = b"memory" if out_of_memory else f"refused the model could not be imported: {text}".encode()
    finally:
        try:
            os.write(writer, said[:4000])
        finally:
            os._exit(0)


def _limit(kind: int, soft: int, hard: int) -> None:
    """Set a limit, or the user's own where that is narrower."""
    most = resource.getrlimit(kind)[1]
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    resource.setrlimit(kind, (soft, hard))


def _listen(reader: int, child: int) -> tuple[bytes, int]:
    """What the child said, and its exit code or minus the signal that ended it."""
    end, said = time.monotonic() + WALL_SECONDS, b""
    try:
        while True:
            ready, _, _ = select.select([reader], [], [], max(0.0, end - time.monotonic()))
            part = os.read(reader, 4096) if ready else b""
            said += part
            if not part:
                break
        if time.monotonic() >= end:
            os.kill(child, signal.SIGKILL)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.close(reader)
        _, status = os.waitpid(child, 0)
    return said, os.waitstatus_to_exitcode(status)
