"""The authorization store in memory, with a switch that takes the database away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from daemon.domain.authorization import PendingAuthorization, Ticket
from daemon.domain.connection import Connection, Status
from daemon.domain.errors import DatabaseUnavailableError
from daemon.domain.tokens import TokenSet


class MemoryAuthorizations:
    """Port: AuthorizationStore. While ``is_away`` every method raises.

    ``errors`` are raised first, one by each next call. ``interruptions`` makes the next so many
    calls of ``complete`` raise after they have stored, as a connection does that is cut between
    commit and answer.
    """

    def __init__(self, *connections: Connection) -> None:
        self.connections = {connection.id: connection for connection in connections}
        self.tickets: dict[bytes, Ticket] = {}
        self.pending: dict[bytes, PendingAuthorization] = {}
        self.tokens: dict[str, TokenSet] = {}
        self.due: dict[str, datetime | None] = {}
        self.is_away = False
        self.errors: list[Exception] = []
        self.interruptions = 0
        self.calls: list[str] = []

    async def add_ticket(self, ticket: Ticket) -> None:
        """Store a ticket."""
        self._called("add_ticket")
        self.tickets[ticket.ticket_hash] = ticket

    async def ticket(
        self, ticket_hash: bytes, *, now: datetime
    ) -> tuple[Ticket, Connection] | None:
        """Return a live ticket with its connection."""
        self._called("ticket")
        found = self.tickets.get(ticket_hash)
        if found is None or found.expires_at <= now:
            return None
        connection = self.connections.get(found.connection_id)
        return None if connection is None else (found, connection)

    async def begin(self, authorization: PendingAuthorization) -> None:
        """Store a transaction."""
        self._called("begin")
        self.pending[authorization.state_hash] = authorization

    async def consume(self, state_hash: bytes) -> PendingAuthorization | None:
        """Remove and return a transaction, expired or not."""
        self._called("consume")
        return self.pending.pop(state_hash, None)

    async def complete(
        self,
        connection_id: str,
        tokens: TokenSet,
        *,
        due_at: datetime | None,
        only_after: int | None = None,
    ) -> Connection | None:
        """Store the tokens one generation above the stored ones."""
        self._called("complete")
        name = connection_id
        before = self.connections.get(name)
        if before is None or only_after not in {None, before.generation}:
            return None
        after = replace(
            before,
            status=Status.ACTIVE,
            generation=before.generation + 1,
            scopes=tokens.scopes,
            expires_at=tokens.expires_at,
            refresh_at=due_at,
            has_refresh_token=tokens.refresh_token is not None,
            last_error=None,
        )
        self.connections[name] = after
        self.tokens[name] = replace(tokens, generation=after.generation)
        self.due[name] = due_at
        for ticket in [ticket for ticket in self.tickets.values() if ticket.connection_id == name]:
            del self.tickets[ticket.ticket_hash]
        if self.interruptions > 0:
            self.interruptions -= 1
            raise DatabaseUnavailableError("the connection was cut after the commit")
        return after

    async def prune(self, *, now: datetime) -> Sequence[str]:
        """Remove expired tickets and transactions."""
        self._called("prune")
        concerned = set()
        for ticket in [one for one in self.tickets.values() if one.expires_at < now]:
            del self.tickets[ticket.ticket_hash]
            concerned.add(ticket.connection_id)
        for pending in [one for one in self.pending.values() if one.expires_at < now]:
            del self.pending[pending.state_hash]
            concerned.add(pending.connection_id)
        return sorted(concerned)

    def _called(self, method: str) -> None:
        self.calls.append(method)
        if self.errors:
            raise self.errors.pop(0)
        if self.is_away:
            raise DatabaseUnavailableError("the database is away")
