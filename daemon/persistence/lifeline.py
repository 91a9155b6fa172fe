"""The connection pool, and what becomes of it when the database goes away or moves.

Its hard idea: a pool is thrown away whole at the first error that says its server is not the
primary any more, and a new one is made beside it. Between the two nobody waits long.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeAlias

import asyncpg
import structlog

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
from daemon.persistence.unavailable import LIBRARY_ERRORS, Severity, classify, unavailable

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
PooledConnection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
Prepare: TypeAlias = Callable[[DatabaseConnection], Awaitable[None]]

log = structlog.get_logger()

_CLOSED = "the database is closed"
# A pool that was lost sooner than this was no success: the backoff goes on where it was.
_STABLE_SECONDS = 5.0
_RETIRE_SECONDS = 5.0


class Lifeline:
    """One pool after another, with a task that makes the next; see ``Database``."""

    def __init__(
        self,
        dialer: Dialer,
        *,
        clock: Clock,
        entropy: Entropy,
        on_state: Callable[[bool], None],
        prepare: Prepare | None,
        size: int,
    ) -> None:
        self._dialer = dialer
        self._limits = dialer.limits
        self._clock = clock
        self._entropy = entropy
        self._on_state = on_state
        self._prepare = prepare
        self._size = size
        self._pool: Pool | None = None
        self._reason = "the database is not started"
        self._reported: bool | None = None
        self._told: str | None = None
        self._lost = asyncio.Event()
        self._up = asyncio.Event()
        # Clear only from a loss to the end of the first try after it.
        self._settled = asyncio.Event()
        self._settled.set()
        self._supervisor: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def connected(self) -> bool:
        """Tell whether there is a pool."""
        return self._pool is not None

    @property
    def reason(self) -> str | None:
        """Return why there is none."""
        return None if self.connected else self._reason

    async def start(self) -> bool:
        """Try to connect once, start the task, and tell whether it is connected."""
        connected = await self._try_connect()
        self._supervisor = asyncio.create_task(self._supervise(), name="database")
        return connected

    async def wait_connected(self) -> None:
        """Return as soon as it is connected."""
        await self._up.wait()

    async def wait_closed(self) -> None:
        """Return after ``close``; raise what ended the task, if anything did."""
        await ended(self._supervisor)

    async def close(self) -> None:
        """Give up all connections: those in use get 5 s to finish."""
        await stop(self._supervisor)
        # That is no news.
        self._told = _CLOSED
        if self._pool is not None:
            self._discard(self._pool, _CLOSED)
        self._settled.set()
        await asyncio.gather(*self._retiring)

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[PooledConnection]:
        """Lend a connection, and learn from the errors that come by."""
        pool, connection = await self._borrow()
        with self._learning(pool):
            try:
                yield connection
            finally:
                await pool.release(connection, timeout=self._limits.acquire)

    @contextmanager
    def _learning(self, pool: Pool) -> Iterator[None]:
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

    async def _borrow(self) -> tuple[Pool, PooledConnection]:
        try:
            async with asyncio.timeout(self._limits.acquire):
                while True:
                    pool = await self._current()
                    with self._learning(pool):
                        borrowed = await _take(pool)
                    if borrowed is not None:
                        return pool, borrowed
        except TimeoutError as error:
            raise DatabaseUnavailableError(
                self.reason
                or f"the database cannot be used right now: no connection was free for "
                f"{self._limits.acquire:.0f} s"
            ) from error

    async def _current(self) -> Pool:
        if self._pool is None:
            await self._settled.wait()
        if self._pool is None:
            raise DatabaseUnavailableError(self._reason)
        return self._pool

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
        self._tell()

    def _tell(self) -> None:
        """Log each new reason once, not each try, and that it is over."""
        if self.reason == self._told:
            return
        self._told = self.reason
        if self.reason is None:
            log.info("database_available")
        else:
            log.warning("database_unavailable", reason=self.reason)

    async def _supervise(self) -> None:
        failures = 0 if self.connected else 1
        while True:
            if self.connected:
                since = self._clock.boottime()
                await self._watch()
                stable = self._clock.boottime() - since >= _STABLE_SECONDS
                failures = 0 if stable else failures + 1
            if failures:
                await self._clock.sleep(backoff(failures - 1, self._entropy))
            if not await self._try_connect():
                failures += 1

    async def _watch(self) -> None:
        """Return when the pool is lost."""
        pool = self._pool
        while not await pause(self._clock, self._limits.probe_every, self._lost):
            try:
                async with self.lend() as connection:
                    await probe(connection, seconds=self._limits.probe)
            except DatabaseUnavailableError as error:
                # That none was free is a loss only where there is none at all.
                if pool is not None and pool.get_size() == 0:
                    self._discard(pool, str(error))

    async def _try_connect(self) -> bool:
        try:
            pool = await self._establish()
        except DatabaseUnavailableError as error:
            self._reason = str(error)
        except StorageError as error:
            # It ends the daemon, which says so itself.
            self._reason = self._told = str(error)
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
                connect=self._dial,
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

    async def _dial(self, *_: object, **__: object) -> TimelyConnection:
        return await self._dialer.dial()


async def _take(pool: Pool) -> PooledConnection | None:
    """Return a connection, or ``None`` where ``pool`` was retired meanwhile: nothing was sent."""
    try:
        return await pool.acquire()
    except asyncpg.InterfaceError:
        if pool.is_closing():
            return None
        raise


async def _keep_session(_: object) -> None:
    """Stand in for asyncpg's reset statement. An open transaction is rolled back before it."""


async def _retire(pool: Pool) -> None:
    try:
        async with asyncio.timeout(_RETIRE_SECONDS):
            await pool.close()
    except LIBRARY_ERRORS:
        pool.terminate()
