"""Fixtures for stores on a real, migrated PostgreSQL; a pytest plugin (``pytest_plugins``)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from daemon.config.settings import EncryptionKey
from daemon.domain.clock import SystemClock, system_entropy
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.dialing import DatabaseConnection, hang_up
from daemon.persistence.migrations import bundled, migrate
from daemon.persistence.postgres import Database
from tests.support.postgres import Cluster

KEY = EncryptionKey(id="test", secret=b"k" * 32)
_TEMPLATE = "tokenward_template"


def open_database(url: str, *, size: int = 5) -> Database:
    """Return a database that is not started yet."""
    return Database(url, clock=SystemClock(), entropy=system_entropy, size=size)


@pytest.fixture(scope="session")
def migrated_template(postgres_cluster: Cluster) -> str:
    """The name of a database with the newest schema that nobody is connected to."""
    url = postgres_cluster.create_database(name=_TEMPLATE)
    # In a thread of its own, as the cluster does: a test's event loop may be running.
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(asyncio.run, _migrated(url)).result()
    return _TEMPLATE


@pytest.fixture
def migrated_url(postgres_cluster: Cluster, migrated_template: str) -> Iterator[str]:
    """The URL of a migrated database that only this test uses."""
    url = postgres_cluster.create_database(migrated_template)
    yield url
    postgres_cluster.drop_database(url)


@pytest.fixture
async def database(migrated_url: str) -> AsyncIterator[Database]:
    """A started ``Database`` on a migrated database that only this test uses."""
    database = open_database(migrated_url)
    assert await database.start()
    yield database
    await database.close()


@pytest.fixture
def cipher() -> TokenCipher:
    """A cipher with one key."""
    return TokenCipher((KEY,), entropy=system_entropy)


async def _migrated(url: str) -> None:
    database = open_database(url)
    connection: DatabaseConnection = await database.connect()
    try:
        await migrate(connection, bundled(), clock=SystemClock())
    finally:
        await hang_up(connection)
