"""The api listener (contract 4): which route goes where, and who is let through to it.

Problem+json for every no. The handlers are in the modules imported here; what other parts of the
listener serve (proxy, events, pages) comes in as routes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from daemon.domain.clock import Entropy
from daemon.sidecar.access import Callers
from daemon.sidecar.bodies import BODY_LIMIT
from daemon.sidecar.connection_routes import ConnectionRoutes
from daemon.sidecar.creation import Creation
from daemon.sidecar.drop_in import DropIn
from daemon.sidecar.guard import Guard
from daemon.sidecar.openapi import OpenApiRoute
from daemon.sidecar.problems import error_middleware
from daemon.sidecar.protocol import peer_uid
from daemon.sidecar.provider_routes import ProviderRoutes
from daemon.sidecar.routing import IDENTITY
from daemon.sidecar.token_route import TokenRoute


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiParts:
    """What the listener serves.

    ``routes`` are further ones for callers: they find who asks under ``IDENTITY``.
    ``open_routes`` judge everything by themselves, headers and caller.
    """

    callers: Callers
    guard: Guard
    entropy: Entropy
    token: TokenRoute
    drop_in: DropIn
    creation: Creation
    connections: ConnectionRoutes
    providers: ProviderRoutes
    openapi: OpenApiRoute
    routes: Sequence[web.RouteDef] = ()
    open_routes: Sequence[web.RouteDef] = ()


def create_api_app(parts: ApiParts) -> web.Application:
    """Return the application of the api listener."""
    one, connections = "/v1/connections/{id}", parts.connections
    open_routes = [
        web.get(f"{one}/token", parts.token.get, allow_head=False),
        web.post(f"{one}/oauth2/token", parts.drop_in.post),
        *parts.open_routes,
    ]
    callers_routes = [
        web.post("/v1/connections", parts.creation.create),
        web.get("/v1/connections", connections.list),
        web.get(one, connections.show),
        web.patch(one, connections.change),
        web.delete(one, connections.disconnect),
        web.post(f"{one}/authorize", connections.authorize),
        web.post(f"{one}/refresh", connections.refresh),
        web.post(f"{one}/test", connections.test),
        web.get("/v1/providers", parts.providers.list),
        web.get("/v1/providers/{name}", parts.providers.show),
        web.get("/openapi.json", parts.openapi.get),
        *parts.routes,
    ]
    guarded = _guarded(parts, frozenset(route.handler for route in open_routes))
    app = web.Application(
        middlewares=[error_middleware(parts.entropy), guarded], client_max_size=BODY_LIMIT
    )
    app.add_routes([*open_routes, *callers_routes])
    return app


def _guarded(parts: ApiParts, judging: frozenset[object]) -> Middleware:
    """Return the middleware before all but the ``judging`` handlers; before unknown paths, too."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.match_info.handler not in judging:
            uid = peer_uid(request)
            parts.guard.check(
                request.method, request.raw_path, request.headers, unix_socket=uid is not None
            )
            authorization = request.headers.get(hdrs.AUTHORIZATION)
            request[IDENTITY] = await parts.callers.recognise(authorization, uid)
        return await handler(request)

    return guard
