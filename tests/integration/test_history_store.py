"""The history in PostgreSQL: what is recorded, read, followed and removed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from daemon.domain.history import DetailValue, EventType, NewEvent
from daemon.persistence.history import EventRecorder, EventTail, PostgresHistory
from daemon.persistence.postgres import Database
from tests.support.clock import START, FakeClock

CREATED = NewEvent(type=EventType.CREATED, connection="a", provider="acme", at=START)


def named(*names: str) -> list[NewEvent]:
    """Return an event of each of these connections."""
    return [replace(CREATED, connection=name) for name in names]


@pytest.fixture
def history(database: Database) -> PostgresHistory:
    """A history whose events are delivered to nobody."""
    return PostgresHistory(database, EventRecorder(delivers=lambda: False))


async def test_what_is_recorded_is_read_as_it_was(history: PostgresHistory) -> None:
    """Type, place, time and detail come back, whatever the detail's values are."""
    detail: dict[str, DetailValue] = {
        "text": 'é "quoted" {x}',
        "n": 2,
        "part": 0.5,
        "yes": True,
        "none": None,
        "l": ["a"],
    }
    await history.record([replace(CREATED, detail=detail)])
    (event,) = await history.of_connection("a", limit=10, before=None)
    assert (event.type, event.connection, event.provider) == (EventType.CREATED, "a", "acme")
    assert (event.at, event.detail) == (START, detail)
    assert await history.newest_id() == event.id


async def test_nothing_is_recorded_where_nothing_happened(history: PostgresHistory) -> None:
    """No event is no statement and no id."""
    await history.record([])
    assert await history.newest_id() == 0
    assert await history.after(0, limit=10) == []


async def test_pages_of_one_connection(history: PostgresHistory) -> None:
    """Newest first, page by page, and no other connection's."""
    for _ in range(5):
        await history.record(named("a", "b"))
    first = await history.of_connection("a", limit=3, before=None)
    second = await history.of_connection("a", limit=3, before=first[-1].id)
    ids = [event.id for event in (*first, *second)]
    assert (len(first), len(second)) == (3, 2)
    assert ids == sorted(ids, reverse=True)
    assert {event.connection for event in (*first, *second)} == {"a"}


async def test_ids_rise_in_the_order_of_recording(history: PostgresHistory) -> None:
    """Events that are recorded together keep their order."""
    names = [f"c{number}" for number in range(100)]
    await history.record(named(*names))
    found = await history.after(0, limit=1000)
    assert [event.connection for event in found] == names
    assert await history.after(found[-2].id, limit=1000) == found[-1:]


async def test_deliveries_are_queued_with_their_events(database: Database) -> None:
    """Where a webhook is configured each event has its delivery, from the same transaction."""
    is_configured = True
    recorder = EventRecorder(delivers=lambda: is_configured)
    history = PostgresHistory(database, recorder)
    await history.record(named("a", "b"))
    is_configured = False
    await history.record(named("c"))
    rows = await database.fetch(
        "SELECT event_id, state, next_at FROM webhook_deliveries ORDER BY 1"
    )
    two = await history.after(0, limit=2)
    assert [row["event_id"] for row in rows] == [event.id for event in two]
    assert {(row["state"], row["next_at"]) for row in rows} == {("pending", START)}


class Writer:
    """A transaction that has recorded an event and is not committed yet."""

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name
        self._ends = asyncio.Event()
        self._recorded = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def recorded(self) -> Writer:
        """Return when its event has an id."""
        await self._recorded.wait()
        return self

    async def commit(self) -> None:
        """End it well."""
        self._ends.set()
        await self._task

    async def _run(self) -> None:
        async with self._database.transaction() as session:
            await EventRecorder(delivers=lambda: False).record(session, named(self._name))
            self._recorded.set()
            await self._ends.wait()


async def names(tail: EventTail) -> Sequence[str]:
    """Return whose events the next batch has."""
    return [event.connection for event in await tail.next_batch()]


async def test_a_follower_waits_for_a_transaction_under_way(
    database: Database, history: PostgresHistory
) -> None:
    """An event that becomes visible after a later one is not skipped."""
    tail = EventTail(history, FakeClock(), position=0)
    await history.record(named("a"))
    slow = await Writer(database, "b").recorded()
    await history.record(named("c"))
    assert await names(tail) == ["a"]
    assert await names(tail) == []
    await slow.commit()
    assert await names(tail) == ["b", "c"]
    assert await names(tail) == []


async def test_a_follower_passes_ids_that_never_come(
    database: Database, history: PostgresHistory
) -> None:
    """What was rolled back holds nobody up for longer than a transaction takes, once for all."""
    clock = FakeClock()
    tail = EventTail(history, clock, position=0, limit=2)
    for name in ("a", "b", "c"):
        await database.fetchval("SELECT nextval(pg_get_serial_sequence('events', 'id'))")
        await history.record(named(name))
    assert await names(tail) == []
    await clock.run(1.9)
    assert await names(tail) == []
    await clock.run(0.2)
    assert await names(tail) == ["a", "b"]
    assert await names(tail) == ["c"]


async def test_a_new_follower_begins_where_it_is_told(history: PostgresHistory) -> None:
    """From the newest id on, only what comes later is seen."""
    await history.record(named("a"))
    tail = EventTail(history, FakeClock(), position=await history.newest_id())
    assert await names(tail) == []
    await history.record(named("b"))
    assert await names(tail) == ["b"]
