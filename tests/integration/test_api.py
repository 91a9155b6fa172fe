"""The api listener's routes over a real socket, with a real database."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import datetime

import pytest

from daemon.domain.outcome import FailureReason, Outcome, OutcomeKind
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.postgres import Database
from tests.support.api_stage import ApiStage, api_stage
from tests.support.openapi import api_document

DOWN = Outcome(kind=OutcomeKind.NOT_SENT, reason=FailureReason.NETWORK, description="No route.")
INVALID_GRANT = Outcome(
    kind=OutcomeKind.REAUTHORIZE,
    reason=FailureReason.INVALID_GRANT,
    error="invalid_grant",
    description="The provider no longer accepts the grant.",
)
MEMBERS = {
    *("id", "provider", "grant", "status", "label", "account_id", "fields", "scopes"),
    *("requested_scopes", "metadata", "generation", "expires_at", "refresh_at"),
    *("has_refresh_token", "last_refreshed_at", "last_used_at", "last_tested_at", "last_error"),
    *("created_at", "updated_at"),
}


@pytest.fixture
async def api(database: Database, cipher: TokenCipher) -> AsyncIterator[ApiStage]:
    """A running api listener."""
    async with api_stage(database, cipher) as stage:
        yield stage


async def test_creating_for_a_person(api: ApiStage) -> None:
    """A new connection is pending and comes with the URL at which a person connects."""
    answer = await api.create("acme-1", metadata={"team": "billing"}, scopes=["read"])
    assert answer.headers["Location"] == "/v1/connections/acme-1"
    assert set(answer.body) == MEMBERS | {"connect_url"}
    assert re.fullmatch(r"http://localhost:7421/connect/[\w-]{43,}", answer.body["connect_url"])
    shown = await api.ask("GET", "/v1/connections/acme-1")
    assert shown.status == 200
    assert set(shown.body) == MEMBERS
    assert shown.body["status"] == "pending"
    assert shown.body["grant"] == "authorization_code"
    assert shown.body["requested_scopes"] == ["read"]
    assert shown.body["metadata"] == {"team": "billing"}
    assert (shown.body["generation"], shown.body["expires_at"]) == (0, None)
    token = await api.ask("GET", "/v1/connections/acme-1/token")
    assert (token.status, token.code) == (409, "not_authorized_yet")
    assert api.events.told[0][:2] == ("connection_created", "acme-1")


async def test_an_id_is_made_where_none_is_given(api: ApiStage) -> None:
    """A connection without an id receives one, and the provider's scopes."""
    answer = await api.ask("POST", "/v1/connections", body={"provider": "acme"})
    assert answer.status == 201
    assert re.fullmatch(r"con_[0-9A-Za-z]{22}", answer.body["id"])
    assert answer.body["requested_scopes"] == ["read", "write:all"]


async def test_an_id_is_given_once(api: ApiStage) -> None:
    """A second connection with the same id is refused."""
    await api.create("acme-1")
    again = await api.ask("POST", "/v1/connections", body={"provider": "acme", "id": "acme-1"})
    assert (again.status, again.code) == (409, "connection_exists")


async def test_importing_good_tokens(api: ApiStage) -> None:
    """Imported tokens are served at once and refreshed when their life says so."""
    created = await api.imported()
    assert "connect_url" not in created.body
    assert (created.body["status"], created.body["generation"]) == ("active", 1)
    assert created.body["has_refresh_token"] is True
    assert created.body["refresh_at"] < created.body["expires_at"]
    token = await api.ask("GET", "/v1/connections/acme-1/token", key="tokens")
    assert token.status == 200
    assert token.headers["Cache-Control"] == "no-store"
    assert token.body["access_token"] == "imported-acme-1"
    assert token.body["token_type"] == "Bearer"
    assert token.body["scope"] == "read write:all"
    assert (token.body["generation"], token.body["connection"]) == (1, "acme-1")
    assert 3590 <= token.body["expires_in"] <= 3600
    assert token.body["expires_at"] == created.body["expires_at"]
    assert "warning" not in token.body
    assert api.sender.sent == []
    assert api.expected == [0.0]


@pytest.mark.parametrize(
    "tokens",
    [
        {"refresh_token": "refresh-canary"},
        {
            "refresh_token": "refresh-canary",
            "access_token": "old",
            "expires_at": "2020-01-01T00:00:00Z",
        },
    ],
)
async def test_importing_without_a_good_access_token(api: ApiStage, tokens: dict[str, str]) -> None:
    """Where no access token is known to be good the first reader gets a refreshed one at once."""
    created = await api.create("acme-1", tokens=tokens)
    refresh_at = datetime.fromisoformat(created.body["refresh_at"])
    assert refresh_at <= datetime.fromisoformat(created.body["created_at"])
    token = await api.ask("GET", "/v1/connections/acme-1/token")
    assert token.status == 200
    assert (token.body["access_token"], token.body["generation"]) == ("new-access-1", 2)
    assert api.sender.sent == ["refresh-canary"]


async def test_a_read_is_answered_from_memory_and_the_same_by_both_ways(api: ApiStage) -> None:
    """A plain read and one with parameters differ in nothing that a caller can see."""
    await api.imported()
    long_way = await api.ask("GET", "/v1/connections/acme-1/token?min_ttl=0", key="tokens")
    short_way = await api.ask("GET", "/v1/connections/acme-1/token", key="tokens")
    assert set(long_way.body) == set(short_way.body)
    assert long_way.body["access_token"] == short_way.body["access_token"]
    for name in ("Content-Type", "Cache-Control"):
        assert long_way.headers[name] == short_way.headers[name]
    assert api.cache.take_used() == ["acme-1"]


async def test_a_caller_that_closes(api: ApiStage) -> None:
    """A caller that wants the connection closed gets the same token, and is told of the end."""
    await api.imported()
    await api.ask("GET", "/v1/connections/acme-1/token")
    answer = await api.ask("GET", "/v1/connections/acme-1/token", headers={"Connection": "close"})
    assert answer.status == 200
    assert answer.headers["Connection"] == "close"
    assert answer.body["access_token"] == "imported-acme-1"


async def test_min_ttl_and_newer_than(api: ApiStage) -> None:
    """Each refreshes once where it is not met, and is answered from memory where it is."""
    await api.imported(life=100)
    path = "/v1/connections/acme-1/token"
    longer = await api.ask("GET", f"{path}?min_ttl=90")
    assert longer.body["generation"] == 1
    assert (await api.ask("GET", f"{path}?newer_than=1")).body["generation"] == 2
    assert (await api.ask("GET", f"{path}?newer_than=1&min_ttl=60")).body["generation"] == 2
    clamped = await api.ask("GET", f"{path}?min_ttl=7200")
    assert "live for 3600 s" in clamped.body["warning"]
    # However large: in milliseconds by mistake, or so that it is surely the newest.
    for seconds in (99_999_999, 3_600_000_000_000, 2**63 - 1):
        endless = await api.ask("GET", f"{path}?min_ttl={seconds}")
        assert (endless.status, endless.body["generation"]) == (200, 2)
        assert f"min_ttl={float(seconds):.0f} " in endless.body["warning"]
    assert len(api.sender.sent) == 1


@pytest.mark.parametrize(
    "query",
    [
        "min_ttl=-1",
        "min_ttl=1.5",
        "min_ttl=",
        "min_ttl=1&min_ttl=2",
        "min_ttl=%D9%A1",
        "min_ttl=99999999999999999999",
        "newer_than=x",
        "newer_than=9999999999999999999",
        "ttl=5",
    ],
)
async def test_bad_parameters_of_a_read(api: ApiStage, query: str) -> None:
    """A parameter that cannot be understood is refused, not ignored."""
    await api.imported()
    answer = await api.ask("GET", f"/v1/connections/acme-1/token?{query}")
    assert (answer.status, answer.code) == (400, "bad_request")


async def test_a_failing_refresh(api: ApiStage) -> None:
    """A good token comes with a warning; an expired one is 503 with the time to come again."""
    await api.imported()
    await api.imported("acme-2", life=-10)
    api.sender.outcomes = [DOWN, DOWN]
    warned = await api.ask("POST", "/v1/connections/acme-1/refresh")
    assert (warned.status, warned.code) == (503, "token_unavailable")
    token = await api.ask("GET", "/v1/connections/acme-1/token")
    assert token.status == 200
    assert "No route." in token.body["warning"]
    expired = await api.ask("GET", "/v1/connections/acme-2/token")
    assert (expired.status, expired.code) == (503, "token_unavailable")
    assert int(expired.headers["Retry-After"]) == expired.body["retry_after"] >= 1
    assert expired.body["connection"] == "acme-2"
    assert "provider_error" not in expired.body


async def test_a_dead_grant(api: ApiStage) -> None:
    """It is 409 for who needs a new token, and shows in the connection."""
    await api.imported("acme-1", life=-10)
    api.sender.outcomes = [INVALID_GRANT]
    answer = await api.ask("GET", "/v1/connections/acme-1/token")
    again = await api.ask("POST", "/v1/connections/acme-1/refresh")
    for refused in (answer, again):
        assert (refused.status, refused.code) == (409, "reauthorization_required")
        assert refused.body["provider_error"] == "invalid_grant"
    shown = (await api.ask("GET", "/v1/connections/acme-1")).body
    assert shown["status"] == "reauthorization_required"
    assert shown["last_error"]["code"] == "invalid_grant"
    assert shown["refresh_at"] is None
    fresh = await api.ask("POST", "/v1/connections/acme-1/authorize")
    assert fresh.status == 200
    assert set(fresh.body) == {"connect_url", "expires_at"}


async def test_refreshing_now(api: ApiStage) -> None:
    """An operator's refresh answers with the renewed connection."""
    await api.imported()
    answer = await api.ask("POST", "/v1/connections/acme-1/refresh")
    assert answer.status == 200
    assert answer.body["generation"] == 2
    token = await api.ask("GET", "/v1/connections/acme-1/token")
    assert token.body["access_token"] == "new-access-1"


async def test_a_fresh_connect_url(api: ApiStage) -> None:
    """A return URL must be one that is configured; without a body the stored one holds."""
    await api.create("acme-1", return_url="https://app.example/done")
    path = "/v1/connections/acme-1/authorize"
    first = await api.ask("POST", path)
    second = await api.ask("POST", path, body={"return_url": "https://app.example/other"})
    assert first.status == second.status == 200
    assert first.body["connect_url"] != second.body["connect_url"]
    refused = await api.ask("POST", path, body={"return_url": "https://evil.example/"})
    assert (refused.status, refused.code) == (422, "invalid_request")
    strange = await api.ask("POST", path, body={"scopes": []})
    assert strange.body["errors"][0]["member"] == "scopes"


async def test_every_bad_member_is_named(api: ApiStage) -> None:
    """A body with many faults is answered with all of them, and nothing is stored."""
    body = {
        "provider": "nobody",
        "id": "not an id",
        "scopes": ["a b"],
        "metadata": {"team": 1},
        "return_url": "https://evil.example/",
        "tokens": {"refresh_token": "", "expires_at": "9999-12-31T23:59:59-14:00"},
        "colour": "red",
    }
    answer = await api.ask("POST", "/v1/connections", body=body)
    assert (answer.status, answer.code) == (422, "invalid_request")
    assert {error["member"] for error in answer.body["errors"]} == {
        *("provider", "id", "scopes", "metadata", "return_url", "colour"),
        *("tokens.refresh_token", "tokens.expires_at"),
    }
    assert (await api.ask("GET", "/v1/connections")).body["connections"] == []


async def test_listing(api: ApiStage) -> None:
    """Pages follow each other to the end; filters narrow them."""
    for number in range(5):
        await api.create(f"acme-{number}", metadata={"odd": str(number % 2)})
    seen: list[str] = []
    path = "/v1/connections?limit=2"
    cursor = None
    for _ in range(3):
        page = (await api.ask("GET", path + (f"&cursor={cursor}" if cursor else ""))).body
        assert set(page) == {"connections", "next_cursor"}
        seen += [one["id"] for one in page["connections"]]
        cursor = page["next_cursor"]
    assert cursor is None
    assert seen == [f"acme-{number}" for number in (4, 3, 2, 1, 0)]
    odd = (await api.ask("GET", "/v1/connections?metadata.odd=1&status=pending")).body
    assert [one["id"] for one in odd["connections"]] == ["acme-3", "acme-1"]
    for bad in ("q=a&q=b", "limit=0", "cursor=x", "status=alive", "colour=red", "cursor=_w"):
        refused = await api.ask("GET", f"/v1/connections?{bad}")
        assert (refused.status, refused.code) == (400, "bad_request")


async def test_callers_see_only_their_connections(api: ApiStage) -> None:
    """Another's connection is unknown to a caller, in a listing as by its id."""
    await api.imported("acme-1")
    await api.imported("acme-x")
    await api.imported("secret-1")
    listed = (await api.ask("GET", "/v1/connections", key="reader")).body["connections"]
    assert [one["id"] for one in listed] == ["acme-1"]
    for name in ("acme-x", "secret-1", "nobody", "not%20an%20id", "..%2Facme-1"):
        answer = await api.ask("GET", f"/v1/connections/{name}", key="reader")
        assert (answer.status, answer.code) == (404, "unknown_connection")
    # Also where memory has it: the short way is no way around.
    assert (await api.ask("GET", "/v1/connections/secret-1/token")).status == 200
    hidden = await api.ask("GET", "/v1/connections/secret-1/token", key="tokens")
    nobody = await api.ask("GET", "/v1/connections/nobody/token", key="tokens")
    assert (hidden.status, nobody.status) == (404, 404)
    del hidden.body["connection"], nobody.body["connection"]
    assert hidden.body == nobody.body


@pytest.mark.parametrize(
    ("method", "path", "key"),
    [
        ("GET", "/v1/connections/acme-1/token", "reader"),
        ("GET", "/v1/connections/acme-1", "tokens"),
        ("GET", "/v1/connections", "tokens"),
        ("GET", "/v1/providers", "tokens"),
        ("POST", "/v1/connections", "reader"),
        ("POST", "/v1/connections/acme-1/authorize", "reader"),
        ("POST", "/v1/connections/acme-1/refresh", "tokens"),
        ("POST", "/v1/connections/acme-1/test", "reader"),
        ("PATCH", "/v1/connections/acme-1", "reader"),
        ("DELETE", "/v1/connections/acme-1", "reader"),
    ],
)
async def test_permissions(api: ApiStage, method: str, path: str, key: str) -> None:
    """A caller does what it may do, and nothing else."""
    await api.imported()
    answer = await api.ask(method, path, key=key)
    assert (answer.status, answer.code) == (403, "permission_denied")


@pytest.mark.parametrize("path", ["/v1/connections/acme-1/token", "/v1/connections", "/v1/none"])
async def test_who_and_from_where(api: ApiStage, path: str) -> None:
    """Without a key, with a wrong one, or from a web page nothing is answered, cached or not."""
    await api.imported()
    await api.ask("GET", "/v1/connections/acme-1/token")
    for key in (None, "guess"):
        answer = await api.ask("GET", path, key=key)
        assert (answer.status, answer.code) == (401, "unauthenticated")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
    foreign = await api.ask("GET", path, headers={"Origin": "https://evil.example"})
    assert (foreign.status, foreign.code) == (403, "cross_origin")
    rebound = await api.ask("GET", path, headers={"Host": "evil.example"})
    assert (rebound.status, rebound.code) == (421, "misdirected_request")
    assert "Access-Control-Allow-Origin" not in foreign.headers


async def test_providers(api: ApiStage) -> None:
    """What is configured is shown, without a secret."""
    listed = (await api.ask("GET", "/v1/providers")).body["providers"]
    assert [one["name"] for one in listed] == ["acme", "other", "tenants"]
    one = await api.ask("GET", "/v1/providers/acme", key="reader")
    assert one.body == listed[0]
    assert one.body["redirect_uri"] == "http://localhost:7421/callback"
    assert one.body["token_endpoint"] == "https://auth.acme.example/token"
    tenants = (await api.ask("GET", "/v1/providers/tenants")).body
    assert tenants["fields"]["company"]["required"] is True
    assert tenants["fields"]["region"]["enum"] == ["us", "eu"]
    assert tenants["api_base_url"] == "https://{company}.tenants.example/api"
    assert tenants["allowed_hosts"] == ["*.tenants.example"]
    assert tenants["test"]["path"] == "/me"
    assert (tenants["label"], tenants["account_id"]) == ("{me.name}", "me.id")
    assert tenants["request"] == {"headers": ["X-Api-Key"], "query": ["key"], "body": ["key"]}
    nobody = await api.ask("GET", "/v1/providers/nobody")
    assert (nobody.status, nobody.code) == (404, "unknown_provider")


async def test_the_description(api: ApiStage) -> None:
    """Every caller, whatever it may do, gets the OpenAPI document; nobody else does."""
    for key in ("admin", "proxy"):
        answer = await api.ask("GET", "/openapi.json", key=key)
        assert answer.status == 200
        assert answer.body == api_document()
    assert (await api.ask("GET", "/openapi.json", key=None)).status == 401


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("DELETE", "/v1/connections", 405),
        ("HEAD", "/v1/connections/acme-1/token", 405),
        ("POST", "/v1/connections/acme-1/token", 405),
    ],
)
async def test_no_such_route(api: ApiStage, method: str, path: str, status: int) -> None:
    """What is no route is a problem like any other, also where memory has the token."""
    await api.imported()
    await api.ask("GET", "/v1/connections/acme-1/token")
    assert (await api.ask(method, path)).status == status


async def test_the_database_is_away(api: ApiStage, database: Database) -> None:
    """Tokens in memory are served on; what needs the database is 503 with a time."""
    await api.imported()
    await api.imported("acme-2")
    assert (await api.ask("GET", "/v1/connections/acme-1/token")).status == 200
    await database.close()
    for query in ("", "?min_ttl=3599"):
        served = await api.ask("GET", f"/v1/connections/acme-1/token{query}")
        assert served.status == 200
    missing = await api.ask("GET", "/v1/connections/acme-2/token")
    assert (missing.status, missing.code) == (503, "token_unavailable")
    listed = await api.ask("GET", "/v1/connections")
    assert (listed.status, listed.code) == (503, "database_unavailable")
    assert listed.headers["Retry-After"] == "5"
