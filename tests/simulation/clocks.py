"""The clocks of simulated machines: each with its own error, drift, steps and boot."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from tests.simulation.loop import SimulatedLoop

START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


class MachineClock:
    """Port: ``daemon.domain.clock.Clock``.

    ``error`` is how many seconds wall time is ahead of true time, ``rate`` how fast both clocks
    run. A suspended process's sleep takes longer, and boot time tells: the loop sees to that.
    """

    def __init__(self, loop: SimulatedLoop, *, error: float = 0.0, rate: float = 1.0) -> None:
        self._loop = loop
        self._stepped = error
        self._rate = rate
        self._booted_at = -1000.0

    @property
    def error(self) -> float:
        """Return by how many seconds wall time is ahead now."""
        return self._stepped + self._loop.time() * (self._rate - 1.0)

    def now(self) -> datetime:
        """Return wall time."""
        return START + timedelta(seconds=self._loop.time() + self.error)

    def boottime(self) -> float:
        """Return seconds since boot."""
        return (self._loop.time() - self._booted_at) * self._rate

    async def sleep(self, seconds: float) -> None:
        """Sleep on the machine's time."""
        await asyncio.sleep(max(0.0, seconds) / self._rate)

    def step(self, by: float) -> None:
        """Set wall time, as an operator or NTP does."""
        self._stepped += by

    def set_right(self) -> None:
        """Set wall time to the true one."""
        self._stepped = -self._loop.time() * (self._rate - 1.0)


class CoarseClock:
    """A machine's clock whose short sleeps last longer: what polls often polls less often."""

    def __init__(self, clock: MachineClock, shortest: float) -> None:
        self._clock = clock
        self._shortest = shortest

    def now(self) -> datetime:
        """Return wall time."""
        return self._clock.now()

    def boottime(self) -> float:
        """Return seconds since boot."""
        return self._clock.boottime()

    async def sleep(self, seconds: float) -> None:
        """Sleep, but not for less than the shortest time."""
        await self._clock.sleep(max(seconds, self._shortest))
