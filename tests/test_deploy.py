"""The files of deploy/ and the container files: they parse, fit each other, and name only what exists."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from detrigger.service.settings import Settings
from tests.live import live_server

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus/rules.yml"
RULE_TESTS = DEPLOY / "prometheus/rules_test.yml"
DASHBOARD = DEPLOY / "grafana/dashboards/detrigger.json"
_METRIC = re.compile(r"\b(?:detrigger|process|python)_[a-z0-9_]+\b(?!:)")


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def _rules() -> list[dict[str, Any]]:
    return [rule for group in _yaml(RULES)["groups"] for rule in group["rules"]]


def _expressions(node: Any) -> Iterator[str]:
    """Every `expr` of a dashboard, and the queries of its variables."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("expr", "definition") and isinstance(value, str):
                yield value
            yield from _expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from _expressions(value)


def _all_expressions() -> list[str]:
    return [*_expressions(json.loads(DASHBOARD.read_text())), *(rule["expr"] for rule in _rules())]


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, set[str]]]:
    """A live scrape: name of the sample -> label -> values."""
    with live_server(tmp_path_factory.mktemp("live")) as server:
        text = httpx.get(f"{server.url}/metrics").text
    found: dict[str, dict[str, set[str]]] = {}
    for line in text.splitlines():
        if sample := re.match(r"([a-z0-9_]+)(?:\{(.*)\})? ", line):
            labels = found.setdefault(sample[1], {})
            for label, value in re.findall(r'([a-z0-9_]+)="([^"]*)"', sample[2] or ""):
                labels.setdefault(label, set()).add(value)
    return found


@pytest.mark.process
def test_dashboard_and_rules_use_only_metrics_that_are_scraped(
    scraped: dict[str, dict[str, set[str]]],
) -> None:
    used = {name for expression in _all_expressions() for name in _METRIC.findall(expression)}
    assert len(used) > 15
    assert used <= set(scraped)


@pytest.mark.process
def test_selectors_use_only_labels_and_values_that_are_scraped(
    scraped: dict[str, dict[str, set[str]]],
) -> None:
    checked = 0
    for expression in _all_expressions():
        for name, selector in re.findall(r"\b(detrigger_[a-z0-9_]+)\{([^}]*)\}", expression):
            for label, operator, value in re.findall(r'([a-z0-9_]+)\s*(=~|!~|!=|=)\s*"([^"]*)"', selector):
                if label in ("job", "instance"):  # added by Prometheus
                    continue
                assert label in scraped[name], f"{name} has no label {label}"
                # The scraped server runs on the CPU.
                known = scraped[name][label] | {"CUDAExecutionProvider"}
                if operator in ("=", "!="):
                    assert value in known, f"{name}: {label} is never {value}"
                else:
                    for choice in value.split("|"):
                        assert any(re.fullmatch(choice, it) for it in known), f"{name}: {label} ~ {choice}"
                checked += 1
    assert checked > 10


def test_recorded_series_are_the_ones_used() -> None:
    recorded = {rule["record"] for rule in _rules() if "record" in rule}
    text = "\n".join(_all_expressions())
    assert set(re.findall(r"\bdetrigger:[a-z0-9_:]+", text)) <= recorded


def test_every_alert_has_a_firing_and_a_silent_test() -> None:
    alerts = {rule["alert"] for rule in _rules() if "alert" in rule}
    firing: set[str] = set()
    silent: set[str] = set()
    for case in _yaml(RULE_TESTS)["tests"]:
        for check in case.get("alert_rule_test", []):
            (firing if check["exp_alerts"] else silent).add(check["alertname"])
    assert alerts == firing
    assert alerts == silent


def test_alerts_are_complete() -> None:
    for rule in _rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("info", "warning", "critical"), rule["alert"]
            assert rule["annotations"]["summary"], rule["alert"]
            assert rule["alert"].startswith("Detrigger")


@pytest.mark.slow
@pytest.mark.process
def test_promtool() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian and Ubuntu: apt-get install prometheus)")
    for arguments in (
        ["check", "config", str(DEPLOY / "prometheus/prometheus.yml")],
        ["check", "rules", str(RULES)],
        ["test", "rules", str(RULE_TESTS)],
    ):
        done = subprocess.run([promtool, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_dashboard_panels() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(set(ids)) == len(ids)
    source = _yaml(DEPLOY / "grafana/provisioning/datasources/prometheus.yml")["datasources"][0]["uid"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["datasource"]["uid"] == source
        assert panel["title"]
        assert panel["description"], panel["title"]
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} overlaps another panel"
        taken |= cells


def test_compose_refers_to_files_that_exist() -> None:
    compose = _yaml(ROOT / "docker-compose.yml")
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = str(volume).split(":", 1)[0]
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
    secrets = {name: entry["file"] for name, entry in compose["secrets"].items()}
    for file in secrets.values():
        ignored = (ROOT / file).parent / ".gitignore"
        assert ignored.read_text().startswith("*\n"), "secrets must never be committed"
    for overlay in _yaml(DEPLOY / "compose.gpu.yml")["services"]:
        assert overlay in compose["services"]


def test_compose_is_hardened() -> None:
    for name, service in _yaml(ROOT / "docker-compose.yml")["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not str(service["user"]).startswith(("0", "root")), name
        for limit in ("mem_limit", "pids_limit", "cpus"):
            assert service[limit], f"{name} may take all of the host's: {limit}"
        assert service["ulimits"]["nofile"] <= 4096, name
        assert service["logging"]["options"]["max-size"], f"the log of {name} grows without end"
        for port in service.get("ports", []):
            assert str(port).startswith("127.0.0.1:"), f"{name} listens on every address"


def test_mounts_and_paths_of_prometheus_and_grafana_agree() -> None:
    services = _yaml(ROOT / "docker-compose.yml")["services"]
    provider = _yaml(DEPLOY / "grafana/provisioning/dashboards/detrigger.yml")["providers"][0]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in services["grafana"]["volumes"]
    config = _yaml(DEPLOY / "prometheus/prometheus.yml")
    assert all((DEPLOY / "prometheus" / name).is_file() for name in config["rule_files"])
    (job,) = config["scrape_configs"]
    assert job["static_configs"][0]["targets"] == ["detrigger:8000"]
    assert "DetriggerDown" in {rule.get("alert") for rule in _rules()}
    assert f'up{{job="{job["job_name"]}"}}' in RULES.read_text()


def test_settings_named_in_container_files_exist() -> None:
    known = {f"DETRIGGER_{name.upper()}" for name in Settings.model_fields}
    known |= {"DETRIGGER_TARGET", "DETRIGGER_INPUT", "DETRIGGER_DEMO_EXIT"}  # of compose and of the demo
    known |= {f"DETRIGGER_{job}{what}" for job in ("", "JOB_") for what in ("MEMORY", "CPUS")}
    for path in (ROOT / "Dockerfile", ROOT / "docker-compose.yml", DEPLOY / "compose.gpu.yml"):
        named = set(re.findall(r"\bDETRIGGER_[A-Z_]+\b", path.read_text()))
        assert named <= known, path.name


def test_dockerfile_copies_every_package_and_nothing_else() -> None:
    package = ROOT / "detrigger"
    roots = {package.name} | {link.resolve().name for link in package.iterdir() if link.is_symlink()}
    assert len(roots) == 4
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    assert roots <= sources
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sources == allowed
