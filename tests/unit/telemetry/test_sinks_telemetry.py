"""What sinks tell: each failure counts, each reason is one line, and no label names a file."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from daemon.domain.sink import Sink
from daemon.telemetry.sinks import SinkTelemetry
from tests.support.telemetry import captured_log

SINK = Sink(connection="acme-1", path=Path("/run/app/token"))


def test_series_exist_from_the_start() -> None:
    """So that a first failure already is an increase; nothing names a sink."""
    registry = CollectorRegistry()
    SinkTelemetry(registry).sink_failed(SINK, error="full", is_news=True)
    text = generate_latest(registry).decode()
    for series in (
        'tokenward_sink_writes_total{outcome="written"} 0.0',
        'tokenward_sink_writes_total{outcome="removed"} 0.0',
        'tokenward_sink_writes_total{outcome="failed"} 1.0',
        'tokenward_sink_notices_total{outcome="told"} 0.0',
        'tokenward_sink_notices_total{outcome="failed"} 0.0',
        "tokenward_sinks_failing 0.0",
    ):
        assert series in text
    assert "acme-1" not in text
    assert "/run" not in text


def test_a_reason_is_one_line() -> None:
    """A disk that stays full is counted with each try, and logged once."""
    registry = CollectorRegistry()
    telemetry = SinkTelemetry(registry)
    with captured_log() as log:
        for tries in range(3):
            telemetry.sink_failed(SINK, error="the disk is full", is_news=tries == 0)
            telemetry.sink_notice_failed(SINK, error="it hangs", is_news=tries == 0)
        telemetry.sink_written(SINK, generation=7)
        telemetry.sink_removed(SINK)
        telemetry.sink_told(SINK)
        telemetry.sinks_failing(2)
        lines = log.lines()
    assert [line["event"] for line in lines] == [
        "sink_failed",
        "sink_notice_failed",
        "sink_written",
        "sink_removed",
        "sink_told",
    ]
    assert {(line["connection"], line["path"]) for line in lines} == {("acme-1", "/run/app/token")}
    assert registry.get_sample_value("tokenward_sinks_failing") == 2
    outcome = {"outcome": "failed"}
    assert registry.get_sample_value("tokenward_sink_notices_total", outcome) == 3
