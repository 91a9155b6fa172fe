"""The database away, slow, killed or somebody else's: reliability.md 2C on the real process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from daemon.persistence.embedded.layout import Layout
from daemon.persistence.embedded.processes import read_pid_file
from tests.support.dump import dump
from tests.support.polling import eventually
from tests.support.raw_server import Wire as HttpWire
from tests.support.token_server import TokenServer
from tests.support.tokenward import Reply, Tokenward
from tests.support.wire import Wire

KEY, OTHER_KEY = "A" * 43 + "=", "B" * 43 + "="


@pytest.fixture
async def wire(daemon: Tokenward, database_url: str) -> AsyncIterator[Wire]:
    """A connection to the daemon's database that can be cut."""
    async with Wire(database_url) as wire:
        daemon.settings["database"] = {"url": wire.url}
        yield wire


async def probe(daemon: Tokenward, name: str) -> int:
    """Return the status of a probe."""
    async with daemon.session.get(f"{daemon.ops_url}/{name}") as answer:
        return answer.status


async def probes(daemon: Tokenward) -> tuple[int, int, int]:
    """Return startup, readiness and liveness."""
    return (
        await probe(daemon, "startup"),
        await probe(daemon, "readiness"),
        await probe(daemon, "liveness"),
    )


async def listens(daemon: Tokenward) -> bool:
    """Tell whether the public listener, the last to open, does."""
    port = int(daemon.public_url.rpartition(":")[2])
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def test_a_database_that_is_away_at_the_start(daemon: Tokenward, wire: Wire) -> None:
    """Alive, neither started nor ready, every answer says when to come again; then it starts."""
    async with TokenServer() as server:
        daemon.settings["providers"] = {"acme": server.provider()}
        await wire.cut()
        try:
            daemon.spawn()
            await eventually(lambda: listens(daemon), within=30, what="the listeners")
            assert await probes(daemon) == (503, 503, 200)
            body = {"provider": "acme", "tokens": {"refresh_token": "imported"}}
            for reply in (
                await daemon.request("GET", "/v1/connections"),
                await daemon.token("acme-1"),
                await daemon.request("POST", "/v1/connections", json=body),
            ):
                assert reply.status == 503, reply.content
                assert int(reply.headers["Retry-After"]) >= 1
                assert reply.headers["Content-Type"] == "application/problem+json"
            # What needs no database is answered.
            assert (await daemon.request("GET", "/v1/providers")).status == 200
            assert (await daemon.metrics())["tokenward_database_up"] == 0

            await wire.mend()
            await eventually(daemon.has_started, within=30, what="the start")
            assert await probes(daemon) == (200, 200, 200)
            await daemon.create("acme", id="acme-1", tokens={"refresh_token": "imported"})
            assert (await daemon.token("acme-1")).status == 200
            assert (await daemon.metrics())["tokenward_database_up"] == 1
            assert await daemon.stop() == 0
        finally:
            await daemon.close()


@pytest.mark.parametrize("how", ["cut", "stalled"])
async def test_a_database_that_goes_away(daemon: Tokenward, wire: Wire, how: str) -> None:
    """Cached tokens are served and it stays ready; nothing is sent without a stored intent."""
    async with TokenServer(expires_in=60) as server:
        daemon.settings["providers"] = {"acme": server.provider()}
        async with daemon:
            await daemon.create("acme", id="acme-1", tokens={"refresh_token": "imported"})
            assert (await daemon.token("acme-1")).status == 200
            sent = len(server.forms)
            if how == "cut":
                await wire.cut()
            else:
                wire.stall()
            refused, listed, served, ready = await asyncio.gather(
                daemon.request("POST", "/v1/connections/acme-1/refresh"),
                daemon.request("GET", "/v1/connections"),
                daemon.token("acme-1"),
                probes(daemon),
            )
            assert len(server.forms) == sent
            await wire.mend()

            async def refreshed() -> bool:
                reply = await daemon.request("POST", "/v1/connections/acme-1/refresh")
                return reply.status == 200

            await eventually(refreshed, within=40, what="a refresh after the outage")
            assert (await daemon.token("acme-1")).body["generation"] == 3
        assert (served.status, served.body["access_token"]) == (200, "access-1")
        assert ready == (200, 200, 200)
        assert refused.status == listed.status == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert int(listed.headers["Retry-After"]) >= 1
        assert set(server.sends().values()) == {1}


async def test_a_reply_that_cannot_be_stored_yet(daemon: Tokenward, wire: Wire) -> None:
    """The database goes while a refresh is in flight: its token is served, and stored later."""
    async with TokenServer() as server:
        asked, go = asyncio.Event(), asyncio.Event()
        daemon.settings["providers"] = {"acme": server.provider()}
        async with daemon:
            await daemon.create("acme", id="acme-1", tokens={"refresh_token": "imported"})
            assert (await daemon.token("acme-1")).body["generation"] == 2

            async def hold(client: HttpWire) -> None:
                asked.set()
                await go.wait()
                await server.grant(client)

            server.answer = hold
            refreshing = asyncio.create_task(
                daemon.request("POST", "/v1/connections/acme-1/refresh")
            )
            await asked.wait()
            await wire.cut()
            go.set()

            async def served() -> bool:
                return bool((await daemon.token("acme-1")).body["access_token"] == "access-2")

            await eventually(served, what="the new token from memory")
            await wire.mend()
            assert (await refreshing).status in {200, 503}

            async def stored() -> bool:
                reply = await daemon.request("GET", "/v1/connections/acme-1")
                return reply.status == 200 and reply.body["generation"] == 3

            await eventually(stored, within=30, what="the commit")
            server.answer = server.grant
            again = await daemon.request("POST", "/v1/connections/acme-1/refresh")
        assert again.body["generation"] == 4
        assert server.sends() == {"imported": 1, "refresh-1": 1, "refresh-2": 1}


def postmaster(daemon: Tokenward) -> int | None:
    """Return the pid of the embedded PostgreSQL, where it takes connections."""
    file = read_pid_file(Layout(daemon.state_dir.resolve()).data)
    return file.pid if file is not None and file.ready else None


async def test_a_killed_postmaster_is_replaced(tmp_path: Path) -> None:
    """With the embedded PostgreSQL killed tokens go on being served, and all else comes back."""
    async with TokenServer() as server:
        daemon = Tokenward(tmp_path, {"providers": {"acme": server.provider()}})
        async with daemon:
            await daemon.create("acme", id="acme-1", tokens={"refresh_token": "imported"})
            assert (await daemon.token("acme-1")).status == 200
            killed = postmaster(daemon)
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
            assert (await daemon.token("acme-1")).status == 200
            assert (await probes(daemon))[1:] == (200, 200)

            async def works() -> Reply | None:
                reply = await daemon.request("POST", "/v1/connections/acme-1/refresh")
                return reply if reply.status == 200 else None

            back = await eventually(works, within=40, what="the database")
            assert postmaster(daemon) not in {None, killed}
            assert await daemon.stop() == 0
        assert back.body["generation"] == 3
        assert set(server.sends().values()) == {1}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ([{"id": "k1", "secret": OTHER_KEY}], "k1"),
        ([{"id": "k2", "secret": OTHER_KEY}], "k1"),
        ([{"id": "k2", "secret": OTHER_KEY}, {"id": "k1", "secret": OTHER_KEY}], "k1"),
        ([], "k1"),
    ],
    ids=["other secret", "other id", "wrong old key", "generated"],
)
async def test_a_wrong_key_touches_nothing(
    daemon: Tokenward, database_url: str, keys: list[dict[str, str]], words: str
) -> None:
    """With a wrong or missing key it refuses to start, says which key, and changes no row."""
    async with TokenServer() as server:
        daemon.settings["providers"] = {"acme": server.provider()}
        right = [{"id": "k1", "secret": KEY}]
        daemon.settings["encryption"] = {"keys": right}
        async with daemon:
            await daemon.create("acme", id="acme-1", tokens={"refresh_token": "imported"})
            assert (await daemon.token("acme-1")).status == 200
            assert await daemon.stop() == 0
            before = await dump(database_url)

            daemon.settings["encryption"] = {"keys": keys}
            logged = len(daemon.log())
            daemon.spawn()
            assert await daemon.ended(within=30) == 2
            said = daemon.log()[logged:]
            assert await dump(database_url) == before
            assert words in said.splitlines()[-1]
            assert "Traceback" not in said
            assert KEY not in said
            assert OTHER_KEY not in said

            daemon.settings["encryption"] = {"keys": right}
            await daemon.start()
            assert (await daemon.token("acme-1")).body["access_token"] == "access-1"


async def test_one_state_directory_serves_one_daemon(tmp_path: Path) -> None:
    """A second daemon on the embedded database of a running one refuses to start."""
    first, second = Tokenward(tmp_path), Tokenward(tmp_path / "second")
    second.settings["state_dir"] = str(first.state_dir)
    async with first:
        try:
            second.spawn()
            assert await second.ended(within=30) == 1
            assert str(first.state_dir) in second.log().splitlines()[-1]
        finally:
            await second.close()
        assert await probes(first) == (200, 200, 200)
