"""Limits in flight: so many refreshes in this process, so many of them at one provider.

Callers who wait come before whatever the sweep would start, so a backlog never delays a person.
Each provider with nothing in flight has a place kept back for it, so that however many providers
hang, the others go on.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable
from itertools import count


class Slots:
    """Places for refreshes in flight. Not thread-safe: one event loop."""

    def __init__(
        self,
        *,
        total: Callable[[], int],
        at_provider: Callable[[str], int],
        providers: Callable[[], int] = lambda: 1,
    ) -> None:
        self._total = total
        self._at_provider = at_provider
        self._providers = providers
        self._used: Counter[str] = Counter()
        # A line for each provider, so that a long one costs nothing at each place given back. The
        # numbers are the order of arrival over all lines.
        self._lines: dict[str, OrderedDict[asyncio.Future[None], int]] = {}
        self._arrivals = count()

    def in_flight(self, provider: str) -> int:
        """Return how many places are taken at ``provider``."""
        return self._used[provider]

    def free(self, provider: str) -> int:
        """Return how many more may start at ``provider`` now, after those who wait."""
        return max(0, self._room(provider) - len(self._lines.get(provider, ())))

    def take_now(self, provider: str, count: int) -> None:
        """Take ``count`` places that ``free`` has just promised."""
        self._used[provider] += count

    async def take(self, provider: str) -> None:
        """Take a place, waiting for one in order of arrival. Cancellation gives up the wait."""
        if self.free(provider) > 0:
            self.take_now(provider, 1)
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(provider, OrderedDict())[place] = next(self._arrivals)
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled():
                self._leave(provider, place)
            else:
                self.give(provider)
            raise

    def give(self, provider: str, count: int = 1) -> None:
        """Return places; the first who wait and may start receive them."""
        self._used[provider] -= count
        while (found := self._next()) is not None:
            name, place = found
            self._leave(name, place)
            if not place.done():
                self.take_now(name, 1)
                place.set_result(None)

    def _room(self, provider: str) -> int:
        total = self._total()
        left = total - self._used.total() - self._kept_back(provider, total)
        return min(left, self._at_provider(provider) - self._used[provider])

    def _kept_back(self, provider: str, total: int) -> int:
        """Return the places that are for providers with nothing in flight, at most half of all."""
        busy = sum(used > 0 for used in self._used.values())
        idle = self._providers() - busy - (self._used[provider] == 0)
        return min(max(idle, 0), total // 2)

    def _next(self) -> tuple[str, asyncio.Future[None]] | None:
        """Return who has waited longest of those who may start."""
        heads = [
            (number, name, place)
            for name, line in self._lines.items()
            for place, number in [next(iter(line.items()))]
            if self._room(name) > 0
        ]
        return min(heads)[1:] if heads else None

    def _leave(self, provider: str, place: asyncio.Future[None]) -> None:
        line = self._lines.get(provider, OrderedDict())
        line.pop(place, None)
        if not line:
            self._lines.pop(provider, None)
