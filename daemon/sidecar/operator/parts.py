"""What the operator pages work with: the services behind the API's routes, and not its HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from daemon.config.settings import Settings
from daemon.domain.authorization import Ticket
from daemon.domain.claimable import Wanted
from daemon.domain.clock import Clock, Entropy
from daemon.domain.connection import Connection
from daemon.domain.history import Event
from daemon.domain.provider import Provider
from daemon.persistence.connections import Filter
from daemon.sidecar.access import Callers, Identity
from daemon.sidecar.guard import Guard
from daemon.sidecar.ports import Disconnects, Tests

Create = Callable[[Identity, Provider, str | None], Awaitable[tuple[Connection, str | None]]]
"""Creates a connection, under an id of its own where none is given; raises Problem.

The second value is the connect URL; ``None`` where nobody has to act.
"""


class ConnectionStore(Protocol):
    """Where connections are read. Methods may raise DatabaseUnavailableError."""

    async def get(self, connection_id: str) -> Connection | None:
        """Return one connection."""

    async def survivor_of(self, connection_id: str) -> str | None:
        """Return the id of the connection that this one was merged into."""

    async def page(
        self, wanted: Filter, *, limit: int, before: tuple[datetime, str] | None
    ) -> list[Connection]:
        """Return up to ``limit`` connections, newest first, that come after ``before``."""


class ConnectionHistory(Protocol):
    """Where events are read."""

    async def of_connection(
        self, connection_id: str, *, limit: int, before: int | None
    ) -> Sequence[Event]:
        """Return up to ``limit`` events of a connection, newest first, older than ``before``."""


class Refreshing(Protocol):
    """Refreshes because a person says so."""

    async def refresh_now(self, wanted: Wanted) -> None:
        """Return when a newer generation is stored; raises Problem where that was not possible."""


class Tickets(Protocol):
    """Makes connect URLs."""

    async def issue_ticket(
        self, connection: Connection, *, caller: str, return_url: str | None
    ) -> tuple[Ticket, str]:
        """Store a new ticket; return it with its connect URL, which is a secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorParts:
    """What the pages work with. ``settings`` gives the configuration in force."""

    settings: Callable[[], Settings]
    callers: Callers
    guard: Guard
    connections: ConnectionStore
    history: ConnectionHistory
    tests: Tests
    reader: Refreshing
    disconnecting: Disconnects
    authorizer: Tickets
    create: Create
    clock: Clock
    entropy: Entropy
