"""One way to set up and look at refresh stores, in memory and on PostgreSQL alike."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

from daemon.domain.account import Account
from daemon.domain.authorization import Completion, StoredAuthorization
from daemon.domain.claim import ClaimState
from daemon.domain.clock import SystemClock
from daemon.domain.connection import Connection, Status
from daemon.domain.history import EventType
from daemon.domain.revocation import Initiator
from daemon.domain.tokens import TokenSet
from daemon.persistence.authorizations import PostgresAuthorizations
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.connections import PostgresConnections
from daemon.persistence.history import EventRecorder, PostgresHistory
from daemon.persistence.postgres import Database
from daemon.persistence.refreshes import PostgresRefreshes
from daemon.persistence.revocations import PostgresRevocations
from daemon.persistence.rows import token_set
from daemon.refresh.ports import CurrentTokens, LateReplies, RefreshStore
from tests.support.clock import FakeClock
from tests.support.memory_refreshes import MemoryRefreshes, MemoryRow

_OF_OTHERS = {EventType.CREATED, EventType.AUTHORIZED, EventType.DISCONNECTED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What is stored of a connection and its schedule."""

    status: Status
    state: ClaimState
    due_at: datetime | None
    failures: int
    tokens: TokenSet
    error: str | None


class Stage(Protocol):
    """A store with ways to prepare it and to see what it holds."""

    store: RefreshStore
    tokens: CurrentTokens
    late: LateReplies

    @abstractmethod
    def now(self) -> datetime:
        """Return the caller's wall time."""

    @abstractmethod
    async def add(
        self, name: str, tokens: TokenSet, *, provider: str, due_at: datetime | None
    ) -> None:
        """Store an active connection."""

    @abstractmethod
    async def stored(self, name: str) -> Stored:
        """Return what is stored."""

    @abstractmethod
    async def epoch(self, name: str) -> int:
        """Return a connection's epoch; 0 where it is not there."""

    @abstractmethod
    async def disconnect(self, name: str, *, purge: bool = False) -> None:
        """Disconnect, without revoking the tokens that are stored."""

    @abstractmethod
    async def reconnect(self, name: str, tokens: TokenSet) -> None:
        """Store the tokens of a new grant, one generation up."""

    @abstractmethod
    async def merge(self, name: str, into: str, tokens: TokenSet) -> None:
        """Store the tokens of a new grant, of an account that another connection has already."""

    @abstractmethod
    async def set_values(
        self, name: str, *, fields: Mapping[str, str], reply_values: Mapping[str, str]
    ) -> None:
        """Change a connection from the side."""

    @abstractmethod
    async def reply_values(self, name: str) -> Mapping[str, str]:
        """Return what is kept of replies."""

    @abstractmethod
    async def history(self, name: str) -> list[EventType]:
        """Return what was recorded, oldest first, without what came before refreshing."""

    @abstractmethod
    async def queued(self) -> list[tuple[str, str, str]]:
        """Return (connection, provider, token) of what is to be revoked, in order."""

    @abstractmethod
    async def orphans(self, name: str) -> int:
        """Return how many orphans are kept, whatever their grant."""

    @abstractmethod
    async def set_status(self, name: str, status: Status) -> None:
        """Change a connection from the side."""

    @abstractmethod
    async def pass_time(self, seconds: float) -> None:
        """Let time pass, on the store's clock as well."""


class MemoryStage(Stage):
    """The fake."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.memory = MemoryRefreshes(self.clock)
        self._made = 0
        self.store = self.memory
        self.tokens = self.memory
        self.late = self.memory

    def now(self) -> datetime:
        """Return the fake clock's time."""
        return self.clock.now()

    async def add(
        self, name: str, tokens: TokenSet, *, provider: str, due_at: datetime | None
    ) -> None:
        """Store a row."""
        self._made += 1
        self.memory.rows[name] = MemoryRow(
            id=name, provider=provider, tokens=tokens, due_at=due_at, epoch=self._made * 1000
        )
        self.memory.state_of(provider)

    async def stored(self, name: str) -> Stored:
        """Return the row."""
        row = self.memory.rows[name]
        return Stored(
            status=row.status,
            state=row.state,
            due_at=row.due_at,
            failures=row.failures,
            tokens=row.tokens,
            error=row.last_error.code if row.last_error else None,
        )

    async def epoch(self, name: str) -> int:
        """Return the row's."""
        row = self.memory.rows.get(name)
        return 0 if row is None else row.epoch

    async def disconnect(self, name: str, *, purge: bool = False) -> None:
        """Change the row, or remove it."""
        self.memory.rows[name].disconnect()
        self.memory.forget_orphans(name)
        if purge:
            del self.memory.rows[name]

    async def reconnect(self, name: str, tokens: TokenSet) -> None:
        """Change the row."""
        row = self.memory.rows[name]
        row.status, row.state, row.attempt = Status.ACTIVE, ClaimState.IDLE, None
        row.doubted_since = None
        row.tokens = replace(tokens, generation=row.tokens.generation + 1)
        row.grant_generation, row.granted_at = row.tokens.generation, tokens.issued_at
        self.memory.forget_orphans(name)

    async def merge(self, name: str, into: str, tokens: TokenSet) -> None:
        """Store them in the other row, and remove this one."""
        await self.reconnect(into, tokens)
        self.memory.merged[name] = into
        del self.memory.rows[name]

    async def set_values(
        self, name: str, *, fields: Mapping[str, str], reply_values: Mapping[str, str]
    ) -> None:
        """Change the row."""
        row = self.memory.rows[name]
        row.fields, row.reply_values = fields, reply_values

    async def reply_values(self, name: str) -> Mapping[str, str]:
        """Return the row's."""
        return self.memory.rows[name].reply_values

    async def history(self, name: str) -> list[EventType]:
        """Return the types of what was recorded."""
        return [event.type for event in self.memory.events if event.connection == name]

    async def queued(self) -> list[tuple[str, str, str]]:
        """Return what was disowned, refresh token first."""
        return [
            (name, provider, token)
            for name, provider, tokens in self.memory.disowned
            for token in (tokens.refresh_token, tokens.access_token)
            if token
        ]

    async def orphans(self, name: str) -> int:
        """Count them."""
        return sum(of == name for of, _, _ in self.memory.orphans.values())

    async def set_status(self, name: str, status: Status) -> None:
        """Change the row."""
        self.memory.rows[name].status = status

    async def pass_time(self, seconds: float) -> None:
        """Move the clock."""
        self.clock.advance(seconds)


class PostgresStage(Stage):
    """The real one. Time passes by moving what is stored on the database's clock back."""

    def __init__(self, database: Database, cipher: TokenCipher) -> None:
        self.database = database
        self.cipher = cipher
        recorder = EventRecorder(delivers=lambda: True)
        self.refreshes = PostgresRefreshes(database, cipher, recorder=recorder)
        self.connections = PostgresConnections(database, cipher, recorder=recorder)
        self.recorder = recorder
        self.revocations = PostgresRevocations(database, cipher)
        self.events = PostgresHistory(database, recorder)
        self.store = self.refreshes
        self.tokens = self.connections
        self.late = self.refreshes
        self._start = SystemClock().now()
        self._passed = timedelta()

    def now(self) -> datetime:
        """Return a time that stands still but for ``pass_time``."""
        return self._start + self._passed

    async def add(
        self, name: str, tokens: TokenSet, *, provider: str, due_at: datetime | None
    ) -> None:
        """Store rows as an import of tokens does."""
        connection = Connection(
            id=name,
            provider=provider,
            grant="authorization_code",
            status=Status.ACTIVE,
            created_at=self.now(),
            updated_at=self.now(),
        )
        assert await self.connections.create(connection, tokens, due_at=due_at)
        await self.refreshes.add_providers([provider])

    async def stored(self, name: str) -> Stored:
        """Return the joined rows."""
        row = await self.database.fetchrow(
            "SELECT c.status, c.last_error, s.*, t.* FROM connections c"
            " JOIN refresh_schedule s ON s.connection_id = c.id"
            " JOIN token_sets t ON t.connection_id = c.id WHERE c.id = $1",
            name,
        )
        assert row is not None
        return Stored(
            status=Status(row["status"]),
            state=ClaimState(row["state"]),
            due_at=row["due_at"],
            failures=row["failures"],
            tokens=token_set(row, self.cipher),
            error=row["last_error"]["code"] if row["last_error"] else None,
        )

    async def epoch(self, name: str) -> int:
        """Return the row's."""
        found = await self.database.fetchval("SELECT epoch FROM connections WHERE id = $1", name)
        return int(found or 0)

    async def disconnect(self, name: str, *, purge: bool = False) -> None:
        """Do as a person's disconnect does."""
        assert await self.connections.disconnect(
            name, initiator=Initiator.OPERATOR, now=self.now(), revoke=False, purge=purge
        )

    async def reconnect(self, name: str, tokens: TokenSet) -> None:
        """Do as a completed authorization does."""
        assert (await self._complete(name, tokens)).merged is None

    async def merge(self, name: str, into: str, tokens: TokenSet) -> None:
        """Do as a completed authorization does, of an account that is connected already."""
        await self.database.execute("UPDATE connections SET account_id = 'x' WHERE id = $1", into)
        answer = await self._complete(name, tokens, account=Account(account_id="x"))
        assert (answer.merged, answer.connection.id) == (name, into)

    async def _complete(
        self, name: str, tokens: TokenSet, *, account: Account | None = None
    ) -> StoredAuthorization:
        authorizations = PostgresAuthorizations(
            self.database, self.cipher, self.connections, SystemClock(), recorder=self.recorder
        )
        answer = await authorizations.complete(
            Completion(
                connection_id=name,
                tokens=tokens,
                due_at=tokens.expires_at,
                epoch=await self.epoch(name),
                account=account,
            )
        )
        assert isinstance(answer, StoredAuthorization)
        return answer

    async def set_values(
        self, name: str, *, fields: Mapping[str, str], reply_values: Mapping[str, str]
    ) -> None:
        """Change the row."""
        await self.database.execute(
            "UPDATE connections SET fields = $2::jsonb, reply_values = $3::jsonb WHERE id = $1",
            name,
            dict(fields),
            dict(reply_values),
        )

    async def reply_values(self, name: str) -> Mapping[str, str]:
        """Return the row's."""
        connection = await self.connections.get(name)
        assert connection is not None
        return connection.reply_values

    async def history(self, name: str) -> list[EventType]:
        """Return the types of what was recorded of refreshes."""
        found = await self.events.of_connection(name, limit=1000, before=None)
        return [event.type for event in reversed(found) if event.type not in _OF_OTHERS]

    async def queued(self) -> list[tuple[str, str, str]]:
        """Return what is queued."""
        found = await self.revocations.claim(
            now=self.now() + timedelta(days=1), hold=timedelta(), limit=1000
        )
        return [(one.connection_id, one.provider, one.token) for one in found]

    async def orphans(self, name: str) -> int:
        """Count them."""
        count: int = await self.database.fetchval(
            "SELECT count(*) FROM orphans WHERE connection_id = $1", name
        )
        return count

    async def set_status(self, name: str, status: Status) -> None:
        """Change the row."""
        await self.database.execute(
            "UPDATE connections SET status = $2 WHERE id = $1", name, status.value
        )

    async def pass_time(self, seconds: float) -> None:
        """Move the stored times."""
        by = timedelta(seconds=seconds)
        self._passed += by
        await self.database.execute(
            "UPDATE refresh_schedule SET take_over_at = take_over_at - $1::interval", by
        )
        await self.database.execute(
            "UPDATE provider_state SET free_at = free_at - $1::interval,"
            " paused_until = paused_until - $1::interval",
            by,
        )
