"""The pool on a real PostgreSQL: what callers see when the database goes away, hangs or moves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import asyncpg
import pytest
from structlog.testing import capture_logs

from daemon.domain.clock import SystemClock, system_entropy
from daemon.domain.errors import DatabaseUnavailableError, SchemaTooNewError, StorageError
from daemon.persistence.dialing import DatabaseConnection, Dialer, Limits, hang_up, probe
from daemon.persistence.postgres import Database
from tests.support.clocks import HastyClock
from tests.support.postgres import Cluster
from tests.support.waiting import until
from tests.support.wire import Wire

# With the password of the one who makes it.
_WEAK = """
DO $$BEGIN EXECUTE format('CREATE ROLE weak LOGIN PASSWORD %L',
(SELECT rolpassword FROM pg_authid WHERE rolname = 'postgres')); END$$
"""
BRISK = Limits(connect=1.0, acquire=1.0, statement=5.0, probe=0.3, probe_every=0.05)


@dataclass
class States:
    """Remembers what ``on_state`` heard."""

    heard: list[bool] = field(default_factory=list)

    def __call__(self, connected: bool) -> None:  # noqa: FBT001 # the callback's own shape
        """Remember."""
        self.heard.append(connected)


def make(
    url: str,
    *,
    states: States | None = None,
    prepare: Callable[[DatabaseConnection], Awaitable[None]] | None = None,
    size: int = 4,
    limits: Limits = BRISK,
) -> Database:
    """Return a database with short limits whose background tasks are in a hurry."""
    return Database(
        url,
        clock=HastyClock(0.05),
        entropy=system_entropy,
        on_state=states or States(),
        prepare=prepare,
        size=size,
        limits=limits,
    )


@asynccontextmanager
async def running(database: Database) -> AsyncIterator[Database]:
    """Start ``database`` and close it in the end."""
    await database.start()
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def administrator(url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """Open a connection that is nobody's but the test's."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def holding(database: Database, count: int, statement: str) -> None:
    """Run ``statement`` on ``count`` pooled connections at once, so that each one has had it."""
    gate = asyncio.Barrier(count)

    async def hold() -> None:
        async with database.acquire() as connection:
            await gate.wait()
            await connection.execute(statement)

    await asyncio.gather(*(hold() for _ in range(count)))


async def test_statements_work_once_started(database_url: str) -> None:
    """A started database is connected and answers every kind of statement."""
    states = States()
    async with running(make(database_url, states=states)) as database:
        assert database.connected
        assert database.reason is None
        await database.execute("CREATE TABLE t (id int PRIMARY KEY, body jsonb)")
        await database.executemany("INSERT INTO t VALUES ($1, $2)", [(1, {"a": [1]}), (2, None)])
        assert await database.fetchval("SELECT body FROM t WHERE id = 1") == {"a": [1]}
        row = await database.fetchrow("SELECT * FROM t WHERE id = 2")
        assert row is not None
        assert row["body"] is None
        assert [row["id"] for row in await database.fetch("SELECT id FROM t ORDER BY id")] == [1, 2]
        assert await database.fetchval("SHOW application_name") == "tokenward"
    assert states.heard == [True, False]


async def test_a_database_away_at_start_is_not_fatal(database_url: str) -> None:
    """Away at start, every use fails at once and says why; back, it connects by itself."""
    states = States()
    async with Wire(database_url) as wire:
        await wire.cut()
        database = make(wire.url, states=states)
        assert await database.start() is False
        async with asyncio.timeout(0.5):
            with pytest.raises(DatabaseUnavailableError, match="Connect call failed"):
                await database.fetchval("SELECT 1")
        await wire.mend()
        async with asyncio.timeout(5):
            await database.wait_connected()
        assert await database.fetchval("SELECT 1") == 1
        await database.close()
    assert states.heard == [False, True, False]


async def test_the_log_says_why_the_database_is_away(database_url: str) -> None:
    """Each reason once, however often it is tried, and when it is over; a stop is no news."""
    reasons = iter(["the schema is older", "the schema is older", "it is full"])

    async def prepare(_: DatabaseConnection) -> None:
        if reason := next(reasons, None):
            raise DatabaseUnavailableError(reason)

    with capture_logs() as logs:
        database = make(database_url, prepare=prepare)
        assert await database.start() is False
        async with asyncio.timeout(5):
            await database.wait_connected()
        await database.close()
    assert logs == [
        {"event": "database_unavailable", "log_level": "warning", "reason": "the schema is older"},
        {"event": "database_unavailable", "log_level": "warning", "reason": "it is full"},
        {"event": "database_available", "log_level": "info"},
    ]


async def test_nothing_works_before_start_or_after_close(database_url: str) -> None:
    """A database that is not started, or closed, says so at once."""
    database = make(database_url)
    with pytest.raises(DatabaseUnavailableError, match="not started"):
        await database.fetchval("SELECT 1")
    await database.start()
    await database.close()
    await database.wait_closed()
    with pytest.raises(DatabaseUnavailableError, match="closed"):
        await database.fetchval("SELECT 1")


async def test_terminated_connections_cost_one_statement_each(database_url: str) -> None:
    """When the server ends all sessions, no pooled connection fails twice."""
    states = States()
    failed = 0

    async def ask(database: Database) -> None:
        nonlocal failed
        try:
            await database.fetchval("SELECT 1")
        except DatabaseUnavailableError:
            failed += 1

    async with running(make(database_url, states=states)) as database:
        await holding(database, 4, "SELECT 1")
        async with administrator(database_url) as admin:
            await admin.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'tokenward'"
            )
        for _ in range(5):
            await asyncio.gather(*(ask(database) for _ in range(8)))
        assert failed <= 4
        assert await database.fetchval("SELECT 1") == 1


async def test_a_demoted_primary_is_left_at_the_first_refused_write(database_url: str) -> None:
    """One write refused as read-only drops every connection to that server (SQLSTATE 25006)."""
    states = States()
    idle = Limits(connect=1.0, acquire=1.0, probe_every=3600)
    async with running(make(database_url, states=states, limits=idle)) as database:
        await database.execute("CREATE TABLE t (id int)")
        # Sessions keep the setting, as those to an old primary keep refusing.
        await holding(database, 4, "SET default_transaction_read_only = on")
        with pytest.raises(DatabaseUnavailableError, match="25006"):
            await database.execute("INSERT INTO t VALUES (1)")
        for _ in range(8):
            await database.execute("INSERT INTO t VALUES (1)")
        assert states.heard == [True, False, True]


async def test_a_demoted_primary_is_noticed_without_a_write(database_url: str) -> None:
    """The probe finds a server that has become read-only while nobody writes."""
    states = States()
    async with running(make(database_url, states=states, size=1)) as database:
        await holding(database, 1, "SET default_transaction_read_only = on")
        await until(lambda: states.heard == [True, False, True])


async def test_a_server_that_refuses_writes_is_no_primary(database_url: str) -> None:
    """A standby or fenced server is not connected to, until it accepts writes."""
    async with administrator(database_url) as admin:
        name = await admin.fetchval("SELECT quote_ident(current_database())")
        await admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        async with running(make(database_url)) as database:
            assert not database.connected
            assert "read-write" in (database.reason or "")
            await admin.execute("SET default_transaction_read_only = off")
            await admin.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
            async with asyncio.timeout(5):
                await database.wait_connected()


async def test_a_hanging_server_is_given_up(database_url: str) -> None:
    """When no byte comes through any more, callers fail within their bounds, and it recovers."""
    states = States()
    async with Wire(database_url) as wire, running(make(wire.url, states=states)) as database:
        await holding(database, 4, "SELECT 1")
        wire.stall()
        async with asyncio.timeout(5):
            await until(lambda: not database.connected)
            with pytest.raises(DatabaseUnavailableError):
                await database.fetchval("SELECT 1")
        await wire.mend()
        async with asyncio.timeout(5):
            await database.wait_connected()
        assert await database.fetchval("SELECT 1") == 1
    assert states.heard[:3] == [True, False, True]


async def test_a_cut_connection_is_reported_within_the_statement(database_url: str) -> None:
    """A statement on its way when the connection is cut ends as unavailable, not as hung."""
    async with Wire(database_url) as wire, running(make(wire.url)) as database:
        statement = asyncio.create_task(database.execute("SELECT pg_sleep(5)"))
        async with administrator(database_url) as admin:
            await busy(admin)
        await wire.cut()
        with pytest.raises(DatabaseUnavailableError):
            await statement
        assert not database.connected


async def busy(admin: asyncpg.Connection[asyncpg.Record]) -> None:
    """Wait until a connection of the daemon's runs ``pg_sleep``."""
    async with asyncio.timeout(5):
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND query LIKE 'SELECT pg_sleep%' AND state = 'active'"
        )
        while not await admin.fetchval(query):  # noqa: ASYNC110 # the server's state has no event
            await asyncio.sleep(0.005)


async def test_an_exhausted_pool_is_busy_not_lost(database_url: str) -> None:
    """A caller that gets no connection in time fails; the pool stays."""
    limits = Limits(acquire=0.1, probe_every=3600)
    async with running(make(database_url, size=1, limits=limits)) as database:
        async with database.acquire():
            with pytest.raises(DatabaseUnavailableError, match="no connection was free"):
                await database.fetchval("SELECT 1")
        assert database.connected
        assert await database.fetchval("SELECT 1") == 1


async def test_the_server_stops_a_slow_statement(database_url: str) -> None:
    """A statement over its limit is unavailable; its connection is used again."""
    limits = Limits(statement=0.1, probe_every=3600)
    async with running(make(database_url, size=1, limits=limits)) as database:
        pid = await database.fetchval("SELECT pg_backend_pid()")
        with pytest.raises(DatabaseUnavailableError, match="57014"):
            await database.execute("SELECT pg_sleep(5)")
        assert await database.fetchval("SELECT pg_backend_pid()") == pid


async def test_a_cancelled_caller_leaves_a_usable_connection(database_url: str) -> None:
    """Cancelling a caller cancels its statement and nothing else."""
    states = States()
    limits = Limits(probe_every=3600)
    async with running(make(database_url, states=states, size=1, limits=limits)) as database:
        statement = asyncio.create_task(database.execute("SELECT pg_sleep(30)"))
        async with administrator(database_url) as admin:
            await busy(admin)
        statement.cancel()
        with pytest.raises(asyncio.CancelledError):
            await statement
        assert await database.fetchval("SELECT 1") == 1
        assert states.heard == [True]


async def test_mistakes_stay_what_they_are(database_url: str) -> None:
    """A violated constraint reaches the caller as asyncpg's error and undoes the transaction."""
    async with running(make(database_url)) as database:
        await database.execute("CREATE TABLE t (id int PRIMARY KEY)")

        async def collide() -> None:
            async with database.transaction() as session:
                await session.execute("INSERT INTO t VALUES (1)")
                await session.execute("INSERT INTO t VALUES (1)")

        with pytest.raises(asyncpg.UniqueViolationError):
            await collide()
        assert await database.fetchval("SELECT count(*) FROM t") == 0
        assert database.connected


RAISE = "DO $$ BEGIN RAISE EXCEPTION 'as told' USING ERRCODE = '%s'; END $$"


@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
async def test_a_collision_is_tried_again(database_url: str, sqlstate: str) -> None:
    """After serialization failures and deadlocks the whole transaction runs again."""
    tries = 0

    async def work(session: DatabaseConnection) -> str:
        nonlocal tries
        tries += 1
        await session.execute("INSERT INTO t VALUES (1)")
        if tries < 3:
            await session.execute(RAISE % sqlstate)
        return "done"

    async with running(make(database_url)) as database:
        await database.execute("CREATE TABLE t (id int)")
        assert await database.idempotent(work) == "done"
        assert await database.fetchval("SELECT count(*) FROM t") == 1


@pytest.mark.parametrize(("sqlstate", "expected"), [("40001", 5), ("53100", 1)])
async def test_tries_are_bounded(database_url: str, sqlstate: str, expected: int) -> None:
    """A collision that goes on fails after five tries; anything else is not tried again."""
    tries = 0

    async def work(session: DatabaseConnection) -> None:
        nonlocal tries
        tries += 1
        await session.execute(RAISE % sqlstate)

    async with running(make(database_url)) as database:
        with pytest.raises(DatabaseUnavailableError, match=sqlstate):
            await database.idempotent(work)
    assert tries == expected


async def test_preparation_comes_before_use_and_again_after_a_loss(database_url: str) -> None:
    """Nobody gets a connection before ``prepare`` is done, at the start and after each loss."""
    prepared: list[bool] = []

    async def prepare(connection: DatabaseConnection) -> None:
        await connection.execute("CREATE TABLE IF NOT EXISTS t (id int)")
        prepared.append(database.connected)

    database = make(database_url, prepare=prepare)
    async with running(database):
        assert await database.fetchval("SELECT count(*) FROM t") == 0
        with pytest.raises(DatabaseUnavailableError):
            await database.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        assert await database.fetchval("SELECT count(*) FROM t") == 0
    assert prepared == [False, False]


async def test_a_pointless_start_fails(database_url: str) -> None:
    """An error that time does not mend leaves ``start`` as it is."""

    async def refuse(_: DatabaseConnection) -> None:
        raise SchemaTooNewError("newer")

    database = make(database_url, prepare=refuse)
    with pytest.raises(SchemaTooNewError):
        await database.start()
    assert not database.connected
    await database.close()


async def test_a_url_with_a_parameter_that_is_none(database_url: str) -> None:
    """What the server does not know is said in a sentence, and ends the start."""
    joint = "&" if "?" in database_url else "?"
    database = make(f"{database_url}{joint}no_such_thing=1")
    with pytest.raises(StorageError, match=r"no_such_thing.*correct its parameters") as caught:
        await database.start()
    assert not isinstance(caught.value, DatabaseUnavailableError)
    await database.close()


async def test_a_role_that_may_not_connect_is_waited_for(
    postgres_cluster: Cluster, database_url: str
) -> None:
    """CONNECT that is taken away, as for maintenance, is a matter of time."""
    name = urlsplit(database_url).path.lstrip("/")
    postgres_cluster.execute(_WEAK)
    postgres_cluster.execute(f'REVOKE CONNECT ON DATABASE "{name}" FROM PUBLIC')
    database = make(postgres_cluster.server.url(name, role="weak"))
    assert await database.start() is False
    assert "permission denied for database" in (database.reason or "")
    postgres_cluster.execute(f'GRANT CONNECT ON DATABASE "{name}" TO PUBLIC')
    async with asyncio.timeout(5):
        await database.wait_connected()
    await database.close()
    postgres_cluster.execute("DROP ROLE weak")


async def test_a_pointless_reconnect_ends_the_daemon(database_url: str) -> None:
    """What ``prepare`` refuses after a loss is raised to whoever owns the background."""
    verdicts = iter([None, SchemaTooNewError("newer")])

    async def prepare(_: DatabaseConnection) -> None:
        verdict = next(verdicts)
        if verdict is not None:
            raise verdict

    async with running(make(database_url, prepare=prepare)) as database:
        with pytest.raises(DatabaseUnavailableError):
            await database.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        async with asyncio.timeout(5):
            with pytest.raises(SchemaTooNewError):
                await database.wait_closed()
        with pytest.raises(DatabaseUnavailableError, match="newer"):
            await database.fetchval("SELECT 1")


async def test_an_old_pools_error_spares_the_new_one(database_url: str) -> None:
    """A connection that dies after its pool was replaced takes nothing with it."""
    states = States()
    limits = Limits(connect=1.0, acquire=1.0, probe_every=3600)
    async with running(make(database_url, states=states, limits=limits)) as database:

        async def outlive_the_pool() -> None:
            async with database.acquire() as old:
                pid = await old.fetchval("SELECT pg_backend_pid()")
                with pytest.raises(DatabaseUnavailableError):
                    await database.execute("SELECT pg_terminate_backend(pg_backend_pid())")
                async with asyncio.timeout(5):
                    await database.wait_connected()
                assert await old.fetchval("SELECT 1") == 1
                await database.execute("SELECT pg_terminate_backend($1)", pid)
                await old.fetchval("SELECT 1")

        with pytest.raises(DatabaseUnavailableError):
            await outlive_the_pool()
        assert await database.fetchval("SELECT 1") == 1
        assert states.heard == [True, False, True]


async def test_a_silent_host_does_not_hide_the_next(database_url: str) -> None:
    """Of several hosts one that swallows everything is passed over, and the good one kept."""
    async with Wire(database_url) as silent, Wire(database_url) as good:
        silent.stall()
        one, other = silent.url.partition("127.0.0.1:"), good.url.partition("127.0.0.1:")
        port = other[2].partition("/")[0]
        url = f"{one[0]}{one[1]}{one[2].replace('/', f',127.0.0.1:{port}/', 1)}"
        dialer = Dialer(url, Limits(connect=0.3))
        for seconds in (3.0, 0.25):
            async with asyncio.timeout(seconds):
                connection = await dialer.connect()
                assert await connection.fetchval("SELECT 1") == 1
                await hang_up(connection)


async def test_a_connection_of_ones_own_has_its_settings(database_url: str) -> None:
    """``connect`` takes server settings, and a probe of such a connection is quiet."""
    database = Database(database_url, clock=SystemClock(), entropy=system_entropy)
    connection = await database.connect(synchronous_commit="off")
    try:
        assert await connection.fetchval("SHOW synchronous_commit") == "off"
        await probe(connection, seconds=1)
        await connection.execute("SET default_transaction_read_only = on")
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await probe(connection, seconds=1)
    finally:
        await hang_up(connection)


async def test_a_vanished_host_is_noticed_by_the_socket(database_url: str) -> None:
    """Over TCP the system itself gives up a peer that acknowledges nothing for 4 s."""
    async with Wire(database_url) as wire:
        connection = await Dialer(wire.url, BRISK).connect()
        transport = connection._transport  # type: ignore[attr-defined] # it has no public name
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 4000
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        await hang_up(connection)


async def test_close_waits_for_those_at_work(database_url: str) -> None:
    """Closing lets a transaction under way commit."""
    database = make(database_url)
    await database.start()
    await database.execute("CREATE TABLE t (id int)")
    begun, go = asyncio.Event(), asyncio.Event()

    async def commit() -> None:
        async with database.transaction() as session:
            await session.execute("INSERT INTO t VALUES (1)")
            begun.set()
            await go.wait()

    working = asyncio.create_task(commit())
    await begun.wait()
    closing = asyncio.create_task(database.close())
    await until(lambda: not database.connected)
    go.set()
    await asyncio.gather(working, closing)
    async with administrator(database_url) as admin:
        assert await admin.fetchval("SELECT count(*) FROM t") == 1
