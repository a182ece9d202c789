"""A real server on a toy store, as a subprocess: for tests over HTTP and for whoever wants a live scrape.

    with live_server(tmp_path) as server:
        httpx.get(server.url + "/metrics")

`python -m tests.live FOLDER` does the same for people until interrupted, with a store under FOLDER.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.toys import png, publish_toy, toy_image

TOKEN = "t" * 40
AUTH = {"Authorization": f"Bearer {TOKEN}"}
_ADDRESS = re.compile(r"listening on (http://[0-9.]+:[0-9]+)")
_START_SECONDS = 60.0
ROOT = Path(__file__).resolve().parent.parent
_SERVE = """
import sys
from detrigger.models.errors import DetriggerError
from detrigger.service.main import run
from detrigger.service.settings import Settings
try:
    sys.exit(run(Settings()))
except DetriggerError as error:
    sys.exit(f"{error.exit_code}: {error}")
"""


@dataclass
class Server:
    """A running service."""

    url: str
    process: subprocess.Popen[bytes]
    store: Path
    log_path: Path

    def log(self) -> str:
        """What it has written to stderr so far."""
        return self.log_path.read_text("utf-8", "replace")

    def stop(self, sign: signal.Signals = signal.SIGTERM, seconds: float = 30.0) -> int:
        """Signal it and wait; its exit code."""
        self.process.send_signal(sign)
        return self.process.wait(seconds)


def launch(
    store: Path, log_path: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a server process on `store` with DETRIGGER_* settings from `environment`."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("DETRIGGER_")}
    variables |= {"DETRIGGER_STORE": str(store), "DETRIGGER_PORT": "0", "DETRIGGER_DRAIN_DELAY": "0"}
    variables["PYTHONPATH"] = str(ROOT)
    variables |= environment or {}
    with log_path.open("ab") as output:
        # Away from the checkout, so that PYTHONPATH decides which `detrigger` a retrain job finds.
        return subprocess.Popen(
            [sys.executable, "-c", _SERVE], env=variables, stdout=output, stderr=output, cwd=log_path.parent
        )


@contextlib.contextmanager
def live_server(
    folder: Path,
    environment: Mapping[str, str] | None = None,
    *,
    store: Path | None = None,
    ready: bool = True,
    admin: bool = True,
) -> Iterator[Server]:
    """A server that answers, and is ready unless `ready` is False; stopped at the end if it still runs.

    Without `store`, a toy version is published and promoted in `folder/store`.
    With `admin`, TOKEN is accepted.
    """
    if store is None:
        store = folder / "store"
        if not store.exists():
            publish_toy(store)
    log_path = folder / "server.log"
    log_path.touch()
    begin = log_path.stat().st_size
    process = launch(
        store, log_path, ({"DETRIGGER_ADMIN_TOKEN": TOKEN} if admin else {}) | dict(environment or {})
    )
    try:
        url = wait_for_address(process, log_path, begin)
        server = Server(url, process, store, log_path)
        if ready:
            wait_ready(server)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()  # first, so that a job of its ends with it
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def wait_ready(server: Server, seconds: float = _START_SECONDS) -> None:
    """Wait until /readyz answers 200."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if server.process.poll() is not None:
            raise RuntimeError(f"the server ended with {server.process.returncode}:\n{server.log()}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{server.url}/readyz").status_code == 200:
                return
        time.sleep(0.05)
    raise RuntimeError(f"the server did not become ready:\n{server.log()}")


def wait_for_address(process: subprocess.Popen[bytes], log_path: Path, begin: int = 0) -> str:
    """The address that the server says it listens on, in its log after `begin` bytes."""
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        found = _ADDRESS.search(log_path.read_bytes()[begin:].decode("utf-8", "replace"))
        if found:
            return found[1]
        if process.poll() is not None:
            break
        time.sleep(0.02)
    raise RuntimeError(f"the server did not start (exit code {process.poll()}):\n{log_path.read_text()}")


class Load:
    """Clients that ask again and again, and what they were answered."""

    def __init__(self, url: str, image: bytes, clients: int) -> None:
        self.url = url
        self.image = image
        self.statuses: list[int] = []
        self.versions: set[str] = set()
        self.failures: list[str] = []
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while not self.stopping.is_set():
                try:
                    response = client.post(
                        "/predict", content=self.image, headers={"Content-Type": "image/png"}
                    )
                except httpx.TransportError as error:
                    self.failures.append(repr(error))
                    continue
                self.statuses.append(response.status_code)
                if response.status_code == 200:
                    self.versions.add(response.json()["model"]["version"])


@contextlib.contextmanager
def load(url: str, clients: int = 8) -> Iterator[Load]:
    """Keep the server busy with a toy image from `clients` connections."""
    running = Load(url, png(toy_image(0)), clients)
    for thread in running.threads:
        thread.start()
    try:
        yield running
    finally:
        running.stopping.set()
        for thread in running.threads:
            thread.join(30)


def main() -> None:
    """Serve a toy store until interrupted."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    with live_server(folder) as server, contextlib.suppress(KeyboardInterrupt):
        sys.stderr.write(f"{server.url}  (admin token {TOKEN}, log {server.log_path})\n")
        server.process.wait()


if __name__ == "__main__":
    main()
