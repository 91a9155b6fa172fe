"""How often connections are counted for the gauges."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, cast

from prometheus_client import CollectorRegistry

from daemon.persistence.census import Census
from daemon.telemetry.metrics import Metrics
from daemon.wiring.housekeeping import Housekeeping
from tests.support.clock import FakeClock

_NOBODY = cast("Any", None)


class _Store:
    """Connections whose count takes ``seconds``."""

    def __init__(self, clock: FakeClock, seconds: float) -> None:
        self.counts = 0
        self._clock = clock
        self._seconds = seconds

    async def census(self, *, now: datetime) -> Census:
        """Count, slowly."""
        del now
        self.counts += 1
        await self._clock.run(self._seconds)
        return Census(connections={("acme", "active"): 7}, expired={}, soonest={})

    async def count_due(self, *, now: datetime) -> int:
        """Return that nothing is due."""
        del now
        return 0


async def _counts(seconds: float) -> int:
    """Return how often connections are counted by 24 jobs with 5 s between them."""
    clock = FakeClock()
    store = cast("Any", _Store(clock, seconds))
    housekeeping = Housekeeping(
        connections=store,
        refreshes=store,
        retention=_NOBODY,
        incarnations=_NOBODY,
        tests=_NOBODY,
        keep_events=timedelta,
        discovery=_NOBODY,
        cache=_NOBODY,
        journal=_NOBODY,
        metrics=Metrics(CollectorRegistry(), clock=clock, version="1", providers=["acme"]),
        clock=clock,
    )
    for _ in range(24):
        await housekeeping.set_gauges()
        await clock.run(5)
    return int(store.counts)


async def test_a_quick_count_is_made_each_time() -> None:
    """A small database is looked at as often as the job runs."""
    assert await _counts(0.01) == 24


async def test_a_slow_count_is_made_less_often() -> None:
    """A count that takes 2 s is made every 40 s, however often the job runs."""
    assert await _counts(2.0) in {3, 4}
