"""Spans as OpenTelemetry has them. Only ``daemon.telemetry.tracing`` imports this.

The one hard idea: nothing that was not meant for a span gets into one. Exceptions are told by
their type, and a host that holds a connection's own value is not told at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from daemon.domain.clock import Clock
from daemon.domain.tracing import NO_ATTRIBUTES, Attribute, Span, SpanKind, Tracer

_KINDS: Final = {
    SpanKind.INTERNAL: trace.SpanKind.INTERNAL,
    SpanKind.SERVER: trace.SpanKind.SERVER,
    SpanKind.CLIENT: trace.SpanKind.CLIENT,
}
_HOST: Final = "server.address"
_SCOPE: Final = "tokenward"


class Exporting:
    """Sends spans by OTLP over HTTP, as the ``OTEL_…`` variables say."""

    def __init__(self, *, version: str) -> None:
        self._exporter = OTLPSpanExporter()
        self.provider = TracerProvider(resource=_resource(version))
        self.provider.add_span_processor(BatchSpanProcessor(self._exporter))

    def shutdown(self) -> None:
        """Send what is left. Blocks."""
        self.provider.shutdown()

    def abort(self) -> None:
        """Let an export that is tried again and again end now."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # the SDK leaves it out


def _resource(version: str) -> Resource:
    resource = Resource.create({"service.version": version})
    # The SDK's own word for "nobody said".
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        return resource.merge(Resource({"service.name": _SCOPE}))
    return resource


def tracer_of(provider: trace.TracerProvider, *, clock: Clock) -> Tracer:
    """Return a tracer whose spans go to ``provider``."""
    return _Tracer(provider.get_tracer(_SCOPE), clock)


class _Span:
    def __init__(self, span: trace.Span, withheld: tuple[str, ...]) -> None:
        self._span = span
        self._withheld = withheld

    def set(self, name: str, value: Attribute) -> None:
        if name == _HOST and any(each in str(value) for each in self._withheld):
            return
        self._span.set_attribute(name, value)

    def fail(self, kind: str) -> None:
        self._span.set_attribute("error.type", kind)
        self._span.set_status(trace.StatusCode.ERROR)


class _Tracer:
    def __init__(self, tracer: trace.Tracer, clock: Clock) -> None:
        self._tracer = tracer
        self._clock = clock
        self._propagator = TraceContextTextMapPropagator()
        self._withheld: ContextVar[tuple[str, ...]] = ContextVar("withheld", default=())

    @contextmanager
    def span(
        self,
        name: str,
        attributes: Mapping[str, Attribute] = NO_ATTRIBUTES,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        began_ago: float = 0.0,
        withheld: Iterable[str] = (),
    ) -> Iterator[Span]:
        hidden = (*self._withheld.get(), *(each for each in withheld if each))
        token = self._withheld.set(hidden)
        try:
            with self._tracer.start_as_current_span(
                name,
                kind=_KINDS[kind],
                start_time=self._ago(began_ago) if began_ago else None,
                # Their texts are for people who look at this daemon's log, not for a collector.
                record_exception=False,
                set_status_on_exception=False,
            ) as current:
                span = _Span(current, hidden)
                for key, value in attributes.items():
                    span.set(key, value)
                try:
                    yield span
                except BaseException as error:
                    span.fail(type(error).__name__)
                    raise
        finally:
            self._withheld.reset(token)

    def _ago(self, seconds: float) -> int:
        """Return a time in nanoseconds since the epoch."""
        return int((self._clock.now().timestamp() - seconds) * 1e9)

    @contextmanager
    def incoming(self, headers: Mapping[str, str]) -> Iterator[None]:
        context = self._propagator.extract(headers, context=contexts.Context())
        token = contexts.attach(context)
        try:
            yield
        finally:
            contexts.detach(token)

    def outgoing(self, headers: MutableMapping[str, str]) -> None:
        self._propagator.inject(headers)
