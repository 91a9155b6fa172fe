"""The api listener on a real socket and a real database; only the token endpoint is scripted."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from daemon.config.settings import Address, Caller, Permission, Refresh, Settings
from daemon.domain.clock import SystemClock, system_entropy
from daemon.domain.outcome import Granted, Outcome, OutcomeKind
from daemon.domain.provider import Endpoints, Provider
from daemon.domain.reply import RawReply
from daemon.domain.tokens import TokenSet
from daemon.oauth.authorization import Authorizer
from daemon.persistence.authorizations import PostgresAuthorizations
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.connections import PostgresConnections
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
from daemon.sidecar.guard import Guard
from daemon.sidecar.listener import Listener
from daemon.sidecar.token_route import TokenRoute
from daemon.telemetry.token_reads import TokenReads
from tests.support.authorization import FixedResolver
from tests.support.refreshing import MemoryJournal, RecordedEvents

ACME = Provider(
    name="acme",
    client_id="our client",
    client_secrets=(SecretStr("client-secret-canary"),),
    issuer="https://auth.acme.example",
    endpoints=Endpoints(
        authorization="https://auth.acme.example/authorize",
        token="https://auth.acme.example/token",
    ),
    scopes=("read", "write:all"),
    rate=1000.0,
)
ALL = frozenset(Permission)
KEYS = {"admin": "admin-key-canary", "reader": "reader-key-canary", "tokens": "tokens-key-canary"}


def caller(
    name: str, *, connections: tuple[str, ...], permissions: frozenset[Permission]
) -> Caller:
    """Return a caller with its key of ``KEYS``."""
    digest = hashlib.sha256(KEYS[name].encode()).digest()
    return Caller(name=name, key_sha256=digest, connections=connections, permissions=permissions)


CALLERS = (
    caller("admin", connections=("*",), permissions=ALL),
    caller("reader", connections=("acme-[0-9]*",), permissions=frozenset({Permission.READ})),
    caller("tokens", connections=("acme-*",), permissions=frozenset({Permission.TOKEN})),
)


class InstantSender:
    """Port: RefreshSender. Gives out ``outcomes`` first, then new tokens at once."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.outcomes: list[Outcome] = []

    async def refresh(
        self,
        provider: Provider,
        refresh_token: str,
        *,
        hard_timeout: float,
        send_by: float,
        received: Callable[[RawReply], Awaitable[None]],
    ) -> Outcome:
        """Answer."""
        del provider, hard_timeout, send_by, received
        self.sent.append(refresh_token)
        if self.outcomes:
            return self.outcomes.pop(0)
        number = len(self.sent)
        return Outcome(
            kind=OutcomeKind.OK,
            granted=Granted(
                access_token=f"new-access-{number}",
                refresh_token=f"new-refresh-canary-{number}",
                expires_in=3600.0,
            ),
        )


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

    connections: PostgresConnections
    sender: InstantSender
    events: RecordedEvents
    cache: TokenCache
    session: aiohttp.ClientSession
    url: str = ""
    expected: list[float] = field(default_factory=list)

    async def ask(
        self,
        method: str,
        path: str,
        *,
        key: str | None = "admin",
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one request as a caller."""
        sent = dict(headers or {})
        if key is not None:
            sent["Authorization"] = f"Bearer {KEYS.get(key, key)}"
        async with self.session.request(
            method, f"{self.url}{path}", json=body, headers=sent
        ) as answer:
            text = await answer.read()
            assert b"canary" not in text
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


@asynccontextmanager
async def api_stage(
    database: Database, cipher: TokenCipher, *, settings: Settings | None = None
) -> AsyncIterator[ApiStage]:
    """Run the api listener on a free port."""
    clock, entropy = SystemClock(), system_entropy
    chosen = settings or Settings(
        state_dir=Path("unused"),
        providers={"acme": ACME, "other": replace(ACME, name="other")},
        return_urls=("https://app.example/*",),
        refresh=Refresh(request_timeout=timedelta(seconds=5)),
    )
    connections = PostgresConnections(database, cipher)
    refreshes = PostgresRefreshes(database, cipher)
    await refreshes.add_providers(list(chosen.providers))
    sender, events, cache = InstantSender(), RecordedEvents(), TokenCache()
    refresher = Refresher(
        Ports(
            store=refreshes,
            tokens=connections,
            providers=chosen.providers,
            sender=sender,
            journal=MemoryJournal(),
            publisher=_Nobody(),
            events=events,
            clock=clock,
            chance=lambda: 0.5,
        ),
        cache=cache,
        slots=Slots(total=lambda: 64, at_provider=lambda _: 8),
        settings=lambda: chosen.refresh,
        owner="one",
    )
    refresher.begin()
    reader = TokenReader(
        cache, refresher, chosen.providers, clock=clock, settings=lambda: chosen.refresh
    )
    guard, callers = Guard(), Callers(CALLERS)
    route = TokenRoute(
        callers=callers,
        guard=guard,
        cache=cache,
        reader=reader,
        reads=TokenReads(CollectorRegistry(), providers=chosen.providers),
        clock=clock,
    )
    async with aiohttp.ClientSession() as session:
        stage = ApiStage(
            connections=connections, sender=sender, events=events, cache=cache, session=session
        )

        def plan(tokens: TokenSet, connection_id: str) -> datetime | None:
            return policy.due_at(tokens, connection_id, chosen.refresh)

        app = create_api_app(
            ApiParts(
                settings=lambda: chosen,
                callers=callers,
                guard=guard,
                token_route=route,
                connections=connections,
                reader=reader,
                authorizer=Authorizer(
                    store=PostgresAuthorizations(database, cipher, connections, clock),
                    resolver=FixedResolver(),
                    public_url=chosen.public_url,
                    clock=clock,
                    entropy=entropy,
                ),
                events=events,
                clock=clock,
                entropy=entropy,
                plan=plan,
                expect=stage.expected.append,
            )
        )
        listener = Listener(app, name="api", entropy=entropy, before_router=route.before_router)
        await listener.start(address=Address("127.0.0.1", 0))
        stage.url = f"http://{listener.addresses[0]}"
        try:
            yield stage
        finally:
            await session.close()
            await listener.stop()
            await refresher.drain()


class _Nobody:
    """Port: Publisher, without other replicas."""

    def publish(self, connection_id: str) -> None:
        """Tell nobody."""
