"""How many connections there may be, how long one may keep still, and what is said of those that were refused.

A connection that is waited for has a moment by which it must have done something (`Connection.due`). One look at all
of them twice a second takes the place of a timer each. Where no more connections are to be had, the one that has been
idle for longest makes room, those first that never sent a request; only where none is idle, the new one is refused.
"""

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from detrigger.models.errors import BadInput
from detrigger.service.metrics import Metrics
from detrigger.service.settings import Settings

log = logging.getLogger(__name__)

SWEEP_SECONDS = 0.5
_CLOSED_AT_ONCE, _CLOSED_A_SWEEP = 20, 200
"""Who opens thousands of connections again as soon as they are closed does not do it in one go."""
_LOG_SECONDS = 1.0
_SPARE_DESCRIPTORS = 64  # for the store's files, a retrain job's pipes and what libraries open
_BACKLOG = 2048
_OPEN = Path("/proc/self/fd")


class Connection(Protocol):
    """What the guard needs of a connection."""

    due: float | None
    """In the event loop's time; None while a request is being worked on."""
    address: str

    def overdue(self) -> None:
        """`due` has passed."""

    def make_room(self) -> None:
        """Close, as another one needs the place."""


@dataclass(frozen=True, slots=True)
class Room:
    """What the process may open: `connections` at most, `backlog` of them taken in one go."""

    connections: int
    backlog: int
    lacks_descriptors: bool  # whether it is file descriptors that bound the connections, and not the setting


def find_room(settings: Settings) -> Room:
    """Raise the soft limit of file descriptors as far as `max_connections` needs and the hard limit allows.

    Raises:
        BadInput: there are not even enough for a handful of connections.
    """
    try:
        import resource
    except ImportError:  # not a POSIX system
        return Room(settings.max_connections, _BACKLOG, lacks_descriptors=False)
    used = sum(1 for _ in _OPEN.iterdir()) if _OPEN.exists() else 32
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.max_connections + used + _SPARE_DESCRIPTORS + _BACKLOG
    if resource.RLIM_INFINITY not in (soft, hard) and soft < wanted:
        soft = min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return Room(settings.max_connections, _BACKLOG, lacks_descriptors=False)
    # As many connections as may wait in the backlog are opened at once, before the first of them can be refused.
    backlog = min(_BACKLOG, max(16, soft // 4))
    connections = soft - used - _SPARE_DESCRIPTORS - backlog
    if connections < 1:
        raise BadInput(f"{soft} file descriptors are too few to serve; raise the limit (`ulimit -n 4096`)")
    if connections >= settings.max_connections:
        return Room(settings.max_connections, backlog, lacks_descriptors=False)
    log.warning(
        "the limit of %d file descriptors allows %d connections, max_connections is %d; raise it (`ulimit -n`)",
        soft, connections, settings.max_connections,
    )  # fmt: skip
    return Room(connections, backlog, lacks_descriptors=True)


class Guard:
    """All open connections, which of them are idle, and the count and log of those that were refused."""

    def __init__(self, room: Room, metrics: Metrics) -> None:
        self._most = room.connections
        self._full = "no_descriptors" if room.lacks_descriptors else "too_many_connections"
        self._refusals = metrics.connections_refused
        self._open: set[Connection] = set()
        # The one that has been idle for longest comes first.
        self._silent: dict[Connection, None] = {}  # never sent anything
        self._idle: dict[Connection, None] = {}
        self._logged: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}
        metrics.connections.set_function(lambda: len(self._open))
        metrics.connections_limit.set(room.connections)

    def joined(self, connection: Connection) -> bool:
        """Take a new connection in; False where it must be refused."""
        full = len(self._open) >= self._most
        if full:
            if not self._silent and not self._idle:
                self.note(self._full, connection.address, "a new connection was refused")
                return False
            oldest = next(iter(self._silent or self._idle))
            self.note(self._full, oldest.address, "the longest idle connection was closed for a new one")
            self.left(oldest)
            oldest.make_room()
        self._open.add(connection)
        self._silent[connection] = None
        return True

    def left(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        self._open.discard(connection)
        self.busy(connection)

    def idle(self, connection: Connection) -> None:
        """Nothing is under way on it."""
        if connection in self._open:
            self._idle[connection] = None

    def busy(self, connection: Connection) -> None:
        """Something came."""
        self._silent.pop(connection, None)
        self._idle.pop(connection, None)

    def note(self, reason: str, address: str, what: str) -> None:
        """Count a refusal; log it with the client's address, but no more than one a second for each reason."""
        self._refusals[reason].inc()
        now = asyncio.get_running_loop().time()
        if now - self._logged.get(reason, -_LOG_SECONDS) < _LOG_SECONDS:
            self._unsaid[reason] = self._unsaid.get(reason, 0) + 1
            return
        self._logged[reason] = now
        extra = {"reason": reason, "client": address}
        if unsaid := self._unsaid.pop(reason, 0):
            extra["more_before"] = str(unsaid)
        log.warning("%s", what, extra=extra)

    async def watch(self) -> None:
        """Close what is overdue, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = loop.time()
            overdue = [it for it in self._open if it.due is not None and it.due < now]
            for index, connection in enumerate(overdue[:_CLOSED_A_SWEEP]):
                if index and index % _CLOSED_AT_ONCE == 0:
                    await asyncio.sleep(SWEEP_SECONDS * _CLOSED_AT_ONCE / _CLOSED_A_SWEEP)
                    now = loop.time()
                if connection not in self._open or connection.due is None or connection.due >= now:
                    continue  # it has ended or moved since
                try:
                    connection.overdue()
                except Exception:  # the others must be looked at all the same
                    log.exception("closing a connection failed")
