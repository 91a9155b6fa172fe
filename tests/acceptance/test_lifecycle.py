"""Signals to the real process: a stop loses nothing, a kill spoils nothing, a reload is whole."""

from __future__ import annotations

import asyncio
import signal
from datetime import timedelta
from pathlib import Path

import pytest
from aiohttp import ClientSession

from tests.support.oauth_flow import browser_session, query_of
from tests.support.oidc_provider import OidcProvider
from tests.support.polling import eventually
from tests.support.raw_server import Wire
from tests.support.token_server import TokenServer
from tests.support.tokenward import Tokenward

HOUR = timedelta(hours=1)


async def begin_refresh(daemon: Tokenward, server: OidcProvider) -> None:
    """Import a grant whose token's life is not known, and wait until its refresh has left."""
    granted = await server.connect()
    tokens = {"access_token": granted.access_token, "refresh_token": granted.refresh_token}
    await daemon.create("acme", id="acme-1", tokens=tokens)

    async def received() -> bool:
        return bool(server.token_requests())

    await eventually(received, what="the refresh request")


@pytest.mark.parametrize("phase", ["before", "after"])
async def test_sigterm_waits_for_a_refresh_in_flight(daemon: Tokenward, phase: str) -> None:
    """Stopped while the provider takes its time: the reply is stored, and served by the next."""
    with OidcProvider(access_token_lifetime=HOUR) as server:
        daemon.settings["providers"] = {"acme": server.provider()}
        async with daemon:
            server.inject(grant_type="refresh_token", phase=phase, delay_ms=2000)
            await begin_refresh(daemon, server)
            daemon.signal(signal.SIGTERM)
            await eventually(lambda: is_stopping(daemon), what="the stop")
            # Until the last reply is stored it serves what it has.
            assert (await daemon.token("acme-1")).body["generation"] == 1
            assert await daemon.ended() == 0
            assert len(daemon.logged("token_refreshed")) == 1

            await daemon.start()
            served = (await daemon.token("acme-1")).body
            assert await server.is_active(served["access_token"])
            assert await daemon.stop() == 0
        assert served["generation"] == 2
        assert "warning" not in served
        assert list(server.token_requests().values()) == [1]


async def is_stopping(daemon: Tokenward) -> bool:
    """Tell whether it says that it is not ready because it stops."""
    async with daemon.session.get(f"{daemon.ops_url}/readiness") as answer:
        return answer.status == 503 and "stopping" in await answer.text()


async def test_sigterm_begins_no_refresh(daemon: Tokenward) -> None:
    """A caller's refresh that is asked for during a stop is not sent any more."""
    with OidcProvider(access_token_lifetime=HOUR) as server:
        daemon.settings["providers"] = {"acme": server.provider()}
        async with daemon:
            server.inject(grant_type="refresh_token", delay_ms=2000)
            await begin_refresh(daemon, server)
            other = await server.connect()
            daemon.signal(signal.SIGTERM)
            await eventually(lambda: is_stopping(daemon), what="the stop")
            tokens = {"refresh_token": other.refresh_token}
            await daemon.create("acme", id="acme-2", tokens=tokens)
            refused = await daemon.token("acme-2")
            assert await daemon.ended() == 0
            assert sum(server.token_requests().values()) == 1
        assert (refused.status, refused.body["code"]) == (503, "token_unavailable")


async def test_sigterm_waits_for_a_code_exchange(daemon: Tokenward) -> None:
    """Stopped while a code is being exchanged: a code works once, so its tokens are stored."""
    async with TokenServer() as server:
        asked, go = asyncio.Event(), asyncio.Event()

        async def hold(wire: Wire) -> None:
            asked.set()
            await go.wait()
            await server.grant(wire)

        server.answer = hold
        daemon.settings["providers"] = {"acme": server.provider()}
        async with daemon, browser_session() as browser:
            created = await daemon.create("acme", id="acme-1")
            async with browser.post(created["connect_url"], allow_redirects=False) as begun:
                state = query_of(begun.headers["Location"])["state"]
            callback = f"{daemon.redirect_uri}?code=1234567890&state={state}"
            arriving = asyncio.create_task(last_page(browser, callback))
            await asked.wait()
            daemon.signal(signal.SIGTERM)
            await eventually(lambda: is_stopping(daemon), what="the stop")
            go.set()
            assert await daemon.ended() == 0
            # Whether the page still arrives is the browser's luck; what counts is stored.
            await asyncio.gather(arriving, return_exceptions=True)
            await daemon.start()
            served = (await daemon.token("acme-1")).body
        assert served["access_token"] == "access-1"
        assert len(server.forms) == 1


async def last_page(browser: ClientSession, url: str) -> int:
    """Return the status of the page that a URL leads to."""
    async with browser.get(url) as answer:
        return answer.status


async def test_killed_and_started_again(tmp_path: Path) -> None:
    """After kill -9 the next start on the same state directory serves the same tokens."""
    async with TokenServer() as server:
        daemon = Tokenward(tmp_path, {"providers": {"acme": server.provider()}})
        async with daemon:
            await daemon.create("acme", id="acme-1", tokens={"refresh_token": "imported"})
            before = await daemon.token("acme-1")
            daemon.signal(signal.SIGKILL)
            assert await daemon.ended() == -signal.SIGKILL

            await daemon.start()
            after = await daemon.token("acme-1")
            await daemon.create("acme", id="acme-2", tokens={"refresh_token": "another"})
            assert await daemon.stop() == 0
        assert before.body["access_token"] == after.body["access_token"] == "access-1"
        assert server.sends()["imported"] == 1


async def test_killed_while_a_refresh_is_in_flight(daemon: Tokenward) -> None:
    """A refresh token that may be spent is not sent again while the token in hand is good."""
    with OidcProvider(access_token_lifetime=HOUR) as server:
        daemon.settings["providers"] = {"acme": server.provider()}
        async with daemon:
            server.inject(grant_type="refresh_token", phase="after", action="hang")
            await begin_refresh(daemon, server)
            await eventually(lambda: has_rotated(server), what="the rotation")
            daemon.signal(signal.SIGKILL)
            await daemon.ended()
            await daemon.start()
            served = await daemon.token("acme-1")
            assert (served.status, served.body["generation"]) == (200, 1)
            assert await daemon.stop() == 0
        assert list(server.token_requests().values()) == [1]


async def has_rotated(server: OidcProvider) -> bool:
    """Tell whether the server has spent a refresh token."""
    return bool(server.events("refresh_token.consumed"))


async def test_sighup_takes_a_good_configuration(daemon: Tokenward) -> None:
    """A new provider, a new caller and a lifetime take effect without a restart."""
    async with TokenServer(expires_in=None) as server:
        daemon.settings["callers"] = [
            {"name": "first", "key": "k" * 40, "connections": ["*"], "permissions": ["manage"]}
        ]
        async with daemon:
            assert (await daemon.request("GET", "/v1/providers", key="k" * 40)).status == 403
            daemon.settings["callers"][0]["permissions"] = ["manage", "read", "token"]
            daemon.settings["providers"] = {"acme": server.provider()}
            daemon.settings["refresh"] = {"default_lifetime": "2h"}
            assert await daemon.reload()
            tokens = {"refresh_token": "imported"}
            body = {"provider": "acme", "id": "acme-1", "tokens": tokens}
            created = await daemon.request("POST", "/v1/connections", json=body, key="k" * 40)
            assert created.status == 201, created.content
            read = await daemon.request("GET", "/v1/connections/acme-1/token", key="k" * 40)
            assert 7000 < read.body["expires_in"] <= 7200
            (taken,) = daemon.logged("configuration_reloaded")
        assert "providers.acme" in taken["applied"]


async def test_sighup_refuses_a_bad_configuration(daemon: Tokenward) -> None:
    """A bad configuration changes nothing and every finding is logged with its path."""
    async with TokenServer() as server:
        daemon.settings["providers"] = {"acme": server.provider()}
        async with daemon:
            await daemon.create("acme", id="acme-1", tokens={"refresh_token": "imported"})
            good = dict(daemon.settings)
            daemon.settings["refresh"] = {"margin": "60 parsecs"}
            daemon.settings["providers"] = {"other": {"client_id": "x"}}
            daemon.settings["unheard_of"] = True
            assert not await daemon.reload()
            paths = {line["path"] for line in daemon.logged("configuration_rejected")}
            assert {"refresh.margin", "unheard_of", "providers.other"} <= paths
            assert (await daemon.token("acme-1")).status == 200
            known = (await daemon.request("GET", "/v1/providers")).body["providers"]
            assert [provider["name"] for provider in known] == ["acme"]

            # A provider whose connections hold tokens does not go by a reload.
            daemon.settings = {**good, "providers": {}}
            assert not await daemon.reload()
            assert (await daemon.request("POST", "/v1/connections/acme-1/refresh")).status == 200
