"""Spans: what they are below, what they hold, and what never gets into one."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind as OtelKind

from daemon.domain.tracing import NO_TRACER, SpanKind, Tracer, host_of, method_of
from daemon.telemetry.opentelemetry import Exporting, tracer_of
from daemon.telemetry.tracing import Tracing, open_tracing
from tests.support.telemetry import CANARY, NOW, StoppedClock

ROOT = Path(__file__).parents[3]
_PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass
class Spans:
    """A tracer and what it was told."""

    tracer: Tracer
    exporter: InMemorySpanExporter

    def ended(self) -> Mapping[str, ReadableSpan]:
        """Return the spans by name."""
        return {span.name: span for span in self.exporter.get_finished_spans()}


@pytest.fixture
def spans() -> Spans:
    """A tracer in memory."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Spans(tracer_of(provider, clock=StoppedClock()), exporter)


def test_steps_are_below_each_other(spans: Spans) -> None:
    """With their kinds and attributes; what follows is not below what has ended."""
    with spans.tracer.span("refresh", {"tokenward.provider": "acme"}) as above:
        with spans.tracer.span("POST", kind=SpanKind.CLIENT) as below:
            below.set("http.response.status_code", 200)
        above.set("tokenward.outcome", "ok")
    with spans.tracer.span("next"):
        pass
    ended = spans.ended()
    refresh, post = ended["refresh"], ended["POST"]
    assert post.parent is not None
    assert post.parent.span_id == refresh.context.span_id
    assert (post.kind, refresh.kind) == (OtelKind.CLIENT, OtelKind.INTERNAL)
    assert dict(refresh.attributes or {}) == {
        "tokenward.provider": "acme",
        "tokenward.outcome": "ok",
    }
    assert ended["next"].parent is None


def test_an_exception_is_told_by_its_type(spans: Spans) -> None:
    """Its text may quote anything, and so may its traceback: neither is there."""
    with pytest.raises(ValueError, match=CANARY), spans.tracer.span("send"):
        raise ValueError(CANARY)
    span = spans.ended()["send"]
    assert dict(span.attributes or {}) == {"error.type": "ValueError"}
    assert not span.status.is_ok
    assert CANARY not in span.to_json()
    assert not span.events


def test_a_host_that_holds_a_value_is_not_told(spans: Spans) -> None:
    """Also by steps below; one that does not hold it is, and so is everything else."""
    with (
        spans.tracer.span("refresh", {"tokenward.outcome": "tenant9"}, withheld=["tenant9", ""]),
        spans.tracer.span("one", {"server.address": "tenant9.acme.example"}),
        spans.tracer.span("two", {"server.address": "login.acme.example"}),
    ):
        pass
    with spans.tracer.span("three", {"server.address": "tenant9.acme.example"}):
        pass
    ended = spans.ended()
    assert not ended["one"].attributes
    assert (ended["two"].attributes or {})["server.address"] == "login.acme.example"
    assert (ended["refresh"].attributes or {})["tokenward.outcome"] == "tenant9"
    assert ended["three"].attributes


def test_a_step_that_began_before(spans: Spans) -> None:
    """Its beginning lies so many seconds back."""
    with spans.tracer.span("claim", began_ago=1.5):
        pass
    began = int(NOW.timestamp() * 1e9) - spans.ended()["claim"].start_time  # type: ignore[operator]  # it has begun
    assert began == pytest.approx(1.5e9, abs=1e6)


def test_a_callers_trace_goes_on(spans: Spans) -> None:
    """Steps are below the caller's, and a request that goes out says so; then it is over."""
    headers = {"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"}
    with spans.tracer.incoming({"traceparent": _PARENT}), spans.tracer.span("proxy"):
        spans.tracer.outgoing(headers)
    proxy = spans.ended()["proxy"]
    assert proxy.parent is not None
    assert format(proxy.parent.span_id, "016x") == "b7ad6b7169203331"
    own = format(proxy.context.span_id, "016x")
    assert headers["traceparent"] == f"00-0af7651916cd43dd8448eb211c80319c-{own}-01"
    with spans.tracer.span("later"):
        pass
    assert spans.ended()["later"].parent is None


@pytest.mark.parametrize("parent", ["", "nonsense", "00-0-0-01", "é" * 100])
def test_a_broken_parent_is_none(spans: Spans, parent: str) -> None:
    """What is no traceparent begins a trace."""
    with spans.tracer.incoming({"traceparent": parent}), spans.tracer.span("proxy"):
        pass
    assert spans.ended()["proxy"].parent is None


def test_without_tracing_nothing_happens() -> None:
    """A caller's own headers pass as they are."""
    headers = {"traceparent": _PARENT}
    with NO_TRACER.incoming(headers), NO_TRACER.span("x", withheld=["y"]) as span:
        span.set("a", 1)
        span.fail("b")
        NO_TRACER.outgoing(headers)
    assert headers == {"traceparent": _PARENT}


async def test_off_is_nothing() -> None:
    """No provider, nothing to close."""
    tracing = open_tracing(is_enabled=False, version="1", clock=StoppedClock())
    assert tracing.tracer is NO_TRACER
    await tracing.close()


def test_nothing_is_imported_where_it_is_off() -> None:
    """Whoever does not trace does not have OpenTelemetry in memory."""
    program = (
        "import sys; import daemon.wiring.lifecycle, daemon.cli.running;"
        "from daemon.telemetry.tracing import open_tracing; from daemon.domain.clock import *;"
        "open_tracing(is_enabled=False, version='1', clock=SystemClock());"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    command = [sys.executable, "-c", program]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)  # noqa: S603 - our own interpreter
    assert said.stdout.strip() == "[]"


class Ending:
    """Ends, or goes on until it is told to stop."""

    def __init__(self, *, hangs: bool) -> None:
        self.ends: list[str] = []
        self._go_on = threading.Event()
        if not hangs:
            self._go_on.set()

    def shutdown(self) -> None:
        """Send what is left."""
        self._go_on.wait(20)
        self.ends.append("shut down")

    def abort(self) -> None:
        """Go on no longer."""
        self.ends.append("aborted")
        self._go_on.set()


async def test_a_stop_waits_for_a_collector_but_not_for_ever() -> None:
    """Closing sends what is left; what cannot be sent is given up."""
    quick, slow = Ending(hangs=False), Ending(hangs=True)
    await Tracing(NO_TRACER, quick).close()
    assert quick.ends == ["shut down"]
    await Tracing(NO_TRACER, slow, patience=0.01).close()
    assert slow.ends[0] == "aborted"


def test_who_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """``tokenward``, unless the standard variables say otherwise."""
    for name, service in (("", "tokenward"), ("refresher", "refresher")):
        monkeypatch.setenv("OTEL_SERVICE_NAME", name)
        exporting = Exporting(version="1.2.3")
        attributes = exporting.provider.resource.attributes
        exporting.shutdown()
        assert (attributes["service.name"], attributes["service.version"]) == (service, "1.2.3")


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://user:pass@login.acme.example:8443/a?b=c", "login.acme.example"),
        ("http://[::1]:80/", "::1"),
        ("http://[", ""),
        ("nonsense", ""),
    ],
)
def test_hosts(url: str, host: str) -> None:
    """The host alone."""
    assert host_of(url) == host


def test_methods() -> None:
    """What a caller makes up is no name of a span."""
    assert [method_of(text) for text in ("GET", "get", "CANARY")] == ["GET", "_OTHER", "_OTHER"]
