"""The service as a process: start, refusals at start, drain, kill, slow clients, overload, swaps under
load.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from detrigger.models.errors import BadInput
from detrigger.models.store import VersionStore
from detrigger.service.main import check
from detrigger.service.settings import Settings
from tests import fake_job
from tests.live import AUTH, ROOT, Server, launch, live_server, load, wait_ready
from tests.toys import png, protected_model, publish_toy, toy_image

pytestmark = pytest.mark.process
PNG = {"Content-Type": "image/png"}
IMAGE = png(toy_image(0))
HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"


def test_importing_the_service_loads_no_torch() -> None:
    code = (
        "import sys, service.main, service.app, service.jobs.runner\n"
        "bad = {'torch', 'onnx2fx', 'offline', 'onnx'} & {name.partition('.')[0] for name in sys.modules}\n"
        "sys.exit(f'loaded {bad}' if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_sigterm_drains(tmp_path: Path) -> None:
    with live_server(tmp_path, {"DETRIGGER_DRAIN_DELAY": "1.5"}) as server, load(server.url, 4) as running:
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        ready = httpx.get(f"{server.url}/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "draining")
        assert httpx.get(f"{server.url}/livez").status_code == 200
        during = httpx.post(f"{server.url}/predict", content=IMAGE, headers=PNG)
        assert during.status_code == 200
        assert during.headers["connection"] == "close"
        running.stopping.set()
        assert server.process.wait(10) == 0
    assert set(running.statuses) == {200}
    assert running.failures == []


def test_sigint_ends_at_once_with_130(tmp_path: Path) -> None:
    with live_server(tmp_path, {"DETRIGGER_DRAIN_DELAY": "20"}) as server:
        began = time.monotonic()
        assert server.stop(signal.SIGINT) == 130
        assert time.monotonic() - began < 5


def test_a_killed_service_starts_again(tmp_path: Path) -> None:
    for _ in range(3):
        with live_server(tmp_path) as server, load(server.url, 2):
            time.sleep(0.2)
            server.stop(signal.SIGKILL)


@pytest.mark.parametrize("damage", ["no store", "edited manifest", "edited model", "edited log", "no cuda"])
def test_what_cannot_work_is_said_in_one_line(tmp_path: Path, damage: str) -> None:
    store = tmp_path / "store"
    manifest = publish_toy(store)
    folder = store / "versions" / manifest.id
    environment: dict[str, str] = {}
    if damage == "no store":
        (store / "store.json").unlink()
    elif damage == "edited manifest":
        path = folder / "manifest.json"
        path.chmod(0o600)
        path.write_text(path.read_text().replace('"threshold": 0.5', '"threshold": 0.9'))
    elif damage == "edited model":
        path = folder / "protected.onnx"
        path.chmod(0o600)
        path.write_bytes(path.read_bytes() + b"x")
    elif damage == "edited log":
        (store / "promotions" / "00000001.json").write_text("{}")
    elif (Path("/proc/driver/nvidia")).exists():
        pytest.skip("this machine has CUDA")
    else:
        environment["DETRIGGER_DEVICE"] = "cuda"
    log = tmp_path / "log"
    process = launch(store, log, environment)
    assert process.wait(60) == 1  # the launcher's; the command line turns the error into 2
    text = log.read_text()
    assert text.splitlines()[-1].startswith("2: ")
    assert "Traceback" not in text


def test_an_empty_store_is_waited_for(tmp_path: Path) -> None:
    store = tmp_path / "store"
    VersionStore.create(store)
    with live_server(tmp_path, {"DETRIGGER_POLL_INTERVAL": "0.1"}, store=store, ready=False) as server:
        ready = httpx.get(f"{server.url}/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "starting")
        answer = httpx.post(f"{server.url}/predict", content=IMAGE, headers=PNG)
        assert (answer.status_code, answer.json()["code"]) == (503, "starting")
        assert "retry-after" in answer.headers
        publish_toy(store)
        wait_ready(server)
        assert httpx.post(f"{server.url}/predict", content=IMAGE, headers=PNG).status_code == 200


def test_check_finds_what_a_start_would_find(tmp_path: Path) -> None:
    store = tmp_path / "store"
    VersionStore.create(store)
    with pytest.raises(BadInput, match="nothing is promoted"):
        check(Settings(store=store, port=0))
    manifest = publish_toy(store)
    found = check(Settings(store=store, port=0))
    assert (found["version"], found["admin"], found["retrain"]) == (manifest.id, "off", "off")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(BadInput, match="cannot listen"):
        check(Settings(store=store, port=taken.getsockname()[1]))
    with pytest.raises(BadInput, match="does not exist"):
        check(Settings(store=store, port=0, retrain_data=tmp_path / "none"))
    publish_toy(store, protected=b"no model")
    with pytest.raises(BadInput, match="cannot load"):
        check(Settings(store=store, port=0))


def resident(server: Server) -> int:
    """The resident size of the server in bytes."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


@pytest.mark.slow
def test_memory_is_flat_over_50_swaps(tmp_path: Path) -> None:
    with live_server(tmp_path, {"DETRIGGER_POLL_INTERVAL": "60"}) as server:
        # 20 MB of weights each, so that a single model that stays behind shows.
        versions = [publish_toy(server.store, promote=False, protected=heavy_model()).id for _ in range(2)]
        with httpx.Client(base_url=server.url, headers=AUTH, timeout=30) as client:
            for turn in range(60):
                if turn == 10:
                    time.sleep(3)  # an old model's memory goes back to the system a second after it
                    before = resident(server)
                assert client.post("/predict", content=IMAGE, headers=PNG).status_code == 200
                assert client.post(f"/admin/versions/{versions[turn % 2]}/activate").status_code == 200
        # No request follows the last swap: the model before it must go all the same.
        until = time.monotonic() + 20
        while (after := resident(server)) >= before + 15 * 2**20 and time.monotonic() < until:
            time.sleep(0.5)
    assert after < before + 15 * 2**20, (before >> 20, after >> 20)


def heavy_model() -> bytes:
    """The toy graph with 20 MB of weights that take part in the answer (times zero)."""
    model = onnx.load_from_string(protected_model())
    weights = numpy_helper.from_array(np.ones((5 * 2**20,), np.float32), "heavy")
    zero = numpy_helper.from_array(np.zeros((), np.float32), "heavy_zero")
    model.graph.initializer.extend([weights, zero])
    last = next(node for node in model.graph.node if node.output[0] == "logits")
    last.output[0] = "light_logits"
    model.graph.node.extend(
        [
            helper.make_node("Gather", ["heavy", "heavy_at"], ["heavy_one"]),
            helper.make_node("Mul", ["heavy_one", "heavy_zero"], ["heavy_nothing"]),
            helper.make_node("Add", ["light_logits", "heavy_nothing"], ["logits"]),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(7, np.int64), "heavy_at"))
    return bytes(model.SerializeToString())


KILLS = int(os.environ.get("DETRIGGER_TEST_KILLS", "6"))


@pytest.mark.slow
def test_kills_at_random_moments_leave_a_store_that_serves(tmp_path: Path) -> None:
    """The service, its job, or both are killed anywhere between start, retrain, publish, promote and swap."""
    rng = random.Random(0)
    environment = fake_job.install(tmp_path)
    store = tmp_path / "store"
    for turn in range(KILLS):
        with (
            live_server(tmp_path, environment) as server,
            httpx.Client(base_url=server.url, headers=AUTH, timeout=30) as client,
        ):
            assert client.post("/predict", content=IMAGE, headers=PNG).status_code == 200
            job = client.post("/admin/retrain")
            time.sleep(rng.uniform(0, 2.5))
            kills = ("service", "job", "both")[turn % 3]
            pid = job.json().get("pid")  # None where an earlier job still runs
            if kills != "service" and pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            if kills != "job":
                server.stop(signal.SIGKILL)
        opened = VersionStore(store)
        assert opened.damaged() == {}
        assert opened.current() in opened.version_ids()
        for version in opened.version_ids():
            opened.open_version(version)
    with live_server(tmp_path, environment) as server:
        assert httpx.post(f"{server.url}/predict", content=IMAGE, headers=PNG).status_code == 200


def raw(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def test_slow_bodies_get_408(tmp_path: Path) -> None:
    with live_server(tmp_path, {"DETRIGGER_BODY_TIMEOUT": "0.5"}) as server, raw(server) as connection:
        connection.sendall(HEAD % 99 + b"abc")
        began = time.monotonic()
        answer = b""
        while chunk := connection.recv(4096):
            answer += chunk
        assert 0.4 < time.monotonic() - began < 5
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"connection: close" in answer.lower()
        assert b'"body_timeout"' in answer


def test_a_body_nobody_reads_is_not_waited_for(tmp_path: Path) -> None:
    with live_server(tmp_path) as server, raw(server) as connection:
        connection.sendall(b"POST /nope HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        answer = b""
        while chunk := connection.recv(4096):
            answer += chunk
        assert answer.startswith(b"HTTP/1.1 404")


def test_a_client_that_goes_away_leaves_nothing_behind(tmp_path: Path) -> None:
    with live_server(tmp_path) as server:
        for _ in range(20):
            with raw(server) as connection:
                connection.sendall(HEAD % len(IMAGE) + IMAGE)
        with raw(server) as connection:
            connection.sendall(HEAD % 99)
        time.sleep(0.5)
        metrics = httpx.get(f"{server.url}/metrics").text
        assert "\ndetrigger_queue_images 0.0" in metrics
        assert "\ndetrigger_requests_in_flight 1.0" in metrics


def test_overload_is_answered_429_and_never_5xx(tmp_path: Path) -> None:
    limits = {"DETRIGGER_QUEUE_IMAGES": "4", "DETRIGGER_MAX_IMAGES": "4", "DETRIGGER_BATCH_SIZE": "1"}
    with live_server(tmp_path, limits) as server, load(server.url, 16) as running:
        time.sleep(3)
        running.stopping.set()
    assert running.failures == []
    assert set(running.statuses) == {200, 429}


def test_swaps_under_load_fail_no_request(tmp_path: Path) -> None:
    with live_server(tmp_path, {"DETRIGGER_POLL_INTERVAL": "0.05"}) as server, load(server.url) as running:
        versions = [publish_toy(server.store, promote=False).id for _ in range(4)]
        with httpx.Client(base_url=server.url, headers=AUTH, timeout=30) as client:
            for turn in range(20):
                assert client.post(f"/admin/versions/{versions[turn % 4]}/activate").status_code == 200
                time.sleep(0.05)
            metrics = client.get("/metrics").text
            assert metrics.count("\ndetrigger_model_info{") == 1
        running.stopping.set()
    assert running.failures == []
    assert set(running.statuses) == {200}
    assert running.versions >= set(versions)
