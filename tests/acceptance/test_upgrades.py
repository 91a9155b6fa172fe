"""Two versions on one database: this one beside a newer schema, and what ``migrate`` foretells."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from daemon.domain.clock import SystemClock
from daemon.persistence.migrations import Migration, bundled, migrate
from tests.support.acme_service import AcmeService, walk
from tests.support.commands import run_command
from tests.support.dump import dump
from tests.support.expansion import breaches, future
from tests.support.tokenward import Tokenward

TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"


@asynccontextmanager
async def reached(url: str) -> AsyncIterator[asyncpg.Connection]:
    """Connect to a database."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def bring(url: str, *more: Migration) -> None:
    """Apply everything that this version knows, and then what it does not know."""
    async with reached(url) as connection:
        await migrate(connection, (*bundled(), *more), clock=SystemClock())


async def future_of(url: str, *, major: int | None = None) -> Migration:
    """Return a migration of a later version, which adds something to every table there is."""
    async with reached(url) as connection:
        tables = [str(row[0]) for row in await connection.fetch(TABLES)]
    return future(bundled(), [name for name in tables if name != "schema_migrations"], major=major)


async def live(daemon: Tokenward, acme: AcmeService, name: str, account: str) -> None:
    """Walk a connection through all that writes to the database, twice authorized, then ended."""
    acme.account = account
    created = await daemon.create("acme", id=name)
    assert (await walk(created["connect_url"])).status == 303
    path = f"/v1/connections/{name}"
    assert (await daemon.request("POST", f"{path}/refresh")).status == 200
    assert (await daemon.request("POST", f"{path}/test")).body["ok"] is True
    assert (await daemon.request("PATCH", path, json={"label": "mine"})).status == 200
    again = await daemon.request("POST", f"{path}/authorize")
    assert (await walk(again.body["connect_url"])).status == 303
    # The account is connected already: this one gives way.
    other = await daemon.create("acme", id=f"{name}-twice")
    assert (await walk(other["connect_url"])).status == 303
    assert (await daemon.token(f"{name}-twice")).body["merged_into"] == name
    assert (await daemon.token(name)).status == 200
    kinds = [one["type"] for one in (await daemon.request("GET", f"{path}/events")).body["events"]]
    assert kinds.count("connection.authorized") >= 2
    acme.end_grant(account)
    assert (await daemon.request("POST", f"{path}/refresh")).status == 409
    assert (await daemon.connection(name))["status"] == "reauthorization_required"
    listed = await daemon.request("GET", "/v1/connections?q=mine")
    assert name in [one["id"] for one in listed.body["connections"]]
    assert (await daemon.request("DELETE", path)).status == 200


async def test_this_version_goes_on_beside_a_newer_schema(
    daemon: Tokenward, database_url: str
) -> None:
    """A later version adds columns to every table beneath a running daemon, which sees none.

    What was prepared before still runs, a new connection of the pool and a new start, too.
    """
    async with AcmeService() as acme:
        daemon.settings["providers"] = {"acme": acme.provider()}
        async with daemon:
            await live(daemon, acme, "before", "1")
            step = await future_of(database_url)
            assert breaches(step) == []
            await bring(database_url, step)
            await live(daemon, acme, "beside", "2")
            assert await daemon.stop() == 0
            await daemon.start()
            await live(daemon, acme, "after", "3")
            for event in ("request_failed", "connection_failed"):
                assert daemon.logged(event) == []
            assert await daemon.stop() == 0


async def test_a_newer_major_is_refused_without_a_write(
    daemon: Tokenward, database_url: str
) -> None:
    """Exit code 1, a sentence that says what to do, and not one row or table more or less."""
    await bring(database_url)
    await bring(database_url, await future_of(database_url, major=2))
    before = await dump(database_url)
    try:
        daemon.spawn()
        assert await daemon.ended(within=30) == 1
    finally:
        await daemon.close()
    assert "run a newer version, or restore a backup" in daemon.log()
    assert "Traceback" not in daemon.log()
    assert await dump(database_url) == before


async def test_a_dry_run_says_what_would_be_applied(daemon: Tokenward, database_url: str) -> None:
    """On an empty database everything, on an older one the rest, on a current one nothing."""
    pending = [str(one) for one in bundled()]
    for done in (0, 1, len(pending)):
        async with reached(database_url) as connection:
            await migrate(connection, bundled()[:done], clock=SystemClock())
        before = await dump(database_url)
        foreseen = await run_command(daemon, "migrate", "--dry-run", "--output", "json")
        assert foreseen.returncode == 0, foreseen.stderr
        found = json.loads(foreseen.stdout)
        assert [one["migration"] for one in found["pending"]] == pending[done:]
        assert all(one["statements"] for one in found["pending"])
        assert await dump(database_url) == before
    told = await run_command(daemon, "migrate", "--dry-run")
    assert (told.returncode, "up to date; nothing would be applied" in told.stdout) == (0, True)


async def test_a_dry_run_in_words(daemon: Tokenward, database_url: str) -> None:
    """Each statement stands on a line, and under it who has to wait."""
    async with reached(database_url) as connection:
        await migrate(connection, bundled()[:1], clock=SystemClock())
    said = (await run_command(daemon, "migrate", "--dry-run")).stdout
    assert f"would apply {bundled()[1]}\n" in said
    assert "everything on connections waits, for a moment unless it is rewritten" in said
    assert max(map(len, said.splitlines())) < 120


@pytest.mark.parametrize("kind", ["newer", "newer major", "changed"])
async def test_a_dry_run_of_what_is_not_ours(
    daemon: Tokenward, database_url: str, kind: str
) -> None:
    """A newer minor is told and fine; a newer major and a changed file end with 1, as `migrate`."""
    await bring(database_url)
    if kind == "changed":
        async with reached(database_url) as connection:
            await connection.execute(
                "UPDATE schema_migrations SET checksum = 'x' WHERE version = 2"
            )
    else:
        major = 2 if kind == "newer major" else None
        await bring(database_url, await future_of(database_url, major=major))
    before = await dump(database_url)
    for arguments in (("migrate", "--dry-run"), ("migrate",)):
        done = await run_command(daemon, *arguments)
        assert done.returncode == (0 if kind == "newer" else 1), done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    if kind == "newer":
        told = await run_command(daemon, "migrate", "--dry-run")
        assert "1 newer migrations of the same major" in told.stdout
    assert await dump(database_url) == before


async def test_a_dry_run_before_there_is_a_database(tmp_path: Path) -> None:
    """Nothing is made to be looked at."""
    daemon = Tokenward(tmp_path)
    said = await run_command(daemon, "migrate", "--dry-run")
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("would apply 0001_")
    assert not daemon.state_dir.exists()


async def test_a_database_that_is_away_is_a_matter_of_time(daemon: Tokenward) -> None:
    """`migrate` ends with 5: the same command may succeed later."""
    daemon.settings["database"] = {"url": "postgresql://tokenward@127.0.0.1:1/tokenward"}
    for arguments in (("migrate",), ("migrate", "--dry-run")):
        done = await run_command(daemon, *arguments)
        assert (done.returncode, "Traceback" in done.stderr) == (5, False), done.stderr


async def test_tables_are_expanded_for_real(database_url: str) -> None:
    """The future that these tests put beneath a daemon is no empty one."""
    await bring(database_url)
    await bring(database_url, await future_of(database_url))
    async with reached(database_url) as connection:
        columns = await connection.fetchval(
            "SELECT count(*) FROM information_schema.columns WHERE column_name = 'added_later'"
        )
        tables = len(await connection.fetch(TABLES))
    # All but the bookkeeping and the new one.
    assert columns == tables - 2 >= 15
