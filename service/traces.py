"""OpenTelemetry, where `otlp_endpoint` is set: one span a request, sent to a collector in the background.

A span continues the caller's trace (W3C `traceparent`), bears the request id, and has the time of each stage as an
attribute. The exporter's own environment variables (`OTEL_EXPORTER_OTLP_HEADERS` and others) hold as documented there.
"""

from time import time_ns

from starlette.types import Scope

from detrigger.models.errors import BadInput
from detrigger.service.middleware import RequestInfo, header

_EXPORT_TIMEOUT = 2.0


class Traces:
    """Spans of this service."""

    def __init__(self, endpoint: str, version: str) -> None:
        """Begin to collect; nothing is sent before the first request.

        Raises:
            BadInput: OpenTelemetry is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, Status, StatusCode
            from opentelemetry.trace.propagation.tracecontext import (
                TraceContextTextMapPropagator,
            )
        except ImportError as error:
            raise BadInput(
                "otlp_endpoint is set, but OpenTelemetry is not installed; `pip install 'detrigger[otel]'`"
            ) from error
        resource = Resource.create({"service.name": "detrigger", "service.version": version})
        self._provider = TracerProvider(resource=resource)
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_TIMEOUT)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("detrigger")
        self._caller = TraceContextTextMapPropagator()
        self._kind = SpanKind.SERVER
        self._failed = Status(StatusCode.ERROR)

    def ended(self, scope: Scope, info: RequestInfo, route: str, status: int, seconds: float) -> None:
        """Record a request that has just been answered with `status` after `seconds`."""
        now = time_ns()
        names = ("traceparent", "tracestate")
        carrier = {name: value.decode("latin-1") for name in names if (value := header(scope, name.encode()))}
        span = self._tracer.start_span(
            f"{scope['method']} {route}",
            context=self._caller.extract(carrier),
            kind=self._kind,
            start_time=now - int(seconds * 1e9),
            attributes={
                "http.request.method": scope["method"],
                "http.route": route,
                "http.response.status_code": status,
                "detrigger.request_id": info.id,
                **{f"detrigger.{stage}_ms": 1e3 * took for stage, took in info.timings.items()},
            },
        )
        if status >= 500:
            span.set_status(self._failed)
        span.end(now)

    def close(self) -> None:
        """Send what is left; a collector that does not answer delays this by seconds at most."""
        self._provider.shutdown()
