"""The connection pool, and what becomes of it when the database goes away or moves.

Its hard idea: a pool is thrown away whole at the first error that says its server is not the
primary any more, and a new one is made beside it. Between the two callers are told at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeAlias, TypeVar

import asyncpg
from pydantic import SecretStr

from daemon.domain.clock import Clock, Entropy
from daemon.domain.errors import DatabaseUnavailableError, StorageError
from daemon.persistence.background import backoff, ended, pause, stop
from daemon.persistence.dialing import (
    DatabaseConnection,
    Dialer,
    TimelyConnection,
    hang_up,
    probe,
)
from daemon.persistence.unavailable import (
    LIBRARY_ERRORS,
    Severity,
    classify,
    is_conflict,
    unavailable,
)

__all__ = ["Database", "DatabaseConnection"]

T = TypeVar("T")
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

# How long a caller waits for a free connection, or for the end of a reconnect under way.
_ACQUIRE_SECONDS = 5.0
_PROBE_SECONDS = 5.0
# Between statements of others; finds a server that hangs, or turned read-only, without traffic.
_PROBE_EVERY = 10.0
# A pool that was lost sooner than this was no success: the backoff goes on where it was.
_STABLE_SECONDS = 5.0
_RETIRE_SECONDS = 5.0
_CONFLICT_TRIES = 5


class Database:
    """The pool and its fate.

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
        prepare: Callable[[DatabaseConnection], Awaitable[None]] | None = None,
        size: int = 10,
    ) -> None:
        self._dialer = Dialer(url)
        self._clock = clock
        self._entropy = entropy
        self._on_state = on_state
        self._prepare = prepare
        self._size = size
        self._pool: Pool | None = None
        self._reason = "the database is not started"
        self._reported: bool | None = None
        self._lost = asyncio.Event()
        self._up = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()
        self._supervisor: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def connected(self) -> bool:
        """Tell whether statements can be sent now, as far as is known."""
        return self._pool is not None

    @property
    def reason(self) -> str | None:
        """Return why it is not connected, in words safe to show; ``None`` while it is."""
        return None if self.connected else self._reason

    async def start(self) -> bool:
        """Try to connect once, keep trying in the background, and tell whether it is connected.

        Raises ``StorageError`` where trying again is pointless (URL, schema, keys).
        """
        connected = await self._try_connect()
        self._supervisor = asyncio.create_task(self._supervise(), name="database")
        return connected

    async def wait_connected(self) -> None:
        """Return as soon as the database is connected."""
        await self._up.wait()

    async def wait_closed(self) -> None:
        """Return after ``close``; raise what ended the background work, if anything did.

        For the task group that owns the daemon's background: a dead supervisor ends it.
        """
        await ended(self._supervisor)

    async def close(self) -> None:
        """Give up all connections: those in use get 5 s to finish."""
        await stop(self._supervisor)
        if self._pool is not None:
            self._discard(self._pool, "the database is closed")
        self._settled.set()
        await asyncio.gather(*self._retiring)

    async def connect(self, **settings: str) -> TimelyConnection:
        """Open a connection outside the pool (``hang_up`` closes it), e.g. for LISTEN."""
        return await self._dialer.connect(**settings)

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[DatabaseConnection]:
        """Lend a connection; each statement on it is a transaction of its own.

        Only database work belongs inside: an ``OSError`` in there counts as the database's.
        """
        if self._pool is None:
            await self._wait_settled()
        pool = self._pool
        if pool is None:
            raise DatabaseUnavailableError(self._reason)
        with self._translated(pool):
            connection = await _borrow(pool)
            try:
                yield connection
            finally:
                await pool.release(connection)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[DatabaseConnection]:
        """Lend a connection within one transaction: left normally commits, by an error undoes."""
        async with self.acquire() as connection, connection.transaction():
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

    @contextmanager
    def _translated(self, pool: Pool) -> Iterator[None]:
        try:
            yield
        except LIBRARY_ERRORS as error:
            severity = classify(error)
            if severity is None:
                raise
            problem = unavailable(error)
            if severity is Severity.LOST:
                self._discard(pool, str(problem))
            raise problem from error

    async def _wait_settled(self) -> None:
        try:
            async with asyncio.timeout(_ACQUIRE_SECONDS):
                await self._settled.wait()
        except TimeoutError:
            return

    def _discard(self, pool: Pool, reason: str) -> None:
        # An error on a connection of an older pool says nothing about the one in use.
        if pool is not self._pool:
            return
        self._pool = None
        self._reason = reason
        self._settled.clear()
        self._lost.set()
        self._report()
        task = asyncio.create_task(_retire(pool), name="retire database pool")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _report(self) -> None:
        if self.connected:
            self._up.set()
        else:
            self._up.clear()
        if self._reported is not self.connected:
            self._reported = self.connected
            self._on_state(self.connected)

    async def _supervise(self) -> None:
        failures = 0 if self.connected else 1
        while True:
            if self.connected:
                since = self._clock.boottime()
                await self._watch()
                stable = self._clock.boottime() - since >= _STABLE_SECONDS
                failures = 0 if stable else failures + 1
            if failures:
                # Nobody should wait for a try that is not even under way.
                self._settled.set()
                await self._clock.sleep(backoff(failures - 1, self._entropy))
            if not await self._try_connect():
                failures += 1

    async def _watch(self) -> None:
        """Return when the pool is lost."""
        while not await pause(self._clock, _PROBE_EVERY, self._lost):
            pool = self._pool
            if pool is None:
                return
            try:
                async with self.acquire() as connection:
                    await self._probe(pool, connection)
            except DatabaseUnavailableError as error:
                # No connection was free: that is a loss only where there is none at all.
                if pool.get_size() == 0:
                    self._discard(pool, str(error))

    async def _probe(self, pool: Pool, connection: DatabaseConnection) -> None:
        try:
            await probe(connection, seconds=_PROBE_SECONDS)
        except DatabaseUnavailableError as error:
            self._discard(pool, str(error))
            raise

    async def _try_connect(self) -> bool:
        try:
            pool = await self._establish()
        except DatabaseUnavailableError as error:
            self._reason = str(error)
        except StorageError as error:
            self._reason = str(error)
            self._settled.set()
            self._report()
            raise
        else:
            self._lost.clear()
            self._pool = pool
        self._settled.set()
        self._report()
        return self.connected

    async def _establish(self) -> Pool:
        try:
            if self._prepare is not None:
                connection = await self._dialer.dial()
                try:
                    await self._prepare(connection)
                finally:
                    await hang_up(connection)
            return await asyncpg.create_pool(
                connect=self._dial_for_pool,
                connection_class=TimelyConnection,
                reset=_keep_session,
                init_size=1,
                min_size=0,
                max_size=self._size,
            )
        except LIBRARY_ERRORS as error:
            # A mistake in ``prepare`` is not the database's absence, whatever its class.
            if classify(error) is None:
                raise
            raise unavailable(error) from error

    async def _dial_for_pool(self, *_: object, **__: object) -> TimelyConnection:
        return await self._dialer.dial()


async def _borrow(pool: Pool) -> asyncpg.pool.PoolConnectionProxy[asyncpg.Record]:
    try:
        return await pool.acquire(timeout=_ACQUIRE_SECONDS)
    except TimeoutError as error:
        raise DatabaseUnavailableError(
            f"the database cannot be used right now: no connection was free for "
            f"{_ACQUIRE_SECONDS:.0f} s"
        ) from error


async def _keep_session(_: object) -> None:
    """Stand in for asyncpg's reset statement. An open transaction is rolled back before it."""


async def _retire(pool: Pool) -> None:
    try:
        async with asyncio.timeout(_RETIRE_SECONDS):
            await pool.close()
    except LIBRARY_ERRORS:
        pool.terminate()
