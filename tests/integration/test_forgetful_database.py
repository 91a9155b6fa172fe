"""A database that has forgotten: restored from a backup, at a provider that punishes reuse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from daemon.domain.claim import Claim, Refusal, RefusalReason
from daemon.domain.connection import Status
from daemon.domain.errors import DatabaseUnavailableError
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.refreshes import PostgresRefreshes
from tests.support.polling import eventually
from tests.support.postgres import Cluster
from tests.support.refreshing_replica import RefreshingReplica, running, strict_provider
from tests.support.strict_server import StrictServer


class Site:
    """A database, its backups, and a provider that ends a grant whose spent token it sees."""

    def __init__(
        self, cluster: Cluster, url: str, *, server: StrictServer, cipher: TokenCipher, state: Path
    ) -> None:
        self.server = server
        self._cluster = cluster
        self._url = url
        self._name = urlsplit(url).path.lstrip("/")
        self._cipher = cipher
        self._state = state

    def running(
        self, replica: str = "one", *, recovered: bool = True
    ) -> AbstractAsyncContextManager[RefreshingReplica]:
        """Run a replica, which has a journal of its own."""
        provider = strict_provider(self.server)
        directory = self._state / replica
        return running(self._url, directory, self._cipher, provider, recovered=recovered)

    def take(self) -> str:
        """Copy the database, to which nobody is connected; return the copy's name."""
        return urlsplit(self._cluster.create_database(self._name)).path.lstrip("/")

    def restore(self, copy: str) -> None:
        """Put a copy in the place of the database, whoever is connected to it."""
        self._cluster.drop_database(self._url)
        self._cluster.execute(f'ALTER DATABASE "{copy}" RENAME TO "{self._name}"')


@pytest.fixture
async def site(
    postgres_cluster: Cluster, migrated_url: str, cipher: TokenCipher, tmp_path: Path
) -> AsyncIterator[Site]:
    """The test's database and its provider."""
    async with StrictServer() as server:
        yield Site(postgres_cluster, migrated_url, server=server, cipher=cipher, state=tmp_path)


async def goes_on(here: RefreshingReplica, server: StrictServer, name: str = "a") -> None:
    """Assert that the connection has a living grant and can be refreshed."""
    generation, token = await here.stored(name)
    assert server.is_good(token)
    assert await here.refresh(name) is None
    after = await here.stored(name)
    assert after[0] == generation + 1
    assert server.is_good(after[1])
    assert server.reuses == []
    assert server.sent_twice() == {}


async def test_a_restored_backup_gets_back_what_the_journal_has(
    site: Site,
) -> None:
    """Nothing spent is sent, no generation falls, and doing it again changes nothing."""
    async with site.running() as here:
        await here.add("a", site.server.grant())
        await here.add("b", site.server.grant())
        await here.refresh("a")
    copy = site.take()
    async with site.running() as here:
        await here.refresh("a", times=3)
        before = [await here.stored(name) for name in "ab"]
    site.restore(copy)
    for _ in range(2):
        async with site.running() as here:
            assert [await here.stored(name) for name in "ab"] == before
    async with site.running() as here:
        await goes_on(here, site.server)
        await goes_on(here, site.server, "b")


async def test_a_restore_beneath_a_running_replica(
    site: Site,
) -> None:
    """The first claim in the restored database is refused until the journal was compared."""
    async with site.running() as here:
        await here.add("a", site.server.grant())
    copy = site.take()
    async with site.running() as here:
        await here.refresh("a", times=3)
        before = await here.stored("a")
        site.restore(copy)

        async def refreshed() -> bool:
            try:
                return await here.refresh("a") is None
            except DatabaseUnavailableError:
                return False

        await eventually(refreshed)
        assert await here.stored("a") > before
        await goes_on(here, site.server)
        entry = here.cache.get("a")
        assert entry is not None
        assert entry.generation == (await here.stored("a"))[0]


async def test_a_database_that_has_forgotten_how_an_attempt_ended(site: Site) -> None:
    """Its claim is this replica's own, and nobody works at it: it is not waited for."""
    async with site.running() as here:
        await here.add("a", site.server.grant())
        assert isinstance(await here.claim("a"), Claim)
    copy = site.take()
    async with site.running() as here:
        await here.refresh("a", times=2)
        before = await here.stored("a")
        site.restore(copy)

        async def refreshed() -> bool:
            try:
                return await here.refresh("a") is None
            except DatabaseUnavailableError:
                return False

        await eventually(refreshed, within=20)
        assert await here.stored("a") > before
        await goes_on(here, site.server)


async def test_a_restore_while_a_request_is_on_its_way(
    site: Site,
) -> None:
    """Its reply is stored over the older generation, though the database has no such claim."""
    async with site.running() as here:
        await here.add("a", site.server.grant())
    copy = site.take()
    async with site.running() as here:
        await here.refresh("a", times=2)
        site.server.hold()
        flight = asyncio.create_task(here.refresh("a"))

        async def rotated() -> bool:
            return site.server.rotations == 3

        await eventually(rotated)
        site.restore(copy)
        site.server.release()
        assert await flight is None
        assert (await here.stored("a"))[0] == 4

        async def refreshed() -> bool:
            try:
                return await here.refresh("a") is None
            except DatabaseUnavailableError:
                return False

        await eventually(refreshed)
        await goes_on(here, site.server)


async def test_a_crash_in_the_middle_of_the_replay(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever it is cut, the next start finishes it."""
    names = ["a", "b", "c"]
    async with site.running() as here:
        for name in names:
            await here.add(name, site.server.grant())
    copy = site.take()
    async with site.running() as here:
        for name in names:
            await here.refresh(name, times=2)
        before = [await here.stored(name) for name in names]
    site.restore(copy)

    for method in ("settle", "recall"):
        with monkeypatch.context() as patched:
            crashes = Crashes(getattr(PostgresRefreshes, method), after=1)
            patched.setattr(PostgresRefreshes, method, crashes)
            async with site.running(recovered=False) as here:
                recovering = asyncio.create_task(here.recovery.run())
                await asyncio.wait_for(crashes.crashed.wait(), 10)
                recovering.cancel()
                await asyncio.wait([recovering])
    async with site.running() as here:
        assert [await here.stored(name) for name in names] == before
        for name in names:
            await goes_on(here, site.server, name)


class Crashes:
    """A method that never comes back from all but its first calls."""

    def __init__(self, method: object, *, after: int) -> None:
        self._method = method
        self._left = after
        self.crashed = asyncio.Event()

    def __get__(self, instance: object, owner: type) -> object:
        """Bind."""

        async def call(*args: object, **kwargs: object) -> object:
            if self._left == 0:
                self.crashed.set()
                await asyncio.Event().wait()
            self._left -= 1
            return await self._method(instance, *args, **kwargs)  # type: ignore[operator] # a method

        return call


async def test_a_reconnect_after_the_restore_is_never_overwritten(
    site: Site,
) -> None:
    """The journal of a replica that comes back later belongs to the grant that was replaced."""
    async with site.running("late") as here:
        await here.add("a", site.server.grant())
    copy = site.take()
    async with site.running("late") as here:
        await here.refresh("a", times=3)
    site.restore(copy)
    async with site.running("quick") as here:
        await here.reconnect("a", site.server.grant(), later=timedelta(minutes=1))
        reconnected = await here.stored("a")
    async with site.running("late") as here:
        assert await here.stored("a") == reconnected


async def test_strict_refreshes_wait_for_the_other_replica(
    site: Site,
) -> None:
    """Another replica's journal may have the newer reply: until it was compared nobody sends."""
    async with (
        site.running("one") as here,
        site.running("two"),
    ):
        await here.add("a", site.server.grant())
        await here.refresh("a")
    copy = site.take()
    async with (
        site.running("one") as here,
        site.running("two") as there,
    ):
        await here.refresh("a")
        await there.refresh("a")
        before = await here.stored("a")
    site.restore(copy)
    async with site.running("one") as here:
        refused = await here.claim("a")
        assert isinstance(refused, Refusal)
        assert refused.reason is RefusalReason.PROVIDER_PAUSED
        assert (await here.stored("a"))[0] == before[0] - 1
        async with site.running("two") as there:
            assert await there.stored("a") == before

            async def admitted() -> bool:
                return isinstance(await here.claim("a"), Claim)

            await eventually(admitted)
    assert site.server.reuses == []


@pytest.mark.parametrize("is_swept", [False, True])
async def test_a_claim_that_waited_for_the_database_is_held_back_too(
    site: Site, *, is_swept: bool
) -> None:
    """While it waited the new incarnation was trusted, but for other replicas' newer replies."""
    async with site.running() as here:
        await here.add("a", site.server.grant())
        due_at = "UPDATE refresh_schedule SET due_at = now()"
        await here.database.execute(due_at)
        async with here.database.transaction() as session:
            await session.execute("SELECT 1 FROM provider_state FOR UPDATE")
            claiming = asyncio.create_task(_swept(here) if is_swept else here.claim("a"))
            await eventually(lambda: _is_waiting(here))
            here.incarnations.hold_back(["acme"])
        answer = await claiming
        assert not isinstance(answer, Claim)
        here.incarnations.hold_back(())
        assert isinstance(await here.claim("a"), Claim)


async def _swept(here: RefreshingReplica) -> Claim | None:
    due = await here.refreshes.claim_due(
        room={"acme": (1, 1000.0)},
        owner="one",
        hold=timedelta(minutes=2),
        now=here.clock.now() + timedelta(seconds=1),
    )
    return next(iter(due.claims), None)


async def _is_waiting(here: RefreshingReplica) -> bool:
    return bool(
        await here.database.fetchval(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"
        )
    )


async def test_an_incarnation_is_known_after_a_restart(
    site: Site,
) -> None:
    """While the database is the same no start reads the whole journal again."""
    async with site.running() as here:
        await here.add("a", site.server.grant())
        await here.refresh("a")
    async with site.running() as here:
        assert await here.incarnations.is_known(await here.incarnations.current())
        await here.incarnations.beat()
        await goes_on(here, site.server)
        await here.incarnations.leave()
        assert await here.incarnations.is_known(await here.incarnations.current())
        (status,) = (await here.incarnations.standing(["a", "nobody"])).values()
        assert (status.status, status.generation) == (Status.ACTIVE, 3)


async def test_a_forgotten_exchange_is_stored_again(site: Site) -> None:
    """A new grant with the refreshes after it; what was replaced is not revoked once more."""
    async with site.running() as here:
        await here.add("a", site.server.grant())
        await here.refresh("a")
    copy = site.take()
    async with site.running() as here:
        await here.refresh("a")
        await here.exchange("a", site.server.grant())
        await here.refresh("a", times=2)
        before = await here.stored("a")
    site.restore(copy)
    async with site.running() as here:
        assert await here.stored("a") == before
        assert len(here.authorized) == 1
        queued = await here.database.fetchval("SELECT count(*) FROM revocations")
        assert queued == 0
        await goes_on(here, site.server)


async def test_an_exchange_alone_keeps_its_generation(site: Site) -> None:
    """Also where the database has forgotten generations before it."""
    async with site.running() as here:
        await here.add("a", site.server.grant())
    copy = site.take()
    async with site.running() as here:
        await here.refresh("a", times=3)
        await here.exchange("a", site.server.grant())
        before = await here.stored("a")
    site.restore(copy)
    async with site.running() as here:
        assert (await here.stored("a")) == before
        await goes_on(here, site.server)


async def test_a_discarded_reply_is_never_stored(site: Site) -> None:
    """What came too late, or was refused, is no news after a restore."""
    async with site.running() as here:
        await here.add("a", site.server.grant())
        await here.exchange("a", site.server.grant(), stored=False)
        await here.database.execute("DELETE FROM replicas")
    async with site.running() as here:
        assert (await here.stored("a"))[0] == 1
        await goes_on(here, site.server)


@pytest.mark.parametrize(
    ("since", "seen", "expected"),
    [
        ("1 minute", "now() - interval '1 minute'", False),
        ("11 minutes", "now() - interval '1 minute'", True),
        ("1 minute", "'-infinity'", True),
        ("1 minute", "now() - interval '1 hour'", True),
    ],
)
async def test_who_is_waited_for(site: Site, *, since: str, seen: str, expected: bool) -> None:
    """Who was there at the end of the incarnation before and has not left, for ten minutes."""
    async with site.running() as here:
        await here.database.execute("DELETE FROM replicas")
        await here.database.execute(
            "INSERT INTO replicas (owner, incarnation, since, seen_at, seen_before) VALUES"
            f" ('first', 'new', now() - interval '{since}', now(), now() - interval '2 minutes'),"
            f" ('other', 'before', now() - interval '1 day', {seen}, NULL)"
        )
        assert await here.incarnations.all_replayed("new") is expected
