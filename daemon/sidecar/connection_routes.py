"""[manage] Connections over HTTP: listed, shown, changed, tested, reconnected, ended (contract 4).

Each handler finds the connection, lets somebody else do the work, and answers with the outcome.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from aiohttp import web

from daemon.config.settings import Permission, Settings
from daemon.domain.claimable import Wanted
from daemon.domain.clock import Clock
from daemon.domain.connection import Connection, Failure
from daemon.domain.errors import Problem
from daemon.domain.revocation import Initiator
from daemon.oauth.authorization import Authorizer
from daemon.persistence.connections import Filter, PostgresConnections
from daemon.persistence.life import Change
from daemon.refresh.reading import TokenReader
from daemon.sidecar.access import unknown_connection
from daemon.sidecar.bodies import MERGE_PATCH, read_json
from daemon.sidecar.connection_body import connection_body, rfc3339
from daemon.sidecar.connection_requests import read_change_request, read_return_url
from daemon.sidecar.creation import connect_url
from daemon.sidecar.listing import cursor_after, read_listing
from daemon.sidecar.ports import Disconnects, Report, Tests
from daemon.sidecar.routing import IDENTITY, Finder, json_response, refuse_parameters, require


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionParts:
    """What these routes work with.

    ``changed`` tells every replica that a connection changed. ``used_lately`` says of a connection
    that it was used since uses were last written down.
    """

    settings: Callable[[], Settings]
    connections: PostgresConnections
    finder: Finder
    reader: TokenReader
    authorizer: Authorizer
    tests: Tests
    disconnecting: Disconnects
    changed: Callable[[str], None]
    used_lately: Callable[[str], bool]
    clock: Clock


class ConnectionRoutes:
    """The handlers."""

    def __init__(self, parts: ConnectionParts) -> None:
        self._parts = parts

    async def list(self, request: web.Request) -> web.Response:
        """``GET /v1/connections``."""
        identity = require(request, Permission.READ)
        wanted = read_listing(request.query)
        page = await self._parts.connections.page(
            Filter(
                provider=wanted.provider,
                status=wanted.status,
                text=wanted.text,
                metadata=wanted.metadata,
                patterns=identity.patterns,
            ),
            limit=wanted.limit + 1,
            before=wanted.before,
        )
        shown, more = page[: wanted.limit], len(page) > wanted.limit
        return json_response(
            {
                "connections": [self._body(connection) for connection in shown],
                "next_cursor": cursor_after(shown[-1]) if more else None,
            }
        )

    async def show(self, request: web.Request) -> web.Response:
        """``GET /v1/connections/{id}``."""
        connection = await self._parts.finder.connection(request, Permission.READ)
        return json_response(self._body(connection))

    async def change(self, request: web.Request) -> web.Response:
        """``PATCH /v1/connections/{id}``, a merge patch (RFC 7396)."""
        connection = await self._parts.finder.connection(request, Permission.MANAGE)
        provider = self._parts.settings().providers.get(connection.provider)
        body = await read_json(request, content_type=MERGE_PATCH)

        def changing(current: Connection) -> Change:
            return read_change_request(body, current, provider=provider)

        changed = await self._parts.connections.update(
            connection.id, changing, now=self._parts.clock.now()
        )
        if changed is None:
            raise unknown_connection(connection.id)
        self._parts.changed(connection.id)
        return json_response(connection_body(changed))

    async def authorize(self, request: web.Request) -> web.Response:
        """``POST /v1/connections/{id}/authorize``: from every state, with all that is stored."""
        connection = await self._parts.finder.connection(request, Permission.MANAGE)
        self._parts.finder.provider_of(connection)
        body = await read_json(request) if request.body_exists else {}
        return_url = read_return_url(
            body, default=connection.return_url, return_urls=self._parts.settings().return_urls
        )
        return json_response(
            await connect_url(
                self._parts.authorizer, connection, request[IDENTITY], return_url=return_url
            )
        )

    async def refresh(self, request: web.Request) -> web.Response:
        """``POST /v1/connections/{id}/refresh``."""
        connection = await self._parts.finder.connection(request, Permission.MANAGE)
        provider = self._parts.finder.provider_of(connection)
        await self._parts.reader.refresh_now(
            Wanted(
                connection_id=connection.id,
                provider=provider.name,
                generation=connection.generation,
                rate=provider.rate,
                forced=True,
            )
        )
        after = await self._parts.connections.get(connection.id)
        return json_response(connection_body(after or connection))

    async def test(self, request: web.Request) -> web.Response:
        """``POST /v1/connections/{id}/test``."""
        connection = await self._parts.finder.connection(request, Permission.MANAGE)
        self._parts.finder.provider_of(connection)
        return json_response(report_body(await self._parts.tests.test(connection)))

    async def disconnect(self, request: web.Request) -> web.Response:
        """``DELETE /v1/connections/{id}``; ``purge=true`` leaves nothing behind."""
        connection = await self._parts.finder.connection(request, Permission.MANAGE)
        purge = _purge(request)
        after, revocation = await self._parts.disconnecting.disconnect(
            connection, initiator=Initiator.CALLER, purge=purge
        )
        return json_response({"connection": connection_body(after), "revocation": revocation.value})

    def _body(self, connection: Connection) -> dict[str, Any]:
        """Return a connection as it is now, with a use that is not written down yet."""
        if self._parts.used_lately(connection.id):
            connection = replace(connection, last_used_at=self._parts.clock.now())
        return connection_body(connection)


def report_body(report: Report) -> dict[str, Any]:
    """Return how a test went, as contract 4 shows it."""
    return {
        "ok": report.ok,
        "status": report.status,
        "account_id": report.account_id,
        "label": report.label,
        "checked_at": rfc3339(report.checked_at),
        "error": failure_body(report.error),
    }


def failure_body(failure: Failure | None) -> dict[str, Any] | None:
    """Return what went wrong, or ``None``."""
    if failure is None:
        return None
    return {
        "code": failure.code,
        "description": failure.description,
        "at": rfc3339(failure.at),
    }


def _purge(request: web.Request) -> bool:
    refuse_parameters(request, frozenset({"purge"}))
    match request.query.get("purge"):
        case None | "false":
            return False
        case "true":
            return True
        case _:
            raise Problem(400, "bad_request", "purge takes true or false.")
