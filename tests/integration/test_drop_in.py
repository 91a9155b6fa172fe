"""The drop-in token endpoint: what OAuth libraries send, and what they make of the answers."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from http import HTTPStatus
from urllib.parse import quote

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from authlib.integrations.requests_client import OAuth2Session as AuthlibSession
from oauthlib.oauth2 import BackendApplicationClient, InvalidGrantError
from requests_oauthlib import OAuth2Session

from daemon.config.settings import Permission
from daemon.domain.errors import Problem
from daemon.domain.outcome import FailureReason, Outcome, OutcomeKind
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.postgres import Database
from tests.support.api_parts import KEYS, caller
from tests.support.api_stage import Answer, ApiStage, api_stage
from tests.support.circles import circles_of

PATH = "/v1/connections/acme-1/oauth2/token"
REFRESH = {"grant_type": "refresh_token", "refresh_token": "anything"}
DOWN = Outcome(kind=OutcomeKind.NOT_SENT, reason=FailureReason.NETWORK, description="No route.")
INVALID_GRANT = Outcome(
    kind=OutcomeKind.REAUTHORIZE,
    reason=FailureReason.INVALID_GRANT,
    error="invalid_grant",
    description="The provider no longer accepts the grant.",
)


@pytest.fixture
async def api(database: Database, cipher: TokenCipher) -> AsyncIterator[ApiStage]:
    """A running api listener with one connection."""
    async with api_stage(database, cipher) as stage:
        await stage.imported()
        yield stage


@pytest.fixture
async def service() -> AsyncIterator[str]:
    """The URL of a service that says with which credentials it was asked."""

    async def echo(request: web.Request) -> web.Response:
        return web.json_response({"authorization": request.headers.get("Authorization")})

    app = web.Application()
    app.router.add_get("/me", echo)
    async with TestServer(app) as server:
        yield str(server.make_url("/me"))


def basic(key: str, *, user: str = "any client id") -> dict[str, str]:
    """Return Basic credentials, encoded as RFC 6749 2.3.1 says."""
    pair = f"{quote(user, safe='')}:{quote(key, safe='')}"
    return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


async def ask(api: ApiStage, form: dict[str, str], **more: dict[str, str]) -> Answer:
    """Ask the endpoint, without a caller key unless one is in ``form`` or the headers."""
    return await api.ask("POST", PATH, key=None, form=form, **more)


@pytest.mark.parametrize(
    "grant",
    [
        REFRESH,
        {"grant_type": "refresh_token"},
        {"grant_type": "client_credentials"},
        {"grant_type": "client_credentials", "scope": "read", "client_id": "x", "extra": ""},
    ],
)
async def test_a_token(api: ApiStage, grant: dict[str, str]) -> None:
    """The answer is RFC 6749 5.1, without a refresh token, and costs no refresh."""
    answer = await ask(api, grant, headers=basic(KEYS["tokens"]))
    assert answer.status == 200, answer.body
    assert set(answer.body) == {"access_token", "token_type", "expires_in", "scope"}
    assert answer.body["access_token"] == "imported-acme-1"
    assert answer.body["token_type"] == "Bearer"
    assert answer.body["scope"] == "read write:all"
    assert 3590 <= answer.body["expires_in"] <= 3600
    assert answer.headers["Pragma"] == "no-cache"
    assert api.sender.sent == []


async def test_three_ways_to_authenticate(api: ApiStage) -> None:
    """The key is taken from Basic, encoded or not, from the body, or as a Bearer token."""
    key = KEYS["tokens"]
    raw = base64.b64encode(f"id:{key}".encode()).decode()
    for headers in (
        basic(key),
        {"Authorization": f"Basic {raw}"},
        {"Authorization": f"bearer {key}"},
    ):
        assert (await ask(api, REFRESH, headers=headers)).status == 200
    assert (await ask(api, REFRESH | {"client_secret": key})).status == 200
    assert (await ask(api, REFRESH | {"client_secret": ""}, headers=basic(key))).status == 200


@pytest.mark.parametrize("encoded", [True, False])
async def test_keys_that_encoding_changes(
    database: Database, cipher: TokenCipher, monkeypatch: pytest.MonkeyPatch, *, encoded: bool
) -> None:
    """A key with ``+``, ``%`` and ``:`` is known whether or not the library encodes it."""
    key = "k+ey%41:with/everything"
    monkeypatch.setitem(KEYS, "odd", key)
    odd = caller("odd", connections=("*",), permissions=frozenset({Permission.TOKEN}))
    async with api_stage(database, cipher) as stage:
        await stage.imported()
        stage.callers.replace([odd])
        raw = f"Basic {base64.b64encode(f'id:{key}'.encode()).decode()}"
        headers = basic(key) if encoded else {"Authorization": raw}
        assert (await ask(stage, REFRESH, headers=headers)).status == 200


@pytest.mark.parametrize(
    ("headers", "form"),
    [
        ({}, {}),
        ({}, {"client_secret": "wrong"}),
        (basic("wrong"), {}),
        (basic(""), {}),
        ({"Authorization": "Bearer wrong"}, {}),
        ({"Authorization": "Basic !!!"}, {}),
        ({"Authorization": "Basic /w=="}, {}),
        ({"Authorization": "Basic"}, {}),
        ({"Authorization": "Digest x"}, {}),
    ],
)
async def test_unknown_clients(
    api: ApiStage, headers: dict[str, str], form: dict[str, str]
) -> None:
    """Whoever is not known gets 401 ``invalid_client`` with a challenge, whatever is asked."""
    for path in (PATH, "/v1/connections/nobody/oauth2/token"):
        answer = await api.ask("POST", path, key=None, form=REFRESH | form, headers=headers)
        assert answer.status == HTTPStatus.UNAUTHORIZED
        assert answer.body["error"] == "invalid_client"
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"grant_type": ""}, "invalid_request"),
        ({}, "invalid_request"),
        (REFRESH | {"scope": "read admin"}, "invalid_scope"),
        (REFRESH | {"client_secret": KEYS["tokens"]}, "invalid_request"),
    ],
)
async def test_bad_requests(api: ApiStage, form: dict[str, str], error: str) -> None:
    """What RFC 6749 5.2 has a name for is answered with it."""
    answer = await ask(api, form, headers=basic(KEYS["tokens"]))
    assert (answer.status, answer.body["error"]) == (400, error)


async def test_other_refusals_have_the_same_shape(api: ApiStage) -> None:
    """Also what other routes answer with a problem is an OAuth error here."""
    key = basic(KEYS["tokens"])
    unknown = await api.ask("POST", PATH.replace("acme-1", "acme-9"), form=REFRESH)
    assert (unknown.status, unknown.body["error"]) == (400, "invalid_grant")
    hidden = await api.ask(
        "POST", PATH.replace("acme-1", "other-1"), key=None, form=REFRESH, headers=key
    )
    assert (hidden.status, hidden.body["error"]) == (400, "invalid_grant")
    reader = await ask(api, REFRESH, headers=basic(KEYS["reader"]))
    assert (reader.status, reader.body["error"]) == (400, "unauthorized_client")
    json = await api.ask("POST", PATH, body=REFRESH)
    assert (json.status, json.body["error"]) == (400, "invalid_request")
    nothing = await ask(api, {}, headers=key)
    assert (nothing.status, nothing.body["error"]) == (400, "invalid_request")
    large = await ask(api, REFRESH | {"x": "y" * 70_000}, headers=key)
    assert (large.status, large.body["error"]) == (413, "invalid_request")
    foreign = await ask(api, REFRESH, headers=key | {"Origin": "https://evil.example"})
    assert (foreign.status, foreign.body["error"]) == (403, "invalid_request")
    rebound = await ask(api, REFRESH, headers=key | {"Host": "evil.example"})
    assert (rebound.status, rebound.body["error"]) == (421, "invalid_request")


async def test_a_person_is_needed(api: ApiStage) -> None:
    """Pending, disconnected and dead connections are ``invalid_grant`` with what to do."""
    key = basic(KEYS["admin"])
    await api.create("acme-2")
    await api.imported("acme-3", life=-10)
    await api.ask("DELETE", "/v1/connections/acme-1")
    api.sender.outcomes = [INVALID_GRANT]
    for name in ("acme-1", "acme-2", "acme-3"):
        path = f"/v1/connections/{name}/oauth2/token"
        answer = await api.ask("POST", path, key=None, form=REFRESH, headers=key)
        assert (answer.status, answer.body["error"]) == (400, "invalid_grant")
        assert f"POST /v1/connections/{name}/authorize" in answer.body["error_description"]


async def test_nothing_to_be_had_right_now(api: ApiStage, database: Database) -> None:
    """503 ``temporarily_unavailable`` says when to come again, and tells of no connection."""
    await api.imported("acme-2", life=-10)
    api.sender.outcomes = [DOWN]
    path = "/v1/connections/acme-2/oauth2/token"
    failing = await api.ask("POST", path, form=REFRESH)
    assert (failing.status, failing.body["error"]) == (503, "temporarily_unavailable")
    assert int(failing.headers["Retry-After"]) >= 1
    await database.close()
    away = await api.ask("POST", PATH.replace("acme-1", "acme-7"), form=REFRESH)
    assert (away.status, away.body["error"]) == (503, "temporarily_unavailable")


async def test_tokens_with_short_lives(api: ApiStage) -> None:
    """A token that never lives as long as libraries like is given all the same, at no cost."""
    await api.imported("acme-2", life=40)
    answer = await api.ask("POST", "/v1/connections/acme-2/oauth2/token", form=REFRESH)
    # Its whole life is shorter than that: asking the provider each time would not help.
    assert answer.body["access_token"] == "imported-acme-2"
    assert api.sender.sent == []


async def test_requests_oauthlib_refreshes_here(
    api: ApiStage, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """requests-oauthlib, unmodified, renews an expired token here and goes on."""
    # oauthlib wants https even on loopback, and says how to tell it otherwise.
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")
    kept: list[dict[str, object]] = []

    def call() -> object:
        session = OAuth2Session(
            client_id="any",
            token={"access_token": "old", "refresh_token": "none", "expires_in": -30},
            auto_refresh_url=f"{api.url}{PATH}",
            token_updater=kept.append,
        )
        with session:
            return session.get(service, client_id="any", client_secret=KEYS["tokens"]).json()

    assert await asyncio.to_thread(call) == {"authorization": "Bearer imported-acme-1"}
    assert kept[0]["refresh_token"] == "none"


async def test_requests_oauthlib_fetches_here(
    api: ApiStage, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client credentials flow of requests-oauthlib gets the connection's token."""
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")

    def call() -> object:
        with OAuth2Session(client=BackendApplicationClient(client_id="any")) as session:
            session.fetch_token(f"{api.url}{PATH}", client_secret=KEYS["tokens"])
            return session.get(service).json()

    assert await asyncio.to_thread(call) == {"authorization": "Bearer imported-acme-1"}
    await api.ask("DELETE", "/v1/connections/acme-1")
    with pytest.raises(InvalidGrantError, match="disconnected"):
        await asyncio.to_thread(call)


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
async def test_authlib_refreshes_here(api: ApiStage, service: str, method: str) -> None:
    """Authlib, unmodified, renews an expired token here and goes on."""

    def call() -> object:
        session = AuthlibSession(
            client_id="any",
            client_secret=KEYS["tokens"],
            token_endpoint=f"{api.url}{PATH}",
            token_endpoint_auth_method=method,
            token={"access_token": "old", "refresh_token": "none", "expires_at": 1},
        )
        with session:
            return session.get(service).json()

    assert await asyncio.to_thread(call) == {"authorization": "Bearer imported-acme-1"}


async def test_authlib_with_client_credentials(api: ApiStage, service: str) -> None:
    """Without any token to begin with Authlib fetches one here, and another after that."""
    await api.imported("acme-2", life=-10)

    def call() -> object:
        session = AuthlibSession(
            client_id="any",
            client_secret=KEYS["tokens"],
            token_endpoint=f"{api.url}{PATH.replace('acme-1', 'acme-2')}",
            grant_type="client_credentials",
        )
        with session:
            session.fetch_token()
            return session.get(service).json()

    assert await asyncio.to_thread(call) == {"authorization": "Bearer new-access-1"}


async def test_refusals_leave_no_circles(api: ApiStage) -> None:
    """Some thousand wrong requests would else stop everybody for the garbage collector."""
    with circles_of(web.Request, Problem) as left:
        for form in ({"grant_type": "password"}, REFRESH):
            await ask(api, form)
        await api.ask("POST", PATH, key=None)
    assert left == []
