"""One process under one owner's name, on a real server."""

from __future__ import annotations

import asyncio

import pytest

from daemon.domain.clock import SystemClock
from daemon.domain.errors import StorageError
from daemon.persistence.owner_name import OwnerName
from daemon.persistence.postgres import Database
from tests.support.clock import FakeClock
from tests.support.polling import eventually

TERMINATE = """
SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND classid = 20261123
"""


async def test_a_copied_state_dir_is_refused(database: Database) -> None:
    """The second process under a name is told what to do; another name is nobody's business."""
    first = OwnerName(database, "one", clock=SystemClock())
    other = OwnerName(database, "two", clock=SystemClock())
    await first.held()
    await first.held()
    await other.held()
    clock = FakeClock()
    second = OwnerName(database, "one", clock=clock)
    waiting = asyncio.create_task(second.held())

    async def refused() -> bool:
        clock.advance(1)
        return waiting.done()

    await eventually(refused)
    with pytest.raises(StorageError, match="state_dir is a copy"):
        await waiting
    await first.close()
    await second.held()
    await second.close()
    await other.close()


async def test_a_lost_name_is_taken_again(database: Database) -> None:
    """After its connection was cut the process takes the name anew, before anybody else does."""
    clock = FakeClock()
    name = OwnerName(database, "one", clock=clock)
    keeping = asyncio.create_task(name.run())

    async def is_held() -> bool:
        clock.advance(20)
        return bool(
            await database.fetchval(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 20261123"
            )
        )

    await eventually(is_held)
    for _ in range(2):
        await database.fetch(TERMINATE)
        await eventually(is_held)
    keeping.cancel()
    await asyncio.wait([keeping])
    await name.close()
