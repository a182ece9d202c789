"""What one client can take from the others: heads, idle connections, their number, pixels, overload, deadlines."""

import contextlib
import io
import json
import re
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.live import ROOT, Server, live_server, load
from tests.toys import png, toy_image

pytestmark = pytest.mark.process
PNG = {"Content-Type": "image/png"}
IMAGE = png(toy_image(0))
POST = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = {"DETRIGGER_HEAD_TIMEOUT": "1", "DETRIGGER_MAX_HEADERS": "50"}
    with live_server(tmp_path_factory.mktemp("limits"), limits, admin=False) as running:
        yield running


def connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    answer = b""
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


def problem(answer: bytes) -> dict[str, object]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head.lower()
    assert b"connection: close" in head.lower()
    found: dict[str, object] = json.loads(body)
    return found


def metric(server: Server, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    found = re.search(rf"^detrigger_{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def refused(server: Server, reason: str) -> float:
    return metric(server, f'connections_refused_total{{reason="{reason}"}}')


# --- heads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "flood"),
    [
        ("head_too_large", b"X: " + b"y" * 16 * 2**20),
        ("head_too_large", b"".join(b"X%d: %s\r\n" % (k, b"y" * 4000) for k in range(40))),
        ("too_many_headers", b"".join(b"X%d: y\r\n" % k for k in range(1000)) + b"\r\n"),
    ],
    ids=["one header", "many large", "many small"],
)
def test_large_heads_are_refused_and_counted(server: Server, reason: str, flood: bytes) -> None:
    before = refused(server, reason)
    with connect(server) as connection:
        answers: list[bytes] = []
        reader = threading.Thread(target=lambda: answers.append(read_all(connection)))
        reader.start()
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"GET /livez HTTP/1.1\r\n" + flood)
        reader.join(20)
    assert answers[0].startswith(b"HTTP/1.1 431 "), answers[0][:200]
    assert problem(answers[0])["code"] == "head_too_large"
    assert refused(server, reason) == before + 1
    assert re.search(rf'reason="{reason}" client="127.0.0.1"', server.log())
    assert "Traceback" not in server.log()


def test_a_head_of_the_largest_size_is_answered(server: Server) -> None:
    filler = {f"X-{k}": "y" * 4000 for k in range(15)}
    assert httpx.get(f"{server.url}/livez", headers=filler).status_code == 200


def test_a_flood_waits_at_its_sender(server: Server) -> None:
    """What is sent after a refusal is taken in slowly: it fills the buffers of both ends, and no more for a while."""
    with connect(server) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: " + b"y" * 2**17)
        connection.setblocking(False)
        flood, sent, until = b"y" * 2**20, 0, time.monotonic() + 0.8
        while time.monotonic() < until:
            with contextlib.suppress(BlockingIOError):
                sent += connection.send(flood)
    assert sent < 24 * 2**20


def test_who_sends_no_request_again_and_again_is_slowed_down(server: Server) -> None:
    began, answers = time.monotonic(), 0
    while time.monotonic() < began + 1.5:
        with connect(server) as connection:
            connection.sendall(b"no request\r\n\r\n")
            answers += read_all(connection).startswith(b"HTTP/1.1 400 ")
    assert 1 <= answers <= 10


def test_a_long_target_is_refused(server: Server) -> None:
    with connect(server) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"GET /" + b"a" * 100_000)
        assert read_all(connection).startswith(b"HTTP/1.1 431 ")


def test_endless_trailers_end(server: Server) -> None:
    before = refused(server, "framing") + refused(server, "too_many_headers")
    with connect(server) as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
        )
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"X: " + b"y" * 2**20)
            read_all(connection)
    assert refused(server, "framing") + refused(server, "too_many_headers") == before + 1


def test_what_is_no_http_is_a_problem_and_the_log_is_not_flooded(server: Server) -> None:
    before, lines = refused(server, "malformed"), server.log().count("\n")
    connections = [connect(server) for _ in range(100)]
    for connection in connections:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n")
    for connection in connections:
        with connection:
            assert problem(read_all(connection))["code"] == "bad_request"
    assert refused(server, "malformed") == before + 100
    assert server.log().count("\n") - lines < 50


def test_half_a_head_is_answered_408_after_its_time(server: Server) -> None:
    before = refused(server, "head_timeout")
    with connect(server) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
        for _ in range(20):  # a byte now and then does not help
            time.sleep(0.1)
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"X: y\r\n")
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert problem(answer)["code"] == "head_timeout"
    assert refused(server, "head_timeout") == before + 1


def test_a_connection_that_says_nothing_is_closed(server: Server) -> None:
    before = refused(server, "silent")
    with connect(server) as connection:
        assert read_all(connection) == b""
    assert refused(server, "silent") == before + 1


def test_pipelined_requests_are_answered_in_order_and_bounded(server: Server) -> None:
    one = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(one * 9 + one.replace(b"Host: x", b"Connection: close"))
        assert read_all(connection).count(b"HTTP/1.1 200 OK") == 10
    before = refused(server, "pipelined")
    with connect(server) as connection:
        connection.sendall(one * 1000)
        assert read_all(connection).count(b"HTTP/1.1 200 OK") <= 66
    assert refused(server, "pipelined") == before + 1


def test_an_upgrade_is_answered_as_a_plain_request(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(
            b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in answer


# --- the number of connections ----------------------------------------------------------------------------------


def test_the_longest_idle_connection_makes_room(tmp_path: Path) -> None:
    limits = {"DETRIGGER_MAX_CONNECTIONS": "8"}
    with live_server(tmp_path, limits, admin=False) as server, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(server)) for _ in range(30)]
        assert httpx.post(f"{server.url}/predict", content=IMAGE, headers=PNG).status_code == 200
        assert read_all(idle[0]) == b""
        assert refused(server, "too_many_connections") >= 20
        busy = [stack.enter_context(connect(server)) for _ in range(8)]
        for connection in busy:
            connection.sendall(b"GET /livez HTTP/1.1\r\n")
        time.sleep(0.3)
        with connect(server) as one_more:
            answer = read_all(one_more)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert problem(answer)["code"] == "too_many_connections"


def test_a_lack_of_descriptors_is_said_counted_and_survived(tmp_path: Path) -> None:
    code = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
sys.path.insert(0, {str(ROOT)!r})
from detrigger.service.main import run
from detrigger.service.settings import Settings
sys.exit(run(Settings()))
"""
    with live_server(tmp_path, admin=False) as first:
        store = first.store
    log = tmp_path / "few.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code], stderr=output, stdout=output,
            env={"PATH": "/usr/bin:/bin", "DETRIGGER_STORE": str(store), "DETRIGGER_PORT": "0"},
        )  # fmt: skip
    try:
        until = time.monotonic() + 60
        while not (found := re.search(r"listening on (\S+)", log.read_text())) and time.monotonic() < until:
            time.sleep(0.05)
        assert found is not None, log.read_text()
        server = Server(found[1], process, store, log)
        assert re.search(r"the limit of 200 file descriptors allows \d+ connections", server.log())
        while httpx.get(f"{server.url}/readyz").status_code != 200:
            time.sleep(0.05)
        with contextlib.ExitStack() as stack:
            for _ in range(150):
                connection = stack.enter_context(connect(server))
                with contextlib.suppress(ConnectionError):
                    connection.sendall(b"GET /")  # half a request: not idle
            time.sleep(0.3)
        time.sleep(0.3)
        assert refused(server, "no_descriptors") > 50
        assert 'reason="no_descriptors"' in server.log()
    finally:
        process.kill()
        process.wait()


# --- pixels -----------------------------------------------------------------------------------------------------


def encoded(image: Image.Image, image_format: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, image_format)
    return file.getvalue()


def ask(server: Server, *images: bytes) -> httpx.Response:
    parts = [("file", (f"{k}.png", image, "image/png")) for k, image in enumerate(images)]
    return httpx.post(f"{server.url}/predict", files=parts, timeout=60)


def test_tall_images_are_refused_by_their_header(server: Server) -> None:
    tall = encoded(Image.new("1", (1, 2**24)))
    cpu = cpu_seconds(server)
    answer = ask(server, *[tall] * 32)
    assert (answer.status_code, answer.json()["code"]) == (422, "image_too_large")
    assert len(answer.json()["errors"]) == 32
    assert cpu_seconds(server) - cpu < 2  # one of them took more than that


def cpu_seconds(server: Server) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_the_images_of_a_request_are_bounded_together(server: Server) -> None:
    answer = ask(server, *[encoded(Image.new("1", (4096, 4096)))] * 3)
    assert (answer.status_code, answer.json()["code"]) == (422, "too_many_pixels")


def test_files_of_a_million_pieces_are_refused(server: Server) -> None:
    image = encoded(Image.new("RGB", (8, 8)))
    chunk = b"\0\0\0\0prVt" + zlib.crc32(b"prVt").to_bytes(4, "big")
    answer = httpx.post(
        f"{server.url}/predict", content=image[:33] + chunk * 500_000 + image[33:], headers=PNG
    )
    assert (answer.status_code, answer.json()["code"]) == (422, "image_refused")
    assert "pieces" in answer.json()["detail"]


def test_large_images_hold_up_large_images_only(tmp_path: Path) -> None:
    """One client's large images fill their lane; another client's small JPEGs are answered meanwhile."""
    large = encoded(
        Image.fromarray(np.random.default_rng(0).integers(0, 2, (4000, 4000), dtype=np.uint8) * 255)
    )
    with live_server(tmp_path, {"DETRIGGER_DEADLINE": "60"}, admin=False) as server:
        ended: list[float] = []

        def attack() -> None:
            assert ask(server, large, large).status_code == 200
            ended.append(time.monotonic())

        attackers = [threading.Thread(target=attack) for _ in range(6)]
        for attacker in attackers:
            attacker.start()
        time.sleep(0.2)
        small = encoded(Image.fromarray(toy_image(0)), "JPEG")
        for _ in range(5):
            assert ask(server, small).status_code == 200
        answered = time.monotonic()
        for attacker in attackers:
            attacker.join()
    assert len(ended) == 6
    assert sum(moment > answered for moment in ended) >= 3


# --- overload and deadlines -------------------------------------------------------------------------------------


def test_a_full_service_refuses_before_the_body_is_sent(tmp_path: Path) -> None:
    limits = {"DETRIGGER_QUEUE_IMAGES": "1", "DETRIGGER_MAX_IMAGES": "1", "DETRIGGER_BATCH_SIZE": "1"}
    with live_server(tmp_path, limits, admin=False) as server, load(server.url, 16) as running:
        answers: list[bytes] = []
        for _ in range(200):
            with connect(server) as connection:
                connection.sendall(POST % 10**6 + b"Connection: close\r\n\r\n")  # and no body
                connection.settimeout(0.2)
                with contextlib.suppress(TimeoutError):
                    answers.append(connection.recv(4096))
                if answers:
                    break
        running.stopping.set()
        answer = answers[0]
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: 1" in answer
        body = problem(answer)
        assert body["code"] == "queue_full"
        found = re.search(rb"x-request-id: (\w+)", answer)
        assert found is not None
        assert body["instance"] == f"urn:request:{found[1].decode()}"
    assert running.failures == []
    assert set(running.statuses) <= {200, 429}


def test_a_refused_request_leaves_its_connection_usable(tmp_path: Path) -> None:
    """Unless it is the first of its connection, which is refused before the connection is let in."""
    limits = {"DETRIGGER_QUEUE_IMAGES": "1", "DETRIGGER_MAX_IMAGES": "1", "DETRIGGER_BATCH_SIZE": "1"}
    whole = POST % len(IMAGE) + b"X-Request-Id: mine\r\n\r\n" + IMAGE
    with live_server(tmp_path, limits, admin=False) as server, connect(server) as connection:
        file = connection.makefile("rb")

        def asked() -> int:
            connection.sendall(whole)
            status = int(file.readline().split()[1])
            headers = {}
            while (line := file.readline()) != b"\r\n":
                name, _, value = line.decode().partition(": ")
                headers[name] = value.strip()
            assert headers["x-request-id"] == "mine"
            file.read(int(headers["content-length"]))
            return status

        assert asked() == 200
        with load(server.url, 16) as running:
            statuses = {asked() for _ in range(300)}
            running.stopping.set()
    assert statuses == {200, 429}


def test_no_answer_comes_after_its_deadline(tmp_path: Path) -> None:
    """Bodies above 64 KB wait for a thread; while the threads are taken, their deadline still holds."""
    megapixel = encoded(
        Image.fromarray(np.random.default_rng(0).integers(0, 2, (1000, 1000), dtype=np.uint8) * 255)
    )
    limits = {"DETRIGGER_DEADLINE": "1", "DETRIGGER_DECODE_THREADS": "1"}
    statuses: list[int] = []
    with live_server(tmp_path, limits, admin=False) as server:

        def send_images() -> None:
            statuses.append(ask(server, *[megapixel] * 32).status_code)

        def send_base64() -> None:
            body = b'{"images":["' + b"A" * 400_000 + b'"]}'
            headers = {"Content-Type": "application/json"}
            statuses.append(
                httpx.post(f"{server.url}/predict", content=body, headers=headers, timeout=60).status_code
            )

        clients = [threading.Thread(target=work) for work in (send_images, send_base64) * 12]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        text = httpx.get(f"{server.url}/metrics").text
    assert set(statuses) <= {200, 400, 408, 429, 504}
    assert not {400, 200}.issuperset(statuses)
    every = re.search(r'request_duration_seconds_count\{route="/predict"\} (\S+)', text)
    within = re.search(r'request_duration_seconds_bucket\{le="1.84[0-9]*",route="/predict"\} (\S+)', text)
    assert every is not None
    assert within is not None
    assert float(within[1]) == float(every[1])
