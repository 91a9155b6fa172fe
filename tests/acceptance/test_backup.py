"""docs/backup.md tried out: pg_dump beside a daemon, pg_restore, with and without all the rest."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from daemon.persistence.embedded.binaries import installed_directories
from tests.support.acme_service import AcmeService, walk
from tests.support.commands import run_program
from tests.support.dump import dump
from tests.support.polling import eventually
from tests.support.postgres import Cluster
from tests.support.tokenward import Tokenward

KEY, OTHER_KEY = "A" * 43 + "=", "B" * 43 + "="


def program(name: str) -> Path:
    """Return a client program of the PostgreSQL that the tests run."""
    found = next(iter(installed_directories())) / name
    if not found.is_file():
        pytest.skip(f"{found} is not there: PostgreSQL's client programs are not installed")
    return found


@dataclass
class Site:
    """A daemon, its database, a backup of that, and what was refreshed since."""

    daemon: Tokenward
    acme: AcmeService
    cluster: Cluster
    backup: Path

    async def restore(self) -> str:
        """Restore the backup into a new database, which the daemon is given; return its URL."""
        url = self.cluster.create_database()
        done = await run_program(
            [program("pg_restore"), "--no-owner", "--dbname", url, self.backup],
            home=self.daemon.directory,
        )
        assert done.returncode == 0, done.stderr
        self.daemon.settings["database"] = {"url": url}
        return url

    async def refreshed(self, name: str) -> int:
        """Refresh a connection and return the status of the answer."""
        return (await self.daemon.request("POST", f"/v1/connections/{name}/refresh")).status

    def sent_twice(self) -> list[str]:
        """Return the refresh tokens that the provider has seen more than once."""
        sent = [form.get("refresh_token") for form in self.acme.token_requests]
        return sorted({token for token in sent if token and sent.count(token) > 1})


@pytest.fixture
async def site(
    daemon: Tokenward, postgres_cluster: Cluster, database_url: str
) -> AsyncIterator[Site]:
    """Three connections at a provider that rotates: untouched since the backup, refreshed, new.

    The daemon is stopped, and its database has lost everything since the backup.
    """
    backup = daemon.directory / "tokenward.dump"
    daemon.settings["encryption"] = {"keys": [{"id": "k1", "secret": KEY}]}
    async with AcmeService() as acme:
        daemon.settings["providers"] = {"acme": acme.provider()}
        here = Site(daemon, acme, postgres_cluster, backup)
        async with daemon:
            await daemon.create("acme", id="untouched", tokens=acme.imported("1"))
            await daemon.create("acme", id="refreshed", tokens=acme.imported("2"))
            assert await here.refreshed("refreshed") == 200
            dumped = await run_program(
                [program("pg_dump"), "--format=custom", "--file", backup, database_url],
                home=daemon.directory,
            )
            assert dumped.returncode == 0, dumped.stderr
            for _ in range(2):
                assert await here.refreshed("refreshed") == 200
            acme.account = "3"
            created = await daemon.create("acme", id="new")
            assert (await walk(created["connect_url"])).status == 303
            assert await daemon.stop() == 0
            yield here


async def test_with_the_journal_nothing_that_was_refreshed_is_lost(site: Site) -> None:
    """The newest tokens are back under the generation they had; what was made since is gone."""
    await site.restore()
    daemon = await site.daemon.start()
    served = (await daemon.token("refreshed")).body
    assert served["generation"] == 4
    assert served["access_token"] in site.acme.access
    assert (await daemon.token("new")).status == 404
    for name in ("untouched", "refreshed"):
        assert await site.refreshed(name) == 200
        assert (await daemon.connection(name))["status"] == "active"
    assert site.sent_twice() == []
    assert (await daemon.metrics())["tokenward_journal_entries"] == 0
    assert await daemon.stop() == 0


async def test_without_the_journal_what_was_refreshed_since_must_be_connected_again(
    site: Site,
) -> None:
    """For ten minutes nothing is sent, in case the journal comes back; then the spent token is.

    The access token of the backup is served until it ends. What was not refreshed since goes on.
    """
    url = await site.restore()
    shutil.rmtree(site.daemon.state_dir / "journal")
    sent = len(site.acme.token_requests)
    daemon = await site.daemon.start()
    assert (await daemon.token("refreshed")).body["generation"] == 2
    for name in ("untouched", "refreshed"):
        assert await site.refreshed(name) == 503
    assert len(site.acme.token_requests) == sent
    await ten_minutes_later(url)

    async def goes_on() -> bool:
        return await site.refreshed("untouched") == 200

    await eventually(goes_on, what="the end of the wait for the journal")
    assert await site.refreshed("refreshed") == 409
    assert (await daemon.connection("refreshed"))["status"] == "reauthorization_required"
    again = await daemon.request("POST", "/v1/connections/refreshed/authorize")
    site.acme.account = "2"
    assert (await walk(again.body["connect_url"])).status == 303
    assert (await daemon.token("refreshed")).status == 200
    assert await daemon.stop() == 0


async def ten_minutes_later(url: str) -> None:
    """Let the daemon have come to this database ten minutes ago."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("UPDATE replicas SET since = since - interval '10 minutes'")
    finally:
        await connection.close()


async def test_without_the_key_nothing_is_written(site: Site) -> None:
    """A wrong, a renamed and no key at all: exit code 2, a sentence, and not one row is changed."""
    url = await site.restore()
    before = await dump(url)
    lost: tuple[list[dict[str, str]], ...] = (
        [{"id": "k1", "secret": OTHER_KEY}],
        [{"id": "k2", "secret": KEY}],
        [],
    )
    for times, keys in enumerate(lost, start=1):
        site.daemon.settings["encryption"] = {"keys": keys}
        site.daemon.spawn()
        assert await site.daemon.ended(within=30) == 2
        assert site.daemon.log().count("encryption.keys") >= times
        assert await dump(url) == before
    site.daemon.settings["encryption"] = {"keys": [{"id": "k1", "secret": KEY}]}
    daemon = await site.daemon.start()
    assert (await daemon.token("refreshed")).body["generation"] == 4
    assert await daemon.stop() == 0


async def test_a_dump_has_no_token_in_clear(site: Site) -> None:
    """Whoever has the backup and not the keys has no token."""
    content = await asyncio.to_thread(site.backup.read_bytes)
    plain = await run_program(
        [program("pg_restore"), "--data-only", "--file=-", site.backup], home=site.daemon.directory
    )
    assert "untouched" in plain.stdout
    for secret in site.acme.secrets:
        assert secret not in plain.stdout
        assert secret.encode() not in content
