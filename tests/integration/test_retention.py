"""What is old goes, in batches, on one replica at a time, and hinders nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from daemon.domain.history import EventType, NewEvent
from daemon.persistence.history import EventRecorder, PostgresHistory
from daemon.persistence.postgres import Database
from daemon.persistence.retention import RULES, Removed, Retention
from tests.support.clock import START, FakeClock
from tests.support.database import open_database

KEEP_EVENTS = timedelta(days=30)
HOUR = timedelta(hours=1)
CREATED = NewEvent(type=EventType.CREATED, connection="acme-1", provider="acme", at=START)
DOCUMENT = Path(__file__).parents[2] / "docs" / "backup.md"

# One row of each table, with the time that its age is counted from.
CONNECTION = """
INSERT INTO connections (id, provider, grant_type, status, created_by, created_at, updated_at)
VALUES ('acme-1', 'acme', 'authorization_code', 'active', 'billing', now(), now())
"""
ROWS = {
    "connect_tickets": """
        INSERT INTO connect_tickets (ticket_hash, connection_id, caller, expires_at)
        VALUES (gen_random_uuid()::text::bytea, 'acme-1', 'billing', $1)""",
    "authorizations": """
        INSERT INTO authorizations (state_hash, connection_id, provider, token_endpoint,
                                    redirect_uri, browser_hash, scopes, expires_at)
        VALUES (gen_random_uuid()::text::bytea, 'acme-1', 'acme', 'https://a.example', 'x', 'x',
                '{}', $1)""",
    "events": """
        INSERT INTO events (at, connection_id, provider, type)
        VALUES ($1, 'acme-1', 'acme', 'token.refreshed')""",
    "orphans": """
        INSERT INTO orphans (connection_id, generation, attempt, access_token, received_at)
        VALUES ('acme-1', 1, gen_random_uuid()::text, 'sealed', $1)""",
    "replicas": """
        INSERT INTO replicas (owner, incarnation, since, seen_at)
        VALUES (gen_random_uuid()::text, 'x', $1, '-infinity')""",
    "refused_replies": """
        INSERT INTO refused_replies (reply_hash, reason, refused_at)
        VALUES (gen_random_uuid()::text::bytea, 'another_account', $1)""",
    "merged_connections": """
        INSERT INTO merged_connections (id, survivor, merged_at)
        VALUES (gen_random_uuid()::text, 'acme-1', $1)""",
}


class Between(FakeClock):
    """A clock whose sleepers let a test look at the database between two batches."""

    def __init__(self, look: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self._look = look
        self.looks = 0

    async def sleep(self, seconds: float) -> None:
        """Look, then go on at once."""
        del seconds
        self.looks += 1
        await self._look()


class Hurried(FakeClock):
    """A clock on which every look at it takes a second."""

    def boottime(self) -> float:
        """Return the time, a second later each time."""
        self.advance(1.0)
        return super().boottime()


@pytest.fixture
async def other(migrated_url: str) -> AsyncIterator[Database]:
    """Another replica's database."""
    database = open_database(migrated_url)
    assert await database.start()
    yield database
    await database.close()


async def old_events(database: Database, number: int) -> None:
    """Record events from long ago, each to be delivered, and one of today."""
    history = PostgresHistory(database, EventRecorder(delivers=lambda: True))
    await history.record([replace(CREATED, at=START - timedelta(days=31))] * number)
    await history.record([CREATED])


async def counts(database: Database) -> dict[str, int]:
    """Return the number of rows of each table that a rule is about."""
    return {
        rule.table: await database.fetchval(f"SELECT count(*) FROM {rule.table}") for rule in RULES
    }


async def test_only_what_is_old_goes(database: Database) -> None:
    """Of each table the row just past its age goes, and the one just before it stays."""
    await database.execute(CONNECTION)
    assert set(ROWS) == {rule.table for rule in RULES}
    for rule in RULES:
        oldest = START - (KEEP_EVENTS if rule.keep is None else rule.keep)
        for seconds in (-1, 0, 1):
            await database.execute(ROWS[rule.table], oldest + timedelta(seconds=seconds))
    retention = Retention(database, FakeClock())
    every = dict.fromkeys(ROWS, 1)
    assert await retention.prune(events=KEEP_EVENTS) == Removed(rows=every, complete=True)
    assert await counts(database) == dict.fromkeys(ROWS, 2)
    assert await retention.prune(events=KEEP_EVENTS) == Removed(rows={}, complete=True)


async def test_a_backlog_goes_in_batches_with_its_deliveries(database: Database) -> None:
    """All that is old goes in one turn; between batches no transaction holds anything."""
    held: list[int] = []

    async def look() -> None:
        held.append(
            await database.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid()"
                " AND (backend_xid IS NOT NULL OR backend_xmin IS NOT NULL)"
            )
        )
        await PostgresHistory(database, EventRecorder(delivers=lambda: False)).record([CREATED])

    await old_events(database, 4500)
    clock = Between(look)
    removed = await Retention(database, clock).prune(events=KEEP_EVENTS)
    assert removed == Removed(rows={"events": 4500}, complete=True)
    assert (clock.looks, set(held)) == (4, {0})
    assert await database.fetchval("SELECT count(*) FROM webhook_deliveries") == 1
    assert await database.fetchval("SELECT count(*) FROM events") == 1 + clock.looks


async def test_a_row_that_is_held_is_passed_over(database: Database, other: Database) -> None:
    """What somebody else has locked is neither waited for nor in the way of the rest."""
    await database.execute(CONNECTION)
    for _ in range(3):
        await database.execute(ROWS["connect_tickets"], START - HOUR)
    async with other.transaction() as session:
        await session.execute("SELECT 1 FROM connect_tickets LIMIT 1 FOR UPDATE")
        async with asyncio.timeout(4):
            removed = await Retention(database, FakeClock()).prune(events=KEEP_EVENTS)
    assert removed == Removed(rows={"connect_tickets": 2}, complete=True)


async def test_one_replica_at_a_time(database: Database, other: Database) -> None:
    """While one is at it the other does nothing; afterwards it finds nothing left."""
    answers: list[Removed | None] = []
    second = Retention(other, FakeClock())

    async def look() -> None:
        answers.append(await second.prune(events=KEEP_EVENTS))

    await old_events(database, 2500)
    removed = await Retention(database, Between(look)).prune(events=KEEP_EVENTS)
    assert removed == Removed(rows={"events": 2500}, complete=True)
    assert answers == [None, None]
    assert await second.prune(events=KEEP_EVENTS) == Removed(rows={}, complete=True)


async def test_a_turn_ends_with_its_time(database: Database) -> None:
    """What is left over says so, and is the next turn's; no table waits for another's backlog."""
    await database.execute(CONNECTION)
    await database.execute(ROWS["orphans"], START - timedelta(days=60))
    await old_events(database, 2500)
    retention = Retention(database, Hurried())
    first = await retention.prune(events=KEEP_EVENTS, patience=0.5)
    assert first == Removed(rows={"events": 1000, "orphans": 1}, complete=False)
    await retention.prune(events=KEEP_EVENTS, patience=0.5)
    last = await retention.prune(events=KEEP_EVENTS, patience=0.5)
    assert last == Removed(rows={"events": 500}, complete=True)


def test_what_is_kept_for_how_long_is_documented() -> None:
    """Each table and its age stand in one line of the document."""
    lines = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")]
    for rule in RULES:
        keep = rule.keep
        if keep is None:
            age = "`events.retention`"
        elif keep.days:
            age = f"{keep.days} days"
        else:
            age = "1 hour" if keep == HOUR else "at once"
        assert any(f"`{rule.table}`" in line and age in line for line in lines), rule.table
