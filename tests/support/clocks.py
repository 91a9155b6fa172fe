"""Clocks for tests."""

from __future__ import annotations

import asyncio

from daemon.domain.clock import SystemClock


class HastyClock(SystemClock):
    """The machine's clock, but nobody sleeps longer than ``longest`` seconds.

    For tests on real sockets: background tasks try again at once, and nothing else is different.
    """

    def __init__(self, longest: float = 0.01) -> None:
        self._longest = longest

    async def sleep(self, seconds: float) -> None:
        """Sleep, but not long."""
        await asyncio.sleep(min(max(0.0, seconds), self._longest))
