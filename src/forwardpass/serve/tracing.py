"""Traces of requests for OpenTelemetry: a span for the request, and in it one for the queue and one for the batch.

Off unless an address is given: nothing of OpenTelemetry is imported then, and a request costs two comparisons. Spans
say which model, how many rows and how it ended. They never hold anything that a client sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from forwardpass.core.tensors import Array
from forwardpass.core.version import VERSION
from forwardpass.errors import ForwardpassError, InvalidOption, MissingExtra, RequestError
from forwardpass.serve.metrics import ModelMetrics

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

__all__ = ["Trace", "Tracer", "open_tracer"]

TRACES_PATH = "/v1/traces"
EXPORT_TIMEOUT_S = 5.0
"""A collector that does not answer must not hold up the end of the server."""
CARRIED = (b"traceparent", b"tracestate")
ABANDONED = "abandoned"
_Result: TypeAlias = Mapping[str, Array] | RequestError


def open_tracer(url: str, *, sample: float) -> Tracer:
    """Send spans to a collector that speaks OTLP over HTTP; without a path in its address, to `/v1/traces`.

    Raises:
        MissingExtra: OpenTelemetry is not installed.
        InvalidOption: the address or the share cannot be.
    """
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not parts.username
    except ValueError:
        is_url = False
    if not is_url:
        raise InvalidOption(option="--otlp", value=url, expected="the address of a collector, 'http://host:4318'")
    if not 0 <= sample <= 1:
        raise InvalidOption(option="--trace-sample", value=str(sample), expected="a share from 0 to 1")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        package = "opentelemetry-exporter-otlp-proto-http"
        raise MissingExtra(package=package, extra="otel", purpose="sending traces") from error
    endpoint = url if parts.path.strip("/") else f"{url.rstrip('/')}{TRACES_PATH}"
    return Tracer(OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S), sample=sample)


class Tracer:
    """Begins traces, and hands what was sampled to an exporter on a thread of its own.

    `sample` is the share of the requests without a trace of their own; those with one follow its flag.
    """

    def __init__(self, exporter: SpanExporter, *, sample: float) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": "forwardpass", "service.version": VERSION})
        sampler = ParentBased(TraceIdRatioBased(sample))
        self._provider = TracerProvider(resource=resource, sampler=sampler, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("forwardpass.serve", VERSION)
        self._extract = TraceContextTextMapPropagator().extract

    def begin(self, name: str, headers: Mapping[bytes, bytes], *, begun_s: float) -> Trace | None:
        """Begin a trace, or go on with the client's; None if it is not among the sampled ones."""
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, set_span_in_context

        carrier = {key.decode(): headers[key].decode("latin-1") for key in CARRIED if key in headers}
        context = self._extract(carrier, Context()) if carrier else Context()
        clock = _Clock()
        span = self._tracer.start_span(name, context, SpanKind.SERVER, start_time=clock.since_1970_ns(begun_s))
        if not span.is_recording():
            return None
        return Trace(span, self._child_maker(set_span_in_context(span, context), clock), clock)

    def close(self) -> None:
        """Send what is left; blocks until that is done or given up."""
        self._provider.shutdown()

    def _child_maker(self, context: Context, clock: _Clock) -> Callable[[str, float, float, Mapping[str, Any]], None]:
        def make(name: str, start_s: float, end_s: float, attributes: Mapping[str, Any]) -> None:
            started_ns = clock.since_1970_ns(start_s)
            span = self._tracer.start_span(name, context, attributes=attributes, start_time=started_ns)
            span.end(clock.since_1970_ns(end_s))

        return make


class Trace:
    """The spans of one request that was sampled."""

    __slots__ = ("_clock", "_is_ended", "_make_child", "_outcome", "_span")

    def __init__(
        self, span: Span, make_child: Callable[[str, float, float, Mapping[str, Any]], None], clock: _Clock
    ) -> None:
        self._clock = clock
        self._span = span
        self._make_child = make_child
        self._outcome = ""
        self._is_ended = False

    def watch(
        self, answer: Callable[[Any], None], metrics: ModelMetrics, *, model: str, version: str, num_rows: int
    ) -> Callable[[Any], None]:
        """Return `answer` with a look at what it is called with: the batch has just been counted then."""
        submitted_s = time.monotonic()
        names = {"forwardpass.model": model, "forwardpass.model.version": version}
        self._span.set_attributes(names | {"forwardpass.rows": num_rows})

        def watched(result: _Result) -> None:
            if isinstance(result, RequestError):
                self.failed(result)
                self._make_child("queue", submitted_s, time.monotonic(), names | {"forwardpass.outcome": result.slug})
            else:
                self._outcome = "ok"
                started_s = submitted_s + metrics.latest_queue_s
                self._make_child("queue", submitted_s, started_s, names)
                batch = {"forwardpass.batch.rows": metrics.latest_rows}
                self._make_child("compute", started_s, started_s + metrics.latest_compute_s, names | batch)
            answer(result)

        return watched

    def failed(self, error: ForwardpassError) -> None:
        """Note what kind of error it is. Its sentence is left out: it can quote the request."""
        self._outcome = error.slug

    def answered(self, status: int) -> None:
        """End it with the status of HTTP."""
        self._span.set_attribute("http.response.status_code", status)
        self.end(is_error=status >= 500)

    def abandoned(self) -> None:
        """End it without an answer: the client has left."""
        self._outcome = ABANDONED
        self.end(is_error=False)

    def end(self, *, is_error: bool) -> None:
        """End it, once."""
        from opentelemetry.trace import StatusCode

        if self._is_ended:
            return
        self._is_ended = True
        self._span.set_attribute("forwardpass.outcome", self._outcome or "refused")
        if is_error:
            self._span.set_status(StatusCode.ERROR)
        self._span.end(self._clock.since_1970_ns(time.monotonic()))


class _Clock:
    """Turns moments of the monotonic clock into OpenTelemetry's, all of one trace by the same offset."""

    __slots__ = ("_offset_ns",)

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def since_1970_ns(self, at_s: float) -> int:
        return self._offset_ns + int(at_s * 1e9)
