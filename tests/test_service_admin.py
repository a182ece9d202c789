"""/admin over real HTTP: the token, retrain jobs, versions, activation and rollback."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from detrigger.models.store import VersionStore
from detrigger.service.jobs.records import ENDED, start_time
from detrigger.service.metrics import JOBS
from tests import fake_job
from tests.disks import fill, small_disk
from tests.live import AUTH, ROOT, TOKEN, Server, live_server, load
from tests.toys import png, publish_toy, toy_image

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("admin")
    with live_server(folder, fake_job.install(folder) | {"DETRIGGER_POLL_INTERVAL": "0.1"}) as running:
        yield running


def client_of(server: Server) -> httpx.Client:
    return httpx.Client(base_url=server.url, headers=AUTH, timeout=30)


def wait_for_end(client: httpx.Client, job: str, seconds: float = 90.0) -> dict[str, Any]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found: dict[str, Any] = client.get(f"/admin/jobs/{job}").json()
        if found["state"] in ENDED:
            return found
        time.sleep(0.1)
    raise AssertionError(f"job {job} did not end: {found}")


def wait_for_step(client: httpx.Client, job: str, step: int) -> dict[str, Any]:
    until = time.monotonic() + 90
    while time.monotonic() < until:
        found: dict[str, Any] = client.get(f"/admin/jobs/{job}").json()
        if found["metrics"].get("step", -1) >= step:
            return found
        time.sleep(0.1)
    raise AssertionError(f"job {job} stands still: {found}")


def gauge(client: httpx.Client, name: str) -> float:
    text = client.get("/metrics").text
    return float(next(it for it in text.splitlines() if it.startswith(f"detrigger_{name} ")).split()[1])


def served(client: httpx.Client) -> str:
    version: str = client.get("/version").json()["model"]["version"]
    return version


def wait_until_served(client: httpx.Client, version: str) -> None:
    until = time.monotonic() + 10
    while served(client) != version:
        assert time.monotonic() < until
        time.sleep(0.05)


BAD_AUTHORIZATION = [
    {},
    {"Authorization": b"Bearer " + b"x" * 40},
    {"Authorization": TOKEN.encode()},
    {"Authorization": b"Basic " + TOKEN.encode()},
    {"Authorization": b"Bearer"},
    {"Authorization": b"Bearer \xff\xfe"},
]


@pytest.mark.parametrize("header", BAD_AUTHORIZATION)
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/admin/versions"), ("POST", "/admin/retrain"), ("GET", "/admin/x")]
)
def test_without_the_token_nothing_is_told(
    server: Server, header: dict[str, bytes], method: str, path: str
) -> None:
    response = httpx.request(method, server.url + path, headers=[(k.encode(), v) for k, v in header.items()])
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["code"] == "unauthorized"


def test_the_token_is_checked_before_the_body(server: Server) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1000)
            time.sleep(0.01)

    began = time.monotonic()
    try:
        response = httpx.post(server.url + "/admin/retrain", content=endless(), timeout=5)
        assert response.status_code == 401
    except httpx.WriteError:
        pass  # answered and closed while we were sending
    assert time.monotonic() - began < 4


def test_failures_are_slowed_counted_and_logged(server: Server) -> None:
    began = time.monotonic()
    httpx.get(server.url + "/admin/jobs", headers={"Authorization": "Bearer " + "y" * 40})
    assert time.monotonic() - began > 0.9
    metrics = httpx.get(server.url + "/metrics").text
    count = next(
        line for line in metrics.splitlines() if line.startswith("detrigger_admin_auth_failures_total")
    )
    assert float(count.split()[1]) >= 1
    log = server.log()
    assert "admin token missing or wrong" in log
    assert "y" * 40 not in log
    assert TOKEN not in log


def test_a_retrain_runs_to_the_end_and_its_version_is_served(server: Server) -> None:
    with client_of(server) as client:
        before = served(client)
        response = client.post("/admin/retrain", json={"profile": "fast", "seed": 7})
        assert response.status_code == 202, response.text
        job = response.json()["id"]
        assert response.headers["location"] == f"/admin/jobs/{job}"
        second = client.post("/admin/retrain")
        assert (second.status_code, second.json()["code"], second.json()["job"]) == (409, "job_running", job)
        assert "detrigger_retrain_running 1.0" in client.get("/metrics").text
        half = wait_for_step(client, job, 4)
        assert half["state"] == "running"
        assert 0 < half["progress"] < 1
        end = wait_for_end(client, job)
        assert (end["state"], end["progress"], end["exit_code"], end["seed"]) == ("succeeded", 1.0, 0, 7)
        assert end["promoted"] is True
        assert end["metrics"]["ba_protected"] == 0.9
        wait_until_served(client, end["version"])
        assert end["version"] != before
        jobs = client.get("/admin/jobs").json()["jobs"]
        assert jobs[0]["id"] == job
        metrics = client.get("/metrics").text
        assert "detrigger_retrain_running 0.0" in metrics
        assert 'detrigger_retrain_jobs_total{result="succeeded"}' in metrics
        assert 'detrigger_model_swaps_total{result="succeeded"}' in metrics
    assert f'"{job}"' in server.log()


def test_a_retrain_under_load_fails_no_request(server: Server) -> None:
    with client_of(server) as client, load(server.url) as running:
        job = client.post("/admin/retrain").json()["id"]
        end = wait_for_end(client, job, 60)
        wait_until_served(client, end["version"])
        time.sleep(0.3)
        running.stopping.set()
    assert running.failures == []
    assert set(running.statuses) == {200}
    assert end["version"] in running.versions
    assert len(running.versions) == 2


def test_events_are_streamed_and_can_be_resumed(server: Server) -> None:
    with client_of(server) as client:
        job = client.post("/admin/retrain", json={"activate": "manual"}).json()["id"]
        blocks: list[dict[str, str]] = []
        with client.stream("GET", f"/admin/jobs/{job}/events") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            block: dict[str, str] = {}
            for line in stream.iter_lines():
                if line:
                    name, _, value = line.partition(": ")
                    block[name] = value
                elif block:
                    blocks.append(block)
                    block = {}
        assert [it["event"] for it in blocks] == ["progress"] * 10 + ["end"]
        assert [json.loads(it["data"])["stage"] for it in blocks[:-1]] == [f"stage {n}" for n in range(10)]
        end = json.loads(blocks[-1]["data"])
        assert (end["state"], end["promoted"]) == ("succeeded", False)
        assert served(client) != end["version"]
        again = client.get(f"/admin/jobs/{job}/events", headers={"Last-Event-ID": blocks[6]["id"]}).text
        assert again.count("event: progress") == 3
        assert client.post(f"/admin/versions/{end['version']}/activate").status_code == 200
        assert served(client) == end["version"]


def test_activation_and_rollback(server: Server) -> None:
    with client_of(server) as client:
        first = served(client)
        versions = [publish_toy(server.store, promote=False).id for _ in range(2)]
        for version in versions:
            entry = client.post(f"/admin/versions/{version}/activate", json={"reason": "try"}).json()
            assert (entry["version"], entry["reason"]) == (version, "try")
            assert served(client) == version
        listed = client.get("/admin/versions").json()
        assert listed["active"] == listed["promoted"] == versions[1]
        assert [it["id"] for it in listed["versions"] if it["active"]] == [versions[1]]
        assert all(it["manifest"]["gate"]["checks"] for it in listed["versions"])
        assert client.post("/admin/rollback").json()["version"] == versions[0]
        assert client.post("/admin/rollback").json()["version"] == first
        assert served(client) == first


def test_what_cannot_be_served_changes_nothing(server: Server) -> None:
    with client_of(server) as client:
        before = served(client)
        log = VersionStore(server.store).promotions()
        broken = publish_toy(server.store, promote=False, protected=b"no model").id
        refused = publish_toy(server.store, promote=False, gate_passed=False).id
        edited = publish_toy(server.store, promote=False).id
        path = server.store / "versions" / edited / "protected.onnx"
        path.chmod(0o600)
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        for version, status, code in (
            (broken, 409, "version_refused"),
            (edited, 409, "version_refused"),
            (refused, 409, "gate_refused"),
            ("20200101T000000Z-00000000", 404, "version_unknown"),
            ("..%2F..%2Fetc", 404, "not_found"),
            ("nonsense", 404, "version_unknown"),
        ):
            response = client.post(f"/admin/versions/{version}/activate")
            assert (response.status_code, response.json()["code"]) == (status, code), response.text
        assert served(client) == before
        assert VersionStore(server.store).promotions() == log
        assert client.post(f"/admin/versions/{refused}/activate", json={"force": True}).status_code == 200
        assert client.post("/admin/rollback").json()["version"] == before


def test_a_promotion_from_outside_is_followed_and_a_broken_one_leaves_the_old_serving(server: Server) -> None:
    with client_of(server) as client:
        good = publish_toy(server.store)
        wait_until_served(client, good.id)
        publish_toy(server.store, protected=b"no model")
        until = time.monotonic() + 10
        while client.get("/version").json()["error"] is None:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert served(client) == good.id
        assert client.get("/readyz").status_code == 200
        answer = client.post("/predict", content=png(toy_image(0)), headers={"Content-Type": "image/png"})
        assert answer.json()["model"]["version"] == good.id
        assert 'detrigger_model_swaps_total{result="failed"} 0.0' not in client.get("/metrics").text
        assert client.post("/admin/rollback").json()["version"] == good.id
        assert client.get("/version").json()["error"] is None


def test_a_mistyped_version_is_no_failed_swap(server: Server) -> None:
    with client_of(server) as client:
        before = gauge(client, 'model_swaps_total{result="failed"}')
        for version in ("20200101T000000Z-00000000", "nonsense"):
            assert client.post(f"/admin/versions/{version}/activate").status_code == 404
        assert gauge(client, 'model_swaps_total{result="failed"}') == before
        broken = publish_toy(server.store, promote=False, protected=b"no model").id
        assert client.post(f"/admin/versions/{broken}/activate").status_code == 409
        assert gauge(client, 'model_swaps_total{result="failed"}') == before + 1


def wait_for_gauge(client: httpx.Client, name: str, value: float) -> None:
    until = time.monotonic() + 10
    while gauge(client, name) != value:
        assert time.monotonic() < until, name
        time.sleep(0.05)


@pytest.mark.parametrize("how", ["hourly", "SIGHUP"])
def test_damage_to_what_is_served_is_noticed_while_it_runs(tmp_path: Path, how: str) -> None:
    environment = {"DETRIGGER_VERIFY_INTERVAL": "0.2"} if how == "hourly" else {}
    with live_server(tmp_path, environment) as server, client_of(server) as client:
        path = server.store / "versions" / served(client) / "classifier.onnx"
        good = path.read_bytes()
        path.unlink()
        path.write_bytes(good + b"x")

        def look() -> None:
            if how == "SIGHUP":
                server.process.send_signal(signal.SIGHUP)

        look()
        wait_for_gauge(client, "served_version_damaged", 1)
        assert "classifier.onnx" in client.get("/version").json()["damage"]
        assert "classifier.onnx" in server.log()
        answer = client.post("/predict", content=png(toy_image(0)), headers={"Content-Type": "image/png"})
        assert answer.status_code == 200
        assert client.get("/readyz").status_code == 200
        path.write_bytes(good)
        look()
        wait_for_gauge(client, "served_version_damaged", 0)
        assert client.get("/version").json()["damage"] is None


@pytest.mark.parametrize("number", [1, 2])
def test_a_damaged_promotion_log_has_its_own_metric(tmp_path: Path, number: int) -> None:
    environment = {"DETRIGGER_VERIFY_INTERVAL": "0.2", "DETRIGGER_POLL_INTERVAL": "0.1"}
    with live_server(tmp_path, environment) as server, client_of(server) as client:
        wait_until_served(client, publish_toy(server.store).id)
        assert gauge(client, "promotion_log_damaged") == 0
        path = server.store / "promotions" / f"{number:08d}.json"
        good = path.read_bytes()
        path.write_bytes(b"{")
        wait_for_gauge(client, "promotion_log_damaged", 1)
        assert gauge(client, 'model_swaps_total{result="failed"}') == 0
        path.write_bytes(good)
        wait_for_gauge(client, "promotion_log_damaged", 0)


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("GET", "/admin/jobs/20200101T000000-000000", None, "job_unknown"),
        ("GET", "/admin/jobs/..%2Fx", None, "not_found"),
        ("GET", "/admin/jobs/x", None, "job_unknown"),
        ("GET", "/admin/jobs/x/events", None, "job_unknown"),
        ("DELETE", "/admin/jobs/x", None, "job_unknown"),
        ("POST", "/admin/retrain", b'{"profile": "slow"}', "validation_failed"),
        ("POST", "/admin/retrain", b'{"data": "/etc"}', "validation_failed"),
        ("POST", "/admin/retrain", b"{", "malformed_body"),
        ("PUT", "/admin/retrain", None, "method_not_allowed"),
        ("GET", "/admin/nothing", None, "not_found"),
    ],
)
def test_refusals_are_problems(server: Server, method: str, path: str, body: bytes | None, code: str) -> None:
    with client_of(server) as client:
        headers = {"Content-Type": "application/json"} if body else {}
        response = client.request(method, path, content=body, headers=headers)
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["code"] == code


@pytest.mark.parametrize(
    ("behaviour", "state", "code", "result"),
    [
        ("refused", "failed", "gate_refused", "refused"),
        ("fails", "failed", "bad_data", "failed"),
        ("dies", "failed", "job_died", "failed"),
    ],
)
def test_how_jobs_fail(tmp_path: Path, behaviour: str, state: str, code: str, result: str) -> None:
    with (
        live_server(tmp_path, fake_job.install(tmp_path) | {"FAKE_JOB": behaviour}) as server,
        client_of(server) as client,
    ):
        before = served(client)
        job = client.post("/admin/retrain").json()["id"]
        end = wait_for_end(client, job)
        assert (end["state"], end["error"]["code"]) == (state, code)
        if behaviour == "dies":
            assert end["error"]["message"].endswith(
                "killed by SIGKILL; the last line of its log: out of memory"
            )
        metrics = client.get("/metrics").text
        for name in JOBS:
            assert (
                f'detrigger_retrain_jobs_total{{result="{name}"}} {1.0 if name == result else 0.0}' in metrics
            )
        assert served(client) == before
        VersionStore(server.store).current()
        assert client.post("/admin/retrain").status_code == 202


def test_a_seed_is_drawn_where_none_is_given_and_said(server: Server) -> None:
    with client_of(server) as client:
        seeds = []
        for body in ({}, {"seed": None}, {"seed": 7}):
            job = client.post("/admin/retrain", json=body).json()
            wait_for_end(client, job["id"])
            seeds.append((job["seed"], job["seed_given"]))
    assert seeds[2] == (7, True)
    assert seeds[0][0] != seeds[1][0]
    assert not seeds[0][1]
    assert not seeds[1][1]


@pytest.mark.slow
def test_a_job_that_says_nothing_is_ended(tmp_path: Path) -> None:
    environment = fake_job.install(tmp_path) | {"FAKE_JOB": "hangs", "DETRIGGER_RETRAIN_STALL": "20"}
    with live_server(tmp_path, environment) as server, client_of(server) as client:
        job = client.post("/admin/retrain").json()["id"]
        pid = wait_for_step(client, job, 5)["pid"]
        time.sleep(1)
        assert gauge(client, "retrain_last_event_age_seconds") > 0.5
        end = wait_for_end(client, job, 60)
        assert (end["state"], end["error"]["code"]) == ("failed", "job_stalled")
        assert start_time(pid) is None
        assert gauge(client, "retrain_last_event_age_seconds") == 0
        assert client.post("/admin/retrain").status_code == 202


def test_a_job_that_fills_the_disk_ends(tmp_path: Path) -> None:
    environment = fake_job.install(tmp_path) | {"FAKE_JOB": "fills"}
    with small_disk(tmp_path / "disk", 2048) as disk:
        publish_toy(disk / "store")
        with live_server(tmp_path, environment, store=disk / "store") as server, client_of(server) as client:
            job = client.post("/admin/retrain").json()["id"]
            end = wait_for_end(client, job)
            assert (end["state"], end["error"]["code"]) == ("failed", "disk_full")
            assert f"file system {disk} is full" in end["error"]["message"]
            assert "{" not in end["error"]["message"]
            assert gauge(client, "retrain_running") == 0
            again = client.delete(f"/admin/jobs/{job}")
            assert (again.status_code, again.json()["detail"]) == (409, f"job {job} has ended: failed")
            assert "event: end" in client.get(f"/admin/jobs/{job}/events").text
            assert client.get("/admin/jobs").json()["jobs"][0]["state"] == "failed"
            refused = client.post("/admin/retrain")
            assert (refused.status_code, refused.json()["code"]) == (507, "storage_full")
            assert str(disk) in refused.json()["detail"]
            answer = client.post("/predict", content=png(toy_image(0)), headers={"Content-Type": "image/png"})
            assert answer.status_code == 200
            server.stop(signal.SIGKILL)
        record = disk / "store" / "jobs" / job / "job.json"
        assert json.loads(record.read_text())["state"] == "running"
        with live_server(tmp_path, environment, store=disk / "store") as server, client_of(server) as client:
            end = client.get(f"/admin/jobs/{job}").json()
            assert (end["state"], end["error"]["code"]) == ("failed", "disk_full")
            (disk / "store" / "filler").unlink()
            until = time.monotonic() + 20
            while json.loads(record.read_text())["state"] == "running":
                assert time.monotonic() < until, "the record was never written"
                time.sleep(0.2)
            assert client.get("/admin/jobs").json()["jobs"][0]["state"] == "failed"
            assert client.post("/admin/retrain").status_code == 202


@pytest.mark.slow
def test_a_job_on_a_full_disk_ends_at_whichever_step_it_is_full(tmp_path: Path) -> None:
    """With no page left when it is asked for, with one, with two: until it succeeds."""
    with small_disk(tmp_path / "disk", 2048) as disk:
        publish_toy(disk / "store")
        states: list[str] = []
        environment = fake_job.install(tmp_path)
        with live_server(tmp_path, environment, store=disk / "store") as server, client_of(server) as client:
            before = served(client)
            for leave in (0, 1, 2, 3, 4, 5, 6, 8, 12, 20):
                filler = fill(disk, leave)
                answer = client.post("/admin/retrain", json={"activate": "manual"})
                if answer.status_code == 202:
                    end = wait_for_end(client, answer.json()["id"])
                    states.append(end["state"])
                    if end["state"] == "failed":
                        assert end["error"]["code"] == "disk_full", end
                        assert str(disk) in end["error"]["message"]
                else:
                    assert (answer.status_code, answer.json()["code"]) == (507, "storage_full")
                    assert str(disk) in answer.json()["detail"]
                    states.append("refused")
                assert served(client) == before
                filler.unlink()
            assert client.get("/admin/jobs").status_code == 200
        store = VersionStore(disk / "store")
        assert store.damaged() == {}
    assert states[0] == "refused"
    assert "failed" in states
    assert states[-1] == "succeeded"


def test_a_log_on_a_full_disk_stops_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        (tmp_path / "server.log").symlink_to(disk / "server.log")
        with live_server(tmp_path) as server, client_of(server) as client:
            fill(disk)
            with (disk / "server.log").open("ab", buffering=0) as log, contextlib.suppress(OSError):
                log.write(bytes(8192))  # to the end of its last page
            for _ in range(3):
                assert httpx.get(f"{server.url}/admin/jobs").status_code == 401  # logged
                answer = client.post(
                    "/predict", content=png(toy_image(0)), headers={"Content-Type": "image/png"}
                )
                assert answer.status_code == 200
            assert server.stop(signal.SIGTERM) == 0


def test_a_token_that_found_no_room_is_refused_at_start(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        fill(disk)
        tokens = disk / "token"
        tokens.touch()
        with contextlib.suppress(OSError):
            tokens.write_text("t" * 40)
        starting = live_server(tmp_path, {"DETRIGGER_ADMIN_TOKEN_FILE": str(tokens)}, admin=False)
        with pytest.raises(RuntimeError, match="holds 0 tokens; it must hold one"), starting:
            pass


@pytest.mark.parametrize("behaviour", ["hangs", "stubborn"])
def test_a_job_can_be_cancelled(tmp_path: Path, behaviour: str) -> None:
    with (
        live_server(tmp_path, fake_job.install(tmp_path) | {"FAKE_JOB": behaviour}) as server,
        client_of(server) as client,
    ):
        job = client.post("/admin/retrain").json()["id"]
        pid = wait_for_step(client, job, 5)["pid"]
        assert start_time(pid) is not None
        ended = client.delete(f"/admin/jobs/{job}").json()
        assert (ended["state"], ended["error"]["code"]) == ("cancelled", "cancelled")
        assert start_time(pid) is None
        again = client.delete(f"/admin/jobs/{job}")
        assert (again.status_code, again.json()["code"]) == (409, "job_finished")
        with VersionStore(server.store).job_lock():
            pass


def test_a_job_started_by_hand_is_answered_409(tmp_path: Path) -> None:
    with live_server(tmp_path, fake_job.install(tmp_path)) as server, client_of(server) as client:
        with VersionStore(server.store).job_lock():
            response = client.post("/admin/retrain")
            assert (response.status_code, response.json()["code"]) == (409, "job_running")
        assert client.get("/admin/jobs").json()["jobs"] == []
        assert client.post("/admin/retrain").status_code == 202


def test_a_job_outlives_a_killed_service_and_is_watched_by_the_next(tmp_path: Path) -> None:
    environment = fake_job.install(tmp_path)
    with live_server(tmp_path, environment) as server, client_of(server) as client:
        job = client.post("/admin/retrain").json()["id"]
        wait_for_step(client, job, 1)
        server.stop(signal.SIGKILL)
    with live_server(tmp_path, environment) as server, client_of(server) as client:
        assert client.get(f"/admin/jobs/{job}").json()["state"] in ("running", "succeeded")
        end = wait_for_end(client, job)
        assert end["state"] == "succeeded"
        wait_until_served(client, end["version"])


def test_a_job_that_was_killed_with_its_service_is_closed_by_the_next(tmp_path: Path) -> None:
    environment = fake_job.install(tmp_path) | {"FAKE_JOB": "hangs"}
    with live_server(tmp_path, environment) as server, client_of(server) as client:
        job = client.post("/admin/retrain").json()["id"]
        pid = wait_for_step(client, job, 5)["pid"]
        server.stop(signal.SIGKILL)
        os.killpg(pid, signal.SIGKILL)
    with live_server(tmp_path, environment) as server, client_of(server) as client:
        end = wait_for_end(client, job)
        assert (end["state"], end["error"]["code"]) == ("failed", "job_died")
        assert client.post("/admin/retrain").status_code == 202


def test_a_stopped_service_takes_its_job_along(tmp_path: Path) -> None:
    environment = fake_job.install(tmp_path) | {"FAKE_JOB": "hangs"}
    with live_server(tmp_path, environment) as server, client_of(server) as client:
        job = client.post("/admin/retrain").json()["id"]
        pid = wait_for_step(client, job, 5)["pid"]
        assert server.stop(signal.SIGTERM) == 0
        assert start_time(pid) is None
    record = json.loads((tmp_path / "store" / "jobs" / job / "job.json").read_text())
    assert (record["state"], record["error"]["code"]) == ("cancelled", "service_stopped")


@pytest.mark.parametrize("token", ["s3cr3t", "x" * 31])
def test_short_tokens_are_refused_at_start(tmp_path: Path, token: str) -> None:
    publish_toy(tmp_path / "store")
    code = "from service.main import run; from service.settings import Settings; run(Settings())"
    environment = {
        "DETRIGGER_STORE": str(tmp_path / "store"),
        "DETRIGGER_ADMIN_TOKEN": token,
        "PYTHONPATH": str(ROOT),
    }
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode != 0
    assert "openssl rand" in ended.stderr
    assert token not in ended.stderr


def test_admin_on_a_port_of_its_own(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with live_server(tmp_path, {"DETRIGGER_ADMIN_PORT": str(port)}) as server:
        assert httpx.get(f"{server.url}/admin/versions", headers=AUTH).status_code == 404
        private = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{private}/admin/versions", headers=AUTH).status_code == 200
        assert httpx.get(f"{private}/admin/versions").status_code == 401


def test_two_tokens_while_rotating(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{'a' * 32}\n{'b' * 32}\n")
    with live_server(tmp_path, {"DETRIGGER_ADMIN_TOKEN_FILE": str(tokens)}, admin=False) as server:
        for letter, status in (("a", 200), ("b", 200), ("c", 401)):
            headers = {"Authorization": f"Bearer {letter * 32}"}
            assert httpx.get(f"{server.url}/admin/versions", headers=headers).status_code == status
