"""The refresh protocol's parts joined on a standing clock, with a store in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from daemon.config.settings import Refresh
from daemon.domain.claimable import Wanted
from daemon.domain.errors import JournalError
from daemon.domain.journal import JournaledReply
from daemon.domain.outcome import FailureReason, Granted, Outcome, OutcomeKind
from daemon.domain.provider import Provider
from daemon.domain.reply import RawReply
from daemon.domain.tokens import TokenSet
from daemon.domain.tracing import NO_TRACER, Tracer
from daemon.refresh.attempts import Ports
from daemon.refresh.cache import TokenCache
from daemon.refresh.follower import Follower
from daemon.refresh.reading import TokenReader
from daemon.refresh.refresher import Refresher
from daemon.refresh.scheduler import Scheduler, Sweep
from daemon.refresh.slots import Slots
from tests.support.clock import START, FakeClock
from tests.support.memory_refreshes import MemoryRefreshes, MemoryRow

ACME = Provider(name="acme", client_id="us", rate=1000.0, concurrency=8)
HOUR = 3600.0


def tokens(
    lifetime: float = HOUR,
    *,
    generation: int = 1,
    age: float = 0.0,
    refreshable: bool = True,
    access_token: str | None = None,
    now: datetime = START,
) -> TokenSet:
    """Return tokens that were issued ``age`` seconds ago."""
    issued_at = now - timedelta(seconds=age)
    return TokenSet(
        generation=generation,
        access_token=f"access {generation}" if access_token is None else access_token,
        refresh_token=f"refresh {generation}" if refreshable else None,
        token_type="Bearer",
        scopes=("read",),
        issued_at=issued_at,
        expires_at=issued_at + timedelta(seconds=lifetime),
    )


def granted(number: int, *, lifetime: float = HOUR) -> Outcome:
    """Return a reply with new tokens."""
    return Outcome(
        kind=OutcomeKind.OK,
        granted=Granted(
            access_token=f"new access {number}",
            refresh_token=f"new refresh {number}",
            expires_in=lifetime,
        ),
    )


class ScriptedSender:
    """Port: RefreshSender. Answers after ``takes`` seconds, once ``gate`` is open.

    ``outcomes`` are given out first; after them every request brings new tokens.
    """

    def __init__(self, clock: FakeClock) -> None:
        self.sent: list[str] = []
        self.times: list[float] = []
        self.late = 0
        self.outcomes: list[Outcome | Exception] = []
        self.takes = 0.1
        self.lifetime = HOUR
        self.fields: Mapping[str, str] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self._clock = clock

    async def refresh(
        self,
        provider: Provider,
        refresh_token: str,
        *,
        fields: Mapping[str, str],
        hard_timeout: float,
        send_by: float,
        received: Callable[[RawReply], Awaitable[None]],
    ) -> Outcome:
        """Answer."""
        del provider
        assert hard_timeout > 0
        self.fields = fields
        if self._clock.boottime() > send_by:
            self.late += 1
            return Outcome(kind=OutcomeKind.NOT_SENT, reason=FailureReason.TIMEOUT)
        self.sent.append(refresh_token)
        self.times.append(self._clock.elapsed)
        number = len(self.sent)
        await self._clock.sleep(self.takes)
        await self.gate.wait()
        outcome = self.outcomes.pop(0) if self.outcomes else granted(number, lifetime=self.lifetime)
        if isinstance(outcome, Exception):
            raise outcome
        if outcome.kind is not OutcomeKind.NOT_SENT:
            await received(RawReply(status=200, headers={}, body=b"{}"))
        return outcome


class MemoryJournal:
    """Ports: ReplyJournal, JournalHistory. ``is_full`` refuses room; ``kept`` is not settled.

    What is stored is noted once ``gate`` is open.
    """

    def __init__(self) -> None:
        self.kept: dict[str, JournaledReply] = {}
        self.history: list[JournaledReply] = []
        self.is_full = False
        self.gate = asyncio.Event()
        self.gate.set()

    @asynccontextmanager
    async def reserved(self) -> AsyncIterator[None]:
        """Hold room for one reply."""
        if self.is_full:
            raise JournalError("there is no room")
        yield

    async def keep(self, entry: JournaledReply) -> bool:
        """Remember."""
        self.kept[entry.attempt] = entry
        return True

    async def settled(self, attempt: str, *, stored: bool = True) -> None:
        """Forget, but for what the database may forget."""
        await self.gate.wait()
        entry = self.kept.pop(attempt, None)
        if entry is not None and stored:
            self.history.append(entry)

    def is_settled(self, attempt: str) -> bool:
        """Tell whether it is."""
        return attempt not in self.kept

    async def replies(self) -> AsyncIterator[JournaledReply]:
        """Return what was kept, newest first."""
        for entry in reversed([*self.history, *self.kept.values()]):
            yield entry


class RecordedEvents:
    """Port: Events. ``told`` has (event, connection, details)."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, dict[str, object]]] = []

    def __getattr__(self, event: str) -> Callable[..., None]:
        """Record any event under its own name."""

        def record(subject: object, *_: object, **details: object) -> None:
            name = str(getattr(subject, "connection_id", subject))
            self.told.append((event, name, details))

        return record

    @property
    def names(self) -> list[str]:
        """Return the events in order."""
        return [event for event, _, _ in self.told]


@dataclass
class Replica:
    """One process: what it remembers and does. Replicas share ``store`` and ``clock``."""

    clock: FakeClock = field(default_factory=FakeClock)
    shared_store: MemoryRefreshes | None = None
    owner: str = "one"
    settings: Refresh = field(default_factory=Refresh)
    providers: dict[str, Provider] = field(default_factory=lambda: {"acme": ACME})
    published: list[str] = field(default_factory=list)
    disowned: int = 0
    expected: list[float] = field(default_factory=list)
    listening: bool = True
    recovered: bool = True
    tracer: Tracer = NO_TRACER

    def __post_init__(self) -> None:
        """Join the parts."""
        clock = self.clock
        self.store = self.shared_store or MemoryRefreshes(clock)
        self.sender = ScriptedSender(clock)
        self.journal = MemoryJournal()
        self.events = RecordedEvents()
        self.cache = TokenCache()
        self.slots = Slots(
            total=lambda: self.settings.concurrency,
            at_provider=lambda name: (
                self.providers[name].concurrency if name in self.providers else 0
            ),
        )
        self.refresher = Refresher(
            Ports(
                store=self.store,
                tokens=self.store,
                providers=self.providers,
                sender=self.sender,
                journal=self.journal,
                publisher=self,
                events=self.events,
                clock=clock,
                chance=lambda: 0.5,
                on_disowned=self._disowned,
                late=self.store,
                tracer=self.tracer,
            ),
            cache=self.cache,
            slots=self.slots,
            settings=lambda: self.settings,
            owner=self.owner,
            on_schedule=self._expect,
        )
        if self.recovered:
            self.refresher.begin()
        self.scheduler = Scheduler(
            Sweep(
                store=self.store,
                publisher=self,
                clock=clock,
                chance=lambda: 0.5,
                owner=self.owner,
            ),
            refresher=self.refresher,
            slots=self.slots,
            providers=lambda: tuple(self.providers.values()),
        )
        self.follower = Follower(
            self.cache, self.store, clock=clock, listening=lambda: self.listening
        )
        self.reader = TokenReader(
            self.cache,
            self.refresher,
            self.providers,
            clock=clock,
            settings=lambda: self.settings,
        )

    def publish(self, connection_id: str) -> None:
        """Port: Publisher."""
        self.published.append(connection_id)

    def _disowned(self) -> None:
        self.disowned += 1

    def _expect(self, seconds: float) -> None:
        self.expected.append(seconds)
        self.scheduler.expect(seconds)

    def add(
        self,
        name: str = "acme-1",
        *,
        stored: TokenSet | None = None,
        due_in: float | None = HOUR,
        **row: object,
    ) -> MemoryRow:
        """Store a connection that is due in so many seconds."""
        now = self.clock.now()
        made = MemoryRow(
            id=name,
            provider="acme",
            tokens=stored or tokens(now=now),
            due_at=None if due_in is None else now + timedelta(seconds=due_in),
        )
        for column, value in row.items():
            setattr(made, column, value)
        self.store.rows[name] = made
        self.store.state_of(made.provider)
        return made

    def wanted(self, name: str = "acme-1", *, generation: int = 1, forced: bool = False) -> Wanted:
        """Return a wish for a refresh."""
        return Wanted(
            connection_id=name, provider="acme", generation=generation, rate=1000.0, forced=forced
        )

    def row(self, name: str = "acme-1") -> MemoryRow:
        """Return what is stored of a connection."""
        return self.store.rows[name]
