"""The metrics of a live scrape: names of the contract, labels made in advance, a bounded number of series."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from detrigger.service import metrics as module
from detrigger.service.metrics import JOBS, OUTCOMES, REJECTIONS, SHED, STAGES, SWAPS, Metrics
from detrigger.service.problem import TABLE
from tests.live import AUTH, Server, live_server
from tests.toys import png, toy_image

CONTRACT = {
    "images_total": {"outcome"},
    "flagged_images_total": {"detector"},
    "label_changes_total": set(),
    "flag_score_bucket": {"le"},
    "requests_total": {"route", "method", "status"},
    "request_duration_seconds_bucket": {"route", "le"},
    "stage_duration_seconds_bucket": {"stage", "le"},
    "batch_size_bucket": {"le"},
    "queue_images": set(),
    "queue_capacity_images": set(),
    "requests_in_flight": set(),
    "model_info": {"name", "version", "digest8", "provider", "device", "policy"},
    "model_loaded_timestamp_seconds": set(),
    "model_swaps_total": {"result"},
    "retrain_jobs_total": {"result"},
    "retrain_running": set(),
    "retrain_last_success_timestamp_seconds": set(),
    "retrain_duration_seconds": set(),
    "input_rejections_total": {"reason"},
    "shed_total": {"reason"},
    "admin_auth_failures_total": set(),
    "build_info": {"version"},
    "ready": set(),
    "flag_concentration": set(),
    "flag_concentration_label_index": set(),
    "flag_score_drift": set(),
}
MAX_SERIES = 330


def samples(text: str) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with live_server(tmp_path_factory.mktemp("metrics")) as running:
        yield running


@pytest.mark.process
def test_names_and_labels_of_the_contract(server: Server) -> None:
    found = samples(httpx.get(f"{server.url}/metrics").text)
    for name, labels in CONTRACT.items():
        assert set(found[f"detrigger_{name}"][0]) == labels


def test_every_label_is_there_before_anything_happens() -> None:
    text = Metrics("1").exposition()[0].decode()
    for name, label, values in (
        ("images_total", "outcome", OUTCOMES),
        ("stage_duration_seconds_count", "stage", STAGES),
        ("input_rejections_total", "reason", REJECTIONS),
        ("shed_total", "reason", SHED),
        ("model_swaps_total", "result", SWAPS),
        ("retrain_jobs_total", "result", JOBS),
    ):
        for value in values:
            assert f'detrigger_{name}{{{label}="{value}"}} 0.0' in text
    assert set(REJECTIONS) <= set(TABLE)


@pytest.mark.process
def test_series_stay_few_whatever_is_asked(server: Server) -> None:
    with httpx.Client(base_url=server.url) as client:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "BREW", "TRACE"):
            for path in (
                "/predict",
                "/livez",
                "/metrics",
                "/x",
                "/y/z",
                "/v2",
                "/v2/models/a/infer",
                "/docs",
                "/admin/x",
            ):
                client.request(method, path)
                client.request(method, path, headers=AUTH)
        image = {"content": png(toy_image(0)), "headers": {"Content-Type": "image/png"}}
        for query in ("", "?top_k=5", "?top_k=99", "?x=1"):
            client.post(f"/predict{query}", **image)  # type: ignore[arg-type]
        text = client.get("/metrics").text
    found = samples(text)
    assert sum(map(len, found.values())) < MAX_SERIES
    routes = {labels["route"] for labels in found["detrigger_requests_total"]}
    assert "unmatched" in routes
    assert not any(re.search(r"/x|/y|models/a", route) for route in routes)
    assert not any(line.endswith("_created") for line in found)


def test_routes_that_are_counted_exist() -> None:
    from detrigger.service.app import create_app
    from detrigger.service.connections import find_room
    from detrigger.service.settings import Settings

    settings = Settings(store=Path("nowhere"), admin_token=SecretStr("t" * 40))
    app = create_app(settings, find_room(settings))
    paths = {path for path, item in app.api.openapi()["paths"].items()}
    internal = {module.UNMATCHED, module.ADMIN}
    assert {route for route, _ in module.EXPECTED} - internal <= paths
