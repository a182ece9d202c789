"""Settings from the environment: slips are refused by name, what others set does no harm, proxies are named."""

import re
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from detrigger.models.errors import BadInput
from detrigger.service.settings import Settings
from tests.live import ROOT, TOKEN, live_server


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("DETRIGGER_POLCY", "DETRIGGER_POLICY"),
        ("DETRIGGER_LOGLEVEL", "DETRIGGER_LOG_LEVEL"),
        ("DETRIGGER_MAX_BODY_BYTE", "DETRIGGER_MAX_BODY_BYTES"),
        ("DETRIGGER_ADMIN_TOKENFILE", "DETRIGGER_ADMIN_TOKEN_FILE"),
        ("detrigger_dead_line", "DETRIGGER_DEADLINE"),
        ("DETRIGER_POLICY", "DETRIGGER_POLICY"),
        ("DETTRIGGER_ADMIN_TOKEN", "DETRIGGER_ADMIN_TOKEN"),
    ],
)
def test_a_slip_is_refused_with_the_name_that_was_meant(
    monkeypatch: pytest.MonkeyPatch, variable: str, meant: str
) -> None:
    monkeypatch.setenv(variable, "hush")
    with pytest.raises(BadInput, match=rf"{variable} is no setting; was {meant} meant") as refused:
        Settings(store=Path("store"))
    assert "hush" not in str(refused.value)


KUBERNETES = {
    "DETRIGGER_PORT": "tcp://10.0.0.1:8000",
    "DETRIGGER_SERVICE_HOST": "10.0.0.1",
    "DETRIGGER_SERVICE_PORT": "8000",
    "DETRIGGER_SERVICE_PORT_HTTP": "8000",
    "DETRIGGER_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "DETRIGGER_PORT_8000_TCP_PROTO": "tcp",
    "DETRIGGER_PORT_8000_TCP_PORT": "8000",
    "DETRIGGER_PORT_8000_TCP_ADDR": "10.0.0.1",
    # A second Service, named detrigger-admin.
    "DETRIGGER_ADMIN_PORT": "tcp://10.0.0.2:8001",
    "DETRIGGER_ADMIN_SERVICE_HOST": "10.0.0.2",
    "DETRIGGER_ADMIN_PORT_8001_TCP_PORT": "8001",
}


def test_what_kubernetes_and_our_own_tools_set_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {f"DETRIGGER_{name.upper()}" for name in Settings.model_fields}
    files = [ROOT / name for name in ("Makefile", "docker-compose.yml", "Dockerfile")]
    ours = {name for path in files for name in re.findall(r"\bDETRIGGER_[A-Z_]+\b", path.read_text())}
    assert "DETRIGGER_STORES" in ours
    for name in ours - settings:
        monkeypatch.setenv(name, "1")
    for name, value in KUBERNETES.items():
        monkeypatch.setenv(name, value)
    found = Settings(store=Path("store"))
    assert (found.port, found.admin_port) == (8000, None)


def test_an_address_as_a_port_is_still_refused_as_a_flag() -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate({"store": "store", "port": "tcp://10.0.0.1:8000"})


@pytest.mark.parametrize("text", ["*", "proxy.example", "10.0.0.1/8", "10.0.0"])
def test_proxies_are_addresses_or_networks(text: str) -> None:
    with pytest.raises(ValidationError):
        Settings(store=Path("store"), forwarded_from=text)


@pytest.mark.process
@pytest.mark.parametrize(
    ("proxies", "believed"),
    [("", False), ("192.0.2.1, 198.51.100.0/24", False), ("127.0.0.0/8, ::1", True)],
)
def test_forwarded_addresses_are_believed_from_named_proxies_only(
    tmp_path: Path, proxies: str, believed: bool
) -> None:
    with live_server(tmp_path, {"DETRIGGER_FORWARDED_FROM": proxies}) as server:
        headers = {"Authorization": f"Bearer {TOKEN[1:]}", "X-Forwarded-For": "203.0.113.7"}
        assert httpx.get(f"{server.url}/admin/jobs", headers=headers).status_code == 401
        assert ("203.0.113.7" in server.log()) is believed
