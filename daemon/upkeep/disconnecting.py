"""[disconnect] Ends a connection: here at once, at the provider as soon as it listens (R4).

The one hard idea: the order. First the tokens are gone from the database and from every memory,
then somebody tells the provider; nothing of that depends on the caller still being there.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeVar

from daemon.domain.clock import Clock
from daemon.domain.connection import Connection, Status
from daemon.domain.errors import DatabaseUnavailableError, Problem
from daemon.domain.events import Events
from daemon.domain.provider import Provider
from daemon.domain.revocation import Initiator, RevocationResult
from daemon.domain.tokens import CurrentToken
from daemon.persistence.life import Disconnected
from daemon.refresh.cache import TokenCache
from daemon.upkeep.revoking import Providers, Revoking

# A person waits for the answer; what takes longer goes on in the background.
_PATIENCE = 5.0
_WITHOUT_TOKENS = frozenset({Status.PENDING, Status.DISCONNECTED})

_T = TypeVar("_T")


class Spawn(Protocol):
    """Runs work that neither a caller's disconnect nor SIGTERM cuts short; its owner waits."""

    async def __call__(self, work: Coroutine[Any, Any, _T], /) -> _T:
        """Run ``work`` as a task of the owner; cancelling this call leaves the task alone."""


class Disconnects(Protocol):
    """The store: ``daemon.persistence.connections.PostgresConnections``."""

    async def disconnect(
        self,
        connection_id: str,
        *,
        initiator: Initiator,
        now: datetime,
        revoke: bool,
        purge: bool,
    ) -> Disconnected | None:
        """Erase a connection's tokens in one transaction; ``None`` where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DisconnectingParts:
    """What disconnecting works with. ``publish`` tells the other replicas; it never blocks."""

    store: Disconnects
    revoking: Revoking
    providers: Providers
    cache: TokenCache
    publish: Callable[[str], None]
    spawn: Spawn
    events: Events
    clock: Clock


def may_be_revoked(provider: Provider | None) -> bool:
    """Tell whether a provider's tokens are queued for revocation. Pure.

    Only one that certainly has no revocation endpoint is left out. What metadata say is asked
    later, when the tokens are erased; and a provider that was taken out of the configuration may
    come back.
    """
    if provider is None:
        return True
    return provider.endpoints.revocation is not None or provider.issuer is not None


class Disconnecting:
    """Ends connections."""

    def __init__(self, parts: DisconnectingParts) -> None:
        self._parts = parts

    async def disconnect(
        self, connection: Connection, *, initiator: Initiator, purge: bool
    ) -> tuple[Connection, RevocationResult]:
        """Erase a connection's tokens and revoke them; return it as it is (purged: was) now.

        Runs to its end also where this call is cancelled. Disconnecting again answers how the
        revocation stands.

        Raises:
            DatabaseUnavailableError: it may or may not have happened; ask again.
            Problem: 404, it was purged meanwhile.
        """
        work = self._disconnect(connection, initiator=initiator, purge=purge)
        return await self._parts.spawn(work)

    async def _disconnect(
        self, connection: Connection, *, initiator: Initiator, purge: bool
    ) -> tuple[Connection, RevocationResult]:
        parts = self._parts
        can_revoke = may_be_revoked(parts.providers.get(connection.provider))
        ended = await parts.store.disconnect(
            connection.id,
            initiator=initiator,
            now=parts.clock.now(),
            revoke=can_revoke,
            purge=purge,
        )
        if ended is None:
            raise Problem(
                404, "unknown_connection", "The connection was removed.", connection=connection.id
            )
        self._forget(ended.connection)
        if connection.status is not Status.DISCONNECTED:
            parts.events.connection_disconnected(
                connection.id, connection.provider, initiator=initiator, is_purged=purge
            )
        result = await self._revoke(connection, ended, can_revoke=can_revoke)
        if self._is_news(connection, ended, result):
            parts.events.revocation_ended(
                connection.id, connection.provider, initiator=initiator, result=result
            )
        if purge:
            parts.cache.drop(connection.id)
        return ended.connection, result

    async def _revoke(
        self, connection: Connection, ended: Disconnected, *, can_revoke: bool
    ) -> RevocationResult:
        if ended.queued:
            try:
                return await self._parts.revoking.revoke_now(connection.id, within=_PATIENCE)
            except DatabaseUnavailableError:
                return RevocationResult.QUEUED
            finally:
                self._parts.revoking.wake()
        # Tokens that could not be read were erased, and nobody can revoke them.
        had_tokens = connection.status not in _WITHOUT_TOKENS
        is_unsupported = had_tokens or not can_revoke
        return RevocationResult.UNSUPPORTED if is_unsupported else RevocationResult.REVOKED

    @staticmethod
    def _is_news(connection: Connection, ended: Disconnected, result: RevocationResult) -> bool:
        """Tell whether the result is to be counted here: what was sent is, where it was sent."""
        if connection.status in _WITHOUT_TOKENS:
            return False
        return result is RevocationResult.QUEUED or not ended.queued

    def _forget(self, connection: Connection) -> None:
        """Serve nothing of it any more, here at once and elsewhere soon.

        The entry stays as a disconnected one: an older answer of the database that is still on
        its way does not bring the token back.
        """
        known = self._parts.cache.get(connection.id)
        generation = max(connection.generation, known.generation if known else 0)
        self._parts.cache.put(
            CurrentToken(
                connection=connection.id,
                provider=connection.provider,
                status=Status.DISCONNECTED,
                generation=generation,
                access_token="",
                token_type="",
                scopes=(),
                issued_at=self._parts.clock.now(),
                expires_at=None,
                refreshable=False,
            )
        )
        self._parts.publish(connection.id)
