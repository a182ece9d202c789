"""Start and stop what is measured, each as a process of its own on a free port of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TOKEN = "t" * 40
ADMIN = {"DETRIGGER_ADMIN_TOKEN": TOKEN}
_START = 60.0
_STOP = 20.0


@dataclass
class Server:
    """A running server."""

    url: str
    pid: int
    log: Path

    def cpu_seconds(self) -> float:
        """CPU time of the process and its children so far."""
        ticks = 0
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                if int(fields[2]) == self.pid:  # the process group
                    ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """Resident megabytes of the process."""
        return _resident(self.pid)

    def memory_of_all(self) -> float:
        """Resident megabytes of the process and its children; what they share counts for each."""
        found = 0.0
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, StopIteration):
                if int(path.read_text().rpartition(")")[2].split()[2]) == self.pid:
                    found += _resident(int(path.parent.name))
        return found


def _resident(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


@contextlib.contextmanager
def detrigger(
    store: Path, settings: Mapping[str, str] | None = None, core: int | None = None
) -> Iterator[Server]:
    """`detrigger serve` on a store, kept on a core where one is given; `settings` are DETRIGGER_* variables."""
    port = _free_port()
    command = [sys.executable, "-P", "-m", "detrigger", "serve", "--store", str(store), "--port", str(port)]
    variables = {"DETRIGGER_DRAIN_DELAY": "0", **(settings or {})}
    with _running(_kept(command, core), port, "/readyz", variables) as server:
        yield server


@contextlib.contextmanager
def other(
    module: str, graph: Path, threads: int, threshold: float, core: int | None = None
) -> Iterator[Server]:
    """One of the other servers of this folder, with so many threads for a run of the graph."""
    port = _free_port()
    command = [sys.executable, "-m", f"benchmarks.serving.{module}", str(graph), str(port), str(threads)]
    with _running(_kept([*command, str(threshold)], core), port, "/health", {}) as server:
        yield server


def _kept(command: list[str], core: int | None) -> list[str]:
    return command if core is None else ["taskset", "-c", str(core), *command]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def _running(command: list[str], port: int, ready: str, environment: Mapping[str, str]) -> Iterator[Server]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("DETRIGGER_")}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=variables | dict(environment), stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        server = Server(f"http://127.0.0.1:{port}", process.pid, log)
        try:
            _wait(server.url + ready, process, log)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(_STOP)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # workers that outlived it


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _START
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - an address of ours
                return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"{url} does not answer:\n{log.read_text(errors='replace')[-2000:]}")
