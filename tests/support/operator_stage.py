"""The operator pages on a real socket; what stands behind them is in memory."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aiohttp import web

from daemon.config.settings import Address, Caller, Permission, Settings
from daemon.domain.authorization import Ticket
from daemon.domain.claimable import Wanted
from daemon.domain.clock import Entropy, system_entropy
from daemon.domain.connection import Connection, Failure, Status, TestResult
from daemon.domain.errors import DatabaseUnavailableError, Problem
from daemon.domain.fields import Field
from daemon.domain.history import Event, EventType
from daemon.domain.provider import Endpoints, Provider, TestRequest
from daemon.domain.revocation import Initiator, RevocationResult
from daemon.domain.templates import parse_template
from daemon.persistence.connections import Filter
from daemon.sidecar.access import Callers, Identity
from daemon.sidecar.guard import Guard
from daemon.sidecar.listener import Listener
from daemon.sidecar.operator.parts import OperatorParts
from daemon.sidecar.operator.routes import add_operator_routes
from daemon.sidecar.problems import error_middleware
from tests.support.clock import FakeClock

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
KEYS = {
    "admin": "admin-key-canary-0123456789abcdef",
    "viewer": "viewer-key-canary-0123456789abcde",
    "tokens": "tokens-key-canary-0123456789abcde",
}
ACME = Provider(
    name="acme",
    client_id="our-client-id",
    issuer="https://auth.acme.example",
    endpoints=Endpoints(
        authorization="https://{region}.acme.example/authorize",
        token="https://{region}.acme.example/token",
    ),
    scopes=("read", "write:all", "offline_access"),
    fields={
        "region": Field(name="region", title="Region", enum=("us", "eu"), default="us"),
        "team": Field(name="team", title="Team", help="As in the address bar.", required=True),
    },
    api_base_url=parse_template("https://api.acme.example/v2?key=query-canary"),
    allowed_hosts=("api.acme.example", "*.acme-files.example"),
    test=TestRequest(path=parse_template("/me")),
)
PLAIN = Provider(name="plain", client_id="c", scopes=())


class PassingClock(FakeClock):
    """A clock on which time passes as soon as somebody sleeps."""

    async def sleep(self, seconds: float) -> None:
        """Move on at once."""
        self.advance(seconds)


def caller(name: str, *connections: str, permissions: frozenset[Permission]) -> Caller:
    """Return a caller with its key of ``KEYS``."""
    digest = hashlib.sha256(KEYS[name].encode()).digest()
    return Caller(name=name, key_sha256=digest, connections=connections, permissions=permissions)


ADMIN = caller("admin", "*", permissions=frozenset(Permission))
VIEWER = caller("viewer", "acme-*", permissions=frozenset({Permission.READ}))
TOKENS = caller("tokens", "*", permissions=frozenset({Permission.TOKEN}))


def connection(name: str, status: Status = Status.ACTIVE, **members: Any) -> Connection:
    """Return a connection that is an hour old and works."""
    has_tokens = status in {Status.ACTIVE, Status.FAILING}
    made = Connection(
        id=name,
        provider="acme",
        grant="authorization_code",
        status=status,
        scopes=("read", "write:all") if has_tokens else (),
        requested_scopes=("read", "write:all", "offline_access"),
        generation=3 if has_tokens else 0,
        expires_at=NOW + timedelta(minutes=42) if has_tokens else None,
        refresh_at=NOW + timedelta(minutes=30) if has_tokens else None,
        has_refresh_token=has_tokens,
        last_refreshed_at=NOW - timedelta(minutes=18) if has_tokens else None,
        created_at=NOW - timedelta(hours=1),
        updated_at=NOW - timedelta(minutes=18),
        created_by="billing",
    )
    return replace(made, **members)


def failure(code: str, description: str) -> Failure:
    """Return a failure of ten minutes ago."""
    return Failure(code=code, description=description, at=NOW - timedelta(minutes=10))


def every_kind() -> list[Connection]:
    """Return a connection in each state that looks different."""
    used: dict[str, Any] = {"last_used_at": NOW - timedelta(minutes=3)}
    shown: dict[str, Any] = {"label": "Ada Lovelace (ada@acme.example)", "account_id": "10001"}
    return [
        connection(
            "acme-1",
            **shown,
            **used,
            fields={"region": "eu", "team": "engines"},
            metadata={"plan": "gold"},
        ),
        connection("acme-2", label="Grace Hopper", account_id="10002"),
        connection(
            "acme-3",
            Status.FAILING,
            **used,
            label="Alan",
            refresh_at=NOW + timedelta(minutes=4),
            last_error=failure(
                "temporarily_unavailable",
                "The provider says that it cannot answer right now. It will be asked again; nothing"
                " needs to be done.",
            ),
        ),
        connection(
            "acme-4",
            Status.REAUTHORIZATION_REQUIRED,
            label="Edsger D.",
            account_id="10004",
            last_error=failure(
                "invalid_grant",
                "The provider no longer accepts this grant: it has expired, was revoked, or was"
                " used somewhere else. Connect again.",
            ),
        ),
        connection("acme-5", Status.PENDING),
        connection("acme-6", Status.DISCONNECTED, label="Barbara"),
        connection("plain-7", provider="plain", expires_at=None, refresh_at=None, **used),
        connection(
            "con_0123456789ABCDEFabcdef",
            has_refresh_token=False,
            refresh_at=None,
            expires_at=NOW - timedelta(minutes=5),
            last_test=TestResult(
                ok=False,
                status=401,
                checked_at=NOW - timedelta(minutes=5),
                error=failure("unauthorized", "The provider answered 401 to the test request."),
            ),
        ),
    ]


def some_history(connection_id: str) -> list[Event]:
    """Return events of a connection, newest first."""
    told: list[tuple[EventType, dict[str, object]]] = [
        (EventType.CREATED, {"by": "billing"}),
        (EventType.AUTHORIZED, {"scopes": ["read", "write:all"], "has_refresh_token": True}),
        (EventType.TESTED, {"ok": True, "status": 200}),
        (EventType.REFRESHED, {"generation": 2}),
        (EventType.REFRESH_FAILED, {"code": "server_error", "retry_in": 30}),
        (EventType.TESTED, {"ok": False, "status": 401, "code": "unauthorized"}),
        (EventType.RECOVERED, {}),
    ]
    return [
        Event(
            id=number,
            type=kind,
            connection=connection_id,
            provider="acme",
            at=NOW - timedelta(hours=10 - number),
            detail=detail,  # type: ignore[arg-type]  # details as given
        )
        for number, (kind, detail) in reversed(list(enumerate(told, start=1)))
    ]


@dataclass
class Backstage:
    """All that is behind the pages: stores, tests, refreshes. ``done`` is what was asked for."""

    connections: dict[str, Connection]
    events: dict[str, list[Event]] = field(default_factory=dict)
    merged: dict[str, str] = field(default_factory=dict)
    done: list[tuple[str, str]] = field(default_factory=list)
    problem: Problem | None = None
    is_away: bool = False
    test_ok: bool = True
    revocation: RevocationResult = RevocationResult.REVOKED
    connect_origin: str = "http://localhost:7421"

    async def get(self, connection_id: str) -> Connection | None:
        """Return one connection."""
        if self.is_away:
            raise DatabaseUnavailableError("away")
        return self.connections.get(connection_id)

    async def survivor_of(self, connection_id: str) -> str | None:
        """Return where a connection went."""
        return self.merged.get(connection_id)

    async def page(
        self, wanted: Filter, *, limit: int, before: tuple[datetime, str] | None
    ) -> list[Connection]:
        """Return connections, newest first."""
        if self.is_away:
            raise DatabaseUnavailableError("away")
        identity = Identity(
            "x",
            connections=("*",) if wanted.patterns is None else wanted.patterns,
            permissions=frozenset(),
        )
        found = [
            one
            for one in self.connections.values()
            if wanted.provider in {None, one.provider}
            and wanted.status in {None, one.status.value}
            and (wanted.text or "").lower() in f"{one.id} {one.label} {one.account_id}".lower()
            and identity.may_see(one.id)
            and (before is None or (one.created_at, one.id) < before)
        ]
        return sorted(found, key=lambda one: (one.created_at, one.id), reverse=True)[:limit]

    async def of_connection(
        self, connection_id: str, *, limit: int, before: int | None
    ) -> Sequence[Event]:
        """Return events, newest first."""
        events = self.events.get(connection_id, [])
        return [one for one in events if before is None or one.id < before][:limit]

    async def test(self, connection: Connection) -> _Report:
        """Test."""
        self._did("test", connection.id)
        return _Report(self.test_ok)

    async def refresh_now(self, wanted: Wanted) -> None:
        """Refresh."""
        assert wanted.forced
        self._did("refresh", wanted.connection_id)

    async def disconnect(
        self, connection: Connection, *, initiator: Initiator, purge: bool
    ) -> tuple[Connection, RevocationResult]:
        """Disconnect."""
        assert initiator is Initiator.OPERATOR
        self._did("purge" if purge else "disconnect", connection.id)
        after = replace(
            connection, status=Status.DISCONNECTED, expires_at=None, has_refresh_token=False
        )
        self.connections[connection.id] = after
        if purge:
            del self.connections[connection.id]
        return after, self.revocation

    async def issue_ticket(
        self, connection: Connection, *, caller: str, return_url: str | None
    ) -> tuple[Ticket, str]:
        """Issue a ticket."""
        self._did("ticket", connection.id)
        ticket = Ticket(
            ticket_hash=b"",
            connection_id=connection.id,
            caller=caller,
            return_url=return_url,
            expires_at=NOW,
        )
        return ticket, f"{self.connect_origin}/connect/{'t' * 43}"

    async def create(
        self, identity: Identity, provider: Provider, connection_id: str | None
    ) -> tuple[Connection, str | None]:
        """Create."""
        name = connection_id or "con_generated"
        self._did("create", f"{identity.name} {provider.name} {name}")
        made = connection(name, Status.PENDING, provider=provider.name)
        self.connections[name] = made
        return made, f"{self.connect_origin}/connect/{'t' * 43}"

    def _did(self, deed: str, on: str) -> None:
        if self.problem is not None:
            raise self.problem
        self.done.append((deed, on))


@dataclass(frozen=True)
class _Report:
    """How a test went; the pages only look at ``ok``."""

    ok: bool
    status: int | None = 200
    account_id: str | None = None
    label: str | None = None
    checked_at: datetime = NOW
    error: Failure | None = None


@dataclass
class OperatorStage:
    """A running listener with the pages, and one API route to see that they keep apart."""

    url: str
    behind: Backstage
    callers: Callers
    clock: PassingClock
    settings: Settings


@asynccontextmanager
async def operator_stage(
    *, entropy: Entropy = system_entropy, settings: Settings | None = None
) -> AsyncIterator[OperatorStage]:
    """Run the pages on a free port."""
    behind = Backstage({one.id: one for one in every_kind()})
    behind.events = {"acme-1": some_history("acme-1")}
    callers, clock = Callers([ADMIN, VIEWER, TOKENS]), PassingClock()
    chosen = settings or Settings(
        state_dir=Path("/var/lib/token ward"), providers={"acme": ACME, "plain": PLAIN}
    )
    app = web.Application(middlewares=[error_middleware(entropy), _refuse_all])
    app.router.add_get("/v1/connections", _never)
    stage = OperatorStage("", behind, callers, clock, chosen)
    add_operator_routes(
        app,
        OperatorParts(
            settings=lambda: stage.settings,
            callers=callers,
            guard=Guard(),
            connections=behind,
            history=behind,
            tests=behind,
            reader=behind,
            disconnecting=behind,
            authorizer=behind,
            create=behind.create,
            clock=clock,
            entropy=entropy,
        ),
    )
    listener = Listener(app, name="api", entropy=entropy)
    await listener.start(address=Address("127.0.0.1", 0))
    stage.url = f"http://{listener.addresses[0]}"
    try:
        yield stage
    finally:
        await listener.stop()


@web.middleware
async def _refuse_all(request: web.Request, handler: object) -> web.StreamResponse:
    """Stand for the API's own door, which lets nobody in here."""
    del request, handler
    raise Problem(401, "unauthenticated", "No caller key was sent.")


async def _never(request: web.Request) -> web.StreamResponse:
    raise AssertionError(request.path)
