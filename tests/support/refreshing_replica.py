"""A replica that refreshes for real: PostgreSQL, a journal on disk, requests over a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import orjson

from daemon.catalog.discovery import Discovery
from daemon.config.settings import Refresh
from daemon.domain.account import Account
from daemon.domain.authorization import Completion
from daemon.domain.claim import Claim, Refusal
from daemon.domain.claimable import Wanted
from daemon.domain.clock import Clock, SystemClock, system_entropy
from daemon.domain.connection import Connection, Status
from daemon.domain.journal import JournaledReply, Purpose
from daemon.domain.provider import ClientAuthentication, Endpoints, Provider, Rotation
from daemon.domain.reply import RawReply
from daemon.domain.tokens import TokenSet
from daemon.oauth.identifying import Identifying, KeptGrants, TokenExaminer
from daemon.oauth.outbound import Outbound
from daemon.oauth.token_endpoint import TokenEndpoint
from daemon.persistence.authorizations import PostgresAuthorizations
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.connections import PostgresConnections
from daemon.persistence.history import EventRecorder
from daemon.persistence.incarnations import Incarnations
from daemon.persistence.journal import Journal
from daemon.persistence.refreshes import PostgresRefreshes
from daemon.refresh.attempts import Ports
from daemon.refresh.cache import TokenCache
from daemon.refresh.recovery import Recovery
from daemon.refresh.refresher import Refresher
from daemon.refresh.replaying import Stored
from daemon.refresh.sending import RefreshRequests
from daemon.refresh.slots import Slots
from tests.support.database import open_database
from tests.support.refreshing import RecordedEvents
from tests.support.strict_server import Grant, StrictServer


def strict_provider(server: StrictServer, rotation: Rotation | None = None) -> Provider:
    """Return the server as a provider."""
    return Provider(
        name="acme",
        client_id="tokenward",
        token_endpoint_auth_method=ClientAuthentication.NONE,
        endpoints=Endpoints(token=server.url("/token/daemon")),
        rotation=rotation or Rotation(),
        rate=1000.0,
    )


@dataclass
class RefreshingReplica:
    """One process's parts, on the database at ``url`` with the journal in ``directory``."""

    url: str
    directory: Path
    cipher: TokenCipher
    provider: Provider
    clock: Clock = field(default_factory=SystemClock)
    pending: list[JournaledReply] = field(default_factory=list)
    authorized: list[tuple[Connection, TokenSet]] = field(default_factory=list)
    examiner: TokenExaminer | None = None

    def __post_init__(self) -> None:
        """Join the parts."""
        recorder = EventRecorder(delivers=lambda: False)
        self.database = open_database(self.url)
        self.connections = PostgresConnections(self.database, self.cipher, recorder)
        self.authorizations = PostgresAuthorizations(
            self.database, self.cipher, self.connections, self.clock, recorder=recorder
        )
        self.journal = Journal(
            self.directory, self.cipher, clock=self.clock, entropy=system_entropy
        )
        self.pending = self.journal.open()
        self.incarnations = Incarnations(self.database, owner=self.journal.owner)
        self.refreshes = PostgresRefreshes(
            self.database, self.cipher, recorder=recorder, incarnations=self.incarnations
        )
        self.cache = TokenCache()
        self.events = RecordedEvents()
        self.outbound = Outbound()
        self.refresher = Refresher(
            Ports(
                store=self.refreshes,
                tokens=self.connections,
                providers={"acme": self.provider},
                sender=RefreshRequests(
                    TokenEndpoint(session=self.outbound, clock=self.clock),
                    Discovery(session=self.outbound, clock=self.clock),
                    in_flight=lambda _: nullcontext(),
                ),
                journal=self.journal,
                publisher=self,
                events=self.events,
                clock=self.clock,
                chance=lambda: 0.5,
                late=self.refreshes,
            ),
            cache=self.cache,
            slots=Slots(total=lambda: 8, at_provider=lambda _: 8),
            settings=Refresh,
            owner=self.journal.owner,
        )
        self.recovery = Recovery(
            Stored(
                journal=self.journal,
                store=self.refreshes,
                exchanged=self.authorizations,
                providers={"acme": self.provider},
                on_authorized=lambda *told: self.authorized.append(told),
                clock=self.clock,
                chance=lambda: 0.5,
                late=self.refreshes,
                history=self.journal,
                incarnations=self.incarnations,
                identities=self._identities(),
                all_providers=lambda: [self.provider],
            ),
            pending=self.pending,
            refresher=self.refresher,
            settings=Refresh,
            owner=self.journal.owner,
        )

    def _identities(self) -> KeptGrants | None:
        """Return who asks whose account an exchange was for, where there is an examiner."""
        if self.examiner is None:
            return None
        identifying = Identifying(
            examiner=self.examiner,
            may_merge=lambda _, __: True,
            clock=self.clock,
            chance=lambda: 0.5,
        )
        discovery = Discovery(session=self.outbound, clock=self.clock)
        return KeptGrants(
            identifying, connections=self.connections, resolver=discovery, clock=self.clock
        )

    def publish(self, connection_id: str) -> None:
        """Port: Publisher."""

    async def add(self, name: str, grant: Grant) -> None:
        """Import a grant's tokens."""
        now = self.clock.now()
        connection = Connection(
            id=name,
            provider="acme",
            grant="authorization_code",
            status=Status.ACTIVE,
            created_at=now,
            updated_at=now,
        )
        tokens = TokenSet(
            generation=1,
            access_token=grant.access_token,
            refresh_token=grant.refresh_token,
            token_type="Bearer",
            scopes=("read",),
            issued_at=now,
            expires_at=now + timedelta(hours=1),
        )
        assert await self.connections.create(connection, tokens, due_at=None)
        await self.refreshes.add_providers(["acme"])

    async def refresh(self, name: str, times: int = 1) -> Refusal | None:
        """Refresh as a person asks for it; return the last refusal."""
        refusal = None
        for _ in range(times):
            refusal = await self.refresher.refresh(await self.wanted(name))
        return refusal

    async def wanted(self, name: str) -> Wanted:
        """Return a person's wish for a refresh."""
        versions = await self.connections.versions([name])
        return Wanted(
            connection_id=name,
            provider="acme",
            generation=versions[name].generation,
            rate=1000.0,
            forced=True,
        )

    async def claim(self, name: str) -> Claim | Refusal:
        """Claim, as what a later crash leaves behind."""
        return await self.refreshes.claim(
            await self.wanted(name),
            owner=self.journal.owner,
            hold=timedelta(minutes=2),
            now=self.clock.now(),
        )

    async def reconnect(
        self, name: str, grant: Grant, *, later: timedelta, account: Account | None = None
    ) -> None:
        """Store a new grant, as a person's reconnect does a while later."""
        now = self.clock.now() + later
        tokens = TokenSet(
            generation=1,
            access_token=grant.access_token,
            refresh_token=grant.refresh_token,
            token_type="Bearer",
            scopes=("read",),
            issued_at=now,
            expires_at=now + timedelta(hours=1),
        )
        await self.authorizations.complete(
            Completion(connection_id=name, tokens=tokens, due_at=None, account=account)
        )

    async def exchange(self, name: str, grant: Grant, *, stored: bool = True) -> None:
        """Exchange a code for a grant's tokens, as a callback does; they may be refused."""
        entry = await self.keep_exchange(name, grant)
        if stored:
            await self.reconnect(name, grant, later=entry.sent_at - self.clock.now())
        await self.journal.settled(entry.attempt, stored=stored)

    async def keep_exchange(self, name: str, grant: Grant) -> JournaledReply:
        """Exchange a code, and die before anything is stored."""
        now = self.clock.now()
        members = {
            "access_token": grant.access_token,
            "refresh_token": grant.refresh_token,
            "token_type": "Bearer",
            "expires_in": 3600,
        }
        standing = (await self.incarnations.standing([name]))[name]
        entry = JournaledReply(
            attempt=f"exchange {grant.number}",
            purpose=Purpose.EXCHANGE,
            connection_id=name,
            provider="acme",
            generation=standing.generation,
            epoch=standing.epoch,
            scopes=("read",),
            sent_at=now,
            reply=RawReply(
                status=200,
                headers={"content-type": "application/json"},
                body=orjson.dumps(members),
            ),
            caller="billing",
            callback={},
        )
        await self.journal.keep(entry)
        return entry

    async def stored(self, name: str) -> tuple[int, str]:
        """Return generation and access token."""
        (found,) = await self.connections.current([name])
        return found.generation, found.access_token


@asynccontextmanager
async def running(
    url: str,
    directory: Path,
    cipher: TokenCipher,
    provider: Provider,
    *,
    prepared: Callable[[RefreshingReplica], None] = lambda _: None,
    recovered: bool = True,
    examiner: TokenExaminer | None = None,
) -> AsyncIterator[RefreshingReplica]:
    """Run a replica: recovered, and watching its database."""
    async with AsyncExitStack() as stack:
        here = RefreshingReplica(url, directory, cipher, provider, examiner=examiner)
        prepared(here)
        stack.push_async_callback(here.journal.close)
        await stack.enter_async_context(here.outbound)
        stack.push_async_callback(here.database.close)
        assert await here.database.start()
        if recovered:
            await here.recovery.run()
            watching = asyncio.create_task(here.recovery.watch())
            stack.push_async_callback(_ended, watching)
        yield here
        await here.refresher.drain()


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
