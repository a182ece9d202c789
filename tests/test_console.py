"""The console over HTTP: who may do what, from where, for how long, and what pages allow a browser."""

import contextlib
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.openapi.utils import get_openapi
from pydantic import SecretStr

from detrigger.service.app import create_app
from detrigger.service.connections import find_room
from detrigger.service.settings import Settings
from tests import fake_job
from tests.live import AUTH, TOKEN, Server, live_server
from tests.toys import png, publish_toy, toy_image

pytestmark = pytest.mark.process

REVIEWER = "r" * 40
PAGES = ("", "quarantine", "versions", "jobs", "try", "log", "live")
EXAMPLES = "10"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("console")
    settings = fake_job.install(folder) | {
        "DETRIGGER_QUARANTINE": str(folder / "kept"),
        "DETRIGGER_QUARANTINE_SAMPLE": "0",
        "DETRIGGER_REVIEW_TOKEN": REVIEWER,
    }
    with live_server(folder, settings) as running:
        publish_toy(running.store, promote=False)
        for seed in range(3):
            body = png(toy_image(0, triggered=True, seed=seed))
            httpx.post(f"{running.url}/predict", content=body, headers={"Content-Type": "image/png"})
        yield running


@contextlib.contextmanager
def log_in(server: Server, token: str = TOKEN, name: str = "Ada") -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        answer = client.post("/console/login", data={"token": token, "name": name})
        assert (answer.status_code, answer.headers["location"]) == (303, "/console/")
        yield client


def csrf(client: httpx.Client) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', client.get("/console/").text)
    assert found
    return found[1]


def kept(server: Server) -> list[str]:
    until = time.monotonic() + 10
    while len(found := httpx.get(f"{server.url}/admin/flagged", headers=AUTH).json()["images"]) < 3:
        assert time.monotonic() < until
        time.sleep(0.1)
    return [item["digest"] for item in found]


@pytest.mark.parametrize("page", PAGES)
def test_without_a_session_every_page_leads_to_the_login(server: Server, page: str) -> None:
    answer = httpx.get(f"{server.url}/console/{page}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/login")
    assert "toy" not in answer.text


@pytest.mark.parametrize("page", [*PAGES, "login", "static/console.css", "nothing"])
def test_pages_run_nothing_foreign_and_sit_in_no_frame(server: Server, page: str) -> None:
    with log_in(server) as client:
        answer = client.get(f"/console/{page}")
        policy = dict(
            part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"
        if page not in ("static/console.css",):
            assert not re.search(
                r"<script(?! src=\"/console/static/)|<style| style=|https?://|\son\w+=", answer.text
            )


def test_the_cookie_is_strict_and_for_the_console_alone(server: Server) -> None:
    answer = httpx.post(f"{server.url}/console/login", data={"token": TOKEN})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "path=/console" in cookie
    assert TOKEN not in cookie
    with log_in(server) as client:
        assert client.get("/admin/versions").status_code == 401


@pytest.mark.parametrize("token", ["", "x" * 40, REVIEWER[:-1], "\u732b" * 40])
def test_a_wrong_token_begins_no_session(server: Server, token: str) -> None:
    answer = httpx.post(f"{server.url}/console/login", data={"token": token})
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert 'role="alert"' in answer.text


ACTS = [
    ("rollback", {"reason": "x"}),
    ("jobs", {"profile": "fast"}),
    ("quarantine/erase", {"day": "2020-01-01"}),
    ("quarantine/export", {}),
    ("logout", {}),
    ("try", {}),
]


@pytest.mark.parametrize(("path", "fields"), ACTS)
def test_acts_need_the_form_of_the_session_and_this_origin(
    server: Server, path: str, fields: dict[str, str]
) -> None:
    with log_in(server) as client, log_in(server) as other:
        good = {**fields, "csrf": csrf(client)}
        for data, headers in (
            (fields, {}),
            ({**fields, "csrf": csrf(other)}, {}),
            (good, {"Origin": "https://evil.example"}),
            (good, {"Origin": "null"}),
            (good, {"Sec-Fetch-Site": "cross-site"}),
        ):
            answer = client.post(f"/console/{path}", data=data, headers=headers)
            assert answer.status_code == 403, (data, headers)
        assert client.get("/console/").status_code == 200
    foreign = httpx.post(
        f"{server.url}/console/login", data={"token": TOKEN}, headers={"Origin": "https://evil.example"}
    )
    assert foreign.status_code == 403


@pytest.mark.parametrize("path", [path for path, _ in ACTS])
def test_acts_are_no_links(server: Server, path: str) -> None:
    with log_in(server) as client:
        before = httpx.get(f"{server.url}/admin/versions", headers=AUTH).json()["active"]
        assert client.get(f"/console/{path}").status_code in (200, 405, 422)
        assert httpx.get(f"{server.url}/admin/versions", headers=AUTH).json()["active"] == before


def test_the_reviewer_reviews_and_changes_nothing_else(server: Server) -> None:
    digest = kept(server)[0]
    with log_in(server, REVIEWER, "Grace") as client:
        token = csrf(client)
        for path, fields in ACTS[:3]:
            assert client.post(f"/console/{path}", data={**fields, "csrf": token}).status_code == 403
        answer = client.post(
            f"/console/quarantine/{digest}/review", data={"csrf": token, "verdict": "poisoned"}
        )
        assert answer.status_code == 303
        assert "Activate" not in client.get("/console/versions").text
    item = httpx.get(f"{server.url}/admin/flagged/{digest}", headers=AUTH).json()
    assert (item["review"]["verdict"], item["review"]["by"]) == ("poisoned", "reviewer:Grace")


def test_activation_rollback_and_retraining_with_reasons(server: Server) -> None:
    with log_in(server) as client:
        token = csrf(client)
        listed = httpx.get(f"{server.url}/admin/versions", headers=AUTH).json()
        before = listed["active"]
        other = next(it["id"] for it in listed["versions"] if it["id"] != before)
        url = f"/console/versions/{other}/activate"
        assert client.post(url, data={"csrf": token, "reason": " "}).status_code == 422
        assert client.post(url, data={"csrf": token, "reason": "to see"}).status_code == 303
        assert httpx.get(f"{server.url}/version").json()["model"]["version"] == other
        assert client.post("/console/rollback", data={"csrf": token, "reason": "seen"}).status_code == 303
        assert httpx.get(f"{server.url}/version").json()["model"]["version"] == before
        page = client.get("/console/log").text
        assert "admin:Ada" in page
        assert "seen" in page
        started = client.post("/console/jobs", data={"csrf": token, "profile": "fast", "activate": "manual"})
        job = started.headers["location"]
        until = time.monotonic() + 60
        while "succeeded" not in (shown := client.get(f"{job}/progress").text):
            assert time.monotonic() < until
            time.sleep(0.2)
        assert "hx-get" not in shown  # an ended job is not asked about again
        assert client.post(f"{job}/cancel", data={"csrf": token}).status_code == 409


def test_a_trial_shows_both_answers_and_counts_nowhere(server: Server) -> None:
    def images() -> str:
        return httpx.get(f"{server.url}/metrics").text.split('images_total{outcome="ok"} ')[1].split()[0]

    with log_in(server, REVIEWER) as client:
        token, before = csrf(client), images()
        for triggered in (True, False):
            file = ("x.png", io.BytesIO(png(toy_image(0, triggered=triggered, seed=9))), "image/png")
            page = client.post("/console/try", data={"csrf": token}, files={"image": file}).text
            assert ("Flagged:" in page) is triggered
            assert page.count("data:image/png;base64,") == 3
            assert ("green" in page) is triggered
        bad = ("x.png", io.BytesIO(b"GIF89a" + bytes(50)), "image/png")
        answer = client.post("/console/try", data={"csrf": token}, files={"image": bad})
        assert answer.status_code == 415
        assert images() == before
    assert len(kept(server)) == 3


def test_what_strangers_name_is_text(server: Server, tmp_path: Path) -> None:
    with log_in(server, name="<script>alert(1)</script>") as client:
        page = client.get("/console/").text
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert" in page


def test_a_session_ends_at_logout_wherever_its_cookie_went(server: Server) -> None:
    with log_in(server) as client:
        stolen = dict(client.cookies)
        assert client.post("/console/logout", data={"csrf": csrf(client)}).status_code == 303
    assert httpx.get(f"{server.url}/console/", cookies=stolen).status_code == 303


def test_a_session_outlives_a_restart_but_not_its_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    settings = {"DETRIGGER_ADMIN_TOKEN_FILE": str(file)}
    with live_server(tmp_path, settings, admin=False) as running, log_in(running) as client:
        cookies = dict(client.cookies)
    with live_server(tmp_path, settings, admin=False) as running:
        assert httpx.get(f"{running.url}/console/", cookies=cookies).status_code == 200
        forged = {name: value[:-1] + ("0" if value[-1] != "0" else "1") for name, value in cookies.items()}
        assert httpx.get(f"{running.url}/console/", cookies=forged).status_code == 303
        file.write_text("n" * 40 + "\n")
        assert httpx.get(f"{running.url}/console/", cookies=cookies).status_code == 303
        with log_in(running, "n" * 40):
            pass


def test_without_a_token_there_is_no_console(tmp_path: Path) -> None:
    with live_server(tmp_path, admin=False) as running:
        for path in ("/console", "/console/", "/console/login", "/console/static/console.css"):
            assert httpx.get(running.url + path).status_code == 404


def test_the_interface_page_needs_nothing_from_elsewhere(server: Server) -> None:
    page = httpx.get(f"{server.url}/docs")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "http" not in re.sub(r"<!doctype.*?>|HTTP interface", "", page.text)
    for path in re.findall(r'(?:src|href)="(/[^"]+)"', page.text):
        found = httpx.get(server.url + path)
        assert found.status_code == 200
        assert found.headers["x-content-type-options"] == "nosniff"


@pytest.mark.slow
def test_the_console_holds_against_schemathesis(server: Server, tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("schemathesis")
    if not command.exists():
        pytest.skip("schemathesis is not installed")
    settings = Settings(store=server.store, admin_token=SecretStr(TOKEN))
    app = create_app(settings, find_room(settings))
    mounted = next(route for route in app.api.routes if getattr(route, "path", "") == "/console")
    document = get_openapi(title="console", version="1", routes=mounted.app.routes)  # type: ignore[attr-defined]
    schema = tmp_path / "console.json"
    schema.write_text(json.dumps(document))
    with log_in(server) as client:
        cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    ended = subprocess.run(
        [
            str(command), "run", str(schema), "--url", f"{server.url}/console", "--header", f"Cookie: {cookie}",
            "--checks", "not_a_server_error", "--max-examples", EXAMPLES, "--seed", "1", "--request-timeout", "20",
        ],
        capture_output=True, text=True, timeout=500, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]
    assert "Traceback" not in server.log()
