"""Tracing by OpenTelemetry, where it is switched on; else nothing of it is imported.

Where spans go, how many are sampled and what they are called is said by the standard ``OTEL_…``
variables, which the SDK reads by itself. ``daemon.config.tracing`` has seen that it is installed.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from daemon.domain.clock import Clock
from daemon.domain.tracing import NO_TRACER, Tracer

# How long a stop waits for a collector to take the last spans, in seconds.
_LAST_SPANS = 3.0


class Export(Protocol):
    """What sends spans: ``daemon.telemetry.opentelemetry.Exporting``."""

    def shutdown(self) -> None:
        """Send what is left. Blocks."""

    def abort(self) -> None:
        """End a shutdown that goes on."""


class Tracing:
    """The process's tracer, and its end."""

    def __init__(
        self,
        tracer: Tracer = NO_TRACER,
        export: Export | None = None,
        *,
        patience: float = _LAST_SPANS,
    ) -> None:
        self.tracer = tracer
        self._patience = patience
        self._export = export

    async def close(self) -> None:
        """Send what is left, for at most 3 s."""
        if self._export is None:
            return
        try:
            await asyncio.wait_for(asyncio.to_thread(self._export.shutdown), self._patience)
        except TimeoutError:
            self._export.abort()


def open_tracing(*, is_enabled: bool, version: str, clock: Clock) -> Tracing:
    """Return tracing as configured."""
    if not is_enabled:
        return Tracing()
    # Here, because whoever does not trace need not have it, nor wait for it: 0.2 s.
    from daemon.telemetry.opentelemetry import Exporting, tracer_of  # noqa: PLC0415

    export = Exporting(version=version)
    return Tracing(tracer_of(export.provider, clock=clock), export)
