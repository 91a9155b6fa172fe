"""One process under one owner's name: a copied state_dir must not act for its original.

Its hard idea: whether the other one lives is known to the server alone. So the name is a lock of a
session that is held for as long as the process lives, and the server asks every few seconds
whether its client is still there.
"""

from __future__ import annotations

import asyncio

from daemon.domain.clock import Clock
from daemon.domain.errors import DatabaseUnavailableError, StorageError
from daemon.persistence.dialing import TimelyConnection, hang_up, probe
from daemon.persistence.postgres import Database
from daemon.persistence.unavailable import LIBRARY_ERRORS

_LOCK = "SELECT pg_try_advisory_lock(20261123, hashtext($1))"
# With these a server finds out within 25 s that the machine of a session is gone; otherwise it
# would keep the name from the process that takes over its state_dir, for hours.
_SETTINGS = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
_PATIENCE = 45.0
_TRY_AGAIN = 1.0


class OwnerName:
    """The name under which this process's claims are taken."""

    def __init__(self, database: Database, owner: str, *, clock: Clock) -> None:
        self._database = database
        self._owner = owner
        self._clock = clock
        self._connection: TimelyConnection | None = None
        self._one_at_a_time = asyncio.Lock()

    async def held(self) -> None:
        """Return when this process has the name, waiting for the database as long as it takes.

        Raises:
            StorageError: another process has it, and keeps it.
        """
        async with self._one_at_a_time:
            give_up = self._clock.boottime() + _PATIENCE
            while not await self._is_taken():
                if self._clock.boottime() >= give_up:
                    raise StorageError(
                        "another tokenward runs under this one's name, so the state_dir is a copy "
                        "of its. Give this one an empty state_dir; or stop the other one, or "
                        "delete journal/owner in one of them"
                    )
                await self._clock.sleep(_TRY_AGAIN)

    async def run(self) -> None:
        """Keep the name until cancelled; raises as ``held`` where it is lost for good."""
        while True:
            await self.held()
            await self._clock.sleep(self._database.limits.probe_every)
            if self._connection is not None and not await self._answers(self._connection):
                self._connection.terminate()
                self._connection = None

    async def close(self) -> None:
        """Give the name up."""
        if self._connection is not None:
            await hang_up(self._connection)
            self._connection = None

    async def _is_taken(self) -> bool:
        """Take the name, on a connection that lives; ``False``: another process has it."""
        while self._connection is None or self._connection.is_closed():
            try:
                self._connection = await self._database.connect(**_SETTINGS)
            except DatabaseUnavailableError:
                await self._clock.sleep(_TRY_AGAIN)
            else:
                return await self._take(self._connection)
        return True

    async def _take(self, connection: TimelyConnection) -> bool:
        try:
            if await connection.fetchval(_LOCK, self._owner):
                return True
        except LIBRARY_ERRORS:
            connection.terminate()
        await hang_up(connection)
        self._connection = None
        return False

    async def _answers(self, connection: TimelyConnection) -> bool:
        try:
            await probe(connection, seconds=self._database.limits.probe)
        except LIBRARY_ERRORS:
            return False
        return True
