"""A daemon whose database can be spoiled one request at a time, and ways to ask it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

import asyncpg
from aiohttp import ClientError

from tests.campaigns.fleet import KEYS
from tests.support.polling import eventually
from tests.support.postgres import Cluster
from tests.support.strict_server import Grant, StrictServer
from tests.support.tokenward import Reply, Tokenward
from tests.support.wire import FaultyWire

# What the daemon needs to be well again: its longest pause between two tries is 5 s.
WELL_WITHIN = 15.0
# With a journal to store and a fault to get over, on a machine that does other things, too.
STARTED_WITHIN = 60.0
NAMES = count(1)


class Stage:
    """A daemon, its database behind a fault proxy, and its authorization server."""

    def __init__(self, directory: Path, cluster: Cluster, database_url: str | None = None) -> None:
        self._directory = directory
        self.server = StrictServer()
        self.database_url = database_url or cluster.create_database()
        self.wire = FaultyWire(self.database_url)
        self.daemon = Tokenward(directory)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.server)
        await self._stack.enter_async_context(self.wire)
        self._stack.push_async_callback(self.daemon.close)
        self.daemon.settings |= {
            "database": {"url": self.wire.url},
            "encryption": {"keys": KEYS},
            "refresh": {"request_timeout": "2s"},
            "providers": {"acme": self.server.provider()},
        }
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def query(self, statement: str, *values: object) -> list[asyncpg.Record]:
        """Ask the database itself, past the proxy."""
        connection = await asyncpg.connect(self.database_url)
        try:
            return list(await connection.fetch(statement, *values))
        finally:
            await connection.close()

    async def imported(self) -> tuple[str, Grant]:
        """Return a connection that is warm and good for long, and its grant."""
        name, grant = f"swept-{next(NAMES)}", self.server.grant()
        tokens = {
            "refresh_token": grant.refresh_token,
            "access_token": grant.access_token,
            "expires_at": "2030-01-01T00:00:00Z",
        }

        async def made() -> bool:
            body = {"provider": "acme", "id": name, "tokens": tokens}
            reply = await self.daemon.request("POST", "/v1/connections", json=body)
            return reply.status in {201, 409}

        await eventually(made, within=WELL_WITHIN, what="an import")

        async def read() -> bool:
            return (await self.daemon.token(name)).status == 200

        await eventually(read, within=WELL_WITHIN, what="the imported token")
        return name, grant


def serves(daemon: Tokenward, name: str, grant: Grant) -> Callable[[], Awaitable[bool]]:
    """Return a look at whether a daemon serves the newest token of a grant."""

    async def look() -> bool:
        reply = await daemon.token(name)
        return bool(reply.status == 200 and reply.body["access_token"] == grant.access_token)

    return look


def path_of(name: str) -> str:
    """Return the path of a connection at the api listener."""
    return f"/v1/connections/{name}"


async def answer(
    daemon: Tokenward,
    method: str,
    path: str,
    statuses: list[int] | None = None,
    *,
    json: object = None,
) -> Reply | None:
    """Ask; note the status, 0 and ``None`` where no answer came."""
    try:
        reply = await daemon.request(method, path, json=json)
    except (TimeoutError, ClientError, OSError):
        reply = None
    if statuses is not None:
        statuses.append(0 if reply is None else reply.status)
    return reply
