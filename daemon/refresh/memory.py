"""What memory serves, read anew from the database."""

from __future__ import annotations

from daemon.domain.errors import DatabaseUnavailableError
from daemon.refresh.cache import TokenCache
from daemon.refresh.ports import CurrentTokens


class Memory:
    """Brings the cache up to what the database has."""

    def __init__(self, cache: TokenCache, tokens: CurrentTokens) -> None:
        self._cache = cache
        self._tokens = tokens

    async def reload(self, ids: list[str]) -> None:
        """Read what is current into the cache; connections that are gone leave it.

        Raises:
            DatabaseUnavailableError: the cache stays as it was.
        """
        found = {token.connection: token for token in await self._tokens.current(ids)}
        for connection_id in ids:
            token = found.get(connection_id)
            if token is None:
                self._cache.drop(connection_id)
            else:
                self._cache.put(token)

    async def reload_quietly(self, connection_id: str) -> None:
        """Reload one connection; where the database is away, memory stays as it is."""
        try:
            await self.reload([connection_id])
        except DatabaseUnavailableError:
            return

    async def forget(self, connection_id: str) -> None:
        """Take back what memory served of a reply that then was not stored."""
        try:
            found = await self._tokens.current([connection_id])
        except DatabaseUnavailableError:
            return
        self._cache.drop(connection_id)
        for token in found:
            self._cache.put(token)
