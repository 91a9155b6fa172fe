"""Connections whose epochs a test can name: they begin at 0."""

from __future__ import annotations

from datetime import datetime

from daemon.domain.connection import Connection
from daemon.domain.tokens import TokenSet
from daemon.persistence.connections import PostgresConnections


class ConnectionsFromZero(PostgresConnections):
    """The store; a new connection's epoch is 0, not the time at which it was made."""

    async def create(
        self,
        connection: Connection,
        tokens: TokenSet | None,
        *,
        due_at: datetime | None,
        next_test_at: datetime | None = None,
    ) -> bool:
        """Create it, and turn its epoch back."""
        is_made = await super().create(connection, tokens, due_at=due_at, next_test_at=next_test_at)
        await self._database.execute(
            "UPDATE connections SET epoch = 0 WHERE id = $1", connection.id
        )
        return is_made
