"""Limits in flight: so many refreshes in this process, so many of them at one provider.

Callers who wait come before whatever the sweep would start, so a backlog never delays a person.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable


class Slots:
    """Places for refreshes in flight. Not thread-safe: one event loop."""

    def __init__(self, *, total: Callable[[], int], at_provider: Callable[[str], int]) -> None:
        self._total = total
        self._at_provider = at_provider
        self._used: Counter[str] = Counter()
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()

    def in_flight(self, provider: str) -> int:
        """Return how many places are taken at ``provider``."""
        return self._used[provider]

    def free(self, provider: str) -> int:
        """Return how many more may start at ``provider`` now, after those who wait."""
        waiting = sum(name == provider for name, _ in self._waiting)
        room = min(
            self._total() - self._used.total(), self._at_provider(provider) - self._used[provider]
        )
        return max(0, room - waiting)

    def take_now(self, provider: str, count: int) -> None:
        """Take ``count`` places that ``free`` has just promised."""
        self._used[provider] += count

    async def take(self, provider: str) -> None:
        """Take a place, waiting for one in order of arrival. Cancellation gives up the wait."""
        if self.free(provider) > 0:
            self.take_now(provider, 1)
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((provider, place))
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.give(provider)
            raise

    def give(self, provider: str, count: int = 1) -> None:
        """Return places; the first who wait and may start receive them."""
        self._used[provider] -= count
        still_waiting: deque[tuple[str, asyncio.Future[None]]] = deque()
        waiting, self._waiting = self._waiting, deque()
        for name, place in waiting:
            if place.done():
                continue
            if self.free(name) > 0:
                self.take_now(name, 1)
                place.set_result(None)
            else:
                still_waiting.append((name, place))
        self._waiting = still_waiting
