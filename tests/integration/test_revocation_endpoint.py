"""Revocation over real sockets and the real queue: what a provider sees, and what stays."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from aiohttp import web
from pydantic import SecretStr

from daemon.catalog.discovery import Discovery
from daemon.domain.clock import SystemClock
from daemon.domain.connection import Connection, Status
from daemon.domain.provider import Endpoints, Provider, RequestFormat, RevocationRequest
from daemon.domain.revocation import Initiator, RevocationResult
from daemon.domain.tokens import TokenSet
from daemon.oauth.outbound import Outbound
from daemon.oauth.revocation import RevocationEndpoint
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.connections import PostgresConnections
from daemon.persistence.history import EventRecorder
from daemon.persistence.postgres import Database
from daemon.persistence.revocations import PostgresRevocations, Revoke
from daemon.refresh.cache import TokenCache
from daemon.upkeep.disconnecting import Disconnecting, DisconnectingParts
from daemon.upkeep.revoking import Revoking, RevokingParts
from tests.support.refreshing import RecordedEvents

T = TypeVar("T")
HINTS = ("refresh_token", "access_token")


class RevocationServer:
    """Answers revocations with ``status``, and keeps what came."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: Mapping[str, str] = {}
        self.seen: list[tuple[str, str, str, str | None]] = []
        self.port = 0

    @property
    def provider(self) -> Provider:
        """Return a provider that revokes here."""
        return Provider(
            name="acme",
            client_id="client",
            client_secrets=(SecretStr("secret"),),
            endpoints=Endpoints(revocation=f"http://127.0.0.1:{self.port}/revoke"),
        )

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """Keep the request."""
        body = (await request.read()).decode()
        authorization = request.headers.get("Authorization")
        self.seen.append((request.method, request.path_qs, body, authorization))
        return web.Response(status=self.status, headers=self.headers)


@pytest.fixture
async def server() -> AsyncIterator[RevocationServer]:
    """Return a server that says yes."""
    server = RevocationServer()
    runner = web.ServerRunner(web.Server(server.answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.port = runner.addresses[0][1]
    yield server
    await runner.cleanup()


@pytest.fixture
async def queue(database: Database, cipher: TokenCipher) -> PostgresRevocations:
    """Return a queue with the tokens of one connection."""
    queue = PostgresRevocations(database, cipher)
    await queue.queue(
        [
            Revoke(
                connection_id="con_1",
                provider="acme",
                token=f"{hint[:1]}t-1",
                token_type_hint=hint,
                fields={},
                initiator=Initiator.CALLER,
            )
            for hint in HINTS
        ],
        now=SystemClock().now(),
    )
    return queue


@asynccontextmanager
async def _revoking(queue: PostgresRevocations, provider: Provider) -> AsyncIterator[Revoking]:
    clock = SystemClock()
    async with Outbound() as session:
        yield Revoking(
            RevokingParts(
                queue=queue,
                endpoint=RevocationEndpoint(session=session, clock=clock),
                places=Discovery(session=session, clock=clock),
                providers={"acme": provider},
                events=RecordedEvents(),
                clock=clock,
                chance=lambda: 0.0,
            )
        )


async def _revoke(queue: PostgresRevocations, provider: Provider) -> RevocationResult:
    async with _revoking(queue, provider) as revoking:
        return await revoking.revoke_now("con_1")


async def test_a_provider_is_told(queue: PostgresRevocations, server: RevocationServer) -> None:
    """R1: refresh token first, with its hint, authenticated; then the queue is empty."""
    assert await _revoke(queue, server.provider) is RevocationResult.REVOKED
    assert [(method, path, body) for method, path, body, _ in server.seen] == [
        ("POST", "/revoke", "token=rt-1&token_type_hint=refresh_token"),
        ("POST", "/revoke", "token=at-1&token_type_hint=access_token"),
    ]
    assert {authorization for *_, authorization in server.seen} == {"Basic Y2xpZW50OnNlY3JldA=="}
    assert await queue.count("con_1") == 0
    assert await queue.next_at() is None


@pytest.mark.parametrize(("method", "form"), [("GET", "form"), ("DELETE", "form")])
async def test_unusual_methods(
    queue: PostgresRevocations, server: RevocationServer, method: str, form: str
) -> None:
    """What a provider wants instead of RFC 7009 goes out as configured."""
    request = RevocationRequest(method=method, format=RequestFormat(form), sends_hint=False)
    provider = replace(server.provider, revocation_request=request)
    assert await _revoke(queue, provider) is RevocationResult.REVOKED
    assert [(seen[0], seen[1], seen[2]) for seen in server.seen] == [
        (method, "/revoke?token=rt-1", ""),
        (method, "/revoke?token=at-1", ""),
    ]


async def test_a_503_keeps_the_tokens(queue: PostgresRevocations, server: RevocationServer) -> None:
    """RFC 7009 2.2.1: the tokens are taken to be alive, and asked for again when it says so."""
    server.status, server.headers = 503, {"Retry-After": "90"}
    before = SystemClock().now()
    assert await _revoke(queue, server.provider) is RevocationResult.QUEUED
    assert len(server.seen) == 1
    assert await queue.count("con_1") == 2
    due = await queue.next_at()
    assert due is not None
    assert (due - before).total_seconds() >= 90


async def test_a_redirect_is_not_followed(
    queue: PostgresRevocations, server: RevocationServer
) -> None:
    """A token goes to the configured endpoint and nowhere else."""
    server.status = 307
    server.headers = {"Location": f"http://127.0.0.1:{server.port}/elsewhere"}
    assert await _revoke(queue, server.provider) is RevocationResult.QUEUED
    assert [path for _, path, _, _ in server.seen] == ["/revoke"]


@pytest.mark.parametrize(
    ("status", "result", "queued"),
    [(200, RevocationResult.REVOKED, 0), (503, RevocationResult.QUEUED, 2)],
)
@pytest.mark.parametrize("purge", [False, True])
async def test_a_whole_disconnect(
    *,
    database: Database,
    cipher: TokenCipher,
    server: RevocationServer,
    status: int,
    result: RevocationResult,
    queued: int,
    purge: bool,
) -> None:
    """Erased in the database whatever the provider says; its tokens wait, also after a purge."""
    connections = PostgresConnections(
        database, cipher, recorder=EventRecorder(delivers=lambda: False)
    )
    now = SystemClock().now()
    connection = Connection(
        id="con_1",
        provider="acme",
        grant="authorization_code",
        status=Status.ACTIVE,
        created_at=now,
        updated_at=now,
    )
    tokens = TokenSet(
        generation=1,
        access_token="at-1",
        refresh_token="rt-1",
        token_type="Bearer",
        scopes=(),
        issued_at=now,
        expires_at=None,
    )
    assert await connections.create(connection, tokens, due_at=None)
    server.status = status
    queue, cache = PostgresRevocations(database, cipher), TokenCache()
    published: list[str] = []
    async with _revoking(queue, server.provider) as revoking:
        parts = DisconnectingParts(
            store=connections,
            revoking=revoking,
            providers={"acme": server.provider},
            cache=cache,
            publish=published.append,
            spawn=_at_once,
            events=RecordedEvents(),
            clock=SystemClock(),
        )
        after, told = await Disconnecting(parts).disconnect(
            connection, initiator=Initiator.CALLER, purge=purge
        )
    assert (after.status, told) == (Status.DISCONNECTED, result)
    assert await queue.count("con_1") == queued
    assert published == ["con_1"]
    stored = await connections.get("con_1")
    assert (stored is None) is purge
    assert server.seen[0][2].startswith("token=rt-1&")


async def _at_once(work: Coroutine[Any, Any, T], /) -> T:
    return await work
