"""The hostile corpus against a real server: no crash, no 5xx, bounded time and memory."""

import multiprocessing
import os
import re
import time
from pathlib import Path

import httpx
import pytest

from benchmarks.serving import hostile
from tests.hostile import corpus
from tests.live import live_server
from tests.toys import png, toy_image

MAX_SECONDS = 5.0
MAX_GROWTH = 400 * 2**20


def peak_memory(pid: int) -> int:
    """The largest resident size that a process ever had, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


@pytest.mark.process
@pytest.mark.slow
def test_hostile_images_are_answered(tmp_path: Path) -> None:
    statuses: dict[int, int] = {}
    slowest = ("", 0.0)
    with live_server(tmp_path) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        before = peak_memory(server.process.pid)
        for name, data in corpus():
            began = time.monotonic()
            response = client.post("/predict", content=data, headers={"Content-Type": "image/png"})
            took = time.monotonic() - began
            slowest = max(slowest, (name, took), key=lambda item: item[1])
            assert response.status_code in (200, 400, 413, 415, 422), (name, response.text)
            statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
        assert slowest[1] < MAX_SECONDS, slowest
        assert peak_memory(server.process.pid) - before < MAX_GROWTH
        answer = client.post("/predict", content=png(toy_image(0)), headers={"Content-Type": "image/png"})
        assert answer.json()["predictions"][0]["label"] == "red"
        assert "Traceback" not in server.log()
    assert sum(statuses.values()) >= 300
    assert min(statuses.get(status, 0) for status in (200, 400, 415, 422)) > 5
    print(statuses, slowest)  # noqa: T201 - shown with -s


SECONDS = float(os.environ.get("DETRIGGER_TEST_ATTACK_SECONDS", "20"))


@pytest.mark.process
@pytest.mark.slow
def test_all_attacks_at_once_leave_ordinary_requests_answered(tmp_path: Path) -> None:
    """Endless and countless headers, slow and silent connections, tall and large PNGs: a client for each."""
    image = png(toy_image(0))
    with live_server(tmp_path, admin=False) as server:
        before = peak_memory(server.process.pid)
        host, port = server.url.removeprefix("http://").split(":")
        context = multiprocessing.get_context("fork")
        clients = [
            context.Process(target=attack, args=((host, int(port)),), daemon=True)
            for attack in hostile.attacks(several=True).values()
        ]
        for client in clients:
            client.start()
        asked = 0
        try:
            until = time.monotonic() + SECONDS
            while time.monotonic() < until:
                # A connection each, as one that is idle may have to make room.
                answer = httpx.post(
                    f"{server.url}/predict", content=image, headers={"Content-Type": "image/png"}, timeout=30
                )
                assert answer.status_code == 200, answer.text
                assert httpx.get(f"{server.url}/livez", timeout=30).status_code == 200
                asked += 1
        finally:
            for client in clients:
                client.kill()
                client.join()
        assert asked >= 5
        assert peak_memory(server.process.pid) - before < MAX_GROWTH
        assert "Traceback" not in server.log()
        text = httpx.get(f"{server.url}/metrics").text
    for reason in ("head_too_large", "too_many_headers"):
        counted = re.search(rf'connections_refused_total\{{reason="{reason}"\}} (\S+)', text)
        assert counted is not None
        assert float(counted[1]) > 0
