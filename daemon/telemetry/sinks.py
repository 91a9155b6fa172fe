"""What happens to sinks, told once: a log line for what is news, and a count for everything.

No label names a sink: their number is the operator's, and their paths are in the log.
"""

from __future__ import annotations

from enum import StrEnum

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from daemon.domain.sink import Sink

log = structlog.get_logger()


class SinkWrite(StrEnum):
    """The ``outcome`` label of ``tokenward_sink_writes_total``."""

    WRITTEN = "written"
    """A file holds another token."""
    REMOVED = "removed"
    """A file is gone, because there is no token for it."""
    FAILED = "failed"
    """A file could not be looked at, written or removed; it is tried again."""


class SinkNotice(StrEnum):
    """The ``outcome`` label of ``tokenward_sink_notices_total``."""

    TOLD = "told"
    """The command ended well, or the signal was sent."""
    FAILED = "failed"
    """The application was not told; it is tried again."""


class SinkTelemetry:
    """The ``daemon.upkeep.sinks.SinkEvents`` of the running daemon. Never blocks, never raises."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._writes = Counter(
            "tokenward_sink_writes_total",
            "Changes to files that hold tokens, by how they ended.",
            ("outcome",),
            registry=registry,
        )
        self._notices = Counter(
            "tokenward_sink_notices_total",
            "Commands and signals after a change of a file, by how they ended.",
            ("outcome",),
            registry=registry,
        )
        self._failing = Gauge(
            "tokenward_sinks_failing",
            "Files that are not up to date, or whose application was not told.",
            registry=registry,
        )
        for write in SinkWrite:
            self._writes.labels(write.value)
        for notice in SinkNotice:
            self._notices.labels(notice.value)

    def sink_written(self, sink: Sink, *, generation: int) -> None:
        """Tell that a file holds another token now."""
        self._writes.labels(SinkWrite.WRITTEN.value).inc()
        log.info(
            "sink_written",
            connection=sink.connection,
            path=str(sink.path),
            generation=generation,
        )

    def sink_removed(self, sink: Sink) -> None:
        """Tell that a file is gone, because there is no token for it."""
        self._writes.labels(SinkWrite.REMOVED.value).inc()
        log.warning("sink_removed", connection=sink.connection, path=str(sink.path))

    def sink_failed(self, sink: Sink, *, error: str, is_news: bool) -> None:
        """Tell that a file could not be brought up to date; the log hears of each reason once."""
        self._writes.labels(SinkWrite.FAILED.value).inc()
        if is_news:
            log.warning("sink_failed", connection=sink.connection, path=str(sink.path), error=error)

    def sink_told(self, sink: Sink) -> None:
        """Tell that the application was told of a change."""
        self._notices.labels(SinkNotice.TOLD.value).inc()
        log.info("sink_told", connection=sink.connection, path=str(sink.path))

    def sink_notice_failed(self, sink: Sink, *, error: str, is_news: bool) -> None:
        """Tell that the application could not be told; the log hears of each reason once."""
        self._notices.labels(SinkNotice.FAILED.value).inc()
        if is_news:
            log.warning(
                "sink_notice_failed",
                connection=sink.connection,
                path=str(sink.path),
                error=error,
            )

    def sinks_failing(self, count: int) -> None:
        """Tell how many sinks are not as they should be."""
        self._failing.set(count)
