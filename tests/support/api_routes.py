"""The routes that the api listener serves to callers, without anything behind them."""

from __future__ import annotations

from typing import Any, cast

from aiohttp import web

from daemon.domain.clock import system_entropy
from daemon.sidecar.access import Callers
from daemon.sidecar.api import ApiParts, create_api_app
from daemon.sidecar.connection_routes import ConnectionRoutes
from daemon.sidecar.creation import Creation
from daemon.sidecar.drop_in import DropIn
from daemon.sidecar.event_routes import EventRoutes
from daemon.sidecar.guard import Guard
from daemon.sidecar.openapi import OpenApiRoute
from daemon.sidecar.provider_routes import ProviderRoutes
from daemon.sidecar.quitting import Quitting
from daemon.sidecar.request_route import RequestRoute
from daemon.sidecar.token_route import TokenRoute

_NOTHING: Any = cast("Any", None)
# Answered before aiohttp's router, which would decode the path.
_PROXY = "ANY /v1/connections/{id}/proxy/{path}"


def bare_api_app() -> web.Application:
    """Return the application with handlers that nobody may call."""
    request_route = RequestRoute(
        callers=Callers(()),
        guard=Guard(),
        reader=_NOTHING,
        providers=_NOTHING,
        values=_NOTHING,
        reads=_NOTHING,
        survivor_of=_NOTHING,
    )
    return create_api_app(
        ApiParts(
            callers=Callers(()),
            guard=Guard(),
            entropy=system_entropy,
            token=TokenRoute(
                callers=Callers(()),
                guard=Guard(),
                cache=_NOTHING,
                reader=_NOTHING,
                reads=_NOTHING,
                survivor_of=_NOTHING,
                clock=_NOTHING,
            ),
            drop_in=DropIn(_NOTHING),
            creation=Creation(_NOTHING),
            connections=ConnectionRoutes(_NOTHING),
            providers=ProviderRoutes(_NOTHING),
            openapi=OpenApiRoute(),
            routes=[*EventRoutes(_NOTHING).routes(), *_quitting().routes()],
            open_routes=[
                web.get(
                    "/v1/connections/{id}/request",
                    request_route.get,
                    allow_head=False,
                )
            ],
        )
    )


def _quitting() -> Quitting:
    return Quitting(is_allowed=lambda: False, stop=lambda: None)


def api_routes() -> set[str]:
    """Return ``METHOD path`` of every route for programs."""
    return {_PROXY} | {
        f"{route.method} {route.resource.canonical}"
        for route in bare_api_app().router.routes()
        if route.method != "HEAD" and route.resource is not None
    }
