"""The history of connections in PostgreSQL (port: ``daemon.domain.history.History``).

Events are inserted in the transaction that makes them true, with the deliveries that they cause.
The hard idea is following them without missing one: ids rise, but become visible out of order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import orjson

from daemon.domain.clock import Clock
from daemon.domain.history import Event, EventType, History, NewEvent, passable
from daemon.persistence.postgres import Database, DatabaseConnection
from daemon.persistence.rows import Row

# Before it stands ``happened (at, connection, provider, type, detail, place)``, which has what is
# inserted; ``delivers`` is the parameter that tells whether a webhook is to hear of it.
INSERT_EVENTS = """
recorded AS (
    INSERT INTO events (at, connection_id, provider, type, detail)
    SELECT at, connection, provider, type, detail::jsonb FROM happened ORDER BY place
    RETURNING id, at
), queued AS (
    INSERT INTO webhook_deliveries (event_id, next_at)
    SELECT id, at FROM recorded WHERE {delivers}::bool
)
"""

_RECORD = f"""
WITH happened AS (
    SELECT * FROM unnest($1::timestamptz[], $2::text[], $3::text[], $4::text[], $5::text[])
    WITH ORDINALITY AS e (at, connection, provider, type, detail, place)
), {INSERT_EVENTS.format(delivers="$6")}
SELECT count(*) FROM recorded
"""

_COLUMNS = "SELECT id, at, connection_id, provider, type, detail FROM events"

# Longer than any of our transactions takes from its insert to its commit: events are the last
# thing each of them writes.
_COMMITS_WITHIN = 2.0
_AT_A_TIME = 500


class EventRecorder:
    """Writes events into transactions of others.

    ``delivers`` tells whether a webhook is configured: only then its deliveries are queued.
    """

    def __init__(self, *, delivers: Callable[[], bool]) -> None:
        self._delivers = delivers

    @property
    def delivers(self) -> bool:
        """Tell whether a webhook is to hear of what is recorded now."""
        return self._delivers()

    async def record(self, session: DatabaseConnection, events: Sequence[NewEvent]) -> None:
        """Insert events, in order. The last statement of a transaction, for followers' sake."""
        if events:
            columns = zip(*map(event_columns, events), strict=True)
            await session.execute(_RECORD, *map(list, columns), self.delivers)


def event_columns(event: NewEvent) -> tuple[datetime, str, str, str, str]:
    """Return what is stored of an event: at, connection, provider, type, detail as JSON."""
    detail = orjson.dumps(dict(event.detail)).decode()
    return event.at, event.connection, event.provider, event.type.value, detail


class PostgresHistory:
    """The history on PostgreSQL. Methods raise DatabaseUnavailableError."""

    def __init__(self, database: Database, recorder: EventRecorder) -> None:
        self._database = database
        self._recorder = recorder

    async def record(self, events: Sequence[NewEvent]) -> None:
        """Store events that belong to no other transaction."""
        async with self._database.transaction() as session:
            await self._recorder.record(session, events)

    async def of_connection(
        self, connection_id: str, *, limit: int, before: int | None
    ) -> list[Event]:
        """Return up to ``limit`` events of a connection, newest first, older than ``before``."""
        rows = await self._database.fetch(
            _COLUMNS + " WHERE connection_id = $1 AND ($2::bigint IS NULL OR id < $2)"
            " ORDER BY id DESC LIMIT $3",
            connection_id,
            before,
            limit,
        )
        return [event_of(row) for row in rows]

    async def after(self, event_id: int, *, limit: int) -> list[Event]:
        """Return up to ``limit`` events of all connections above ``event_id``, oldest first."""
        rows = await self._database.fetch(
            _COLUMNS + " WHERE id > $1 ORDER BY id LIMIT $2", event_id, limit
        )
        return [event_of(row) for row in rows]

    async def newest(self, *, limit: int, before: int | None) -> list[Event]:
        """Return up to ``limit`` events of all connections, newest first, older than ``before``."""
        rows = await self._database.fetch(
            _COLUMNS + " WHERE $1::bigint IS NULL OR id < $1 ORDER BY id DESC LIMIT $2",
            before,
            limit,
        )
        return [event_of(row) for row in rows]

    async def newest_id(self) -> int:
        """Return the highest id there is; 0 where there is none."""
        value: int = await self._database.fetchval("SELECT coalesce(max(id), 0) FROM events")
        return value


class EventTail:
    """Follows the events of all connections, in order, and misses none.

    It starts after ``position``: ``await history.newest_id()`` for what is new from now on. A gap
    in the ids is waited for until no transaction can fill it any more, about 2 s. One reader.
    """

    def __init__(
        self, history: History, clock: Clock, *, position: int, limit: int = _AT_A_TIME
    ) -> None:
        self._history = history
        self._clock = clock
        self._limit = limit
        self._noted: deque[tuple[float, int]] = deque()
        self._settled = 0
        self.position = position

    async def next_batch(self) -> list[Event]:
        """Return what has come since, oldest first; empty where nothing has, or not for certain.

        Ask again within a second. An error leaves the position where it was.
        """
        self._age()
        events = await self._history.after(self.position, limit=self._limit)
        if events:
            is_all = len(events) < self._limit
            self._note(events[-1].id if is_all else await self._history.newest_id())
        ids = [event.id for event in events]
        batch = events[: passable(ids, position=self.position, settled=self._settled)]
        if batch:
            self.position = batch[-1].id
        return batch

    def _note(self, newest: int) -> None:
        if not self._noted or newest > self._noted[-1][1]:
            self._noted.append((self._clock.boottime(), newest))

    def _age(self) -> None:
        """Move what is settled up to the newest id that was seen long enough ago."""
        patience_over = self._clock.boottime() - _COMMITS_WITHIN
        while self._noted and self._noted[0][0] <= patience_over:
            self._settled = self._noted.popleft()[1]


def event_of(row: Row) -> Event:
    """Return the event of a row of ``events``."""
    values: dict[str, Any] = row["detail"]
    return Event(
        id=row["id"],
        type=EventType(row["type"]),
        connection=row["connection_id"],
        provider=row["provider"],
        at=row["at"],
        detail=values,
    )
