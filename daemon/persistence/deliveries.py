"""Events on their way to the webhook, in PostgreSQL.

The transaction that records an event queues its delivery (``history``); here is what follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from daemon.domain.history import Event
from daemon.persistence.history import event_of
from daemon.persistence.postgres import Database

_CLAIM = """
WITH due AS (
    UPDATE webhook_deliveries SET next_at = $1::timestamptz + $2::interval
    WHERE event_id IN (
        SELECT event_id FROM webhook_deliveries WHERE state = 'pending' AND next_at <= $1
        ORDER BY next_at, event_id LIMIT $3 FOR UPDATE SKIP LOCKED
    )
    RETURNING event_id, attempts
)
SELECT e.id, e.at, e.connection_id, e.provider, e.type, e.detail, due.attempts
FROM due JOIN events e ON e.id = due.event_id ORDER BY e.id
"""

# A dead letter stays until its event is pruned; a delivered one, too, so that nobody wonders.
_SETTLE = """
UPDATE webhook_deliveries d
SET state = n.state, attempts = d.attempts + 1, next_at = coalesce(n.next_at, d.next_at),
    last_status = n.status, last_error = n.error,
    ended_at = CASE WHEN n.state = 'pending' THEN NULL ELSE $6::timestamptz END
FROM unnest($1::bigint[], $2::text[], $3::timestamptz[], $4::int[], $5::text[])
     AS n (event_id, state, next_at, status, error)
WHERE d.event_id = n.event_id AND d.state = 'pending'
"""

_DEAD = """
SELECT e.id, e.at, e.connection_id, e.provider, e.type, e.detail, d.attempts,
       d.last_status, d.last_error, d.ended_at
FROM webhook_deliveries d JOIN events e ON e.id = d.event_id
WHERE d.state = 'dead' ORDER BY e.id DESC LIMIT $1
"""


class DeliveryState(StrEnum):
    """Where a delivery stands."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"
    """The webhook would not have it; a dead letter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """An event to be delivered, after ``attempts`` earlier tries."""

    event: Event
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """The end of one try. ``next_at`` is set where, and only where, it is ``PENDING``.

    ``status`` is the HTTP status, where there was one; ``error`` a sentence safe to show.
    """

    event_id: int
    state: DeliveryState
    next_at: datetime | None = None
    status: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """An event that the webhook did not take."""

    event: Event
    attempts: int
    status: int | None
    error: str | None
    ended_at: datetime


class PostgresDeliveries:
    """The deliveries on PostgreSQL. Methods raise DatabaseUnavailableError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, *, now: datetime, hold: timedelta, limit: int) -> list[Delivery]:
        """Return what is due, oldest event first, each hidden from other replicas for ``hold``."""
        rows = await self._database.fetch(_CLAIM, now, hold, limit)
        return [Delivery(event=event_of(row), attempts=row["attempts"]) for row in rows]

    async def settle(self, ends: Sequence[Delivered], *, now: datetime) -> None:
        """Store how tries ended. What has ended already stays as it is."""
        if not ends:
            return
        await self._database.execute(
            _SETTLE,
            [end.event_id for end in ends],
            [end.state.value for end in ends],
            [end.next_at for end in ends],
            [end.status for end in ends],
            [end.error for end in ends],
            now,
        )

    async def next_at(self) -> datetime | None:
        """Return when the next delivery is due; ``None`` where nothing is pending."""
        value: datetime | None = await self._database.fetchval(
            "SELECT min(next_at) FROM webhook_deliveries WHERE state = 'pending'"
        )
        return value

    async def counts(self) -> dict[DeliveryState, int]:
        """Return how many deliveries stand where."""
        rows = await self._database.fetch(
            "SELECT state, count(*) AS number FROM webhook_deliveries GROUP BY state"
        )
        found = {DeliveryState(row["state"]): row["number"] for row in rows}
        return {state: found.get(state, 0) for state in DeliveryState}

    async def dead_letters(self, *, limit: int) -> list[DeadLetter]:
        """Return the newest events that the webhook did not take."""
        rows = await self._database.fetch(_DEAD, limit)
        return [
            DeadLetter(
                event=event_of(row),
                attempts=row["attempts"],
                status=row["last_status"],
                error=row["last_error"],
                ended_at=row["ended_at"],
            )
            for row in rows
        ]
