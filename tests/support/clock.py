"""A clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
# Turns of the event loop after which tasks that only wait for each other have settled.
_TURNS = 25


class FakeClock:
    """Port: ``daemon.domain.clock.Clock``. Sleepers wake when a test lets their time come."""

    def __init__(self, start: datetime = START) -> None:
        self._start = start
        self._boottime = 1000.0
        self._elapsed = 0.0
        self._order = 0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    @property
    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return self._elapsed

    def now(self) -> datetime:
        """Return wall time."""
        return self._start + timedelta(seconds=self._elapsed)

    def boottime(self) -> float:
        """Return seconds since a boot."""
        return self._boottime + self._elapsed

    async def sleep(self, seconds: float) -> None:
        """Wait for a test to let ``seconds`` pass."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._order += 1
        heapq.heappush(self._sleepers, (self._elapsed + seconds, self._order, future))
        await future

    def advance(self, seconds: float) -> None:
        """Let time pass at once; who slept wakes at the next turns of the event loop."""
        self._reach(self._elapsed + seconds)

    def step_wall(self, by: timedelta) -> None:
        """Set the wall clock, as an operator or NTP does; boot time goes on as before."""
        self._start += by

    async def settle(self) -> None:
        """Let every task run until it waits for time or for the test."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)

    async def run(self, seconds: float) -> None:
        """Let time pass from sleeper to sleeper, each waking at its own moment."""
        target = self._elapsed + seconds
        await self.settle()
        while (moment := self._next()) is not None and moment <= target:
            self._reach(moment)
            await self.settle()
        self._reach(target)
        await self.settle()

    async def run_until(self, condition: Callable[[], bool], *, within: float = 3600.0) -> None:
        """Let time pass until ``condition`` holds; fail after ``within`` seconds of it."""
        target = self._elapsed + within
        await self.settle()
        while not condition():
            moment = self._next()
            assert moment is not None, "nothing is going to happen any more"
            assert moment <= target, "it did not happen in time"
            self._reach(moment)
            await self.settle()

    def _next(self) -> float | None:
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    def _reach(self, moment: float) -> None:
        self._elapsed = max(self._elapsed, moment)
        while self._sleepers and self._sleepers[0][0] <= self._elapsed:
            _, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)
