"""The real authorization servers behave as the rest of the tests takes for granted."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest

from daemon.demo.authorization_server.node import AuthorizationServerError
from daemon.demo.authorization_server.server import AuthorizationServer, Client, ServerSettings
from daemon.domain.provider import ClientAuthentication
from tests.support.django_toolkit.provider import DjangoToolkit
from tests.support.oauth_flow import Attempt, query_of
from tests.support.oidc_provider import CACHE, REDIRECT_URI, OidcProvider
from tests.support.server_events import digest

pytest_plugins = ["tests.support.fixtures_authorization"]

StartOidc = Callable[..., OidcProvider]
StartDjango = Callable[..., DjangoToolkit]


async def test_oidc_code_flow_brings_active_tokens(oidc_provider: OidcProvider) -> None:
    """A scripted login ends in tokens that introspection accepts and a callback with `iss`."""
    attempt = Attempt.begin()
    url = oidc_provider.client.authorization_url(
        attempt, "openid", "offline_access", prompt="consent"
    )
    callback_url = await oidc_provider.login(url)
    reply = await oidc_provider.client.exchange(attempt, callback_url)

    assert callback_url.startswith(f"{REDIRECT_URI}?")
    assert query_of(callback_url)["state"] == attempt.state
    assert query_of(callback_url)["iss"] == oidc_provider.issuer
    assert (reply.status, reply.body["expires_in"]) == (200, 5)
    assert await oidc_provider.is_active(reply.access_token)
    assert await oidc_provider.is_active(reply.refresh_token)


async def test_oidc_discovery_names_the_endpoints(oidc_provider: OidcProvider) -> None:
    """The discovery document's issuer and endpoints are those that the support code uses."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{oidc_provider.issuer}/.well-known/openid-configuration") as response,
    ):
        document = await response.json()
    assert document["issuer"] == oidc_provider.issuer
    assert document["authorization_endpoint"] == oidc_provider.client.authorization_endpoint
    assert document["token_endpoint"] == oidc_provider.client.token_endpoint
    assert document["code_challenge_methods_supported"] == ["S256"]


async def test_oidc_knows_a_person_by_name(oidc_provider: OidcProvider) -> None:
    """The userinfo endpoint `/me` answers with a name and an address made of the login."""
    reply = await oidc_provider.connect("openid", "profile", "email", account="bob")
    headers = {"Authorization": f"Bearer {reply.access_token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(f"{oidc_provider.issuer}/me") as response,
    ):
        me = await response.json()
    assert (me["sub"], me["name"], me["email"]) == ("bob", "Bob", "bob@example.com")


async def test_oidc_requires_pkce(oidc_provider: OidcProvider) -> None:
    """A request without a code challenge is refused, and so is a wrong verifier."""
    attempt = Attempt.begin()
    url = oidc_provider.client.authorization_url(attempt, "openid")
    bare = url.replace("code_challenge", "x_code_challenge")
    assert query_of(await oidc_provider.login(bare))["error"] == "invalid_request"

    callback_url = await oidc_provider.login(url)
    reply = await oidc_provider.client.exchange(Attempt.begin(), callback_url)
    assert (reply.status, reply.body["error"]) == (400, "invalid_grant")


async def test_oidc_rotates_at_every_refresh(oidc_provider: OidcProvider) -> None:
    """Each refresh spends its token once, brings a new pair, and revokes nothing."""
    first = await oidc_provider.connect()
    second = await oidc_provider.client.refresh(first.refresh_token)
    third = await oidc_provider.client.refresh(second.refresh_token)

    assert len({reply.refresh_token for reply in (first, second, third)}) == 3
    assert await oidc_provider.is_active(third.access_token)
    assert oidc_provider.token_requests() == {
        digest(first.refresh_token): 1,
        digest(second.refresh_token): 1,
    }
    rotations = [
        event.members["rotations"] for event in oidc_provider.events("refresh_token.saved")
    ]
    assert rotations == [0, 1, 2]
    assert oidc_provider.events("grant.revoked") == []


async def test_oidc_reuse_kills_the_grant(oidc_provider: OidcProvider) -> None:
    """A spent refresh token is refused, its successor dies with it, and both sends are counted."""
    first = await oidc_provider.connect()
    second = await oidc_provider.client.refresh(first.refresh_token)
    reused = await oidc_provider.client.refresh(first.refresh_token)
    after = await oidc_provider.client.refresh(second.refresh_token)

    assert (reused.status, reused.body["error"]) == (400, "invalid_grant")
    assert (after.status, after.body["error"]) == (400, "invalid_grant")
    assert not await oidc_provider.is_active(second.access_token)
    assert oidc_provider.token_requests()[digest(first.refresh_token)] == 2
    assert len(oidc_provider.events("grant.revoked")) == 1


async def test_oidc_without_rotation_keeps_the_refresh_token(
    start_oidc_provider: StartOidc,
) -> None:
    """With rotation off the same refresh token works again and again."""
    provider = start_oidc_provider(rotate=False)
    first = await provider.connect()
    await provider.client.refresh(first.refresh_token)
    again = await provider.client.refresh(first.refresh_token)
    assert again.status == 200
    assert again.refresh_token == first.refresh_token


async def test_oidc_revocation_endpoint(oidc_provider: OidcProvider) -> None:
    """A client's revocation of a refresh token ends the grant's access token too."""
    reply = await oidc_provider.connect()
    assert (await oidc_provider.revoke(reply.refresh_token)).status == 200
    assert not await oidc_provider.is_active(reply.refresh_token)
    assert not await oidc_provider.is_active(reply.access_token)


async def test_oidc_consent_withdrawn(oidc_provider: OidcProvider) -> None:
    """Withdrawn consents end every token and are not mistaken for a reaction to reuse."""
    reply = await oidc_provider.connect()
    assert oidc_provider.revoke_grants() == 1
    refreshed = await oidc_provider.client.refresh(reply.refresh_token)
    assert refreshed.body["error"] == "invalid_grant"
    assert oidc_provider.events("grant.revoked") == []


async def test_oidc_fault_answers_instead(oidc_provider: OidcProvider) -> None:
    """An injected answer keeps the request from the server, is counted, and is used up."""
    first = await oidc_provider.connect()
    oidc_provider.inject(
        grant_type="refresh_token", action="answer", status=503, headers={"Retry-After": "1"}
    )
    refused = await oidc_provider.client.refresh(first.refresh_token)
    accepted = await oidc_provider.client.refresh(first.refresh_token)
    assert (refused.status, accepted.status) == (503, 200)
    assert oidc_provider.token_requests()[digest(first.refresh_token)] == 2


@pytest.mark.parametrize("action", ["reset", "truncate"])
async def test_oidc_fault_loses_the_reply(oidc_provider: OidcProvider, action: str) -> None:
    """A fault after the provider leaves it rotated while the client has nothing."""
    first = await oidc_provider.connect()
    oidc_provider.inject(phase="after", action=action)
    with pytest.raises(aiohttp.ClientError):
        await oidc_provider.client.refresh(first.refresh_token)
    (consumed,) = oidc_provider.events("refresh_token.consumed")
    assert consumed.members["refresh_token"] == digest(first.refresh_token)
    resent = await oidc_provider.client.refresh(first.refresh_token)
    assert resent.body["error"] == "invalid_grant"
    assert len(oidc_provider.events("grant.revoked")) == 1


async def test_oidc_fault_delays(oidc_provider: OidcProvider) -> None:
    """A delayed request is held back for the time asked for, then processed."""
    first = await oidc_provider.connect()
    oidc_provider.inject(delay_ms=100)
    assert (await oidc_provider.client.refresh(first.refresh_token)).status == 200
    received = oidc_provider.events("token_request.received")[-1]
    ended = oidc_provider.events("token_request.ended")[-1]
    assert ended.at - received.at >= 0.099


async def test_oidc_fault_hangs(oidc_provider: OidcProvider) -> None:
    """A hanging request is never processed; the client's leaving is told."""
    first = await oidc_provider.connect()
    oidc_provider.inject(action="hang")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await oidc_provider.client.refresh(first.refresh_token)
    assert (await oidc_provider.client.refresh(first.refresh_token)).status == 200


def test_oidc_unknown_fault_is_refused(oidc_provider: OidcProvider) -> None:
    """A misspelt fault is an error, not a test that quietly proves nothing."""
    with pytest.raises(AuthorizationServerError, match="no such fault"):
        oidc_provider.inject(stauts=503)


@pytest.mark.parametrize("keeps", [True, False], ids=["state file", "memory"])
async def test_oidc_restart(start_oidc_provider: StartOidc, tmp_path: Path, *, keeps: bool) -> None:
    """After a restart on the same port grants are there with a state file, and gone without."""
    provider = start_oidc_provider(state_file=tmp_path / "state" if keeps else None)
    first = await provider.connect()
    second = await provider.client.refresh(first.refresh_token)
    issuer = provider.issuer
    provider.stop()
    provider.start()
    assert provider.issuer == issuer
    assert await provider.is_active(second.access_token) is keeps
    third = await provider.client.refresh(second.refresh_token)
    assert third.status == (200 if keeps else 400)


async def test_oidc_state_file_survives_a_torn_line(
    start_oidc_provider: StartOidc, tmp_path: Path
) -> None:
    """What a killed server wrote by half is ignored; the file is readable by its owner alone."""
    state = tmp_path / "state"
    provider = start_oidc_provider(state_file=state)
    reply = await provider.connect()
    provider.stop()
    with state.open("a") as file:
        file.write('{"key": "AccessTok')
    provider.start()
    assert await provider.is_active(reply.access_token)
    assert state.stat().st_mode & 0o077 == 0


async def test_oidc_public_client(start_oidc_provider: StartOidc) -> None:
    """A client registered for `none` needs no secret, and each request tells what it used."""
    provider = start_oidc_provider(token_endpoint_auth_method=ClientAuthentication.NONE)
    assert (await provider.connect()).status == 200
    (request,) = provider.events("token_request.received")
    assert request.members["authentication"] == "none"


def test_port_in_use_is_said(oidc_provider: OidcProvider) -> None:
    """A port that is taken is an error that says what to do."""
    port = int(oidc_provider.issuer.rpartition(":")[2])
    client = Client(client_id="c", client_secret="s" * 43, redirect_uris=(REDIRECT_URI,))
    server = AuthorizationServer(ServerSettings(clients=(client,), port=port), CACHE)
    with pytest.raises(AuthorizationServerError, match="choose another port"):
        server.start()


def test_server_ends_with_its_parent() -> None:
    """A killed parent leaves no server behind: its death closes the server's stdin."""
    # The server inherits the write end of a pipe: that pipe ends when the last of both is gone.
    program = """
import os, signal, subprocess, sys
from tests.support.oidc_provider import OidcProvider
class Inheriting(subprocess.Popen):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, pass_fds=[int(sys.argv[1])], **options)
subprocess.Popen = Inheriting
OidcProvider().start()
os.kill(os.getpid(), signal.SIGKILL)
"""
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb") as lifeline:
        parent = subprocess.Popen(  # noqa: S603 - our own interpreter
            [sys.executable, "-c", program, str(theirs)],
            cwd=Path(__file__).parents[2],
            pass_fds=[theirs],
        )
        os.close(theirs)
        assert parent.wait(timeout=60) == -signal.SIGKILL
        readable, _, _ = select.select([lifeline], [], [], 30)
        assert readable, "the server has outlived its parent"
        assert lifeline.read() == b""


async def test_django_code_flow_brings_active_tokens(start_django_toolkit: StartDjango) -> None:
    """A scripted login with CSRF tokens ends in tokens that the API and introspection accept."""
    provider = start_django_toolkit()
    reply = await provider.connect("read")
    me = await provider.me(reply.access_token)
    assert (reply.status, reply.body["expires_in"]) == (200, 5)
    assert (me.status, me.body["name"]) == (200, "alice")
    assert (await provider.me("wrong")).status == 401
    assert await provider.is_active(reply.access_token)


async def test_django_rotates_and_refuses_reuse(start_django_toolkit: StartDjango) -> None:
    """Without grace each refresh brings a new pair and a used refresh token is refused."""
    provider = start_django_toolkit()
    first = await provider.connect()
    second = await provider.client.refresh(first.refresh_token)
    reused = await provider.client.refresh(first.refresh_token)
    assert second.refresh_token != first.refresh_token
    assert (reused.status, reused.body["error"]) == (400, "invalid_grant")
    assert (await provider.client.refresh(second.refresh_token)).status == 200
    assert provider.token_requests() == {
        digest(first.refresh_token): 2,
        digest(second.refresh_token): 1,
    }


async def test_django_serves_many_at_once(start_django_toolkit: StartDjango) -> None:
    """Concurrent refreshes of different grants all succeed, SQLite notwithstanding."""
    provider = start_django_toolkit()
    replies = [await provider.connect() for _ in range(8)]
    refreshed = await asyncio.gather(
        *(provider.client.refresh(reply.refresh_token) for reply in replies)
    )
    assert [reply.status for reply in refreshed] == [200] * 8


async def test_django_reuse_protection_kills_the_family(start_django_toolkit: StartDjango) -> None:
    """With reuse protection the successor of a reused refresh token dies too."""
    provider = start_django_toolkit(reuse_protection=True)
    first = await provider.connect()
    second = await provider.client.refresh(first.refresh_token)
    await provider.client.refresh(first.refresh_token)
    after = await provider.client.refresh(second.refresh_token)
    assert (after.status, after.body["error"]) == (400, "invalid_grant")


async def test_django_grace_brings_the_successor_again(start_django_toolkit: StartDjango) -> None:
    """Within the grace a used refresh token brings the same pair once more."""
    provider = start_django_toolkit(grace=timedelta(seconds=60), reuse_protection=True)
    first = await provider.connect()
    second = await provider.client.refresh(first.refresh_token)
    again = await provider.client.refresh(first.refresh_token)
    assert again.status == 200
    assert again.refresh_token == second.refresh_token


async def test_django_restarts_with_its_data(start_django_toolkit: StartDjango) -> None:
    """After a restart on the same port the tokens are there; withdrawn consents end them."""
    provider = start_django_toolkit()
    first = await provider.connect()
    provider.stop()
    provider.start()
    second = await provider.client.refresh(first.refresh_token)
    assert second.status == 200
    assert provider.revoke_grants() == 1
    assert (await provider.client.refresh(second.refresh_token)).status == 400
    assert not await provider.is_active(second.access_token)
