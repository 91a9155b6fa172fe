"""What a provider can do wrong, and what a caller then gets: reliability.md 2A on real sockets."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from tests.support.oauth_flow import browser_session
from tests.support.oidc_provider import OidcProvider
from tests.support.polling import eventually
from tests.support.token_server import TokenServer, refuses, says
from tests.support.tokenward import Reply, Tokenward, connect

EXPIRED = {
    "access_token": "old",
    "refresh_token": "old",
    "expires_at": "2020-01-01T00:00:00Z",
}
HTML = {"status": 200, "headers": {"Content-Type": "text/html"}, "body": "<h1>Log in</h1>"}


async def import_granted(daemon: Tokenward, server: OidcProvider, **tokens: str) -> str:
    """Import a grant of the server as ``acme-1``; return the access token.

    Unless ``expires_at`` is given its end is not known, so it is refreshed at once.
    """
    granted = await server.connect()
    imported = {"access_token": granted.access_token, "refresh_token": granted.refresh_token}
    await daemon.create("acme", id="acme-1", tokens={**imported, **tokens})
    return granted.access_token


async def warned(daemon: Tokenward, connection: str) -> dict[str, Any] | None:
    """Return a token's body once it has a warning."""
    body = (await daemon.token(connection)).body
    return body if "warning" in body else None


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"action": "answer", "status": 500}, "server_error"),
        ({"action": "answer", "status": 429, "headers": {"Retry-After": "2"}}, "rate_limited"),
        ({"action": "answer", **HTML}, "malformed_response"),
        ({"action": "hang"}, "timeout"),
        ({"action": "reset"}, "network"),
        (
            {"action": "answer", "status": 400, "body": '{"error":"temporarily_unavailable"}'},
            "temporarily_unavailable",
        ),
    ],
    ids=["500", "429", "html", "hang", "reset", "temporarily_unavailable"],
)
async def test_a_failing_provider_costs_a_warning(
    daemon: Tokenward, fault: Mapping[str, object], code: str
) -> None:
    """While a token is good it is served, with a warning; the first good reply ends that."""
    with OidcProvider() as server:
        daemon.settings["providers"] = {"acme": server.provider(rotation="overlap")}
        daemon.settings["refresh"] = {"request_timeout": "1s"}
        async with daemon:
            server.inject(grant_type="refresh_token", **fault)
            access_token = await import_granted(daemon, server)
            failing = await daemon.until_status("acme-1", "failing")
            # The database tells before memory does, which has to ask it.
            served = await eventually(
                lambda: warned(daemon, "acme-1"), within=5, what="a token with a warning"
            )
            fresh = await daemon.until_served("acme-1", after=1)
            recovered = await daemon.until_status("acme-1", "active")
            metrics = await daemon.metrics()
        assert failing["last_error"]["code"] == code
        assert served["access_token"] == access_token
        assert "refreshing it fails" in served["warning"]
        assert "warning" not in fresh
        assert recovered["last_error"] is None
        failures = 'tokenward_refreshes_total{outcome="failed",provider="acme"}'
        assert metrics[failures] == 1
        assert metrics['tokenward_refreshes_total{outcome="success",provider="acme"}'] == 1


async def test_retry_after_is_obeyed(daemon: Tokenward, database_url: str) -> None:
    """After a 429 nothing is sent to the provider until its Retry-After has passed."""
    with OidcProvider() as server:
        daemon.settings["providers"] = {"acme": server.provider(rotation="overlap")}
        async with daemon:
            first, second = await server.connect(), await server.connect()
            server.inject(action="answer", status=429, headers={"Retry-After": "3"})
            tokens = {"refresh_token": first.refresh_token}
            await daemon.create("acme", id="acme-1", tokens=tokens)
            await eventually(lambda: is_paused(database_url), what="the pause")
            # Without a token in hand a caller is told when to come again.
            refused = await daemon.token("acme-1")
            tokens = {"refresh_token": second.refresh_token}
            await daemon.create("acme", id="acme-2", tokens=tokens)
            for name in ("acme-1", "acme-2"):
                await daemon.until_served(name, after=1)
        assert (refused.status, refused.body["code"]) == (503, "token_unavailable")
        assert 1 <= int(refused.headers["Retry-After"]) <= 3
        sent = [
            event.at
            for event in server.events("token_request.received")
            if event.members["grant_type"] == "refresh_token"
        ]
        assert len(sent) == 3
        assert min(sent[1:]) - sent[0] >= 3


async def is_paused(database_url: str) -> bool:
    """Tell whether the whole fleet knows of a provider's Retry-After."""
    database = await asyncpg.connect(database_url)
    try:
        return bool(await database.fetchval("SELECT max(paused_until) FROM provider_state"))
    finally:
        await database.close()


async def test_a_lost_reply_at_a_strict_provider(daemon: Tokenward) -> None:
    """Rotated but never received: the live token is served, and one try made before its end."""
    lifetime = timedelta(seconds=6)
    with OidcProvider(
        redirect_uris=[daemon.redirect_uri], access_token_lifetime=lifetime
    ) as server:
        daemon.settings["providers"] = {"acme": server.provider()}
        daemon.settings["refresh"] = {"at": 0.2, "jitter": 0}
        async with daemon:
            created = await daemon.create("acme", id="acme-1")
            async with browser_session() as browser:
                await connect(browser, created["connect_url"], server.login)
            server.inject(grant_type="refresh_token", phase="after", action="reset")
            await daemon.until_status("acme-1", "failing")
            assert set(server.token_requests().values()) == {1}
            served = await daemon.token("acme-1")
            assert (served.status, "warning" in served.body) == (200, True)
            # Callers cannot make it hurry: that may kill the token which is still good.
            refused = await daemon.token("acme-1", "?newer_than=1")
            assert (refused.status, refused.body["code"]) == (503, "token_unavailable")
            assert set(server.token_requests().values()) == {1}
            ended = await daemon.until_status("acme-1", "reauthorization_required")
            assert ended["last_error"]["code"] == "reply_lost"
            assert set(server.token_requests().values()) == {2}
        exchange, _, resend = (event.at for event in server.events("token_request.received"))
        # The last tenth of the token's life is left for the one more try.
        assert resend - exchange > 5


async def test_an_expired_token_is_never_served(daemon: Tokenward) -> None:
    """With the provider away callers get the token to its end, then 503, then a fresh one."""
    async with TokenServer(expires_in=3) as server:
        daemon.settings["providers"] = {"acme": server.provider(rotation="overlap")}
        async with daemon:
            await daemon.create("acme", id="acme-1", tokens={"refresh_token": "imported"})
            last = await daemon.until_served("acme-1", after=1)
            server.answer = says(503, {})

            async def refused() -> Reply | None:
                reply = await daemon.token("acme-1")
                if reply.status == 200:
                    assert reply.body["expires_in"] >= 1
                    assert reply.body["access_token"] == last["access_token"]
                return reply if reply.status != 200 else None

            unavailable = await eventually(refused)
            server.answer = server.grant
            server.members["expires_in"] = 3600
            assert (unavailable.status, unavailable.body["code"]) == (503, "token_unavailable")
            assert int(unavailable.headers["Retry-After"]) >= 1
            fresh = await daemon.until_served("acme-1", after=last["generation"])
        assert "warning" not in fresh


async def test_a_withdrawn_grant_needs_a_person(daemon: Tokenward) -> None:
    """invalid_grant: served to its end, 409 where that will not do, and connected again."""
    with OidcProvider(redirect_uris=[daemon.redirect_uri]) as server:
        daemon.settings["providers"] = {"acme": server.provider()}
        async with daemon:
            granted = await server.connect()
            server.revoke_grants()
            tokens = {
                "access_token": granted.access_token,
                "refresh_token": granted.refresh_token,
            }
            await daemon.create("acme", id="acme-1", tokens=tokens)
            dead = await daemon.until_status("acme-1", "reauthorization_required")

            async def warned() -> Reply | None:
                # Memory hears of it some milliseconds after the database has it.
                reply = await daemon.token("acme-1")
                return reply if "warning" in reply.body else None

            served = await eventually(warned, what="the warning")
            refused = await daemon.token("acme-1", "?newer_than=1")
            forced = await daemon.request("POST", "/v1/connections/acme-1/refresh")
            sent = server.token_requests()

            url = "/v1/connections/acme-1/authorize"
            connect_url = (await daemon.request("POST", url)).body["connect_url"]
            async with browser_session() as browser:
                status, page = await connect(browser, connect_url, server.login)
            assert (status, "Authorization completed" in page) == (200, True)
            again = await daemon.token("acme-1")
            shown = await daemon.connection("acme-1")
            assert await server.is_active(again.body["access_token"])
        assert dead["last_error"]["code"] == "invalid_grant"
        assert "must connect again" in served.body["warning"]
        assert (refused.status, refused.body["code"]) == (409, "reauthorization_required")
        assert (forced.status, forced.body["code"]) == (409, "reauthorization_required")
        assert sum(sent.values()) == 1
        assert again.body["generation"] > served.body["generation"]
        assert "warning" not in again.body
        assert (shown["status"], shown["last_error"]) == ("active", None)


async def test_a_wrong_client_secret_harms_no_connection(daemon: Tokenward) -> None:
    """invalid_client stops the provider, not the grants: the right secret and SIGHUP mend it."""
    with OidcProvider() as server:
        wrong = server.provider(client_secret="w" * 43)
        daemon.settings["providers"] = {"acme": wrong}
        async with daemon:
            access_token = await import_granted(daemon, server)
            failing = await daemon.until_status("acme-1", "failing")
            served = (await daemon.token("acme-1")).body
            other = await server.connect()
            tokens = {"refresh_token": other.refresh_token}
            await daemon.create("acme", id="acme-2", tokens=tokens)
            refused = await daemon.token("acme-2")
            sent = server.token_requests()
            shown = await daemon.connection("acme-2")

            daemon.settings["providers"] = {"acme": server.provider()}
            await daemon.reload()
            await daemon.until_served("acme-1", after=1)
            await daemon.until_served("acme-2", after=1)
            statuses = {(await daemon.connection(name))["status"] for name in ("acme-1", "acme-2")}
        assert failing["last_error"]["code"] == "invalid_client"
        assert (served["access_token"], "warning" in served) == (access_token, True)
        # The circuit is open: the second connection's token was not even sent.
        assert (refused.status, refused.body["code"]) == (503, "token_unavailable")
        assert sum(sent.values()) == 1
        assert shown["status"] == "active"
        assert statuses == {"active"}
        circuit = daemon.logged("provider_circuit_changed")
        assert [line["is_open"] for line in circuit][:1] == [True]


async def test_a_reply_without_refresh_token_keeps_the_old_one(daemon: Tokenward) -> None:
    """Where the reply has no refresh token, the next refresh sends the one in hand again."""
    async with TokenServer(refresh_token=None) as server:
        daemon.settings["providers"] = {"acme": server.provider()}
        async with daemon:
            await daemon.create("acme", id="acme-1", tokens={"refresh_token": "kept"})
            await daemon.until_served("acme-1", after=1)
            await daemon.request("POST", "/v1/connections/acme-1/refresh")
            served = (await daemon.token("acme-1")).body
        assert (served["generation"], served["access_token"]) == (3, "access-2")
        assert server.sends() == {"kept": 2}


@pytest.mark.parametrize(
    ("own", "lifetime"), [({}, 7200), ({"default_lifetime": "10m"}, 600)], ids=["global", "own"]
)
async def test_a_reply_without_expires_in(
    daemon: Tokenward, own: Mapping[str, str], lifetime: int
) -> None:
    """Without expires_in the provider's default_lifetime holds, else that of refresh."""
    async with TokenServer(expires_in=None) as server:
        daemon.settings["refresh"] = {"default_lifetime": "2h"}
        daemon.settings["providers"] = {"acme": server.provider(**own)}
        async with daemon:
            await daemon.create("acme", id="acme-1", tokens={"refresh_token": "imported"})
            served = await daemon.until_served("acme-1", after=1)
        assert lifetime - 60 < served["expires_in"] <= lifetime


async def test_rejected_refreshes_back_off(daemon: Tokenward) -> None:
    """An error nobody knows is no reason to give up the grant, nor to ask without pause."""
    async with TokenServer() as server:
        server.answer = refuses("computer_says_no")
        daemon.settings["providers"] = {"acme": server.provider()}
        async with daemon:
            await daemon.create("acme", id="acme-1", tokens={"refresh_token": "imported"})
            failing = await daemon.until_status("acme-1", "failing")
            for _ in range(20):
                assert (await daemon.token("acme-1")).status == 503
            asked = len(server.forms)
            server.answer = server.grant
            await daemon.until_served("acme-1", after=1)
        assert failing["last_error"]["code"] == "computer_says_no"
        assert asked <= 2
