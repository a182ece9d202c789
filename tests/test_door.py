"""The door: what is refused before a transport is made, and what is let in untouched."""

import asyncio
import errno
import json
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from uvicorn.server import ServerState

from detrigger.service import door
from detrigger.service.connections import Guard, Room
from detrigger.service.door import Door
from detrigger.service.metrics import Metrics
from detrigger.service.problem import Problem
from detrigger.service.protocol import Doorman
from detrigger.service.settings import Settings

FULL = Problem("overloaded", "no room")
POST = b"POST /predict HTTP/1.1\r\nHost: x\r\nX-Request-ID: mine-1\r\nContent-Length: %d\r\n\r\n"


class Inside(asyncio.Protocol):
    """Stands for uvicorn: says what came to it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(b"inside:" + data)
        self.transport.close()


class House:
    """A door with its listener and everything behind it."""

    def __init__(self, tmp_path: Path, *, full: bool, places: int = 10) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.metrics = Metrics("0")
        settings = Settings(store=tmp_path)
        guard = Guard(Room(places, 16, lacks_descriptors=False), self.metrics)
        self.asked = 0
        self.full = full
        doorman = Doorman(settings, self.metrics, guard, self.crowded)
        state = ServerState()
        state.default_headers = [(b"date", b"today")]
        self.door = Door(self.listener, 16, doorman, state, Inside)

    def crowded(self) -> Problem | None:
        self.asked += 1
        return FULL if self.full else None

    def connect(self) -> socket.socket:
        return socket.create_connection(self.listener.getsockname(), timeout=5)

    async def close(self) -> None:
        self.door.close()
        await self.door.wait_closed()
        self.listener.close()


def in_house(
    tmp_path: Path, story: Callable[[House], Awaitable[None]], *, full: bool = True, places: int = 10
) -> None:
    async def run() -> None:
        house = House(tmp_path, full=full, places=places)
        try:
            await story(house)
        finally:
            await house.close()

    asyncio.run(run())


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def read_all(connection: socket.socket) -> bytes:
    answer = b""
    while chunk := connection.recv(65536):
        answer += chunk
    return answer


async def asked(house: House, request: bytes) -> bytes:
    """All that a new connection gets for these bytes."""
    with house.connect() as client:
        client.sendall(request)
        return await asyncio.to_thread(read_all, client)


def test_an_inference_without_room_is_answered_and_the_connection_closed(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        head, _, body = (await asked(house, POST % 5 + b"image")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 429 ")
        for field in (b"connection: close", b"retry-after: ", b"date: today", b"x-request-id: mine-1"):
            assert field in head.lower(), field
        found = json.loads(body)
        assert found["code"] == "overloaded"
        assert b"content-length: %d" % len(body) in head
        assert house.asked == 1
        assert b'status="429"' in house.metrics.exposition()[0]

    in_house(tmp_path, story)


def test_v2_inferences_get_their_own_form_of_refusal(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        with house.connect() as client:
            client.sendall(
                b"POST /v2/models/detrigger/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
            )
            answer = await asyncio.to_thread(read_all, client)
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert "error" in json.loads(answer.partition(b"\r\n\r\n")[2])

    in_house(tmp_path, story)


def test_a_client_that_still_sends_its_body_can_read_the_answer(tmp_path: Path) -> None:
    """To close a socket in which something is unread resets the connection, and the answer is lost."""

    async def story(house: House) -> None:
        with house.connect() as client:
            client.sendall(POST % 300_000 + b"x" * 100_000)
            await asyncio.sleep(0.1)  # the answer is there, the client still sends
            await asyncio.to_thread(client.sendall, b"x" * 50_000)
            answer = await asyncio.to_thread(read_all, client)
        assert answer.startswith(b"HTTP/1.1 429 ")

    in_house(tmp_path, story)


def test_who_never_stops_sending_is_closed_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "_LINGER_SECONDS", 0.1)

    async def story(house: House) -> None:
        with house.connect() as client:
            client.sendall(POST % 10**9)
            await asyncio.sleep(0.3)

            def send_on() -> None:
                for _ in range(100):
                    client.sendall(b"x" * 65536)
                    time.sleep(0.001)

            with pytest.raises(OSError, match=r"reset|pipe"):
                await asyncio.to_thread(send_on)

    in_house(tmp_path, story)


def test_a_flood_that_lingers_holds_a_bounded_number_of_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "_MOST_LINGERING", 3)

    async def story(house: House) -> None:
        before, clients = open_files(), []
        for _ in range(8):
            clients.append(house.connect())
            clients[-1].sendall(POST % 10)
            await asyncio.sleep(0.02)
        assert open_files() - before == len(clients) + 3
        for client in clients:
            client.close()

    in_house(tmp_path, story)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /admin/retrain HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /predicted HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\n",  # the head is not whole yet
        b"POST /predict HTTP/1.1\r\nX: " + b"y" * 5000 + b"\r\n\r\n",
        b"GET /predict HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01",
    ],
)
def test_everything_else_comes_in_untouched(tmp_path: Path, request_bytes: bytes) -> None:
    async def story(house: House) -> None:
        answer = await asked(house, request_bytes)
        assert answer == b"inside:" + request_bytes
        assert house.asked == 0

    in_house(tmp_path, story)


def test_with_room_inferences_come_in_untouched(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        answer = await asked(house, POST % 5 + b"image")
        assert answer == b"inside:" + POST % 5 + b"image"

    in_house(tmp_path, story, full=False)


def test_who_sends_nothing_yet_comes_in(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        with house.connect() as client:
            await asyncio.sleep(0.1)
            client.sendall(b"hello")
            assert await asyncio.to_thread(read_all, client) == b"inside:hello"

    in_house(tmp_path, story)


def test_without_file_descriptors_it_rests_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "_REST_SECONDS", 0.1)

    async def story(house: House) -> None:
        failures = 0

        class Poor(socket.socket):
            def accept(self) -> tuple[socket.socket, object]:
                nonlocal failures
                if failures < 2:
                    failures += 1
                    raise OSError(errno.EMFILE, "Too many open files")
                return super().accept()

        house.door.close()
        poor = Poor(fileno=house.listener.dup().detach())
        house.door = Door(poor, 16, house.door._doorman, ServerState(), Inside)
        with house.connect() as client:
            client.sendall(b"hello")
            assert await asyncio.to_thread(read_all, client) == b"inside:hello"
        assert failures == 2
        count = house.metrics.connections_refused["no_descriptors"]
        assert count._value.get() == 2
        house.door.close()
        poor.close()

    in_house(tmp_path, story)


def test_silent_connections_count_and_the_oldest_makes_room(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        first, second = house.connect(), house.connect()
        await asyncio.sleep(0.05)
        third = house.connect()
        assert await asyncio.to_thread(first.recv, 10) == b""
        assert b"detrigger_connections 2.0" in house.metrics.exposition()[0]
        second.sendall(b"hello")
        assert await asyncio.to_thread(read_all, second) == b"inside:hello"
        for client in (first, second, third):
            client.close()
        await asyncio.sleep(0.05)
        assert b"detrigger_connections 0.0" in house.metrics.exposition()[0]

    in_house(tmp_path, story, places=2)


def test_without_a_place_a_connection_is_told_so(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        with house.connect() as client:
            answer = await asyncio.to_thread(read_all, client)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "too_many_connections"

    in_house(tmp_path, story, places=0)


def test_the_end_closes_silent_connections(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        with house.connect() as client:
            await asyncio.sleep(0.05)
            house.door.close()
            assert await asyncio.to_thread(client.recv, 10) == b""

    in_house(tmp_path, story)
