"""What the log says of old rows."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from daemon.domain.errors import DatabaseUnavailableError
from daemon.persistence.retention import Removed
from daemon.wiring.housekeeping import Housekeeping
from tests.support.clock import FakeClock

_NOBODY = cast("Any", None)
KEEP = timedelta(days=7)


class _Retention:
    """Answers what it is told; an error is raised."""

    def __init__(self, *answers: Removed | Exception | None) -> None:
        self._answers: Iterator[Removed | Exception | None] = iter(answers)
        self.asked: list[timedelta] = []

    async def prune(self, *, events: timedelta) -> Removed | None:
        """Note how long events are kept."""
        self.asked.append(events)
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


def _housekeeping(retention: _Retention) -> Housekeeping:
    return Housekeeping(
        connections=_NOBODY,
        refreshes=_NOBODY,
        retention=cast("Any", retention),
        incarnations=_NOBODY,
        tests=_NOBODY,
        keep_events=lambda: KEEP,
        discovery=_NOBODY,
        cache=_NOBODY,
        journal=_NOBODY,
        metrics=_NOBODY,
        clock=FakeClock(),
    )


async def test_one_line_says_what_was_removed() -> None:
    """Where something was: another replica's turn, and nothing old, are no news."""
    retention = _Retention(
        None,
        Removed(rows={}, complete=True),
        Removed(rows={"events": 12, "orphans": 1}, complete=False),
    )
    housekeeping = _housekeeping(retention)
    with capture_logs() as lines:
        for _ in range(3):
            await housekeeping.prune()
    (line,) = lines
    assert (line["event"], line["rows"], line["complete"]) == ("old_rows_removed", 13, False)
    assert line["tables"] == "events:12 orphans:1"
    assert retention.asked == [KEEP] * 3


async def test_a_database_that_is_away_ends_the_turn() -> None:
    """The job that wakes it takes that for an answer; nothing is retried in a hurry."""
    with pytest.raises(DatabaseUnavailableError):
        await _housekeeping(_Retention(DatabaseUnavailableError("away"))).prune()
