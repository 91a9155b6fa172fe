"""[authorize] ``POST /v1/connections``: a connection that waits for a person, or brings tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from aiohttp import hdrs, web

from daemon.config.settings import Permission, Settings
from daemon.domain.clock import Clock, Entropy
from daemon.domain.connection import Connection, Status, new_connection_id
from daemon.domain.errors import Problem
from daemon.domain.events import Events
from daemon.domain.provider import Provider
from daemon.domain.tokens import TokenSet
from daemon.oauth.authorization import Authorizer
from daemon.persistence.connections import PostgresConnections
from daemon.sidecar.access import Identity
from daemon.sidecar.bodies import read_json
from daemon.sidecar.connection_body import connection_body, rfc3339
from daemon.sidecar.connection_requests import CreateRequest, read_create_request
from daemon.sidecar.routing import json_response, require

# An imported connection is examined at once; should the process end first, another one sees to it.
_EXAMINED_BY = timedelta(minutes=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class CreationParts:
    """What creating needs.

    ``plan`` tells when tokens are refreshed, ``expect`` the scheduler that some are due in so
    many seconds. ``examine`` sends the provider's test request in the background, to learn
    whose account was imported; it never blocks and never raises.
    """

    settings: Callable[[], Settings]
    connections: PostgresConnections
    authorizer: Authorizer
    events: Events
    clock: Clock
    entropy: Entropy
    plan: Callable[[TokenSet, str], datetime | None]
    expect: Callable[[float], None]
    examine: Callable[[Connection], None]


class Creation:
    """Creates connections."""

    def __init__(self, parts: CreationParts) -> None:
        self._parts = parts

    async def create(self, request: web.Request) -> web.Response:
        """``POST /v1/connections``."""
        identity = require(request, Permission.MANAGE)
        settings = self._parts.settings()
        wanted = read_create_request(
            await read_json(request), providers=settings.providers, return_urls=settings.return_urls
        )
        connection, url = await self.make(identity, wanted)
        body = connection_body(connection)
        if url is not None:
            body["connect_url"] = url
        location = f"/v1/connections/{connection.id}"
        return json_response(body, status=201, headers={hdrs.LOCATION: location})

    async def make(
        self, identity: Identity, wanted: CreateRequest
    ) -> tuple[Connection, str | None]:
        """Create a connection; the second value is its connect URL, where a person must act.

        Raises:
            Problem: 403 for an id that is not the caller's, 409 for one that is taken.
        """
        connection_id = wanted.id or new_connection_id(self._parts.entropy)
        _refuse_foreign(connection_id, identity)
        connection = self._new_connection(wanted, connection_id, identity)
        tokens = self._imported(wanted)
        due_at = None if tokens is None else self._due(tokens, wanted, connection_id)
        test_at = None if tokens is None or wanted.provider.test is None else self._test_at()
        if not await self._parts.connections.create(
            connection, tokens, due_at=due_at, next_test_at=test_at
        ):
            raise _taken(connection_id)
        self._parts.events.connection_created(connection.id, connection.provider)
        stored = await self._parts.connections.get(connection_id) or connection
        if tokens is not None:
            self._parts.expect(0.0)
            self._parts.examine(stored)
            return stored, None
        ticket = await connect_url(
            self._parts.authorizer, connection, identity, return_url=wanted.return_url
        )
        return stored, ticket["connect_url"]

    async def for_person(
        self, identity: Identity, provider: Provider, connection_id: str | None
    ) -> tuple[Connection, str | None]:
        """Create a connection as the operator pages do; raises as ``make``."""
        wanted = CreateRequest(
            provider=provider,
            id=connection_id,
            scopes=provider.scopes,
            metadata={},
            return_url=None,
            tokens=None,
        )
        return await self.make(identity, wanted)

    def _test_at(self) -> datetime:
        return self._parts.clock.now() + _EXAMINED_BY

    def _new_connection(
        self, wanted: CreateRequest, connection_id: str, identity: Identity
    ) -> Connection:
        now = self._parts.clock.now()
        return Connection(
            id=connection_id,
            provider=wanted.provider.name,
            grant=wanted.provider.grant.value,
            status=Status.PENDING if wanted.tokens is None else Status.ACTIVE,
            fields=wanted.fields,
            requested_scopes=wanted.scopes,
            metadata=wanted.metadata,
            return_url=wanted.return_url,
            created_by=identity.name,
            created_at=now,
            updated_at=now,
        )

    def _imported(self, wanted: CreateRequest) -> TokenSet | None:
        if wanted.tokens is None:
            return None
        return TokenSet(
            generation=1,
            access_token=wanted.tokens.access_token or "",
            refresh_token=wanted.tokens.refresh_token,
            token_type="Bearer",  # noqa: S106 - RFC 6750's name of the type
            scopes=wanted.scopes,
            issued_at=self._parts.clock.now(),
            expires_at=self._expiry(wanted),
        )

    def _expiry(self, wanted: CreateRequest) -> datetime | None:
        now = self._parts.clock.now()
        if wanted.tokens is None or not wanted.tokens.access_token:
            # Without an access token there is nothing to serve yet: expired from the start.
            return now
        if wanted.tokens.expires_at is not None:
            return wanted.tokens.expires_at
        if wanted.provider.tokens_never_expire:
            return None
        default = self._parts.settings().refresh.default_lifetime
        return now + (wanted.provider.default_lifetime or default)

    def _due(self, tokens: TokenSet, wanted: CreateRequest, connection_id: str) -> datetime | None:
        """Return when imported tokens are refreshed: at once where none is known to be good."""
        if tokens.expires_at is None:
            return None
        known = wanted.tokens is not None and wanted.tokens.expires_at and tokens.access_token
        good = known and tokens.expires_at > tokens.issued_at
        return self._parts.plan(tokens, connection_id) if good else tokens.issued_at


async def connect_url(
    authorizer: Authorizer, connection: Connection, identity: Identity, *, return_url: str | None
) -> dict[str, Any]:
    """Return a fresh URL at which a person authorizes ``connection``, and until when."""
    ticket, url = await authorizer.issue_ticket(
        connection, caller=identity.name, return_url=return_url
    )
    return {"connect_url": url, "expires_at": rfc3339(ticket.expires_at)}


def _refuse_foreign(connection_id: str, identity: Identity) -> None:
    if not identity.may_see(connection_id):
        raise Problem(
            403,
            "permission_denied",
            "None of this caller's connection patterns matches the id. Send an id that one "
            "matches, or widen the patterns in the configuration.",
        )


def _taken(connection_id: str) -> Problem:
    return Problem(
        409,
        "connection_exists",
        "There is a connection with this id already. Choose another id, or reconnect it "
        f"with POST /v1/connections/{connection_id}/authorize.",
        connection=connection_id,
    )
