"""Shared by the tests of what is seen from outside: a stopped clock, planted secrets, a log."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from daemon.config.settings import Log, LogFormat, LogLevel
from daemon.domain.claim import Claim
from daemon.domain.connection import Status
from daemon.domain.tokens import TokenSet
from daemon.telemetry.logs import LogPipeline, configure_logging

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
CANARY = "CANARY5ecret"
"""Part of every planted secret: where it is seen, something leaks."""


class StoppedClock:
    """A clock that stands at ``moment``."""

    def __init__(self, moment: datetime = NOW) -> None:
        self.moment = moment

    def now(self) -> datetime:
        """Return the moment."""
        return self.moment

    def boottime(self) -> float:
        """Return the moment in seconds."""
        return self.moment.timestamp()

    async def sleep(self, seconds: float) -> None:
        """Refuse: nothing here sleeps."""
        raise AssertionError(seconds)


class CapturedLog:
    """Logging into memory; ``text`` and ``lines`` close it first, so that all is there."""

    def __init__(self, log: Log) -> None:
        self._stream = io.StringIO()
        self.pipeline: LogPipeline = configure_logging(log, stream=self._stream)

    def text(self) -> str:
        """Return everything that was logged."""
        self.pipeline.close(timeout=30)
        return self._stream.getvalue()

    def lines(self) -> list[dict[str, Any]]:
        """Return every line, parsed."""
        return [json.loads(line) for line in self.text().splitlines()]


@contextmanager
def captured_log(
    *,
    form: LogFormat = LogFormat.JSON,
    level: LogLevel = LogLevel.DEBUG,
) -> Iterator[CapturedLog]:
    """Log into memory inside the block."""
    captured = CapturedLog(Log(format=form, level=level))
    try:
        yield captured
    finally:
        captured.pipeline.close(timeout=30)


def claim_with_secrets(provider: str = "acme") -> Claim:
    """Return a claim whose tokens hold the canary."""
    return Claim(
        connection_id="con_1",
        provider=provider,
        attempt="attempt-1",
        status=Status.ACTIVE,
        tokens=TokenSet(
            generation=4,
            access_token=f"at-{CANARY}-access",
            refresh_token=f"rt-{CANARY}-refresh",
            token_type="Bearer",
            scopes=("read",),
            issued_at=NOW,
            expires_at=None,
        ),
        requested_scopes=("read",),
        was_in_doubt=False,
        failures=2,
        planned_at=None,
        delay=0.0,
    )
