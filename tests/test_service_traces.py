"""OpenTelemetry: what a collector receives of a request."""

import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from detrigger.models.errors import BadInput
from detrigger.service.main import check
from detrigger.service.settings import Settings
from tests.live import live_server
from tests.toys import png, publish_toy, toy_image

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.process
def test_a_collector_gets_one_span_a_request_within_the_callers_trace(tmp_path: Path) -> None:
    received = ExportTraceServiceRequest()

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces":
                received.MergeFromString(body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        endpoint = {"DETRIGGER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}/v1/traces"}
        with live_server(tmp_path, endpoint) as server:
            headers = {
                "Content-Type": "image/png",
                "traceparent": f"00-{TRACE}-{PARENT}-01",
                "X-Request-ID": "me",
            }
            answer = httpx.post(server.url + "/predict", content=png(toy_image(1)), headers=headers)
            assert answer.status_code == 200
            assert server.stop() == 0  # what is left is sent on the way out
        collector.shutdown()
    spans = [s for r in received.resource_spans for scope in r.scope_spans for s in scope.spans]
    (span,) = (s for s in spans if s.name == "POST /predict")
    told = {pair.key: pair.value for pair in span.attributes}
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert told["http.response.status_code"].int_value == 200
    assert told["detrigger.request_id"].string_value == "me"
    assert (
        0
        < told["detrigger.defend_ms"].double_value
        < (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
    )


def test_traces_without_opentelemetry_are_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    publish_toy(tmp_path / "store")
    settings = Settings(store=tmp_path / "store", otlp_endpoint="http://127.0.0.1:4318/v1/traces")
    with pytest.raises(BadInput, match="pip install"):
        check(settings)
