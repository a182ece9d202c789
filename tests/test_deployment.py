"""What docs/deployment.md and deploy/ offer, run: proxies, the unit, Alertmanager, clients, a backup."""

import contextlib
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.live import ROOT, TOKEN, Server, live_server
from tests.toys import png, publish_toy, toy_image

DEPLOY = ROOT / "deploy"
PAGE = (ROOT / "docs/deployment.md").read_text()
IMAGE = png(toy_image(0))
OUTSIDE, PROXY = "127.0.0.2", "127.0.0.1"
"""The client's address, and the one that the proxy has and the service believes."""


def needs(program: str) -> str:
    """The path of a program, or a skip."""
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def running(command: list[str], port: int, folder: Path, **variables: str) -> Iterator[None]:
    """A proxy that listens on `port`, until the end of the block."""
    log = folder / "proxy.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | variables)
    try:
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert time.monotonic() < until, log.read_text()
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with live_server(tmp_path_factory.mktemp("proxied"), {"DETRIGGER_FORWARDED_FROM": PROXY}) as started:
        yield started


def nginx(folder: Path, server: Server, port: int) -> list[str]:
    program, openssl = needs("nginx"), needs("openssl")
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=detrigger.example",
         "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    site = (DEPLOY / "nginx/detrigger.conf").read_text()
    site = site.replace("127.0.0.1:8000", server.url.removeprefix("http://"))
    site = site.replace("listen 443 ", f"listen 127.0.0.1:{port} ")
    site = site.replace("/etc/detrigger/tls", str(folder)).replace("127.0.0.0/8", f"{OUTSIDE}/32")
    (folder / "site.conf").write_text(site)
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user}daemon off; pid {folder}/pid; error_log stderr;\nevents {{}}\n"
        f"http {{ access_log off;\n{paths}include {folder}/site.conf; }}\n"
    )
    subprocess.run([program, "-t", "-c", str(folder / "nginx.conf")], check=True, capture_output=True)
    return [program, "-c", str(folder / "nginx.conf")]


def caddy(folder: Path, server: Server, port: int) -> list[str]:
    program = needs("caddy")
    site = (DEPLOY / "caddy/Caddyfile").read_text()
    site = site.replace("127.0.0.1:8000", server.url.removeprefix("http://"))
    site = site.replace("detrigger.example {", f"https://127.0.0.1:{port} {{\n\ttls internal")
    site = site.replace(
        "{\n\tservers {", "{\n\tadmin off\n\tskip_install_trust\n\tauto_https disable_redirects\n\tservers {"
    )
    site = site.replace("127.0.0.0/8", f"{OUTSIDE}/32")
    (folder / "Caddyfile").write_text(site)
    return [program, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


@pytest.mark.process
@pytest.mark.parametrize("proxy", [nginx, caddy])
def test_a_proxy_lets_through_what_it_should(proxy: object, server: Server, tmp_path: Path) -> None:
    assert callable(proxy)
    port = free_port()
    command = proxy(tmp_path, server, port)
    anyone = ssl.create_default_context()
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    with running(command, port, tmp_path, HOME=str(tmp_path), XDG_DATA_HOME=str(tmp_path)):
        transport = httpx.HTTPTransport(verify=anyone, local_address=OUTSIDE, retries=20)
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", transport=transport, timeout=30) as client:
            answer = client.post("/predict", content=IMAGE, headers={"Content-Type": "image/png"})
            assert answer.status_code == 200, answer.text
            assert answer.json()["predictions"]
            assert client.get("/readyz").status_code == 200
            assert client.get("/v2/health/ready").status_code == 200
            for path in ("/metrics", "/version", "/docs", "/openapi.json", "/nothing"):
                assert client.get(path).status_code == 404, path
            large = client.post("/predict", content=bytes(11 * 2**20), headers={"Content-Type": "image/png"})
            # The service refuses while the body is on its way; Caddy calls that a bad gateway.
            assert large.status_code in (413, 502)
            header = client.get("/readyz", headers={"X-Long": "x" * 70_000})
            assert header.status_code in (400, 431)
            wrong = {"Authorization": f"Bearer {TOKEN[1:]}", "X-Forwarded-For": "203.0.113.7"}
            assert client.get("/admin/jobs", headers=wrong).status_code == 401
            assert client.get("/admin/jobs", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=anyone, timeout=30) as client:
            assert client.get("/admin/jobs").status_code in (403, 404)  # not from inside
    assert f'"{OUTSIDE}"' in server.log()
    assert "203.0.113.7" not in server.log()


@pytest.mark.process
def test_nginx_bounds_what_one_client_asks(server: Server, tmp_path: Path) -> None:
    port = free_port()
    command = nginx(tmp_path, server, port)
    site = tmp_path / "site.conf"  # narrower, as no test machine asks fast enough for sure
    site.write_text(site.read_text().replace("rate=50r/s", "rate=1r/m").replace("burst=100", "burst=5"))
    with (
        running(command, port, tmp_path),
        httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=False, timeout=30) as client,  # noqa: S501
    ):
        statuses = [client.get("/readyz").status_code for _ in range(10)]
    assert statuses == [200] * 6 + [429] * 4


def test_the_unit_is_valid_and_hardened(tmp_path: Path) -> None:
    program = needs("systemd-analyze")
    unit = tmp_path / "detrigger.service"
    unit.write_text(
        (DEPLOY / "systemd/detrigger.service")
        .read_text()
        .replace("/opt/detrigger/bin/detrigger", "/bin/true")
    )
    done = subprocess.run([program, "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(
        [program, "security", "--offline=true", "--threshold=20", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-300:]


def test_alertmanager_wakes_whom_it_should() -> None:
    program = needs("amtool")
    config = str(DEPLOY / "prometheus/alertmanager.yml")
    subprocess.run([program, "check-config", config], check=True, capture_output=True)
    for severity, receiver in (("critical", "on-call"), ("warning", "team"), ("info", "team")):
        done = subprocess.run(
            [program, "config", "routes", "test", f"--config.file={config}", f"severity={severity}"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == receiver


def snippet(language: str, containing: str) -> str:
    blocks: list[str] = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return next(block for block in blocks if containing in block)


@pytest.mark.process
@pytest.mark.parametrize(
    ("language", "program"), [("sh", "curl"), ("python", sys.executable), ("javascript", "node")]
)
def test_the_clients_get_their_answer(server: Server, tmp_path: Path, language: str, program: str) -> None:
    path = needs(program)
    (tmp_path / "image.png").write_bytes(IMAGE)
    text = snippet(language, "/predict").replace("http://127.0.0.1:8000", server.url)
    script = tmp_path / {"sh": "client.sh", "python": "client.py", "javascript": "client.mjs"}[language]
    script.write_text(text)
    command = ["bash", str(script)] if language == "sh" else [path, str(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    if "openAsBlob" in done.stderr:
        pytest.skip("this Node is older than the snippet")
    assert done.returncode == 0, done.stderr
    assert "red" in done.stdout


def test_a_backup_is_restored(tmp_path: Path) -> None:
    publish_toy(tmp_path / "store")
    publish_toy(tmp_path / "store", promote=False)
    script = "set -eu\n" + snippet("sh", "backup.tar store.json") + snippet("sh", "restored")
    (tmp_path / "detrigger").write_text(f'#!/bin/sh\nexec {sys.executable} -m detrigger "$@"\n')
    (tmp_path / "detrigger").chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "STORE": "store", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", script],  # noqa: S607
        cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("as published") == 2
    assert "1 entries, as written" in done.stdout
