"""The database as the stores see it: statements and transactions that work or are unavailable.

How connections are made, lost and made again is in ``lifeline``; here is what may be asked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import asyncpg
from pydantic import SecretStr

from daemon.domain.clock import Clock, Entropy
from daemon.domain.errors import DatabaseUnavailableError
from daemon.persistence.background import backoff
from daemon.persistence.dialing import DatabaseConnection, Dialer, Limits, TimelyConnection
from daemon.persistence.lifeline import Lifeline, Prepare
from daemon.persistence.unavailable import is_conflict

__all__ = ["Database", "DatabaseConnection"]

T = TypeVar("T")

_LIMITS = Limits()
_CONFLICT_TRIES = 5


class Database:
    """A PostgreSQL primary, through a pool that survives its restarts and failovers.

    Every use raises ``DatabaseUnavailableError`` where the database cannot be used now: what
    was asked may or may not have happened. A statement fails within about 5 s when the server
    is gone and within 12 s when it hangs; while the database is known to be away every use
    fails at once. Errors that repeating does not change (a violated constraint) stay asyncpg's.

    A pooled connection is handed on without a reset (it would cost a round trip each time): no
    session state on it, such as ``SET``, ``LISTEN`` or session-level advisory locks.

    ``prepare`` runs on a connection of its own, before every (re)connect counts as done:
    migrations and keys are checked there, and a ``StorageError`` other than
    ``DatabaseUnavailableError`` from it is final. ``on_state`` hears each change of
    ``connected``, and the first finding.
    """

    def __init__(
        self,
        url: SecretStr | str,
        *,
        clock: Clock,
        entropy: Entropy,
        on_state: Callable[[bool], None] = lambda _: None,
        prepare: Prepare | None = None,
        size: int = 10,
        limits: Limits = _LIMITS,
    ) -> None:
        self.limits = limits
        self._clock = clock
        self._entropy = entropy
        self._dialer = Dialer(url, limits)
        self._lifeline = Lifeline(
            self._dialer,
            clock=clock,
            entropy=entropy,
            on_state=on_state,
            prepare=prepare,
            size=size,
        )

    @property
    def connected(self) -> bool:
        """Tell whether statements can be sent now, as far as is known."""
        return self._lifeline.connected

    @property
    def reason(self) -> str | None:
        """Return why it is not connected, in words safe to show; ``None`` while it is."""
        return self._lifeline.reason

    async def start(self) -> bool:
        """Try to connect once, keep trying in the background, and tell whether it is connected.

        Raises ``StorageError`` where trying again is pointless (URL, schema, keys).
        """
        return await self._lifeline.start()

    async def wait_connected(self) -> None:
        """Return as soon as the database is connected."""
        await self._lifeline.wait_connected()

    async def wait_closed(self) -> None:
        """Return after ``close``; raise what ended the background work, if anything did.

        For the task group that owns the daemon's background: a dead supervisor ends it.
        """
        await self._lifeline.wait_closed()

    async def close(self) -> None:
        """Give up all connections: those in use get 5 s to finish."""
        await self._lifeline.close()

    async def connect(self, **settings: str) -> TimelyConnection:
        """Open a connection outside the pool (``hang_up`` closes it), e.g. for LISTEN.

        ``settings`` are server settings of its session.
        """
        return await self._dialer.connect(**settings)

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[DatabaseConnection]:
        """Lend a connection; each statement on it is a transaction of its own.

        Only database work belongs inside: an ``OSError`` in there counts as the database's.
        """
        async with self._lifeline.lend() as connection:
            yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[DatabaseConnection]:
        """Lend a connection within one transaction: left normally commits, by an error undoes."""
        async with self._lifeline.lend() as connection, connection.transaction():
            yield connection

    async def idempotent(self, work: Callable[[DatabaseConnection], Awaitable[T]]) -> T:
        """Run ``work`` in a transaction, again where it collides with another one.

        At most 5 times, and only after serialization failures and deadlocks, which the server
        has rolled back. ``work`` must bear repeating: a compare-and-set, an upsert.
        """
        tries = 0
        while True:
            tries += 1
            try:
                async with self.transaction() as session:
                    return await work(session)
            except DatabaseUnavailableError as error:
                if tries == _CONFLICT_TRIES or not is_conflict(error):
                    raise
            await self._clock.sleep(backoff(tries, self._entropy, first=0.005, cap=0.1))

    async def fetch(self, query: str, *args: object) -> list[asyncpg.Record]:
        """Return all rows of one statement."""
        async with self.acquire() as session:
            return await session.fetch(query, *args)

    async def fetchrow(self, query: str, *args: object) -> asyncpg.Record | None:
        """Return the first row of one statement."""
        async with self.acquire() as session:
            return await session.fetchrow(query, *args)

    async def fetchval(self, query: str, *args: object) -> Any:
        """Return the first column of the first row of one statement."""
        async with self.acquire() as session:
            return await session.fetchval(query, *args)

    async def execute(self, query: str, *args: object) -> str:
        """Run one statement and return its command tag, e.g. ``UPDATE 1``."""
        async with self.acquire() as session:
            return await session.execute(query, *args)

    async def executemany(self, query: str, rows: Iterable[Sequence[object]]) -> None:
        """Run one statement for each row of arguments, all or none."""
        async with self.acquire() as session:
            await session.executemany(query, rows)
