"""The proxy on a real listener, with a real upstream; tokens and refreshes are in memory."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.abc import AbstractResolver
from prometheus_client import CollectorRegistry
from yarl import URL

from daemon.config.settings import Address, Caller, Permission
from daemon.domain.clock import system_entropy
from daemon.domain.connection import Connection, Status
from daemon.domain.provider import Provider, RequestValues
from daemon.domain.templates import parse_template, parse_url_template
from daemon.domain.tokens import CurrentToken
from daemon.domain.tracing import NO_TRACER, Tracer
from daemon.oauth.api_session import ApiSession
from daemon.sidecar.access import Callers
from daemon.sidecar.connection_values import ConnectionValues
from daemon.sidecar.guard import Guard
from daemon.sidecar.listener import Listener
from daemon.sidecar.problems import error_middleware
from daemon.sidecar.proxy import ProxyLimits, ProxyPorts, ProxyRoute
from daemon.sidecar.request_route import RequestRoute
from daemon.telemetry.token_reads import TokenReads
from tests.support.refreshing import ACME, Replica, tokens

KEY = "proxy-caller-key-canary"
PROXY = "/v1/connections/acme-1/proxy"
MIB = 1024 * 1024


def provider(base: str, **members: Any) -> Provider:
    """Return ``acme`` with an API; ``request`` takes plain texts."""
    request: Mapping[str, Mapping[str, Any]] = members.pop("request", {})
    return replace(
        ACME,
        api_base_url=parse_url_template(base),
        allow_private_hosts=members.pop("allow_private_hosts", True),
        request=RequestValues(
            headers={n: parse_template(t) for n, t in request.get("headers", {}).items()},
            query={n: parse_template(t) for n, t in request.get("query", {}).items()},
            body={
                n: parse_template(t) if isinstance(t, str) else t
                for n, t in request.get("body", {}).items()
            },
        ),
        **members,
    )


class MemoryConnections:
    """Port: StoredConnections. ``asked`` counts the look-ups."""

    def __init__(self, here: Replica) -> None:
        self.fields: dict[str, str] = {}
        self.reply_values: dict[str, str] = {}
        self.asked = 0
        self.error: Exception | None = None
        self._here = here

    async def get(self, connection_id: str) -> Connection | None:
        """Return a connection with the fields set here."""
        self.asked += 1
        if self.error is not None:
            raise self.error
        now = self._here.clock.now()
        return Connection(
            id=connection_id,
            provider="acme",
            grant="authorization_code",
            status=Status.ACTIVE,
            fields=dict(self.fields),
            reply_values=dict(self.reply_values),
            created_at=now,
            updated_at=now,
        )


async def _no_survivor(_: str) -> str | None:
    return None


@dataclass
class ProxyStage:
    """A listener with proxy and request route; ``here`` is the process that keeps tokens."""

    here: Replica
    connections: MemoryConnections
    session: aiohttp.ClientSession
    counted: list[tuple[str, int]] = field(default_factory=list)
    port: int = 0

    def url(self, path: str) -> str:
        """Return a URL of the listener."""
        return f"http://127.0.0.1:{self.port}{path}"

    def ask(
        self, path: str = "/echo", *, method: str = "GET", **request: Any
    ) -> aiohttp.client._RequestContextManager:
        """Send a request through the proxy."""
        headers = {"Authorization": f"Bearer {KEY}", **request.pop("headers", {})}
        return self.session.request(
            method,
            URL(self.url(PROXY + path), encoded=True),
            headers=headers,
            allow_redirects=False,
            **request,
        )

    def set_provider(self, configured: Provider) -> None:
        """Configure ``acme`` anew."""
        self.here.providers["acme"] = configured

    def put(self, generation: int = 1, **row: Any) -> None:
        """Store and remember a connection with the token of ``generation``."""
        stored = self.here.add(stored=tokens(generation=generation), **row)
        self.here.cache.put(
            CurrentToken(
                connection=stored.id,
                provider="acme",
                status=stored.status,
                generation=generation,
                access_token=stored.tokens.access_token,
                token_type="bearer",
                scopes=stored.tokens.scopes,
                issued_at=stored.tokens.issued_at,
                expires_at=stored.tokens.expires_at,
                refreshable=True,
            )
        )


@asynccontextmanager
async def proxying(
    configured: Provider,
    *,
    limits: ProxyLimits | None = None,
    resolver: AbstractResolver | None = None,
    permissions: frozenset[Permission] = frozenset({Permission.PROXY, Permission.TOKEN}),
    tracer: Tracer = NO_TRACER,
) -> AsyncIterator[ProxyStage]:
    """Run the listener with one connection, ``acme-1``, of ``configured``."""
    async with AsyncExitStack() as stack:
        here = Replica(providers={"acme": configured}, tracer=tracer)
        ticking = asyncio.create_task(_tick(here))
        stack.callback(ticking.cancel)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                auto_decompress=False, connector=aiohttp.TCPConnector(limit=0, force_close=True)
            )
        )
        stage = ProxyStage(here=here, connections=MemoryConnections(here), session=session)
        stage.put()
        api = await stack.enter_async_context(ApiSession(resolver=resolver))
        listener = listener_for(
            here,
            stage.connections,
            api,
            count=lambda name, status: stage.counted.append((name, status)),
            limits=limits,
            permissions=permissions,
        )
        await listener.start(address=Address("127.0.0.1", 0))
        stack.push_async_callback(listener.stop)
        stage.port = listener.addresses[0].port
        yield stage


async def _tick(here: Replica) -> None:
    """Let time pass while a refresh waits for it."""
    while True:
        await asyncio.sleep(0.005)
        if here.refresher._flights:
            here.clock.advance(0.05)


def listener_for(
    here: Replica,
    connections: MemoryConnections,
    api: ApiSession,
    *,
    count: Callable[[str, int], None],
    limits: ProxyLimits | None = None,
    permissions: frozenset[Permission] = frozenset({Permission.PROXY, Permission.TOKEN}),
) -> Listener:
    """Return a listener with proxy and request route, for the caller with ``KEY``."""
    caller = Caller(
        name="billing",
        key_sha256=hashlib.sha256(KEY.encode()).digest(),
        connections=("acme-*",),
        permissions=permissions,
    )
    callers, guard = Callers([caller]), Guard()
    values = ConnectionValues(connections, clock=here.clock)
    proxy = ProxyRoute(
        ProxyPorts(
            callers=callers,
            guard=guard,
            cache=here.cache,
            reader=here.reader,
            providers=here.providers,
            values=values,
            survivor_of=_no_survivor,
            session=api,
            count=count,
            clock=here.clock,
            entropy=system_entropy,
            tracer=here.tracer,
        ),
        limits=limits,
    )
    route = RequestRoute(
        callers=callers,
        guard=guard,
        reader=here.reader,
        providers=here.providers,
        values=values,
        reads=TokenReads(CollectorRegistry(), providers=["acme"]),
        survivor_of=_no_survivor,
    )
    app = web.Application(middlewares=[error_middleware(system_entropy)])
    app.router.add_get("/v1/connections/{id}/request", route.get, allow_head=False)
    return Listener(app, name="api", entropy=system_entropy, before_router=proxy.before_router)


@dataclass
class Upstream:
    """An API on a loopback port: ``/echo`` tells what arrived, ``handlers`` answer other paths.

    ``connections`` counts the TCP connections it has ever accepted.
    """

    port: int = 0
    connections: int = 0
    seen: list[web.BaseRequest] = field(default_factory=list)
    handle: Callable[[web.BaseRequest], Any] | None = None

    def url(self, path: str = "") -> str:
        """Return a URL of it."""
        return f"http://127.0.0.1:{self.port}{path}"


@asynccontextmanager
async def upstream(
    handle: Callable[[web.BaseRequest], Any] | None = None,
) -> AsyncIterator[Upstream]:
    """Run an API that echoes, or answers with ``handle``."""
    api = Upstream(handle=handle)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        api.seen.append(request)
        if api.handle is not None:
            response: web.StreamResponse = await api.handle(request)
            return response
        return await echo(request)

    server = web.Server(answer, access_log=None, auto_decompress=False)

    def accepted() -> web.RequestHandler:
        api.connections += 1
        return server()

    listening = await asyncio.get_running_loop().create_server(accepted, "127.0.0.1", 0)
    api.port = listening.sockets[0].getsockname()[1]
    try:
        yield api
    finally:
        listening.close()
        await server.shutdown(1.0)


async def echo(request: web.BaseRequest) -> web.Response:
    """Tell what arrived, as JSON."""
    body = await request.read()
    return web.json_response(
        {
            "method": request.method,
            "target": request.raw_path,
            "headers": [[name.lower(), value] for name, value in request.headers.items()],
            "body": body.decode("latin-1"),
        }
    )
