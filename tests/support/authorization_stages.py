"""One way to set up and look at authorization stores, in memory and on PostgreSQL alike."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Protocol

from daemon.domain.authorization import AuthorizationStore
from daemon.domain.connection import Connection
from daemon.domain.revocation import Initiator
from daemon.domain.tokens import TokenSet
from daemon.persistence.authorizations import PostgresAuthorizations
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.history import EventRecorder, PostgresHistory
from daemon.persistence.life import Change
from daemon.persistence.postgres import Database
from daemon.persistence.revocations import PostgresRevocations, revocations_of
from daemon.persistence.rows import token_set
from tests.support.clock import START, FakeClock
from tests.support.first_epoch import ConnectionsFromZero
from tests.support.memory_authorizations import MemoryAuthorizations

Told = tuple[str, str, Mapping[str, Any]]
"""(connection, event type, detail)."""


class AuthorizationStage(Protocol):
    """A store with ways to prepare it and to see what it holds."""

    store: AuthorizationStore

    @abstractmethod
    async def add(self, connection: Connection) -> None:
        """Store a connection without tokens."""

    @abstractmethod
    async def get(self, name: str) -> Connection | None:
        """Return a connection, as far as both stores know it."""

    @abstractmethod
    async def tokens(self, name: str) -> TokenSet | None:
        """Return the stored tokens."""

    @abstractmethod
    async def due(self, name: str) -> tuple[datetime | None, datetime | None]:
        """Return when the next refresh and the next test are due."""

    @abstractmethod
    async def revoked(self) -> list[tuple[str, str]]:
        """Return (connection, token) for each that is queued for revocation, in order."""

    @abstractmethod
    async def told(self) -> list[Told]:
        """Return what was recorded of authorizations, oldest first."""

    @abstractmethod
    async def disconnect(self, name: str) -> None:
        """Disconnect without revoking."""

    @abstractmethod
    async def name_it(self, name: str, label: str) -> None:
        """Set a label, as a person does."""

    @abstractmethod
    async def survivor_of(self, name: str) -> str | None:
        """Return what a connection was merged into."""


class MemoryAuthorizationStage(AuthorizationStage):
    """The fake."""

    def __init__(self) -> None:
        self.memory = MemoryAuthorizations()
        self.store = self.memory

    async def add(self, connection: Connection) -> None:
        """Store it."""
        self.memory.connections[connection.id] = connection

    async def get(self, name: str) -> Connection | None:
        """Return it."""
        return self.memory.connections.get(name)

    async def tokens(self, name: str) -> TokenSet | None:
        """Return them."""
        return self.memory.tokens.get(name)

    async def due(self, name: str) -> tuple[datetime | None, datetime | None]:
        """Return what was stored."""
        return self.memory.due[name], self.memory.tests_due[name]

    async def revoked(self) -> list[tuple[str, str]]:
        """Return what both kinds of stores queue."""
        return [
            (name, one.token)
            for name, tokens in self.memory.revoked
            for one in revocations_of(
                tokens, connection_id=name, provider="", fields={}, initiator=Initiator.CALLER
            )
        ]

    async def told(self) -> list[Told]:
        """Return what was recorded."""
        return [(name, kind.value, detail) for name, kind, detail in self.memory.recorded]

    async def disconnect(self, name: str) -> None:
        """Disconnect."""
        self.memory.disconnect(name)

    async def name_it(self, name: str, label: str) -> None:
        """Set the label."""
        self.memory.connections[name] = replace(self.memory.connections[name], label=label)
        self.memory.labels_set.add(name)

    async def survivor_of(self, name: str) -> str | None:
        """Return it."""
        return self.memory.merged.get(name)


class PostgresAuthorizationStage(AuthorizationStage):
    """The real one; ``connections`` and ``revocations`` are the stores beside it."""

    def __init__(self, database: Database, cipher: TokenCipher) -> None:
        self.clock = FakeClock()
        self.database = database
        self.cipher = cipher
        recorder = EventRecorder(delivers=lambda: False)
        self.connections = ConnectionsFromZero(database, cipher, recorder)
        self.revocations = PostgresRevocations(database, cipher)
        self.history = PostgresHistory(database, recorder)
        self.store = PostgresAuthorizations(
            database, cipher, self.connections, self.clock, recorder=recorder
        )

    async def add(self, connection: Connection) -> None:
        """Store it."""
        assert await self.connections.create(connection, None, due_at=None)

    async def get(self, name: str) -> Connection | None:
        """Return it, without the times that only a database keeps."""
        found = await self.connections.get(name)
        return found and replace(found, updated_at=START, last_refreshed_at=None)

    async def tokens(self, name: str) -> TokenSet | None:
        """Open them."""
        row = await self.database.fetchrow(
            "SELECT * FROM token_sets WHERE connection_id = $1", name
        )
        return None if row is None else token_set(row, self.cipher)

    async def due(self, name: str) -> tuple[datetime | None, datetime | None]:
        """Read both columns."""
        row = await self.database.fetchrow(
            "SELECT s.due_at, c.test_due_at FROM connections c"
            " JOIN refresh_schedule s ON s.connection_id = c.id WHERE c.id = $1",
            name,
        )
        assert row is not None
        return row["due_at"], row["test_due_at"]

    async def revoked(self) -> list[tuple[str, str]]:
        """Open the queue."""
        rows = await self.database.fetch("SELECT * FROM revocations ORDER BY id")
        return [
            (
                row["connection_id"],
                self.cipher.decrypt(
                    row["token"],
                    connection=row["connection_id"],
                    column="revocation",
                    generation=row["id"],
                ),
            )
            for row in rows
        ]

    async def told(self) -> list[Told]:
        """Read the events, creations apart."""
        return [
            (event.connection, event.type.value, event.detail)
            for event in await self.history.after(0, limit=1000)
            if event.type.value.startswith("connection.authoriz")
        ]

    async def disconnect(self, name: str) -> None:
        """Disconnect."""
        assert await self.connections.disconnect(
            name, initiator=Initiator.CALLER, now=START, revoke=False, purge=False
        )

    async def name_it(self, name: str, label: str) -> None:
        """Set the label."""
        assert await self.connections.update(name, lambda _: Change(label=label), now=START)

    async def survivor_of(self, name: str) -> str | None:
        """Return it."""
        return await self.connections.survivor_of(name)
