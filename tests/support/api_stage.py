"""The api listener on a real socket and a real database; only the token endpoint is scripted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry

from daemon.config.settings import Address, Settings
from daemon.domain.clock import SystemClock, system_entropy
from daemon.domain.connection import Connection
from daemon.domain.tokens import TokenSet
from daemon.oauth.authorization import Authorizer
from daemon.persistence.authorizations import PostgresAuthorizations
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.connections import PostgresConnections
from daemon.persistence.history import EventRecorder, PostgresHistory
from daemon.persistence.postgres import Database
from daemon.persistence.refreshes import PostgresRefreshes
from daemon.refresh import policy
from daemon.refresh.attempts import Ports
from daemon.refresh.cache import TokenCache
from daemon.refresh.reading import TokenReader
from daemon.refresh.refresher import Refresher
from daemon.refresh.slots import Slots
from daemon.sidecar.access import Callers
from daemon.sidecar.api import ApiParts, create_api_app
from daemon.sidecar.connection_routes import ConnectionParts, ConnectionRoutes
from daemon.sidecar.connection_values import ConnectionValues
from daemon.sidecar.creation import Creation, CreationParts
from daemon.sidecar.drop_in import DropIn, DropInParts
from daemon.sidecar.event_routes import EventParts, EventRoutes
from daemon.sidecar.guard import Guard
from daemon.sidecar.listener import Listener
from daemon.sidecar.openapi import OpenApiRoute
from daemon.sidecar.provider_routes import ProviderRoutes
from daemon.sidecar.quitting import Quitting
from daemon.sidecar.request_route import RequestRoute
from daemon.sidecar.routing import Finder
from daemon.sidecar.token_route import TokenRoute
from daemon.telemetry.token_reads import TokenReads
from daemon.upkeep.feed import Feed
from tests.support.api_parts import (
    CALLERS,
    KEYS,
    SETTINGS,
    ConfiguredEndpoints,
    FakeTests,
    InstantSender,
    LocalDisconnecting,
)
from tests.support.openapi import check_answer
from tests.support.refreshing import MemoryJournal, RecordedEvents


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer, read."""

    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def code(self) -> object:
        """Return the code of a problem."""
        assert self.headers["Content-Type"] == "application/problem+json"
        assert self.headers["Cache-Control"] == "no-store"
        assert self.body["status"] == self.status
        assert self.body["type"] == f"urn:tokenward:problem:{self.body['code']}"
        return self.body["code"]


@dataclass
class ApiStage:
    """A running api listener and a way to ask it."""

    callers: Callers
    connections: PostgresConnections
    sender: InstantSender
    events: RecordedEvents
    cache: TokenCache
    authorizations: PostgresAuthorizations
    tests: FakeTests
    disconnecting: LocalDisconnecting
    session: aiohttp.ClientSession
    url: str = ""
    expected: list[float] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    examined: list[Connection] = field(default_factory=list)
    quits: list[str] = field(default_factory=list)

    async def ask(
        self,
        method: str,
        path: str,
        *,
        key: str | None = "admin",
        body: object = None,
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one request as a caller."""
        sent = dict(headers or {})
        if key is not None:
            sent["Authorization"] = f"Bearer {KEYS.get(key, key)}"
        async with self.session.request(
            method, f"{self.url}{path}", json=body, data=form, headers=sent
        ) as answer:
            text = await answer.read()
            assert b"canary" not in text
            check_answer(method, path, status=answer.status, headers=answer.headers, body=text)
            return Answer(
                status=answer.status,
                headers=answer.headers,
                body=await answer.json(content_type=None) if text else None,
            )

    async def create(self, name: str, **members: object) -> Answer:
        """Create a connection."""
        answer = await self.ask(
            "POST", "/v1/connections", body={"provider": "acme", "id": name} | members
        )
        assert answer.status == 201, answer.body
        return answer

    async def imported(self, name: str = "acme-1", *, life: float = 3600.0) -> Answer:
        """Create a connection from tokens with so many seconds left."""
        expires_at = SystemClock().now() + timedelta(seconds=life)
        tokens = {
            "refresh_token": "refresh-canary",
            "access_token": f"imported-{name}",
            "expires_at": expires_at.astimezone(UTC).isoformat(),
        }
        return await self.create(name, tokens=tokens)


class _World:
    """The parts of a daemon that stand behind the api listener."""

    def __init__(self, database: Database, cipher: TokenCipher, settings: Settings) -> None:
        self.settings = settings
        self.clock, self.events, self.cache = SystemClock(), RecordedEvents(), TokenCache()
        recorder = EventRecorder(delivers=lambda: False)
        self.connections = PostgresConnections(database, cipher, recorder=recorder)
        self.refreshes = PostgresRefreshes(database, cipher, recorder=recorder)
        self.authorizations = PostgresAuthorizations(
            database, cipher, self.connections, self.clock, recorder=recorder
        )
        self.history = PostgresHistory(database, recorder)
        self.sender, self.tests = InstantSender(), FakeTests()
        self.refresher = Refresher(
            Ports(
                store=self.refreshes,
                tokens=self.connections,
                providers=settings.providers,
                sender=self.sender,
                journal=MemoryJournal(),
                publisher=_Nobody(),
                events=self.events,
                clock=self.clock,
                chance=lambda: 0.5,
            ),
            cache=self.cache,
            slots=Slots(total=lambda: 64, at_provider=lambda _: 8),
            settings=lambda: settings.refresh,
            owner="one",
        )
        self.reader = TokenReader(
            self.cache,
            self.refresher,
            settings.providers,
            clock=self.clock,
            settings=lambda: settings.refresh,
        )
        self.disconnecting = LocalDisconnecting(self.connections, self.refresher.memory.reload)
        self.authorizer = Authorizer(
            store=self.authorizations,
            resolver=ConfiguredEndpoints(),
            public_url=settings.public_url,
            clock=self.clock,
            entropy=system_entropy,
        )
        self.guard, self.callers = Guard(), Callers(CALLERS)
        self.reads = TokenReads(CollectorRegistry(), providers=settings.providers)

    def plan(self, tokens: TokenSet, connection_id: str) -> datetime | None:
        """Return when tokens are due."""
        return policy.due_at(tokens, connection_id, self.settings.refresh)

    def token_route(self) -> TokenRoute:
        """Return the route of token reads."""
        return TokenRoute(
            callers=self.callers,
            guard=self.guard,
            cache=self.cache,
            reader=self.reader,
            reads=self.reads,
            survivor_of=self.connections.survivor_of,
            clock=self.clock,
        )

    def api_parts(self, stage: ApiStage, token_route: TokenRoute) -> ApiParts:
        """Return all routes, joined as the daemon joins them."""
        settings, connections = lambda: self.settings, self.connections
        creation = CreationParts(
            settings=settings,
            connections=connections,
            authorizer=self.authorizer,
            events=self.events,
            clock=self.clock,
            entropy=system_entropy,
            plan=self.plan,
            expect=stage.expected.append,
            examine=stage.examined.append,
        )
        managing = ConnectionParts(
            settings=settings,
            connections=connections,
            finder=Finder(connections=connections, settings=settings),
            reader=self.reader,
            authorizer=self.authorizer,
            tests=self.tests,
            disconnecting=self.disconnecting,
            changed=stage.changed.append,
            used_lately=lambda _: False,
            clock=self.clock,
        )
        drop_in = DropInParts(
            callers=self.callers,
            guard=self.guard,
            reader=self.reader,
            reads=self.reads,
            survivor_of=connections.survivor_of,
            clock=self.clock,
            entropy=system_entropy,
        )
        return ApiParts(
            callers=self.callers,
            guard=self.guard,
            entropy=system_entropy,
            token=token_route,
            drop_in=DropIn(drop_in),
            creation=Creation(creation),
            connections=ConnectionRoutes(managing),
            providers=ProviderRoutes(settings),
            openapi=OpenApiRoute(),
            routes=[*self.event_routes(managing.finder), *self.quitting(stage).routes()],
            open_routes=[web.get("/v1/connections/{id}/request", self.request_route().get)],
        )

    def quitting(self, stage: ApiStage) -> Quitting:
        """Return the way out."""
        return Quitting(
            is_allowed=lambda: self.settings.listen.api.quitquitquit,
            stop=lambda: stage.quits.append("stop"),
        )

    def event_routes(self, finder: Finder) -> list[web.RouteDef]:
        """Return the history's routes; nobody feeds the stream."""
        feed = Feed(history=self.history, clock=self.clock)
        parts = EventParts(finder=finder, pages=self.history, feed=feed, clock=self.clock)
        return EventRoutes(parts).routes()

    def request_route(self) -> RequestRoute:
        """Return the route that describes requests."""
        return RequestRoute(
            callers=self.callers,
            guard=self.guard,
            reader=self.reader,
            providers=self.settings.providers,
            values=ConnectionValues(self.connections, clock=self.clock),
            reads=self.reads,
            survivor_of=self.connections.survivor_of,
        )


@asynccontextmanager
async def api_stage(
    database: Database, cipher: TokenCipher, *, settings: Settings = SETTINGS
) -> AsyncIterator[ApiStage]:
    """Run the api listener on a free port."""
    world = _World(database, cipher, settings)
    await world.refreshes.add_providers(list(settings.providers))
    world.refresher.begin()
    route = world.token_route()
    async with aiohttp.ClientSession() as session:
        stage = ApiStage(
            callers=world.callers,
            connections=world.connections,
            sender=world.sender,
            events=world.events,
            cache=world.cache,
            authorizations=world.authorizations,
            tests=world.tests,
            disconnecting=world.disconnecting,
            session=session,
        )
        app = create_api_app(world.api_parts(stage, route))
        listener = Listener(
            app, name="api", entropy=system_entropy, before_router=route.before_router
        )
        await listener.start(address=Address("127.0.0.1", 0))
        stage.url = f"http://{listener.addresses[0]}"
        try:
            yield stage
        finally:
            await session.close()
            await listener.stop()
            await world.refresher.drain()


class _Nobody:
    """Port: Publisher, without other replicas."""

    def publish(self, connection_id: str) -> None:
        """Tell nobody."""
