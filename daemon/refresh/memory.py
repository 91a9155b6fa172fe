"""What memory serves, read anew from the database.

The hard idea: an answer of the database is from before it arrives. What left memory meanwhile was
told to leave, and does not come back with an older answer. That a connection is disconnected
counts also where the database has forgotten generations since: it is asked twice, then it is so.
"""

from __future__ import annotations

from collections.abc import Sequence

from daemon.domain.connection import Status
from daemon.domain.errors import DatabaseUnavailableError
from daemon.domain.tokens import CurrentToken
from daemon.refresh.cache import TokenCache
from daemon.refresh.ports import CurrentTokens


class Memory:
    """Brings the cache up to what the database has."""

    def __init__(self, cache: TokenCache, tokens: CurrentTokens) -> None:
        self._cache = cache
        self._tokens = tokens

    async def reload(self, ids: Sequence[str]) -> None:
        """Read what is current into the cache; connections that are gone leave it.

        Raises:
            DatabaseUnavailableError: the cache stays as it was.
        """
        ended: dict[str, CurrentToken] = {}
        while ids:
            found, moved = await self._read(ids)
            # Something else was learned while the database answered: the answer may be from before
            # that, or what was learned from before the answer. Only another look tells.
            again = [name for name in moved if name in found and self._is_other(found[name])]
            for name in set(ids).difference(again):
                if name not in found:
                    self._cache.drop(name)
                elif not self._is_ended(name, found[name]):
                    self._cache.put(found[name])
                elif found[name] == ended.get(name):
                    self._cache.drop(name)
                    self._cache.put(found[name])
                else:
                    ended[name] = found[name]
                    again.append(name)
            ids = again

    def _is_other(self, token: CurrentToken) -> bool:
        """Tell whether memory, with no older news, says something else of a connection."""
        known = self._cache.get(token.connection)
        if known is None:
            return True
        said = (known.generation, known.status, known.failure)
        return said != (token.generation, token.status, token.failure) and not known.outlasts(token)

    def _is_ended(self, name: str, token: CurrentToken) -> bool:
        """Tell whether a connection is said to be disconnected before what memory knows."""
        known = self._cache.get(name)
        is_older = known is not None and known.generation > token.generation
        return is_older and token.status is Status.DISCONNECTED

    async def reload_quietly(self, connection_id: str) -> None:
        """Reload one connection; where the database is away, memory stays as it is."""
        try:
            await self.reload([connection_id])
        except DatabaseUnavailableError:
            return

    async def forget(self, connection_id: str) -> None:
        """Take back what memory served of a reply that then was not stored."""
        try:
            found, moved = await self._read([connection_id])
        except DatabaseUnavailableError:
            return
        if moved:
            # Somebody else has told memory what is current.
            await self.reload_quietly(connection_id)
            return
        self._cache.drop(connection_id)
        for token in found.values():
            self._cache.put(token)

    async def _read(self, ids: Sequence[str]) -> tuple[dict[str, CurrentToken], list[str]]:
        """Return what is current, and whose entries changed while the database answered."""
        changes = {name: self._cache.changed(name) for name in ids}
        try:
            found = {token.connection: token for token in await self._tokens.current(ids)}
            return found, [name for name, change in changes.items() if change.done()]
        finally:
            for change in changes.values():
                change.cancel()
