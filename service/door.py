"""Connections are taken here, and get what a connection needs only once a request begins that can be answered.

A transport, a parser and a protocol cost several times as much as to refuse. So the first bytes are looked at while
they are still in the socket. An inference whose head is whole, at a moment when there is no room, gets its ready-made
answer, and the connection is closed. All others go to uvicorn untouched. A connection that has sent nothing yet is
only watched.
"""

import asyncio
import errno
import logging
import re
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from uvicorn.server import ServerState

from detrigger.service.protocol import CLOSE, INFERENCE, Doorman

log = logging.getLogger(__name__)

HAS_DOOR = hasattr(socket, "MSG_DONTWAIT")
"""Whether this system can look into a socket without waiting; elsewhere uvicorn listens."""
_AT_ONCE = 16  # connections, before others have their turn
_PEEKED = 4096  # bytes of a head; a longer one goes to the parser
_REQUEST = re.compile(rb"POST (%s) HTTP/1\.1\r\n" % INFERENCE)
_FIELD = rb"\r\n%s:[ \t]*([^\r\n]*?)[ \t]*\r\n"
_LENGTH = re.compile(_FIELD % b"content-length", re.IGNORECASE)
_REQUEST_ID = re.compile(_FIELD % b"x-request-id", re.IGNORECASE)
_READ = 65536
_LINGER_SECONDS = 1.0
_MOST_LINGERING = 256
_REST_SECONDS = 0.5
_NOTHING_LEFT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Silent:
    """A connection that has sent nothing yet, as the guard sees it."""

    __slots__ = ("_door", "_socket", "address", "due")

    def __init__(self, door: "Door", connection: socket.socket, address: str) -> None:
        self._door = door
        self._socket = connection
        self.address = address
        self.due: float | None = None

    def stirs(self) -> None:
        """Something came, or the client has gone."""
        self._door.forget(self, self._socket)
        self._door.look(self._socket, stirred=True)

    def overdue(self) -> None:
        """Nothing came for too long."""
        self._door.guard.note("silent", self.address, "a connection without a request was closed")
        self.close()

    def make_room(self) -> None:
        """Close, as another one needs the place."""
        self.close()

    def close(self) -> None:
        """Close."""
        self._door.forget(self, self._socket)
        self._socket.close()


class Door:
    """A listener. It is closed and waited for like an `asyncio.Server`."""

    def __init__(
        self,
        listener: socket.socket,
        backlog: int,
        doorman: Doorman,
        state: ServerState,
        make_protocol: Callable[[], asyncio.Protocol],
    ) -> None:
        self._listener = listener
        self._doorman = doorman
        self.guard = doorman.guard
        self._state = state
        self._make_protocol = make_protocol
        self._loop = asyncio.get_running_loop()
        self._joining: set[asyncio.Task[None]] = set()
        self._silent: set[Silent] = set()
        self._lingering: deque[tuple[float, socket.socket]] = deque()
        self._sweep: asyncio.TimerHandle | None = None
        self._open = True
        listener.setblocking(False)
        listener.listen(backlog)
        self._watch()

    def close(self) -> None:
        """Take no more connections; the listener stays open for whoever made it."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._listener)
        for silent in list(self._silent):
            silent.close()
        while self._lingering:
            self._lingering.popleft()[1].close()

    async def wait_closed(self) -> None:
        """Until the last connection that was taken has its transport."""
        await asyncio.gather(*self._joining, return_exceptions=True)

    def _watch(self) -> None:
        if self._open:
            self._loop.add_reader(self._listener, self._take)

    def _take(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NOTHING_LEFT:
                    self._rest(error)
                    return
                continue  # the client has gone already
            if not self.look(connection):
                silent = Silent(self, connection, str(address[0]))
                if self.guard.joined(silent):
                    self._silent.add(silent)
                    silent.due = self._loop.time() + self._doorman.head_timeout
                    self._loop.add_reader(connection, silent.stirs)
                else:
                    self._turn_away(connection)

    def forget(self, silent: Silent, connection: socket.socket) -> None:
        """Watch it no more."""
        self._silent.discard(silent)
        self._loop.remove_reader(connection)
        self.guard.left(silent)

    def look(self, connection: socket.socket, *, stirred: bool = False) -> bool:
        """Answer a connection or let it in, by what has come; False where nothing has and it has not ``stirred``."""
        try:
            head = connection.recv(_PEEKED, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            if not head:
                connection.close()
                return True
            if self._refuse(connection, head):
                return True
        except BlockingIOError:
            if not stirred:
                return False
        except OSError:  # the client has gone already
            connection.close()
            return True
        task = self._loop.create_task(self._let_in(connection))
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)
        return True

    def _rest(self, error: OSError) -> None:
        """Nothing can be opened: look again in a moment, as the listener stays readable until then."""
        self.guard.note("no_descriptors", "", f"a connection could not be taken: {error.strerror}")
        self._loop.remove_reader(self._listener)
        self._loop.call_later(_REST_SECONDS, self._watch)

    async def _let_in(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(self._make_protocol, connection)
        except OSError:  # the client has gone already
            connection.close()

    def _refuse(self, connection: socket.socket, head: bytes) -> bool:
        """Whether the connection was answered and is done with."""
        asked = _REQUEST.match(head)
        end = head.find(b"\r\n\r\n") + 4
        if asked is None or end < 4:
            return False
        problem = self._doorman.crowded()
        if problem is None:
            return False
        came = len(connection.recv(_READ, socket.MSG_DONTWAIT))
        given = _REQUEST_ID.search(head, 0, end)
        fields = [*self._state.default_headers, CLOSE]
        answer = self._doorman.turn_away(problem, asked[1], given[1] if given else b"", fields)
        connection.send(answer, socket.MSG_DONTWAIT)
        length = _LENGTH.search(head, 0, end)
        if length is not None and length[1].isdigit() and came >= end + int(length[1][:20]):
            connection.close()
        else:  # to close it now would take the answer away from a client that still sends
            connection.shutdown(socket.SHUT_WR)
            self._linger(connection)
        return True

    def _turn_away(self, connection: socket.socket) -> None:
        with suppress(OSError):
            connection.send(self._doorman.no_place(self._state.default_headers), socket.MSG_DONTWAIT)
        connection.close()

    def _linger(self, connection: socket.socket) -> None:
        self._lingering.append((self._loop.time() + _LINGER_SECONDS, connection))
        if len(self._lingering) > _MOST_LINGERING:
            self._lingering.popleft()[1].close()
        if self._sweep is None:
            self._sweep = self._loop.call_later(_LINGER_SECONDS, self._close_lingering)

    def _close_lingering(self) -> None:
        self._sweep = None
        now = self._loop.time()
        while self._lingering and self._lingering[0][0] <= now:
            self._lingering.popleft()[1].close()
        if self._lingering:
            self._sweep = self._loop.call_later(self._lingering[0][0] - now, self._close_lingering)
