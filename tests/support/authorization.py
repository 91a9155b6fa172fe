"""An authorization's surroundings, without network and database: time, chance, provider, events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

from pydantic import SecretStr

from daemon.domain.connection import Connection, Status
from daemon.domain.errors import DatabaseUnavailableError, DiscoveryError
from daemon.domain.history import NewEvent
from daemon.domain.journal import JournaledReply
from daemon.domain.outcome import Granted, Outcome, OutcomeKind
from daemon.domain.provider import Endpoints, Provider
from daemon.domain.reply import RawReply
from daemon.domain.tokens import TokenSet
from daemon.oauth.authorization import Authorizer, new_secret
from daemon.oauth.authorization_errors import AuthorizationFailures
from daemon.oauth.completing import Completing, Learning
from daemon.oauth.examination import Examined
from daemon.oauth.identifying import Identifying
from daemon.oauth.redirection import CodeExchange, Redirection
from daemon.oauth.token_endpoint import Received
from daemon.oauth.token_request import Exchange
from tests.support.memory_authorizations import MemoryAuthorizations
from tests.support.memory_journal import MemoryJournal

_T = TypeVar("_T")

START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
ISSUER = "https://auth.acme.example"
ACME = Provider(
    name="acme",
    client_id="our client",
    client_secrets=(SecretStr("client-secret-canary"),),
    issuer=ISSUER,
    endpoints=Endpoints(authorization=f"{ISSUER}/authorize?tenant=a%20b", token=f"{ISSUER}/token"),
    scopes=("read", "write:all"),
)
PENDING = Connection(
    id="acme-1",
    provider="acme",
    grant="authorization_code",
    status=Status.PENDING,
    requested_scopes=("read", "write:all"),
    created_at=START,
    updated_at=START,
)
GRANTED = Outcome(
    kind=OutcomeKind.OK,
    granted=Granted(
        access_token="access-canary", refresh_token="refresh-canary", expires_in=3600.0
    ),
)


REPLY = RawReply(status=200, headers={}, body=b'{"access_token": "access-canary"}')


class SteppedClock:
    """A clock that moves when somebody sleeps on it or turns it."""

    def __init__(self) -> None:
        self.elapsed = 0.0

    def now(self) -> datetime:
        """Return wall time."""
        return START + timedelta(seconds=self.elapsed)

    def boottime(self) -> float:
        """Return seconds since the start."""
        return self.elapsed

    async def sleep(self, seconds: float) -> None:
        """Move on at once; other tasks get their turn."""
        self.elapsed += max(0.0, seconds)
        await asyncio.sleep(0)

    def turn(self, by: timedelta) -> None:
        """Move on."""
        self.elapsed += by.total_seconds()


class CountedEntropy:
    """Bytes that never repeat and are the same in every run."""

    def __init__(self) -> None:
        self.drawn = 0

    def __call__(self, size: int) -> bytes:
        """Return ``size`` bytes."""
        self.drawn += 1
        return sha256(str(self.drawn).encode()).digest()[:size]


class RecordedEvents:
    """What the flow told of: (event, connection, provider, details)."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str | None, str | None, dict[str, object]]] = []

    def __getattr__(self, event: str) -> Callable[..., None]:
        """Record any event under its own name."""

        def record(connection: str | None, provider: str | None, **details: object) -> None:
            self.told.append((event, connection, provider, details))

        return record

    @property
    def failures(self) -> list[tuple[str, str]]:
        """Return code and reference of each failure."""
        return [
            (str(details["code"]), str(details["reference"]))
            for event, _, _, details in self.told
            if event == "authorization_failed"
        ]


class FixedResolver:
    """Metadata that are all in the configuration, or away."""

    def __init__(self) -> None:
        self.is_away = False

    async def resolve(self, provider: Provider) -> Provider:
        """Return the provider as it is."""
        if self.is_away:
            raise DiscoveryError("the metadata cannot be read")
        return provider


class ScriptedTokenEndpoint:
    """Answers with ``outcome``, after ``gate`` is open; remembers what was sent where.

    ``reached`` is set when the first request has come.
    """

    def __init__(self) -> None:
        self.outcome = GRANTED
        self.sent: list[tuple[str, str, Exchange]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.reached = asyncio.Event()

    async def request(
        self,
        provider: Provider,
        url: str,
        message: Exchange,
        *,
        hard_timeout: float,
        received: Received,
    ) -> Outcome:
        """Answer."""
        assert hard_timeout > 0
        self.sent.append((provider.name, url, message))
        self.reached.set()
        await self.gate.wait()
        if self.outcome.kind is not OutcomeKind.IN_DOUBT:
            await received(REPLY)
        return self.outcome


class ScriptedExaminer:
    """Answers every test with ``examined``; remembers (provider, token, fields, reply values)."""

    def __init__(self) -> None:
        self.examined: Examined | None = None
        self.asked: list[tuple[Provider, str, dict[str, str], dict[str, str]]] = []

    async def examine(
        self,
        provider: Provider,
        access_token: str,
        *,
        fields: Mapping[str, str],
        reply_values: Mapping[str, str],
    ) -> Examined | None:
        """Answer."""
        self.asked.append((provider, access_token, dict(fields), dict(reply_values)))
        return self.examined


class StoredConnections:
    """The connections of an authorization store; away while ``is_away``."""

    def __init__(self, store: MemoryAuthorizations) -> None:
        self._store = store
        self.is_away = False

    async def get(self, connection_id: str) -> Connection | None:
        """Return a connection."""
        if self.is_away:
            raise DatabaseUnavailableError("the database is away")
        return self._store.connections.get(connection_id)


@dataclass
class Flow:
    """All parts of the flow, and a browser's way through it.

    ``gone`` and ``revocations`` are what followed: ids that gave way, wake-ups of who revokes.
    ``may_see`` are the connection ids that the caller may see. ``exchange`` takes the place of
    ``token_endpoint``.
    """

    store: MemoryAuthorizations = field(default_factory=lambda: MemoryAuthorizations(PENDING))
    clock: SteppedClock = field(default_factory=SteppedClock)
    entropy: CountedEntropy = field(default_factory=CountedEntropy)
    events: RecordedEvents = field(default_factory=RecordedEvents)
    resolver: FixedResolver = field(default_factory=FixedResolver)
    token_endpoint: ScriptedTokenEndpoint = field(default_factory=ScriptedTokenEndpoint)
    providers: dict[str, Provider] = field(default_factory=lambda: {"acme": ACME})
    public_url: str = "http://localhost:7421"
    journal: MemoryJournal = field(default_factory=MemoryJournal)
    learned: list[tuple[Connection, TokenSet]] = field(default_factory=list)
    exchange: CodeExchange | None = None
    examiner: ScriptedExaminer = field(default_factory=ScriptedExaminer)
    may_see: set[str] = field(default_factory=set)
    blind: set[str] = field(default_factory=set)
    merges_asked: list[tuple[str, str]] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    history: list[NewEvent] = field(default_factory=list)
    revocations: int = 0
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Build what the parts make up."""
        self.stored_later: list[JournaledReply] = []
        self.failures = AuthorizationFailures(
            events=self.events,
            clock=self.clock,
            entropy=self.entropy,
            record=self.history.append,
        )
        self.authorizer = Authorizer(
            store=self.store,
            resolver=self.resolver,
            public_url=self.public_url,
            clock=self.clock,
            entropy=self.entropy,
        )
        self.connections = StoredConnections(self.store)
        self.redirection = Redirection(
            store=self.store,
            connections=self.connections,
            providers=self.providers.get,
            resolver=self.resolver,
            token_endpoint=self.exchange or self.token_endpoint,
            completing=Completing(
                store=self.store,
                identifying=Identifying(
                    examiner=self.examiner,
                    may_merge=self._may_merge,
                    clock=self.clock,
                    chance=lambda: 0.5,
                ),
                learning=Learning(
                    plan=lambda tokens, _provider, _id: tokens.issued_at + timedelta(minutes=45),
                    authorized=lambda connection, tokens: self.learned.append((connection, tokens)),
                    gone=self.gone.append,
                    revoke=self._wake,
                    default_lifetime=lambda: timedelta(hours=1),
                ),
                events=self.events,
                clock=self.clock,
            ),
            journal=self.journal,
            failures=self.failures,
            clock=self.clock,
            spawn=self.spawn,
            store_later=self.stored_later.append,
        )

    def _wake(self) -> None:
        self.revocations += 1

    def _may_merge(self, caller: str, other: str) -> bool:
        self.merges_asked.append((caller, other))
        return other in self.may_see and caller not in self.blind

    async def spawn(self, work: Coroutine[Any, Any, _T], /) -> _T:
        """Run ``work`` so that cancelling the caller leaves it alone, as the owner's does."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return await asyncio.shield(task)

    async def connect_url(self, *, return_url: str | None = None) -> str:
        """Return the connect URL of a stored ticket for the connection."""
        _, url = await self.authorizer.issue_ticket(
            PENDING, caller="billing", return_url=return_url
        )
        return url

    async def begun(
        self,
        provider: Provider = ACME,
        *,
        connection: Connection = PENDING,
        fields: Mapping[str, str] | None = None,
        return_url: str | None = None,
        caller: str = "billing",
    ) -> tuple[str, str]:
        """Start a transaction; return its state and the browser's binding."""
        ticket, _ = self.authorizer.new_ticket(connection.id, caller=caller, return_url=return_url)
        self.store.tickets[ticket.ticket_hash] = ticket
        binding = new_secret(self.entropy)
        url = await self.authorizer.begin(
            ticket, connection, provider, binding, fields=fields or {}
        )
        assert url is not None
        return query_of(url)["state"], binding


def query_of(url: str) -> dict[str, str]:
    """Return the parameters in a URL's query; each must be there once."""
    values = parse_qs(urlsplit(url).query, keep_blank_values=True, strict_parsing=True)
    assert all(len(one) == 1 for one in values.values()), values
    return {name: one[0] for name, one in values.items()}
