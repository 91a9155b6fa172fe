"""[exchange] The moment of sending: a provider's rate holds there, too, whatever this process did.

The hard idea: slots are given before a request is sent, and a process that stood still for a
moment finds many of its slots past. Sent at once they would be a burst, so what it missed is lost.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from math import inf

from daemon.domain.admission import burst
from daemon.domain.clock import Clock

# Timers are not more exact than this: what is nearer is now.
_RESOLUTION = 0.002
# No sensible rate is lower; what is computed with it stays a time.
_LONGEST_INTERVAL = 86_400.0


class Pacing:
    """Lets requests go one after the other, at each provider's rate. One event loop.

    The slots are the fleet's (``daemon.domain.admission``); this only keeps what one process does
    with its own from being faster than all of them may be together.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._free_at: defaultdict[str, float] = defaultdict(lambda: -inf)
        self._lines: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def turn(self, provider: str, *, rate: float, by: float = inf) -> bool:
        """Return when a request may leave: now, or later where too many have just left.

        ``False``, and no slot is taken, where that would be after the boot time ``by``.
        """
        line = self._lines[provider]
        if not line.locked() and self._passes(provider, rate) <= 0:
            return True
        # In order of arrival; only the first looks at the clock.
        async with line:
            while self._clock.boottime() <= by:
                wait = self._passes(provider, rate)
                if wait <= 0:
                    return True
                if self._clock.boottime() + wait > by:
                    break
                await self._clock.sleep(wait)
        return False

    def _passes(self, provider: str, rate: float) -> float:
        """Take the next slot if it has come; else return the seconds until it does."""
        now = self._clock.boottime()
        free_at = next_free(self._free_at[provider], rate=rate, now=now)
        if free_at <= now + _RESOLUTION / 2:
            self._free_at[provider] = free_at
            return 0.0
        return free_at - now


def next_free(free_at: float, *, rate: float, now: float) -> float:
    """Return when the next slot comes, after which ``free_at`` is that moment. Pure.

    What is saved up is what ``burst`` allows, or, at a rate that timers cannot follow, what passes
    between two looks at the clock.
    """
    interval = min(1 / rate, _LONGEST_INTERVAL)
    saved = max(burst(rate) * interval, _RESOLUTION)
    return max(free_at, now - saved) + interval
