"""The process: one uvicorn server, started only on settings that can work, stopped without dropping a
request.

After SIGTERM: `/readyz` answers 503 at once, everything else still answers for `drain_delay` seconds (load
balancers look away in that time), then no new connection is taken, requests in flight get `drain_timeout`
seconds, and the process ends with 0. A second signal skips the delay. SIGINT (a person at the terminal)
skips it at once and ends with 130. SIGHUP has the files of what is served looked at.
"""

import asyncio
import gc
import logging
import signal
import socket
from types import FrameType
from typing import cast

import uvicorn

from detrigger.models import signing
from detrigger.models.errors import BadInput, DetriggerError
from detrigger.models.store import VersionStore
from detrigger.service import logs, memory
from detrigger.service.app import create_app
from detrigger.service.connections import find_room
from detrigger.service.door import HAS_DOOR, Door
from detrigger.service.engine import check_device, engine_threads
from detrigger.service.protocol import Doorman, protocol_class
from detrigger.service.registry import Registry, load
from detrigger.service.settings import Settings
from detrigger.service.traces import Traces

log = logging.getLogger(__name__)


def preflight(settings: Settings) -> None:
    """Find quickly what would keep the service from starting, before anything listens.

    Raises:
        DetriggerError: one line with the mend.
    """
    settings.review_tokens()  # looks at both kinds
    if settings.require_signature is not None:
        signing.check_public(settings.require_signature)
    VersionStore(settings.store).last_promotion()
    check_device(settings.device)


def check(settings: Settings) -> dict[str, str]:
    """Everything that a start would find out, without serving: for `detrigger serve --check`.

    The promoted version is verified, loaded and run; the port is bound for a moment.

    Returns:
        What was found, by name, for people and for --json.

    Raises:
        DetriggerError: the first thing that is wrong, one line with the mend.
    """
    preflight(settings)
    if settings.otlp_endpoint:
        Traces(settings.otlp_endpoint, "").close()
    if settings.retrain_data is not None and not settings.retrain_data.exists():
        raise BadInput(f"retrain_data {settings.retrain_data} does not exist; name a folder of clean images")
    for listener in listen(settings):
        listener.close()
    version = VersionStore(settings.store).current()
    if version is None:
        raise BadInput(
            f"nothing is promoted in {settings.store} yet; run `detrigger protect` or `detrigger promote`"
        )
    model = load(settings, version)
    return {
        "version": version,
        "name": model.name,
        "provider": model.provider,
        "threads": str(engine_threads(settings)),
        "admin": "on" if settings.tokens() else "off",
        "retrain": "on" if settings.tokens() and settings.retrain_data else "off",
        "policy": settings.policy,
    }


def listen(settings: Settings) -> list[socket.socket]:
    """The sockets to serve on: the public one, and one for /admin where the settings ask for that.

    Raises:
        BadInput: an address cannot be listened on.
    """
    addresses = [(settings.host, settings.port)]
    if settings.admin_port is not None:
        addresses.append((settings.admin_host, settings.admin_port))
    listeners: list[socket.socket] = []
    for host, port in addresses:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listeners.append(socket.create_server((host, port), family=family))
        except OSError as error:
            for listener in listeners:
                listener.close()
            raise BadInput(
                f"cannot listen on {host} port {port}: {error.strerror}; choose another --host or --port"
            ) from error
    return listeners


def run(settings: Settings) -> int:
    """Serve until told to stop; the exit code: 0, or 130 after SIGINT.

    Raises:
        DetriggerError: the settings, the store or its current version cannot be used.
    """
    logs.configure(settings)
    memory.return_large_blocks()
    log.info("starting", extra=settings.redacted())
    preflight(settings)
    room = find_room(settings)
    app = create_app(settings, room)
    config = uvicorn.Config(
        app.asgi,
        http=protocol_class(app.doorman),
        ws="none",
        backlog=room.backlog,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.forwarded_from),  # uvicorn would believe whatever runs on this host
        forwarded_allow_ips=settings.forwarded_from,
        timeout_graceful_shutdown=round(settings.drain_timeout),
        lifespan="on",
    )
    server = Server(config, app.registry, app.doorman, settings)
    server.run(listen(settings))
    if server.failure is not None:
        raise server.failure
    return 130 if server.stopped_by == signal.SIGINT else 0


class Server(uvicorn.Server):
    """uvicorn with a door of its own, with a drain, and with an end where the first model cannot be loaded."""

    def __init__(
        self, config: uvicorn.Config, registry: Registry, doorman: Doorman, settings: Settings
    ) -> None:
        super().__init__(config)
        self._registry = registry
        self._doorman = doorman
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self.failure: DetriggerError | None = None
        self.stopped_by: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, say where, and watch over the first load."""
        listeners = list(sockets or ())
        behind = 1 if HAS_DOOR else 0  # the public one is not uvicorn's
        await super().startup(listeners[behind:])
        self._loop = asyncio.get_running_loop()
        if self.started:
            for listener in listeners[:behind]:
                door = Door(
                    listener, self.config.backlog, self._doorman, self.server_state, self._make_protocol
                )
                self.servers.append(cast(asyncio.Server, door))
            for listener in listeners:
                host, port = listener.getsockname()[:2]
                log.info("listening on http://%s:%s", f"[{host}]" if ":" in host else host, port)
            if hasattr(signal, "SIGHUP"):
                self._loop.add_signal_handler(signal.SIGHUP, self._registry.verify_soon)
            self._first_load = self._loop.create_task(self._watch_first_load(), name="first load")

    def _make_protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    async def _watch_first_load(self) -> None:
        await self._registry.first_look.wait()
        if self._registry.first_error is not None:
            self.failure = self._registry.first_error
            self.should_exit = True
            return
        # What was imported and built until now stays: the collector need not walk through it ever again. Each
        # such walk stopped all requests for some 40 ms, which was the 99th percentile.
        gc.collect()
        gc.freeze()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first signal, stop on the second. Runs between two bytecodes of the main thread."""
        del frame
        first = self.stopped_by is None
        self.stopped_by = self.stopped_by or sig
        if not first and self.should_exit:
            self.force_exit = True
        if not first or sig == signal.SIGINT or self._loop is None or not self.started:
            self._registry.draining = True
            self.should_exit = True
            return
        self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._registry.draining = True
        log.warning("draining: not ready, still answering for %g s", self._settings.drain_delay)
        asyncio.get_running_loop().call_later(self._settings.drain_delay, setattr, self, "should_exit", True)
