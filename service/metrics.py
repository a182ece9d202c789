"""Every number that the service publishes, by name, with every label combination made at start.

Children that the hot path needs are bound here once; looking one up by labels costs more than incrementing
it. Labels are closed sets: routes are templates, no class name, client or file name is ever a label. The
whole service stays under 300 series (a test counts them).
"""

from collections.abc import Mapping
from typing import Any

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

PREFIX = "detrigger"
UNMATCHED = "unmatched"
PREDICT = "/predict"
ADMIN = "/admin"
CONSOLE = "/console"
INFER = "/v2/models/{name}/infer"
INFER_VERSION = "/v2/models/{name}/versions/{version}/infer"

_WORK = (200, 400, 408, 413, 415, 422, 429, 500, 503, 504)
# Every (route, method) with the answers that it may give.
EXPECTED: Mapping[tuple[str, str], tuple[int, ...]] = {
    (PREDICT, "POST"): _WORK,
    (INFER, "POST"): _WORK,
    ("/livez", "GET"): (200,),
    ("/readyz", "GET"): (200, 503),
    ("/version", "GET"): (200,),
    ("/metrics", "GET"): (200,),
    (ADMIN, "GET"): (401, 429),
    (ADMIN, "POST"): (401, 429),
    ("/admin/retrain", "POST"): (202, 409),
    ("/admin/versions/{version}/activate", "POST"): (200, 404, 409),
    ("/admin/rollback", "POST"): (200, 409),
    (UNMATCHED, "GET"): (404, 405),
    (UNMATCHED, "POST"): (404, 405),
}
# Paths that are their own template; for requests that a middleware answers before they are routed.
_PLAIN = frozenset(route for route, _ in EXPECTED if "{" not in route) | {"/docs", "/openapi.json"}
METHODS = frozenset({"GET", "POST", "DELETE", "HEAD"})
_OTHER = "other"

_LATENCY = (*(round(0.001 * 1.6**k, 6) for k in range(18)), 5, 10, 30)
_STAGE = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 10)
STAGES = ("read", "decode", "queue", "defend", "encode")
OUTCOMES = ("ok", "rejected", "error")
SHED = ("queue_full", "deadline", "draining", "client_gone", "overloaded")
SWAPS = ("succeeded", "failed")
JOBS = ("succeeded", "refused", "failed", "cancelled")
CONNECTIONS = (
    "head_too_large",
    "too_many_headers",
    "head_timeout",
    "silent",
    "malformed",
    "pipelined",
    "framing",
    "unread",
    "too_many_connections",
    "no_descriptors",
)
REJECTIONS = (
    "empty_body",
    "malformed_body",
    "url_not_accepted",
    "unsupported_media_type",
    "content_encoding_refused",
    "body_too_large",
    "body_timeout",
    "too_many_images",
    "image_undecodable",
    "image_format_refused",
    "image_too_large",
    "too_many_pixels",
    "image_animated",
    "image_refused",
    "tensor_refused",
)
DETECTOR = "log_confidence_drop"


def route_of(scope: Mapping[str, Any]) -> str:
    """The route template of a request, as a label; all pages of the console are one."""
    if scope["path"].startswith(f"{CONSOLE}/"):
        return CONSOLE
    route = getattr(scope.get("route"), "path", None)
    if isinstance(route, str):
        return route
    path: str = scope["path"]
    if path in _PLAIN:
        return path
    return ADMIN if path.startswith("/admin/") else UNMATCHED


class Metrics:
    """One set of metrics with its own registry, so that several apps may live in one process."""

    def __init__(self, version: str) -> None:
        # The *_created series of prometheus_client would double the number of series and tell nothing.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        prometheus_client.ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"{PREFIX}_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"{PREFIX}_{name}", text, labels, buckets=buckets, registry=registry)

        self.requests = counter(
            "requests_total", "Requests by route template and status.", "route", "method", "status"
        )
        self.request_duration = histogram(
            "request_duration_seconds",
            "Seconds from request headers to the end of the answer.",
            _LATENCY,
            "route",
        )
        self.in_flight = gauge("requests_in_flight", "Requests being answered.")
        self.connections = gauge("connections", "Open connections.")
        self.connections_limit = gauge("connections_limit", "Connections that may be open.")
        refused = counter(
            "connections_refused_total",
            "Connections ended before there was a request, or for what was no request.",
            "reason",
        )
        self.connections_refused = {reason: refused.labels(reason) for reason in CONNECTIONS}
        self.images = counter("images_total", "Images by outcome.", "outcome")
        self.flagged = counter(
            "flagged_images_total", "Images whose flag score is above the threshold.", "detector"
        )
        self.label_changes = counter("label_changes_total", "Images that purification gave another label.")
        self.flag_score = histogram(
            "flag_score", "Flag scores of images.", tuple(round(0.05 * k, 2) for k in range(1, 21))
        )
        self.flag_alpha = gauge(
            "flag_alpha", "Share of clean images that the flag threshold is calibrated to flag."
        )
        self.flag_concentration = gauge(
            "flag_concentration", "How far flagged images share one raw label beyond all images; 0..1."
        )
        self.flag_concentration_label = gauge(
            "flag_concentration_label_index",
            "The class that detrigger_flag_concentration is about; -1: none.",
        )
        self.flag_score_drift = gauge(
            "flag_score_drift", "Distance of the last flag scores from the calibration set's; 0..1."
        )
        self.rejections = counter(
            "input_rejections_total", "Requests refused for their input, by reason.", "reason"
        )
        self.stage = histogram(
            "stage_duration_seconds", "Seconds a request or batch spent in a stage.", _STAGE, "stage"
        )
        self.batch_size = histogram(
            "batch_size", "Images in a run of the engine.", (1, 2, 4, 8, 16, 32, 64, 128, 256)
        )
        self.queue_images = gauge("queue_images", "Images waiting for the engine.")
        self.queue_capacity = gauge("queue_capacity_images", "Images that may wait.")
        self.shed = counter("shed_total", "Requests that were not worked on, by reason.", "reason")
        self.batcher_restarts = gauge(
            "batcher_restarts", "Times the batching loop had to be set going again."
        )
        self.model_info = gauge(
            "model_info",
            "The version being served.",
            "name",
            "version",
            "digest8",
            "provider",
            "device",
            "policy",
        )
        self.model_loaded = gauge(
            "model_loaded_timestamp_seconds", "When the version being served was loaded."
        )
        self.model_created = gauge(
            "model_created_timestamp_seconds", "When the version being served was published."
        )
        self.ready = gauge("ready", "1 while /readyz answers 200.")
        self.version_damaged = gauge(
            "served_version_damaged",
            "1 where files of the version being served are not as published any more.",
        )
        self.version_verified = gauge(
            "served_version_verified_timestamp_seconds", "When those files were last found right."
        )
        self.log_damaged = gauge(
            "promotion_log_damaged", "1 while the promotion log is not as it was written."
        )
        self.swaps = counter("model_swaps_total", "Loads of another version.", "result")
        self.jobs = counter("retrain_jobs_total", "Ended retrain jobs.", "result")
        self.job_running = gauge("retrain_running", "1 while a retrain job runs.")
        self.job_success = gauge(
            "retrain_last_success_timestamp_seconds", "When a retrain job last succeeded; 0: never."
        )
        self.job_event_age = gauge(
            "retrain_last_event_age_seconds",
            "Since the running retrain job last told its progress; 0: none runs.",
        )
        self.job_duration = gauge("retrain_duration_seconds", "How long the last ended retrain job took.")
        self.auth_failures = counter("admin_auth_failures_total", "Requests to /admin without a valid token.")
        self.quarantine_images = gauge("quarantine_images", "Images that the quarantine holds.")
        self.quarantine_bytes = gauge("quarantine_bytes", "Bytes on disk that they take.")
        self.quarantine_kept = counter("quarantine_kept_total", "Images that were written.", "kind")
        self.quarantine_dropped = counter(
            "quarantine_dropped_total", "Images that were to be kept and were not, by reason.", "reason"
        )
        self.quarantine_removed = counter(
            "quarantine_removed_total", "Images that left the quarantine, by reason.", "reason"
        )
        self.decisions_dropped = counter(
            "decisions_dropped_total", "Answers that the decision log could not take."
        )
        build = gauge("build_info", "The version of the program.", "version")
        build.labels(version).set(1)
        self._prepare()

    def _prepare(self) -> None:
        """Make every label combination, so that `rate()` sees 0 and not nothing, and bind what the hot
        path uses.
        """
        for (route, method), statuses in EXPECTED.items():
            for status in statuses:
                self.requests.labels(route, method, str(status))
        for metric, values in (
            (self.images, OUTCOMES),
            (self.flagged, (DETECTOR,)),
            (self.rejections, REJECTIONS),
            (self.shed, SHED),
            (self.swaps, SWAPS),
            (self.jobs, JOBS),
            (self.quarantine_kept, ("flagged", "sample")),
            (self.quarantine_dropped, ("busy", "full", "disk")),
            (self.quarantine_removed, ("room", "age", "erased")),
        ):
            for value in values:
                metric.labels(value)
        self.images_ok = self.images.labels("ok")
        self.images_rejected = self.images.labels("rejected")
        self.images_error = self.images.labels("error")
        self.flagged_images = self.flagged.labels(DETECTOR)
        self.stages = {stage: self.stage.labels(stage) for stage in STAGES}
        self._durations = {route: self.request_duration.labels(route) for route in (PREDICT, INFER, _OTHER)}
        self._counts = {
            (route, method, status): self.requests.labels(route, method, str(status))
            for (route, method), statuses in EXPECTED.items()
            for status in statuses
        }

    def request_ended(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request.

        404 and 405 are counted as unmatched: a path or method that a stranger made up is not a dimension. Other
        combinations that are not expected make a series when they occur; routes and methods bound their
        number.
        """
        if route == INFER_VERSION:
            route = INFER
        if method not in METHODS:
            method = _OTHER
        if status == 405 or (status == 404 and (route, method) not in EXPECTED):
            route = UNMATCHED
        counter = self._counts.get((route, method, status))
        if counter is None:
            counter = self._counts[route, method, status] = self.requests.labels(route, method, str(status))
        counter.inc()
        self._durations.get(route, self._durations[_OTHER]).observe(seconds)

    def rejected(self, code: str, images: int) -> None:
        """Count a request refused for its input, with the images that it is known to have held."""
        if code in REJECTIONS:
            self.rejections.labels(code).inc()
            self.images_rejected.inc(images)

    def serves(self, labels: Mapping[str, str], loaded: float, created: float, alpha: float) -> None:
        """Show which version is served; the version before it is shown no longer."""
        self.flag_alpha.set(alpha)
        self.model_info.clear()
        self.model_info.labels(**labels).set(1)
        self.model_loaded.set(loaded)
        self.model_created.set(created)

    def exposition(self) -> tuple[bytes, str]:
        """The text for Prometheus, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
