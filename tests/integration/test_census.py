"""The counts behind the gauges, and what a start reads into memory, on a real PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from daemon.persistence.census import Census, take_census
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.connections import PostgresConnections
from daemon.persistence.history import EventRecorder
from daemon.persistence.postgres import Database

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
# provider, status, hours until its token expires (None: never), connections
PLAN = [
    ("soon", "active", 1, 3),
    ("soon", "active", 2, 3),
    ("late", "active", 500, 2),
    ("late", "failing", 400, 1),
    ("late", "reauthorization_required", 300, 1),
    ("over", "failing", -2, 1),
    ("over", "active", -1, 2),
    ("over", "active", 3, 1),
    ("over", "reauthorization_required", -9, 1),
    ("dead", "reauthorization_required", -5, 2),
    ("ever", "active", None, 2),
]


@pytest.fixture(name="full")
async def _full(database: Database) -> Database:
    """A database with the connections of the plan."""
    for number, (provider, status, hours, count) in enumerate(PLAN):
        expires_at = None if hours is None else NOW + timedelta(hours=hours)
        for copy in range(count):
            name = f"{number}-{copy}"
            await database.execute(
                "INSERT INTO connections (id, provider, grant_type, status, created_by,"
                " created_at, updated_at, last_used_at)"
                " VALUES ($1, $2, 'authorization_code', $3, 'us', $4, $4, $5)",
                name,
                provider,
                status,
                NOW + timedelta(minutes=number, seconds=copy),
                NOW + timedelta(hours=number) if copy else None,
            )
            await database.execute(
                "INSERT INTO token_sets (connection_id, generation, access_token, token_type,"
                " scopes, issued_at, expires_at, stored_at)"
                " VALUES ($1, 1, '', 'Bearer', '{}', $2, $3, $2)",
                name,
                NOW,
                expires_at,
            )
    return database


@pytest.mark.parametrize("few", [1, 3, 7, 1000])
async def test_the_census_is_the_same_however_few_are_looked_at(full: Database, few: int) -> None:
    """Dead grants expire without being counted; what never expires has no soonest."""
    found = await take_census(full, now=NOW, few=few)
    assert found == Census(
        connections={
            ("soon", "active"): 6,
            ("late", "active"): 2,
            ("late", "failing"): 1,
            ("late", "reauthorization_required"): 1,
            ("over", "failing"): 1,
            ("over", "active"): 3,
            ("over", "reauthorization_required"): 1,
            ("dead", "reauthorization_required"): 2,
            ("ever", "active"): 2,
        },
        expired={"over": 3},
        soonest={
            "soon": NOW + timedelta(hours=1),
            "late": NOW + timedelta(hours=400),
            "over": NOW - timedelta(hours=2),
        },
    )


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1, {"10-1"}),
        (3, {"10-1", "6-1", "2-1"}),
        (8, {"10-1", "6-1", "2-1", "1-1", "1-2", "0-1", "0-2", "10-0"}),
        (100, None),
    ],
)
async def test_what_was_used_last_is_read_first(
    full: Database, cipher: TokenCipher, limit: int, expected: set[str] | None
) -> None:
    """Then what was made last; never a dead grant."""
    store = PostgresConnections(full, cipher, EventRecorder(delivers=lambda: False))
    found = {token.connection async for token in store.recently_used(limit)}
    alive = {
        f"{number}-{copy}"
        for number, (_, status, _, count) in enumerate(PLAN)
        for copy in range(count)
        if status != "reauthorization_required"
    }
    assert found == (alive if expected is None else expected)
