"""What a process that only serves (``--role serve``) says to the rest of the API: not here.

Reading, and handing out tokens, is its whole task. What changes something or asks a provider would
need secrets and a disk that it does not have, and is done where connections are refreshed.
"""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from daemon.domain.errors import Problem
from daemon.sidecar.guard import Guard
from daemon.sidecar.protocol import peer_uid

# What is sent by POST and changes nothing but this process.
_HERE = frozenset({"/v1/connections/{id}/oauth2/token", "/quitquitquit"})
_PAGES = (
    "/",
    "/login",
    "/logout",
    "/connect",
    "/providers",
    "/connections",
    "/connections/{rest:.*}",
)


def only_reading() -> Middleware:
    """Return the middleware behind the one that asks who it is."""

    @web.middleware
    async def refuse_changes(request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        # No resource: there is no such route anywhere, and the router says so.
        changes = request.method not in {"GET", "HEAD"}
        if changes and resource is not None and resource.canonical not in _HERE:
            raise _not_here()
        return await handler(request)

    return refuse_changes


def page_routes(guard: Guard) -> list[web.RouteDef]:
    """Return routes at the places of the operators' pages that say where those are."""

    async def elsewhere(request: web.Request) -> web.StreamResponse:
        guard.check(
            request.method,
            request.raw_path,
            request.headers,
            unix_socket=peer_uid(request) is not None,
        )
        raise _not_here()

    return [web.route("*", path, elsewhere) for path in _PAGES]


def _not_here() -> Problem:
    return Problem(
        501,
        "not_in_this_role",
        "This process only serves tokens (--role serve). Send this to one that refreshes them: it "
        "runs with --role refresh or all on the same database.",
    )
