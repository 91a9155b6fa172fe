"""Migrations on a real PostgreSQL: once each, all or nothing, and by one of many."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from daemon.domain.clock import SystemClock, system_entropy
from daemon.domain.errors import DatabaseUnavailableError, SchemaError, SchemaTooNewError
from daemon.persistence.dialing import TimelyConnection, hang_up
from daemon.persistence.migrations import Migration, applied, bundled, migrate, parse, pending
from daemon.persistence.postgres import Database
from tests.support.clocks import HastyClock
from tests.support.polling import eventually

CLOCK = HastyClock()

FIRST = parse("0001_first.sql", b"-- major: 1\nCREATE TABLE a (id int); CREATE TABLE b (id int);")
SECOND = parse("0002_second.sql", b"-- major: 1\nALTER TABLE a ADD COLUMN name text;")
BROKEN = parse("0002_broken.sql", b"-- major: 1\nCREATE TABLE c (id int);\nSELECT 1/0;")
SLOW = parse("0001_slow.sql", b"-- major: 1\nSELECT pg_sleep(0.2); CREATE TABLE a (id int);")


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[TimelyConnection]:
    """Open a connection as a migration uses it."""
    database = Database(url, clock=CLOCK, entropy=system_entropy)
    connection = await database.connect()
    try:
        yield connection
    finally:
        await hang_up(connection)


async def tables(connection: TimelyConnection) -> set[str]:
    """Return the names of all tables."""
    rows = await connection.fetch(
        "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
    )
    return {row["tablename"] for row in rows}


async def test_what_is_pending_is_applied_once(database_url: str) -> None:
    """Looking writes nothing, migrating applies all in order, and again does nothing."""
    known = (FIRST, SECOND)
    async with connected(database_url) as connection:
        assert await pending(connection, known) == known
        assert await tables(connection) == set()
        assert await migrate(connection, known[:1], clock=CLOCK) == known[:1]
        assert await migrate(connection, known, clock=CLOCK) == known[1:]
        assert await migrate(connection, known, clock=CLOCK) == ()
        assert await tables(connection) == {"a", "b", "schema_migrations"}
        rows = await connection.fetch("SELECT * FROM schema_migrations ORDER BY version")
        assert [(row["version"], row["name"], row["major"]) for row in rows] == [
            (1, "first", 1),
            (2, "second", 1),
        ]
        assert [row["checksum"] for row in rows] == [FIRST.checksum, SECOND.checksum]


async def test_of_many_at_once_exactly_one_migrates(database_url: str) -> None:
    """Three replicas that start together: one applies, the others find it done."""

    async def replica() -> tuple[Migration, ...]:
        async with connected(database_url) as connection:
            return await migrate(connection, (SLOW, SECOND), clock=CLOCK)

    applied = await asyncio.gather(*(replica() for _ in range(3)))
    assert sorted(len(one) for one in applied) == [0, 0, 2]


async def test_waiting_for_another_is_bounded(database_url: str) -> None:
    """Who waits too long for another's migration is told so, and can try again."""
    async with connected(database_url) as one, connected(database_url) as other:
        await one.execute("SELECT pg_advisory_lock($1)", int.from_bytes(b"tokenwar", "big"))
        with pytest.raises(DatabaseUnavailableError, match="another process has been migrating"):
            await migrate(other, (FIRST,), clock=CLOCK, patience=0.05)
        assert await tables(other) == set()


async def test_a_failing_migration_leaves_nothing_behind(database_url: str) -> None:
    """A migration that fails half-way is undone whole; those before it stay; it can be repaired."""
    async with connected(database_url) as connection:
        with pytest.raises(SchemaError, match="0002_broken failed and was rolled back: division"):
            await migrate(connection, (FIRST, BROKEN), clock=CLOCK)
        assert await tables(connection) == {"a", "b", "schema_migrations"}
        assert await migrate(connection, (FIRST, SECOND), clock=CLOCK) == (SECOND,)


async def test_a_changed_file_is_refused(database_url: str) -> None:
    """A file changed after it was applied stops everything before a write."""
    changed = parse("0001_first.sql", b"-- major: 1\nCREATE TABLE z (id int);")
    async with connected(database_url) as connection:
        await migrate(connection, (FIRST,), clock=CLOCK)
        with pytest.raises(SchemaError, match="with other content"):
            await migrate(connection, (changed, SECOND), clock=CLOCK)
        assert await tables(connection) == {"a", "b", "schema_migrations"}


async def test_older_code_bears_a_newer_minor_and_refuses_a_newer_major(database_url: str) -> None:
    """What only added things is accepted by older code, another major is not."""
    async with connected(database_url) as connection:
        await migrate(connection, (FIRST, SECOND), clock=CLOCK)
        assert await migrate(connection, (FIRST,), clock=CLOCK) == ()
    async with connected(database_url) as connection:
        await connection.execute("UPDATE schema_migrations SET major = 2 WHERE version = 2")
        with pytest.raises(SchemaTooNewError):
            await migrate(connection, (FIRST,), clock=CLOCK)


async def test_another_programs_bookkeeping_is_left_alone(database_url: str) -> None:
    """A schema_migrations of another make means another program's database."""
    async with connected(database_url) as connection:
        await connection.execute("CREATE TABLE schema_migrations (version text)")
        with pytest.raises(SchemaError, match="belongs to another program"):
            await migrate(connection, (FIRST,), clock=CLOCK)
        assert await tables(connection) == {"schema_migrations"}


async def test_tables_of_unknown_origin_are_left_alone(database_url: str) -> None:
    """A database that has a table of ours without our bookkeeping is refused untouched."""
    async with connected(database_url) as connection:
        await connection.execute("CREATE TABLE b (id text)")
        with pytest.raises(SchemaError, match="give it a database of its own"):
            await migrate(connection, (FIRST,), clock=CLOCK)
        assert await tables(connection) == {"b"}


async def test_a_role_without_rights_is_told_what_it_needs(database_url: str) -> None:
    """A role that may not create tables is told which right to ask for."""
    async with connected(database_url) as connection:
        await connection.execute("CREATE SCHEMA other")
        await connection.execute("SET search_path = pg_catalog")
        with pytest.raises(SchemaError, match="GRANT CREATE ON SCHEMA"):
            await migrate(connection, (FIRST,), clock=CLOCK)


async def test_a_migration_may_outlast_the_statement_limit(database_url: str) -> None:
    """The limit that protects the daemon's statements does not stop a migration."""
    async with connected(database_url) as connection:
        await connection.execute("SET statement_timeout = '50ms'")
        assert await migrate(connection, (SLOW,), clock=CLOCK) == (SLOW,)


INDEX = parse(
    "0002_index.sql",
    b"-- major: 1\n-- transaction: none\nDROP INDEX CONCURRENTLY IF EXISTS i;\n"
    b"CREATE INDEX CONCURRENTLY i ON a (id);\n",
)
UNIQUE = parse("0002_index.sql", INDEX.sql.replace("CREATE INDEX", "CREATE UNIQUE INDEX").encode())
IS_VALID = "SELECT bool_and(indisvalid) FROM pg_index WHERE indrelid = 'a'::regclass"


async def test_an_index_is_built_beside_the_work(database_url: str) -> None:
    """Outside a transaction, while another transaction has written to the table and goes on."""
    async with connected(database_url) as connection, connected(database_url) as writer:
        await migrate(connection, (FIRST,), clock=CLOCK)
        async with writer.transaction():
            await writer.execute("INSERT INTO a VALUES (1)")
            building = asyncio.create_task(migrate(connection, (FIRST, INDEX), clock=CLOCK))
            await until_it_waits(writer)
            # It waits for this transaction, and this transaction not for it.
            await writer.execute("INSERT INTO a VALUES (2)")
            assert not building.done()
        assert await building == (INDEX,)
        assert await connection.fetchval(IS_VALID)
        assert await connection.fetchval("SHOW statement_timeout") == "10s"


async def test_an_index_that_fails_half_way_is_built_anew(database_url: str) -> None:
    """What a failure left behind is dropped by the next try, and nothing is noted before that."""
    async with connected(database_url) as connection:
        await migrate(connection, (FIRST,), clock=CLOCK)
        await connection.execute("INSERT INTO a VALUES (1), (1)")
        with pytest.raises(SchemaError, match="could not create unique index"):
            await migrate(connection, (FIRST, UNIQUE), clock=CLOCK)
        assert await connection.fetchval(IS_VALID) is False
        assert len(await applied(connection)) == 1
        assert await migrate(connection, (FIRST, INDEX), clock=CLOCK) == (INDEX,)
        assert await connection.fetchval(IS_VALID) is True


async def test_a_migration_does_not_queue_before_the_traffic(database_url: str) -> None:
    """It gives up on a table that is held, lets others pass, and comes back when it is free."""
    async with (
        connected(database_url) as connection,
        connected(database_url) as reader,
        connected(database_url) as third,
    ):
        await migrate(connection, (FIRST,), clock=CLOCK)
        async with reader.transaction():
            await reader.execute("SELECT * FROM a")
            migrating = asyncio.create_task(migrate(connection, (FIRST, SECOND), clock=CLOCK))
            await until_it_waits(third)
            # Behind a migration that does not give up this would wait for as long as the reader.
            await third.execute("SELECT * FROM a")
            assert not migrating.done()
        assert await migrating == (SECOND,)


async def test_a_migration_says_what_it_waits_for(database_url: str) -> None:
    """After its patience it names the remedy, nothing of it is left, and it may be tried again."""
    async with connected(database_url) as connection, connected(database_url) as reader:
        await migrate(connection, (FIRST,), clock=CLOCK)
        async with reader.transaction():
            await reader.execute("SELECT * FROM a")
            with pytest.raises(DatabaseUnavailableError, match="oldest xact_start"):
                await migrate(connection, (FIRST, SECOND), clock=CLOCK, patience=0.0)
        assert await migrate(connection, (FIRST, SECOND), clock=CLOCK) == (SECOND,)


async def until_it_waits(connection: TimelyConnection) -> None:
    """Return when somebody waits for a lock."""

    async def waits() -> bool:
        return bool(await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

    await eventually(waits)


# What a daemon of the first schema left behind: two connections, one with tokens, and a flow.
ROWS = """
INSERT INTO connections (id, provider, grant_type, status, label, fields, metadata, created_by,
                         created_at, updated_at)
VALUES ('acme-1', 'acme', 'authorization_code', 'active', NULL, '{"region": "eu"}', '{"a": "b"}',
        'billing', now(), now()),
       ('acme-2', 'acme', 'authorization_code', 'pending', NULL, '{}', '{}', 'billing', now(),
        now());
INSERT INTO token_sets (connection_id, generation, access_token, token_type, scopes, issued_at,
                        stored_at)
VALUES ('acme-1', 7, 'sealed', 'Bearer', '{read}', now(), now());
INSERT INTO refresh_schedule (connection_id, provider, due_at) VALUES ('acme-1', 'acme', now());
INSERT INTO authorizations (state_hash, connection_id, provider, token_endpoint, redirect_uri,
                            browser_hash, scopes, expires_at)
VALUES ('state', 'acme-2', 'acme', 'https://acme.example/token', 'http://localhost:7421/callback',
        'browser', '{read}', now() + interval '10 minutes');
"""


async def test_a_database_of_the_first_schema_comes_along(database_url: str) -> None:
    """Rows of before are whole, belong to no account yet, and what was begun can be ended."""
    async with connected(database_url) as connection:
        await migrate(connection, bundled()[:1], clock=SystemClock())
        await connection.execute(ROWS)
        assert await migrate(connection, bundled(), clock=SystemClock()) == bundled()[1:]
        rows = await connection.fetch("SELECT * FROM connections ORDER BY id")
        assert [(row["id"], row["status"], row["fields"]) for row in rows] == [
            ("acme-1", "active", {"region": "eu"}),
            ("acme-2", "pending", {}),
        ]
        for row in rows:
            new = (row["reply_values"], row["account_scope"], row["label_is_set"], row["epoch"])
            assert new == ({}, "", False, 0)
            assert (row["last_test"], row["test_due_at"]) == (None, None)
        assert await connection.fetchval("SELECT generation FROM token_sets") == 7
        assert await connection.fetchval("SELECT fields FROM authorizations") == {}
        for table in ("merged_connections", "events", "webhook_deliveries", "revocations"):
            assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 0


async def test_the_version_before_works_beside_this_schema(database_url: str) -> None:
    """While an upgrade rolls out, an older replica goes on inserting what it knows."""
    async with connected(database_url) as connection:
        await migrate(connection, bundled(), clock=SystemClock())
        await connection.execute(ROWS)
        assert await connection.fetchval("SELECT count(*) FROM connections") == 2


async def test_the_bundled_schema_applies(database_url: str) -> None:
    """The schema that comes with the package builds on an empty database."""
    async with connected(database_url) as connection:
        assert await migrate(connection, bundled(), clock=SystemClock()) == bundled()
        assert "encryption_keys" in await tables(connection)
