"""What a provider can do wrong, and what a caller then gets: reliability.md 2A on real sockets."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from typing import Any

import pytest
from aiohttp import ClientSession, TCPConnector, TraceConfig

from tests.support.oauth_flow import browser_session
from tests.support.oidc_provider import OidcProvider
from tests.support.polling import eventually
from tests.support.raw_server import writes_then_waits
from tests.support.token_server import TokenServer, refuses, says
from tests.support.tokenward import Reply, Tokenward, connect

EXPIRED = {
    "access_token": "old",
    "refresh_token": "old",
    "expires_at": "2020-01-01T00:00:00Z",
}
HTML = {"status": 200, "headers": {"Content-Type": "text/html"}, "body": "<h1>Log in</h1>"}


def oidc_settings(server: OidcProvider, **more: Any) -> dict[str, Any]:
    """Return a provider entry for the server; a used refresh token may be sent again."""
    return {
        "issuer": server.issuer,
        "client_id": server.client_id,
        "client_secret": server.client_secret,
        "scopes": ["openid", "offline_access"],
        "authorization_params": {"prompt": "consent"},
        "rotation": "overlap",
        **more,
    }


async def import_granted(daemon: Tokenward, server: OidcProvider, **tokens: str) -> str:
    """Import a grant of the server as ``acme-1``; return the access token.

    Unless ``expires_at`` is given its end is not known, so it is refreshed at once.
    """
    granted = await server.connect()
    imported = {"access_token": granted.access_token, "refresh_token": granted.refresh_token}
    await daemon.create("acme", id="acme-1", tokens={**imported, **tokens})
    return granted.access_token


async def until_status(daemon: Tokenward, connection: str, status: str) -> dict[str, Any]:
    """Wait until a connection has a status; return its body."""

    async def look() -> dict[str, Any] | None:
        shown = await daemon.connection(connection)
        return shown if shown["status"] == status else None

    return await eventually(look, within=40, what=f"{connection} {status}")


async def until_served(daemon: Tokenward, connection: str, *, after: int) -> dict[str, Any]:
    """Wait until a token newer than generation ``after`` is served; return its body."""

    async def look() -> dict[str, Any] | None:
        reply = await daemon.token(connection)
        newer = reply.status == 200 and reply.body["generation"] > after
        return reply.body if newer else None

    return await eventually(look, within=40, what="a fresh token")


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
        daemon.settings["providers"] = {"acme": oidc_settings(server)}
        daemon.settings["refresh"] = {"request_timeout": "1s"}
        async with daemon:
            server.inject(grant_type="refresh_token", **fault)
            access_token = await import_granted(daemon, server)
            failing = await until_status(daemon, "acme-1", "failing")
            served = (await daemon.token("acme-1")).body
            fresh = await until_served(daemon, "acme-1", after=1)
            recovered = await until_status(daemon, "acme-1", "active")
            metrics = await daemon.metrics()
        assert failing["last_error"]["code"] == code
        assert served["access_token"] == access_token
        assert "refreshing it fails" in served["warning"]
        assert "warning" not in fresh
        assert recovered["last_error"] is None
        failures = 'tokenward_refreshes_total{outcome="failed",provider="acme"}'
        assert metrics[failures] == 1
        assert metrics['tokenward_refreshes_total{outcome="success",provider="acme"}'] == 1


async def test_retry_after_is_obeyed(daemon: Tokenward) -> None:
    """After a 429 nothing is sent to the provider until its Retry-After has passed."""
    with OidcProvider() as server:
        daemon.settings["providers"] = {"acme": oidc_settings(server)}
        async with daemon:
            granted = [await server.connect() for _ in range(2)]
            server.inject(action="answer", status=429, headers={"Retry-After": "3"})
            for number, grant in enumerate(granted):
                tokens = {"refresh_token": grant.refresh_token}
                await daemon.create("acme", id=f"acme-{number}", tokens=tokens)
            # Without a token in hand a caller is told when to come again.
            refused = await daemon.token("acme-0")
            for number in range(2):
                await until_served(daemon, f"acme-{number}", after=1)
        assert (refused.status, refused.body["code"]) == (503, "token_unavailable")
        assert 1 <= int(refused.headers["Retry-After"]) <= 3
        requests = server.events("token_request.received")[-3:]
        ended = server.events("token_request.ended")
        refusal = next(event.at for event in ended if event.members["status"] == 429)
        assert [event.at - refusal >= 3 for event in requests if event.at > refusal] == [True] * 2


async def test_a_lost_reply_at_a_strict_provider(daemon: Tokenward) -> None:
    """Rotated but never received: the live token is served, and one try made before its end."""
    with OidcProvider(redirect_uris=[daemon.redirect_uri]) as server:
        daemon.settings["providers"] = {"acme": oidc_settings(server, rotation="strict")}
        async with daemon:
            created = await daemon.create("acme", id="acme-1")
            async with browser_session() as browser:
                await connect(browser, created["connect_url"], server.login)
            server.inject(grant_type="refresh_token", phase="after", action="reset")
            await until_status(daemon, "acme-1", "failing")
            assert set(server.token_requests().values()) == {1}
            served = await daemon.token("acme-1")
            assert (served.status, "warning" in served.body) == (200, True)
            # Callers cannot make it hurry: that may kill the token which is still good.
            refused = await daemon.token("acme-1", "?newer_than=1")
            assert (refused.status, refused.body["code"]) == (503, "token_unavailable")
            assert set(server.token_requests().values()) == {1}
            ended = await until_status(daemon, "acme-1", "reauthorization_required")
            assert ended["last_error"]["code"] == "reply_lost"
            assert set(server.token_requests().values()) == {2}


async def test_an_expired_token_is_never_served(daemon: Tokenward) -> None:
    """With the provider away callers get the token to its end, then 503, then a fresh one."""
    async with TokenServer(expires_in=3) as server:
        daemon.settings["providers"] = {"acme": server.provider(rotation="overlap")}
        async with daemon:
            await daemon.create("acme", id="acme-1", tokens={"refresh_token": "imported"})
            last = await until_served(daemon, "acme-1", after=1)
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
            fresh = await until_served(daemon, "acme-1", after=last["generation"])
        assert "warning" not in fresh


async def test_a_withdrawn_grant_needs_a_person(daemon: Tokenward) -> None:
    """invalid_grant: served to its end, 409 where that will not do, and connected again."""
    with OidcProvider(redirect_uris=[daemon.redirect_uri]) as server:
        daemon.settings["providers"] = {"acme": oidc_settings(server, rotation="strict")}
        async with daemon:
            granted = await server.connect()
            server.revoke_grants()
            tokens = {
                "access_token": granted.access_token,
                "refresh_token": granted.refresh_token,
            }
            await daemon.create("acme", id="acme-1", tokens=tokens)
            dead = await until_status(daemon, "acme-1", "reauthorization_required")
            served = await daemon.token("acme-1")
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
        wrong = oidc_settings(server, client_secret="w" * 43, rotation="strict")
        daemon.settings["providers"] = {"acme": wrong}
        async with daemon:
            access_token = await import_granted(daemon, server)
            failing = await until_status(daemon, "acme-1", "failing")
            served = (await daemon.token("acme-1")).body
            other = await server.connect()
            tokens = {"refresh_token": other.refresh_token}
            await daemon.create("acme", id="acme-2", tokens=tokens)
            refused = await daemon.token("acme-2")
            sent = server.token_requests()
            shown = await daemon.connection("acme-2")

            daemon.settings["providers"] = {"acme": oidc_settings(server, rotation="strict")}
            await daemon.reload()
            await until_served(daemon, "acme-1", after=1)
            await until_served(daemon, "acme-2", after=1)
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
            await until_served(daemon, "acme-1", after=1)
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
            served = await until_served(daemon, "acme-1", after=1)
        assert lifetime - 60 < served["expires_in"] <= lifetime


async def test_a_hanging_provider_delays_nobody_else(daemon: Tokenward) -> None:
    """While every place at one provider hangs, another's callers get their first tokens."""
    async with TokenServer() as slow, TokenServer() as fast:
        slow.answer = writes_then_waits(b"")
        daemon.settings["providers"] = {
            "slow": slow.provider(rate="1000/s"),
            "fast": fast.provider(),
        }
        async with daemon:
            for number in range(40):
                await daemon.create("slow", id=f"slow-{number}", tokens=EXPIRED)
            waiting = [asyncio.create_task(daemon.token(f"slow-{n}")) for n in range(40)]

            async def all_places_hang() -> bool:
                metrics = await daemon.metrics()
                return metrics['tokenward_refreshes_in_flight{provider="slow"}'] == 8

            await eventually(all_places_hang, what="8 hanging requests")
            for number in range(8):
                await daemon.create("fast", id=f"fast-{number}", tokens=EXPIRED)
                assert (await daemon.token(f"fast-{number}")).status == 200
            done = [task for task in waiting if task.done()]
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            # Nothing of it is worth the grace that a stop would give.
            daemon.signal(signal.SIGKILL)
        assert done == []


async def test_many_callers_of_one_expired_token_cost_one_request(daemon: Tokenward) -> None:
    """300 callers at once cause one token request and all get its token."""
    arrived = asyncio.Event()
    sent = 0

    async def count(*_: object) -> None:
        nonlocal sent
        sent += 1
        if sent == 300:
            arrived.set()

    trace = TraceConfig()
    trace.on_request_headers_sent.append(count)
    async with TokenServer() as server:

        async def hold(wire: Any) -> None:
            await arrived.wait()
            await server.grant(wire)

        server.answer = hold
        daemon.settings["providers"] = {"acme": server.provider()}
        async with (
            daemon,
            ClientSession(connector=TCPConnector(limit=0), trace_configs=[trace]) as session,
        ):
            await daemon.create("acme", id="acme-1", tokens=EXPIRED)
            headers = {"Authorization": f"Bearer {daemon.key}"}

            async def read() -> tuple[int, str]:
                url = f"{daemon.api_url}/v1/connections/acme-1/token"
                async with session.get(url, headers=headers) as answer:
                    return answer.status, (await answer.json())["access_token"]

            replies = await asyncio.gather(*(read() for _ in range(300)))
        assert set(replies) == {(200, "access-1")}
        assert server.sends() == {"old": 1}


async def test_rejected_refreshes_back_off(daemon: Tokenward) -> None:
    """An error nobody knows is no reason to give up the grant, nor to ask without pause."""
    async with TokenServer() as server:
        server.answer = refuses("computer_says_no")
        daemon.settings["providers"] = {"acme": server.provider()}
        async with daemon:
            await daemon.create("acme", id="acme-1", tokens={"refresh_token": "imported"})
            failing = await until_status(daemon, "acme-1", "failing")
            for _ in range(20):
                assert (await daemon.token("acme-1")).status == 503
            asked = len(server.forms)
            server.answer = server.grant
            await until_served(daemon, "acme-1", after=1)
        assert failing["last_error"]["code"] == "computer_says_no"
        assert asked <= 2
