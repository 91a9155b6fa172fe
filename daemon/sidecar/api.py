"""The api listener's routes (contract 4): callers and operators, problem+json for every no."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from daemon.config.settings import Permission, Settings
from daemon.domain.claimable import Wanted
from daemon.domain.clock import Clock, Entropy
from daemon.domain.connection import Connection, Status, new_connection_id
from daemon.domain.errors import Problem
from daemon.domain.events import Events
from daemon.domain.provider import Provider
from daemon.domain.tokens import TokenSet
from daemon.oauth.authorization import Authorizer
from daemon.persistence.connections import Filter, PostgresConnections
from daemon.refresh.reading import TokenReader
from daemon.sidecar.access import Callers, Identity, unknown_connection
from daemon.sidecar.bodies import BODY_LIMIT, read_json
from daemon.sidecar.connection_body import (
    CreateRequest,
    connection_body,
    read_create_request,
    read_return_url,
    rfc3339,
)
from daemon.sidecar.guard import Guard, connection_id_from
from daemon.sidecar.listing import cursor_after, read_listing
from daemon.sidecar.problems import error_middleware
from daemon.sidecar.protocol import peer_uid
from daemon.sidecar.token_route import TokenRoute

_IDENTITY = web.RequestKey("identity", Identity)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiParts:
    """What the routes work with. ``settings`` gives the configuration in force."""

    settings: Callable[[], Settings]
    callers: Callers
    guard: Guard
    token_route: TokenRoute
    connections: PostgresConnections
    reader: TokenReader
    authorizer: Authorizer
    events: Events
    clock: Clock
    entropy: Entropy
    plan: Callable[[TokenSet, str], datetime | None]
    expect: Callable[[float], None]


def create_api_app(parts: ApiParts) -> web.Application:
    """Return the application of the api listener."""
    api = _Api(parts)
    app = web.Application(
        middlewares=[error_middleware(parts.entropy), _guarded(parts)], client_max_size=BODY_LIMIT
    )
    one = "/v1/connections/{id}"
    app.add_routes(
        [
            web.get(f"{one}/token", parts.token_route.get, allow_head=False),
            web.post("/v1/connections", api.create),
            web.get("/v1/connections", api.list),
            web.get(one, api.show),
            web.post(f"{one}/authorize", api.authorize),
            web.post(f"{one}/refresh", api.refresh),
            web.get("/v1/providers", api.providers),
            web.get("/v1/providers/{name}", api.provider),
        ]
    )
    return app


def _guarded(parts: ApiParts) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        uid = peer_uid(request)
        parts.guard.check(
            request.method, request.raw_path, request.headers, unix_socket=uid is not None
        )
        identity = parts.callers.authenticate(request.headers.get(hdrs.AUTHORIZATION), uid)
        request[_IDENTITY] = identity
        return await handler(request)

    return guard


class _Api:
    def __init__(self, parts: ApiParts) -> None:
        self._parts = parts

    async def create(self, request: web.Request) -> web.Response:
        """``POST /v1/connections``."""
        identity = _require(request, Permission.MANAGE)
        settings = self._parts.settings()
        wanted = read_create_request(
            await read_json(request), providers=settings.providers, return_urls=settings.return_urls
        )
        connection_id = wanted.id or new_connection_id(self._parts.entropy)
        if not identity.may_see(connection_id):
            raise Problem(
                403,
                "permission_denied",
                "None of this caller's connection patterns matches the id. Send an id that one "
                "matches, or widen the patterns in the configuration.",
            )
        connection = self._new_connection(wanted, connection_id, identity)
        tokens = self._imported(wanted)
        due_at = None if tokens is None else self._due(tokens, wanted, connection_id)
        if not await self._parts.connections.create(connection, tokens, due_at=due_at):
            raise Problem(
                409,
                "connection_exists",
                "There is a connection with this id already. Choose another id, or reconnect it "
                f"with POST /v1/connections/{connection_id}/authorize.",
                connection=connection_id,
            )
        self._parts.events.connection_created(connection.id, connection.provider)
        if tokens is not None:
            self._parts.expect(0.0)
        stored = await self._parts.connections.get(connection_id)
        body = connection_body(stored or connection)
        if tokens is None:
            ticket = await self._connect_url(connection, identity, wanted.return_url)
            body["connect_url"] = ticket["connect_url"]
        return _json(body, status=201, headers={hdrs.LOCATION: f"/v1/connections/{connection_id}"})

    async def list(self, request: web.Request) -> web.Response:
        """``GET /v1/connections``."""
        identity = _require(request, Permission.READ)
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
        return _json(
            {
                "connections": [connection_body(connection) for connection in shown],
                "next_cursor": cursor_after(shown[-1]) if more else None,
            }
        )

    async def show(self, request: web.Request) -> web.Response:
        """``GET /v1/connections/{id}``."""
        return _json(connection_body(await self._one(request, Permission.READ)))

    async def authorize(self, request: web.Request) -> web.Response:
        """``POST /v1/connections/{id}/authorize``."""
        connection = await self._one(request, Permission.MANAGE)
        self._provider_of(connection)
        body = await read_json(request) if request.body_exists else {}
        return_url = read_return_url(
            body, default=connection.return_url, return_urls=self._parts.settings().return_urls
        )
        return _json(await self._connect_url(connection, request[_IDENTITY], return_url))

    async def refresh(self, request: web.Request) -> web.Response:
        """``POST /v1/connections/{id}/refresh``."""
        connection = await self._one(request, Permission.MANAGE)
        provider = self._provider_of(connection)
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
        return _json(connection_body(after or connection))

    async def providers(self, request: web.Request) -> web.Response:
        """``GET /v1/providers``."""
        _require(request, Permission.READ)
        settings = self._parts.settings()
        return _json(
            {"providers": [_provider_body(p, settings) for p in settings.providers.values()]}
        )

    async def provider(self, request: web.Request) -> web.Response:
        """``GET /v1/providers/{name}``."""
        _require(request, Permission.READ)
        settings = self._parts.settings()
        provider = settings.providers.get(request.match_info["name"])
        if provider is None:
            known = ", ".join(settings.providers) or "none yet"
            raise Problem(404, "unknown_provider", f"The configured providers are: {known}.")
        return _json(_provider_body(provider, settings))

    async def _one(self, request: web.Request, permission: Permission) -> Connection:
        connection_id = connection_id_from(request.match_info["id"])
        _require(request, permission, connection_id)
        connection = await self._parts.connections.get(connection_id)
        if connection is None:
            raise unknown_connection(connection_id)
        return connection

    def _provider_of(self, connection: Connection) -> Provider:
        provider = self._parts.settings().providers.get(connection.provider)
        if provider is None:
            raise Problem(
                409,
                "provider_not_configured",
                f"The provider {connection.provider} is not in the configuration any more. "
                "Configure it again and reload.",
                connection=connection.id,
            )
        return provider

    async def _connect_url(
        self, connection: Connection, identity: Identity, return_url: str | None
    ) -> dict[str, Any]:
        ticket, connect_url = await self._parts.authorizer.issue_ticket(
            connection, caller=identity.name, return_url=return_url
        )
        return {"connect_url": connect_url, "expires_at": rfc3339(ticket.expires_at)}

    def _new_connection(
        self, wanted: CreateRequest, connection_id: str, identity: Identity
    ) -> Connection:
        now = self._parts.clock.now()
        return Connection(
            id=connection_id,
            provider=wanted.provider.name,
            grant=wanted.provider.grant.value,
            status=Status.PENDING if wanted.tokens is None else Status.ACTIVE,
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
        now = self._parts.clock.now()
        # Without an access token there is nothing to serve yet: expired from the start.
        lifetime = (
            wanted.provider.default_lifetime or self._parts.settings().refresh.default_lifetime
            if wanted.tokens.access_token
            else timedelta(0)
        )
        return TokenSet(
            generation=1,
            access_token=wanted.tokens.access_token or "",
            refresh_token=wanted.tokens.refresh_token,
            token_type="Bearer",  # noqa: S106 - RFC 6750's name of the type
            scopes=wanted.scopes,
            issued_at=now,
            expires_at=wanted.tokens.expires_at
            if wanted.tokens.access_token and wanted.tokens.expires_at
            else now + lifetime,
        )

    def _due(self, tokens: TokenSet, wanted: CreateRequest, connection_id: str) -> datetime | None:
        """Return when imported tokens are refreshed: at once where none is known to be good."""
        known = wanted.tokens is not None and wanted.tokens.expires_at and tokens.access_token
        good = known and tokens.expires_at is not None and tokens.expires_at > tokens.issued_at
        return self._parts.plan(tokens, connection_id) if good else tokens.issued_at


def _require(
    request: web.Request, permission: Permission, connection_id: str | None = None
) -> Identity:
    identity = request[_IDENTITY]
    identity.require(permission, connection_id)
    return identity


def _provider_body(provider: Provider, settings: Settings) -> dict[str, Any]:
    return {
        "name": provider.name,
        "grant": provider.grant.value,
        "issuer": provider.issuer,
        "authorization_endpoint": provider.endpoints.authorization,
        "token_endpoint": provider.endpoints.token,
        "refresh_endpoint": provider.endpoints.refresh,
        "client_id": provider.client_id,
        "token_endpoint_auth_method": provider.token_endpoint_auth_method.value,
        "scopes": list(provider.scopes),
        "pkce": "S256" if provider.pkce else "off",
        "rotation": provider.rotation.kind.value,
        "redirect_uri": settings.redirect_uri,
    }


def _json(
    body: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=orjson.dumps(body),
        status=status,
        headers={**(headers or {}), hdrs.CACHE_CONTROL: "no-store"},
        content_type="application/json",
    )
