"""What is kept of a token reply beside its tokens: everything but secrets, within bounds."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import jmespath
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.outcome import Granted
from daemon.domain.provider import Provider
from daemon.oauth.token_reply import read_reply

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
ACCESS, REFRESH = "access-token-canary", "refresh-token-canary"
# A provider without any such name keeps nothing: nobody would read it.
ACME = Provider(name="acme", client_id="client", reply_names=frozenset({"token.instance_url"}))


def granted(
    body: dict[str, Any], *, provider: Provider = ACME, sent: tuple[str, ...] = ()
) -> tuple[Granted, tuple[str, ...]]:
    """Return what a reply with ``body`` grants, and the warnings."""
    octets = json.dumps(body).encode()
    outcome = read_reply(
        status=200,
        headers={"Content-Length": str(len(octets))},
        body=octets,
        provider=provider,
        now=NOW,
        sent=sent,
    )
    assert outcome.granted is not None
    return outcome.granted, outcome.warnings


def members(body: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Return the members that are kept of a reply with tokens and ``body``."""
    whole = {"access_token": ACCESS, "refresh_token": REFRESH, "token_type": "Bearer", **body}
    return dict(granted(whole, **options)[0].members)


def test_nothing_is_kept_for_nobody() -> None:
    """Where no template, label or identity names a reply's members, none are kept."""
    nobody = Provider(name="acme", client_id="client")
    assert members({"team": "T1"}, provider=nobody) == {}


def test_what_templates_need_is_kept() -> None:
    """S16: instance URLs, teams and the like, at any depth, as they came."""
    body = {
        "instance_url": "https://eu.acme.example",
        "expires_in": 3600,
        "scope": "read",
        "team": {"id": "T1", "tags": ["a", 1, None, True, 1.5]},
        "country_code": "DE",
        "status_code": 200,
    }

    assert members(body) == {**body, "token_type": "Bearer"}


@pytest.mark.parametrize(
    "key",
    [
        "id_token",
        "bot_token",
        "botToken",
        "page-token",
        "tokens",
        "client_secret",
        "secret",
        "secret_key",
        "clientSecretV2",
        "client_assertion",
        "saml_assertion_b64",
        "password",
        "passwd",
        "code",
        "authorization_code",
        "device_code",
        "code_verifier",
        "api_key",
        "private_key",
        "credentials",
        "jwt",
    ],
)
def test_a_member_that_is_a_secret_by_name_is_not_kept(key: str) -> None:
    """Neither it, nor its value anywhere else in the reply."""
    value = "a-secret-of-some-length"
    body = {key: value, "deep": [{key: {"a": [value]}, "kept": 1}], "echo": f"<{value}>"}

    assert members(body) == {"token_type": "Bearer", "deep": [{"kept": 1}], "echo": None}


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (ACCESS, None),
        (REFRESH, None),
        ("the-code-canary", None),
        (f"https://acme.example/?t={ACCESS}", None),
        (f"Bearer {REFRESH}!", None),
        ("access", "access"),
        ([ACCESS, "x"], [None, "x"]),
        ({ACCESS: 1, "x": 2}, {"x": 2}),
    ],
)
def test_a_token_is_not_kept_wherever_it_stands(value: object, kept: object) -> None:
    """The reply's own tokens and what the request carried are looked for in every text."""
    assert members({"note": value}, sent=("the-code-canary",))["note"] == kept


def test_a_token_found_by_a_selector_is_no_less_a_token() -> None:
    """Where ``token_response`` finds it in a member with a harmless name, that member goes."""
    slack = Provider(
        name="slack",
        client_id="client",
        token_response={"access_token": jmespath.compile("authed.value")},
        account_id=jmespath.compile("token.authed.id"),
    )
    body = {"authed": {"value": ACCESS, "id": "U1"}, "token_type": "Bearer"}

    reply, _ = granted(body, provider=slack)

    assert reply.access_token == ACCESS
    assert reply.members == {"authed": {"value": None, "id": "U1"}, "token_type": "Bearer"}


def test_a_short_token_is_looked_for_as_a_whole_only() -> None:
    """A token "ab" in a test server must not empty every text with an "ab" in it."""
    reply, _ = granted({"access_token": "ab", "note": "about", "same": "ab"})

    assert reply.members == {"note": "about", "same": None}


@pytest.mark.parametrize(
    "body",
    [
        {"bulk": "x" * 20_000},
        {"bulk": ["x" * 100] * 300},
        {"bulk": [{"token": f"{number:09}"} for number in range(200)]},
    ],
)
def test_more_than_16_kib_is_nothing(body: dict[str, Any]) -> None:
    """With a warning; the tokens are granted all the same."""
    reply, warnings = granted({"access_token": ACCESS, "token_type": "Bearer", **body})

    assert reply.members == {}
    assert "reply_members_too_large" in warnings


def test_what_is_very_deep_is_cut() -> None:
    """Sixteen levels are enough for anybody, and too few to break anything."""
    deep: Any = {"id": 1}
    for _ in range(500):
        deep = [deep]

    assert "[[[" in json.dumps(members({"deep": deep}))
    assert "id" not in json.dumps(members({"deep": deep}))


def test_members_hide_in_logs() -> None:
    """Nobody's account shows in a repr."""
    reply, _ = granted({"access_token": ACCESS, "email": "anna@acme.example"})

    assert "anna" not in repr(reply)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([ACCESS, "é", "x"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["a", "b", ACCESS, "token", "secret"]), inner)
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["x", "y", "id_token", "code"]), JSON))
def test_no_reply_leaks_its_token(body: dict[str, Any]) -> None:
    """For any reply: what is kept does not hold the access token, and is JSON."""
    reply, _ = granted({"access_token": ACCESS, "token_type": "Bearer", **body})

    assert ACCESS not in json.dumps(dict(reply.members), allow_nan=False)
