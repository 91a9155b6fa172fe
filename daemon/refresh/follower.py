"""Keeps the cache true: follows what other replicas announce, and looks for what was missed.

Notifications make it quick, polling makes it certain: while the listener is down generations are
compared every second, and while it is up every fifteen, since a notification may get lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from daemon.domain.clock import Clock
from daemon.domain.errors import DatabaseUnavailableError
from daemon.domain.tokens import Version
from daemon.refresh.cache import TokenCache
from daemon.refresh.memory import Memory
from daemon.refresh.ports import CurrentTokens

# The contract gives another replica's disconnect one second to be seen here.
_POLL_WITHOUT_LISTENER = 0.7
_POLL_WITH_LISTENER = 15.0
# Ids looked up in one statement.
_BATCH = 1000


class Follower:
    """Re-reads connections that changed elsewhere."""

    def __init__(
        self,
        cache: TokenCache,
        tokens: CurrentTokens,
        *,
        clock: Clock,
        listening: Callable[[], bool],
    ) -> None:
        self._cache = cache
        self._tokens = tokens
        self._memory = Memory(cache, tokens)
        self._clock = clock
        self._listening = listening
        self._stale: set[str] = set()
        self._heard = asyncio.Event()
        self._poll_by = clock.boottime() + _POLL_WITH_LISTENER

    def hear(self, connection_id: str) -> None:
        """Take in that a connection changed. Connections nobody asked for here are ignored."""
        if self._cache.holds(connection_id):
            self._stale.add(connection_id)
            self._heard.set()

    def doubt_everything(self) -> None:
        """Compare every entry soon: notifications may have been missed."""
        self._stale.update(self._cache.ids())
        self._heard.set()

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            await self._wait()
            try:
                await self._catch_up()
            except DatabaseUnavailableError:
                await self._clock.sleep(_POLL_WITHOUT_LISTENER)
                self._heard.set()

    async def _wait(self) -> None:
        sleep = asyncio.ensure_future(self._clock.sleep(_POLL_WITHOUT_LISTENER))
        heard = asyncio.ensure_future(self._heard.wait())
        try:
            await asyncio.wait({sleep, heard}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            heard.cancel()
        # Also where there is always something to hear: that is no sign that nothing was missed.
        overdue = self._clock.boottime() >= self._poll_by
        if overdue or not (self._listening() or self._heard.is_set()):
            self._stale.update(self._cache.ids())
            self._poll_by = self._clock.boottime() + _POLL_WITH_LISTENER
        self._heard.clear()

    async def _catch_up(self) -> None:
        """Re-read what differs; what could not be read stays on the list."""
        while self._stale:
            ids = list(self._stale)[:_BATCH]
            # Off the list first: what is heard of while the database answers is news and stays.
            self._stale.difference_update(ids)
            try:
                await self._read_again(ids)
            except DatabaseUnavailableError:
                self._stale.update(ids)
                raise

    async def _read_again(self, ids: Sequence[str]) -> None:
        versions = await self._tokens.versions(ids)
        changed = [name for name in ids if self._differs(name, versions)]
        if changed:
            await self._memory.reload(changed)

    def _differs(self, name: str, versions: Mapping[str, Version]) -> bool:
        entry, version = self._cache.get(name), versions.get(name)
        if entry is None or version is None:
            return True
        if (entry.generation, entry.status) != (version.generation, version.status):
            return True
        # A token of a dead grant that its API refuses as well has ended before its time.
        return version.expires_at is not None and version.expires_at.timestamp() < entry.expires_at
