"""A real PostgreSQL for tests: one cluster per test process, one fresh database per test."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import asyncpg

from daemon.domain.clock import SystemClock, system_entropy
from daemon.persistence.embedded.cluster import ROLE, SUPERUSER
from daemon.persistence.embedded.server import EmbeddedPostgres, Options

T = TypeVar("T")

# A test's data need not survive a power cut; many pools are open in one test.
QUICK = Options(durable=False, settings={"max_connections": "200", "autovacuum": "off"})


class Cluster:
    """A running server and its databases. All methods block, within or without an event loop."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self.server = server
        self._numbers = count(1)

    def url(self, database: str = "tokenward") -> str:
        """Return the URL of a database, as the role that the daemon uses."""
        return self.server.url(database)

    def create_database(self, template: str | None = None, *, name: str | None = None) -> str:
        """Create a database, empty or a copy of ``template``, and return its URL.

        Nobody may be connected to the template.
        """
        name = name or f"test_{next(self._numbers)}"
        # A template is some megabytes: copying its files beats writing every page to the log.
        self.execute(
            f'CREATE DATABASE "{name}" OWNER {ROLE} TEMPLATE "{template or "template0"}" '
            "STRATEGY file_copy"
        )
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop the database that ``create_database`` has returned, whoever is connected to it."""
        name = urlsplit(url).path.lstrip("/")
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def execute(self, statement: str, *, database: str = "postgres") -> None:
        """Run a statement as superuser, outside a transaction."""
        url = self.server.url(database, role=SUPERUSER)
        # In a thread of its own: the caller may be inside a running event loop.
        with ThreadPoolExecutor(max_workers=1) as thread:
            thread.submit(asyncio.run, _execute(url, statement)).result()


@contextmanager
def running_cluster(
    directory: Path, *, options: Options = QUICK, keep: bool = False
) -> Iterator[Cluster]:
    """Run a cluster under ``directory``, which is removed afterwards. Main thread only."""
    server = EmbeddedPostgres(
        directory, entropy=system_entropy, clock=SystemClock(), options=options
    )
    try:
        _complete(server.start())
        yield Cluster(server)
    finally:
        _complete(server.stop())
        if not keep:
            shutil.rmtree(directory)


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _complete(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a passing event loop that does not become anybody's current one."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()
