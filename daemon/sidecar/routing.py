"""What every route of the api listener shares: who asks, which connection, how JSON is answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import orjson
from aiohttp import hdrs, web

from daemon.config.settings import Permission, Settings
from daemon.domain.connection import Connection
from daemon.domain.errors import DatabaseUnavailableError, Problem
from daemon.domain.provider import Provider
from daemon.sidecar.access import Identity, unknown_connection
from daemon.sidecar.guard import connection_id_from

IDENTITY = web.RequestKey("identity", Identity)
"""Under which a request holds who sends it; set before any handler that does not judge itself."""

Survivor = Callable[[str], Awaitable[str | None]]
"""Where a connection went that gave way to another one with the same account."""


class Connections(Protocol):
    """What finding a connection needs of the store."""

    async def get(self, connection_id: str) -> Connection | None:
        """Return one connection."""

    async def survivor_of(self, connection_id: str) -> str | None:
        """Return the id of the connection that this one was merged into."""


def require(
    request: web.Request, permission: Permission, connection_id: str | None = None
) -> Identity:
    """Return who asks, where that caller may do so; raises as ``Identity.require``."""
    identity = request[IDENTITY]
    identity.require(permission, connection_id)
    return identity


class Finder:
    """Finds what a request names: its connection and the connection's provider."""

    def __init__(self, *, connections: Connections, settings: Callable[[], Settings]) -> None:
        self._connections = connections
        self._settings = settings

    async def connection(self, request: web.Request, permission: Permission) -> Connection:
        """Return the connection in the path, for a caller with ``permission`` for it.

        Raises:
            Problem: 403, or 404 with ``merged_into`` where it gave way to one that the caller
                may see.
        """
        connection_id = connection_id_from(request.match_info["id"])
        identity = require(request, permission, connection_id)
        connection = await self._connections.get(connection_id)
        if connection is None:
            raise await gone(connection_id, identity, self._connections.survivor_of)
        return connection

    def provider_of(self, connection: Connection) -> Provider:
        """Return the connection's provider.

        Raises:
            Problem: 409 ``provider_not_configured``.
        """
        provider = self._settings().providers.get(connection.provider)
        if provider is None:
            raise Problem(
                409,
                "provider_not_configured",
                f"The provider {connection.provider} is not in the configuration any more. "
                "Configure it again and reload.",
                connection=connection.id,
            )
        return provider


async def gone(connection_id: str, identity: Identity, survivor_of: Survivor) -> Problem:
    """Return the 404 of a connection that is not there, with where it went if the caller may know.

    While the database is away nobody can tell, and the answer is as if it never was.
    """
    try:
        survivor = await survivor_of(connection_id)
    except DatabaseUnavailableError:
        survivor = None
    if survivor is None or not identity.may_see(survivor):
        return unknown_connection(connection_id)
    return unknown_connection(connection_id, merged_into=survivor)


def refuse_parameters(request: web.Request, known: frozenset[str] = frozenset()) -> None:
    """Return where the query holds nothing but ``known`` parameters, each once.

    Raises:
        Problem: 400 ``bad_request``.
    """
    if set(request.query) <= known and len(set(request.query)) == len(request.query):
        return
    what = f"only {', '.join(sorted(known))}, each once" if known else "no parameters"
    raise Problem(400, "bad_request", f"The query of this route takes {what}. Remove the others.")


def json_response(
    body: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return a JSON answer that no cache keeps."""
    return web.Response(
        body=orjson.dumps(body),
        status=status,
        headers={**(headers or {}), hdrs.CACHE_CONTROL: "no-store"},
        content_type="application/json",
    )
