"""Connections as JSON, both ways."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.connection import Connection, Failure, Status
from daemon.domain.errors import Problem
from daemon.domain.provider import Provider
from daemon.sidecar.connection_body import connection_body, rfc3339
from daemon.sidecar.connection_requests import (
    CreateRequest,
    read_create_request,
    read_return_url,
)
from tests.support.clock import START

ACME = Provider(name="acme", client_id="us", scopes=("read", "write:all"))
RETURN_URLS = ("https://app.example/done", "https://other.example/*")


def read(**members: object) -> CreateRequest:
    """Check a body for the provider acme with these members."""
    return read_create_request(
        {"provider": "acme"} | members, providers={"acme": ACME}, return_urls=RETURN_URLS
    )


def bad_members(**members: object) -> list[str]:
    """Return the members that a body is refused for."""
    with pytest.raises(Problem) as caught:
        read(**members)
    problem = caught.value
    assert (problem.status, problem.code) == (422, "invalid_request")
    errors = problem.members["errors"]
    assert isinstance(errors, list)
    assert all(error["message"] in problem.detail for error in errors)
    return [error["member"] for error in errors]


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (None, None),
        (datetime(2026, 11, 21, 18, 0, tzinfo=UTC), "2026-11-21T18:00:00Z"),
        (datetime(2026, 11, 21, 18, 0, 0, 999999, tzinfo=UTC), "2026-11-21T18:00:00Z"),
        (
            datetime(2026, 11, 21, 20, 0, tzinfo=timezone(timedelta(hours=2))),
            "2026-11-21T18:00:00Z",
        ),
    ],
)
def test_times(moment: datetime | None, text: str | None) -> None:
    """Times are RFC 3339 in UTC, in whole seconds, rounded down."""
    assert rfc3339(moment) == text


def test_the_body() -> None:
    """The body has the promised members and nothing of the connection that is not shown."""
    connection = Connection(
        id="acme-1",
        provider="acme",
        grant="authorization_code",
        status=Status.FAILING,
        scopes=("read",),
        requested_scopes=("read", "write:all"),
        metadata={"team": "billing"},
        generation=3,
        expires_at=START,
        has_refresh_token=True,
        last_error=Failure(code="network", description="No route.", at=START),
        created_at=START,
        updated_at=START,
        return_url="https://app.example/done",
        created_by="billing",
    )
    body = connection_body(connection)
    assert orjson.loads(orjson.dumps(body)) == {
        "id": "acme-1",
        "provider": "acme",
        "grant": "authorization_code",
        "status": "failing",
        "label": None,
        "account_id": None,
        "fields": {},
        "scopes": ["read"],
        "requested_scopes": ["read", "write:all"],
        "metadata": {"team": "billing"},
        "generation": 3,
        "expires_at": "2026-11-21T12:00:00Z",
        "refresh_at": None,
        "has_refresh_token": True,
        "last_refreshed_at": None,
        "last_used_at": None,
        "last_tested_at": None,
        "last_error": {
            "code": "network",
            "description": "No route.",
            "at": "2026-11-21T12:00:00Z",
        },
        "created_at": "2026-11-21T12:00:00Z",
        "updated_at": "2026-11-21T12:00:00Z",
    }


def test_the_smallest_request() -> None:
    """Only the provider is required; the rest is its default."""
    assert read() == CreateRequest(
        provider=ACME,
        id=None,
        scopes=("read", "write:all"),
        metadata={},
        return_url=None,
        tokens=None,
    )


def test_a_whole_request() -> None:
    """Everything that is given is taken over; the tokens are in no repr."""
    request = read(
        id="acme-1",
        scopes=[],
        metadata={"team": "billing"},
        return_url="https://other.example/x",
        tokens={
            "refresh_token": "refresh-canary",
            "access_token": "access-canary",
            "expires_at": "2026-11-21T20:00:00+02:00",
        },
    )
    assert (request.id, request.scopes) == ("acme-1", ())
    assert request.metadata == {"team": "billing"}
    assert request.return_url == "https://other.example/x"
    assert request.tokens is not None
    assert request.tokens.refresh_token == "refresh-canary"
    assert request.tokens.access_token == "access-canary"
    assert request.tokens.expires_at == datetime(2026, 11, 21, 18, 0, tzinfo=UTC)
    assert "canary" not in repr(request)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("provider", None),
        ("provider", 7),
        ("provider", "nobody"),
        ("id", ""),
        ("id", "a b"),
        ("id", 7),
        ("id", "x" * 129),
        ("scopes", "read"),
        ("scopes", ["a b"]),
        ("scopes", [""]),
        ("scopes", ['a"b']),
        ("scopes", ["a\\b"]),
        ("scopes", [7]),
        ("scopes", ["a"] * 201),
        ("metadata", ["a"]),
        ("metadata", {"a": 1}),
        ("metadata", {"a": None}),
        ("metadata", {"a": "x" * 501}),
        ("metadata", {"x" * 501: "a"}),
        ("metadata", {str(number): "a" for number in range(51)}),
        ("return_url", "https://evil.example/"),
        ("return_url", ""),
        ("return_url", 7),
        ("tokens", "refresh"),
        ("tokens", []),
        ("colour", "red"),
        ("status", "active"),
    ],
)
def test_bad_members(member: str, value: object) -> None:
    """Each bad member is named."""
    assert bad_members(**{member: value}) == [member]


@pytest.mark.parametrize(
    ("tokens", "members"),
    [
        ({}, ["tokens.refresh_token"]),
        ({"refresh_token": None}, ["tokens.refresh_token"]),
        ({"refresh_token": ""}, ["tokens.refresh_token"]),
        ({"refresh_token": "a b"}, ["tokens.refresh_token"]),
        ({"refresh_token": "é"}, ["tokens.refresh_token"]),
        ({"refresh_token": "a\n"}, ["tokens.refresh_token"]),
        ({"refresh_token": "x" * 20000}, ["tokens.refresh_token"]),
        ({"refresh_token": "r", "access_token": ""}, ["tokens.access_token"]),
        ({"refresh_token": "r", "access_token": 7}, ["tokens.access_token"]),
        ({"refresh_token": "r", "expires_at": "soon"}, ["tokens.expires_at"]),
        ({"refresh_token": "r", "expires_at": 1700000000}, ["tokens.expires_at"]),
        ({"refresh_token": "r", "expires_at": "2026-11-21T18:00:00"}, ["tokens.expires_at"]),
        ({"refresh_token": "r", "expires_at": "0001-01-01T00:00:00+14:00"}, ["tokens.expires_at"]),
        ({"refresh_token": "r", "expires_at": "9999-12-31T23:59:59-14:00"}, ["tokens.expires_at"]),
        ({"refresh_token": "r", "scope": "read"}, ["tokens.scope"]),
        ({"access_token": 1, "x": 2}, ["tokens.x", "tokens.refresh_token", "tokens.access_token"]),
    ],
)
def test_bad_tokens(tokens: dict[str, object], members: list[str]) -> None:
    """Imported tokens are checked like everything else, and never echoed."""
    assert bad_members(tokens=tokens) == members


def test_all_faults_are_told_at_once() -> None:
    """A body is corrected in one go."""
    found = bad_members(provider="nobody", id="?", scopes=7, colour=1, tokens={})
    assert set(found) == {"provider", "id", "scopes", "colour", "tokens.refresh_token"}


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = st.sampled_from(["provider", "id", "scopes", "metadata", "return_url", "tokens", "x"])


@given(body=st.dictionaries(NAMES, JSON, max_size=5))
def test_any_json_is_read_or_refused(body: dict[str, Any]) -> None:
    """Whatever an object holds, it is a request or a problem, never a crash."""
    with suppress(Problem):
        read_create_request(body, providers={"acme": ACME}, return_urls=RETURN_URLS)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, "https://app.example/done"),
        ({"return_url": None}, None),
        ({"return_url": "https://other.example/x"}, "https://other.example/x"),
    ],
)
def test_a_return_url(body: dict[str, object], expected: str | None) -> None:
    """What is not said stays as it was; null takes it back."""
    default = "https://app.example/done"
    assert read_return_url(body, default=default, return_urls=RETURN_URLS) == expected


@pytest.mark.parametrize(
    "body", [{"return_url": "https://evil.example/"}, {"return_url": 7}, {"x": 1}]
)
def test_a_bad_return_url(body: dict[str, object]) -> None:
    """Where the browser may go is for the configuration to say."""
    with pytest.raises(Problem) as caught:
        read_return_url(body, default=None, return_urls=RETURN_URLS)
    assert caught.value.code == "invalid_request"


def test_a_return_url_that_is_not_configured_any_more() -> None:
    """Also a stored one must still be allowed."""
    with pytest.raises(Problem):
        read_return_url({}, default="https://gone.example/", return_urls=RETURN_URLS)
