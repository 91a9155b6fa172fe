"""One process: the daemon's own parts, joined as ``daemon.wiring`` does, over the models."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace

from daemon.catalog.discovery import Discovery
from daemon.domain.claimable import Wanted
from daemon.domain.connection import Connection
from daemon.domain.errors import DatabaseUnavailableError, JournalError
from daemon.domain.reply import NoReply, RawReply
from daemon.domain.tokens import CurrentToken, TokenSet, current_of
from daemon.oauth.token_endpoint import TokenEndpoint
from daemon.persistence.cipher import TokenCipher
from daemon.refresh.attempts import Ports
from daemon.refresh.cache import TokenCache
from daemon.refresh.follower import Follower
from daemon.refresh.reading import TokenReader
from daemon.refresh.recovery import Recovery
from daemon.refresh.refresher import Refresher
from daemon.refresh.replaying import Stored
from daemon.refresh.scheduler import Scheduler, Sweep
from daemon.refresh.sending import RefreshRequests
from daemon.refresh.slots import Slots
from tests.simulation.clocks import CoarseClock
from tests.simulation.database_model import Way
from tests.simulation.exchanging import Exchanging
from tests.simulation.journal_model import SimulatedJournal
from tests.simulation.loop import Life
from tests.simulation.machines import Machine
from tests.simulation.network import ProcessSession
from tests.simulation.store_model import ProcessIncarnations, StoreOverWay
from tests.simulation.trace import Trace, ViolationError
from tests.simulation.world import World
from tests.support.memory_refreshes import MemoryRow
from tests.support.refreshing import RecordedEvents

# The follower looks for news this often at most: a poll each 0.7 s is most of a run's work.
_FOLLOWS = 30.0
_CLEANS = 120.0
# stopping.py
_GRACE = 70.0


class SilentMetadata:
    """Port: ``MetadataSession``. All endpoints are configured."""

    async def get(
        self, url: str, headers: Mapping[str, str], *, hard_timeout: float
    ) -> RawReply | NoReply:
        """Never."""
        del headers, hard_timeout
        raise AssertionError(url)


class Events(RecordedEvents):
    """Port: ``Events``. What happened is counted."""

    def __init__(self, trace: Trace, who: str) -> None:
        super().__init__()
        self._trace = trace
        self._who = who

    def __getattr__(self, event: str) -> Callable[..., None]:
        """Count any event under its own name."""

        def record(subject: object, *_: object, **details: object) -> None:
            name = getattr(subject, "connection_id", subject)
            cause = details.get("cause", "")
            self._trace.count(f"event: {event}{' ' if cause else ''}{cause}")
            self._trace.tell(self._who, f"{event} {name} {cause}")

        return record


class Node:
    """A process of its construction. It must be built in its life's context."""

    def __init__(self, world: World, machine: Machine, life: Life, way: Way) -> None:
        self.world = world
        self.machine = machine
        self.life = life
        self._faults_before = machine.statement_faults
        self._has_recovered = False
        chance, clock = world.chance, machine.clock
        cipher = TokenCipher(world.keys, entropy=chance.randbytes)
        self.journal = self.open_journal(cipher)
        pending = self.journal.open()
        self.incarnations = ProcessIncarnations(way, self.journal.owner)
        store = self.store = StoreOverWay(way, world.books, self.incarnations)
        self.cache = TokenCache()
        self.slots = Slots(
            total=lambda: world.settings.concurrency,
            at_provider=lambda name: world.providers[name].concurrency,
            providers=lambda: len(world.providers),
        )
        self.refresher = Refresher(
            Ports(
                store=store,
                tokens=store,
                providers=world.providers,
                sender=RefreshRequests(
                    TokenEndpoint(session=self.session(), clock=clock),
                    Discovery(session=SilentMetadata(), clock=clock),
                    in_flight=lambda _: nullcontext(),
                ),
                journal=self.journal,
                publisher=self,
                events=Events(world.trace, life.name),
                clock=clock,
                chance=chance.random,
                late=store,
            ),
            cache=self.cache,
            slots=self.slots,
            settings=lambda: world.settings,
            owner=self.journal.owner,
            on_schedule=self._expect,
        )
        self.scheduler = self.make_scheduler()
        self.follower = Follower(
            self.cache, store, clock=CoarseClock(clock, _FOLLOWS), listening=lambda: True
        )
        self.reader = self.make_reader()
        self.recovery = Recovery(
            Stored(
                journal=self.journal,
                store=store,
                exchanged=store,
                providers=world.providers,
                on_authorized=self._authorized,
                clock=clock,
                chance=chance.random,
                late=store,
                history=self.journal,
                incarnations=self.incarnations,
                all_providers=lambda: tuple(world.providers.values()),
            ),
            pending=pending,
            refresher=self.refresher,
            settings=lambda: world.settings,
            owner=self.journal.owner,
        )

    def session(self) -> ProcessSession:
        """Return what sends."""
        return ProcessSession(self.world.network, self.machine, self.life, self.journal.owner)

    def make_reader(self) -> TokenReader:
        """Return what answers callers."""
        return TokenReader(
            self.cache,
            self.refresher,
            self.world.providers,
            clock=self.machine.clock,
            settings=lambda: self.world.settings,
        )

    def open_journal(self, cipher: TokenCipher) -> SimulatedJournal:
        """Return the journal, not opened yet."""
        return SimulatedJournal(
            self.machine,
            cipher,
            entropy=self.world.chance.randbytes,
            books=self.world.books,
            life=self.life,
        )

    def make_scheduler(self) -> Scheduler:
        """Return the sweep."""
        world = self.world
        return Scheduler(
            Sweep(
                store=self.store,
                publisher=self,
                clock=self.machine.clock,
                chance=world.chance.random,
                owner=self.journal.owner,
            ),
            refresher=self.refresher,
            slots=self.slots,
            providers=lambda: tuple(world.providers.values()),
        )

    def work(self) -> None:
        """Start the background tasks, as ``lifecycle.serve`` does."""
        for name, work in (
            ("scheduler", self._recover_then_refresh),
            ("recovery", self.recovery.watch),
            ("follower", self.follower.run),
            ("housekeeping", self._clean),
        ):
            self.world.loop.start(self.life, self._owned(work, name), name)

    def publish(self, connection_id: str) -> None:
        """Port: Publisher."""
        self.world.publish(self.life, connection_id)

    async def drain(self) -> None:
        """End as SIGTERM ends a process: what is in flight is stored first."""
        self.scheduler.stop()
        try:
            async with asyncio.timeout(_GRACE):
                await self.scheduler.stopped()
                await self.refresher.drain()
        except TimeoutError:
            self.world.trace.count("branch: drained too slowly")
        else:
            self.world.trace.count("branch: drained")
            if self._has_recovered and self.machine.statement_faults == self._faults_before:
                self.world.books.drained(self.life, self.journal.owner)
        await self.journal.close()

    async def disconnect(self, name: str) -> None:
        """Disconnect, as ``daemon.upkeep.disconnecting`` does; again until it is certain."""
        ended = await self._disconnected(name)
        if ended is None:
            return
        known = self.cache.get(name)
        # Memory may know a reply that is not stored yet: it ends as well.
        generation = max(ended.generation, known.generation if known else 0)
        self.cache.put(replace(ended, generation=generation, issued_at=self.machine.clock.now()))
        self.world.books.known_ended.update(
            (self.life, family) for family in self.world.books.ended_of([name])
        )
        self.publish(name)

    async def force(self, name: str) -> None:
        """Refresh as a person asks for it; a refusal is an answer, too."""
        row = self.world.books.rows.get(name)
        if row is None:
            return
        wanted = Wanted(
            connection_id=name,
            provider=row.provider,
            generation=row.tokens.generation,
            rate=self.world.providers[row.provider].rate,
            forced=True,
        )
        with suppress(DatabaseUnavailableError):
            await self.refresher.refresh(wanted)

    async def purge(self, name: str) -> None:
        """Disconnect, and leave nothing; again until it is certain."""
        while True:
            with suppress(DatabaseUnavailableError):
                await self.store.purge(name)
                break
            await self.machine.clock.sleep(1.0)
        self.cache.drop(name)
        self.world.books.known_ended.update(
            (self.life, family) for family in self.world.books.ended_of([name])
        )
        self.publish(name)

    async def create(self, name: str, make: Callable[[], MemoryRow]) -> None:
        """Import a connection under a name; not again where nobody knows whether it is there."""
        with suppress(DatabaseUnavailableError):
            await self.store.create(name, make)
            self.publish(name)
            self.scheduler.wake()

    async def _disconnected(self, name: str) -> CurrentToken | None:
        while True:
            with suppress(DatabaseUnavailableError):
                return await self.store.disconnect(name)
            await self.machine.clock.sleep(1.0)

    async def reconnect(self, name: str, grant: Callable[[], RawReply]) -> None:
        """Exchange a code for a connection; ``grant`` is what the provider does."""
        exchanging = Exchanging(
            self.world,
            self.machine,
            self.store,
            self.journal,
            store_later=self.recovery.store_later,
        )
        stored = await exchanging.run(name, grant)
        if stored is not None:
            self._authorized(*stored)

    def _authorized(self, connection: Connection, tokens: TokenSet) -> None:
        self.cache.put(
            current_of(
                replace(tokens, generation=connection.generation),
                connection=connection.id,
                provider=connection.provider,
                status=connection.status,
            )
        )
        self.publish(connection.id)
        self.scheduler.wake()

    def _expect(self, seconds: float) -> None:
        self.scheduler.expect(seconds)

    async def _recover_then_refresh(self) -> None:
        await self.recovery.run()
        self._has_recovered = True
        await self.scheduler.run()

    async def _clean(self) -> None:
        while True:
            await self.machine.clock.sleep(_CLEANS)
            with suppress(JournalError, DatabaseUnavailableError):
                await self.incarnations.beat()
                await self.journal.clean()

    async def _owned(self, work: Callable[[], Awaitable[None]], name: str) -> None:
        try:
            await work()
        except ViolationError:
            raise
        except Exception as error:  # noqa: BLE001 - the task owner
            what = f"the task {name!r} of {self.life.name} died: {error!r}"
            self.world.trace.fail("PO8", what)
