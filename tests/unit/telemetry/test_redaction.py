"""Secrets do not get through the redaction; ordinary texts do."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from daemon.domain.connection import Status
from daemon.telemetry.redaction import (
    REDACTED,
    is_secret_name,
    redact_fields,
    redact_text,
    redact_value,
)
from tests.support.telemetry import CANARY

JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.c2lnbmF0dXJl"
TICKET = "Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4"


@pytest.mark.parametrize(
    "name",
    [
        *("access_token", "refresh_token", "id_token", "token", "accessToken", "Refresh-Token"),
        *("client_secret", "secret", "code", "state", "code_verifier", "nonce", "key", "keys"),
        *("authorization", "Proxy-Authorization", "Cookie", "Set-Cookie", "X-Api-Key", "api_key"),
        *("password", "client_assertion", "assertion", "device_code", "user_code", "ticket"),
        *("private_key", "jwt", "CLIENT_SECRET"),
    ],
)
def test_names_of_secrets_are_known(name: str) -> None:
    """A value filed under the name of a secret is hidden, however the name is spelled."""
    assert is_secret_name(name)
    assert redact_fields({name: f"x{CANARY}"}) == {name: REDACTED}


@pytest.mark.parametrize(
    "name",
    [
        *("connection", "provider", "error", "reason", "event", "token_endpoint", "token_type"),
        *("generation", "retry_in", "key_id", "status", "error_code", "reference", "kind"),
    ],
)
def test_other_names_keep_their_values(name: str) -> None:
    """Names that only resemble those of secrets keep their values."""
    assert redact_fields({name: "plain"}) == {name: "plain"}


def test_flags_named_like_secrets_are_kept() -> None:
    """Whether there is a secret is no secret."""
    fields = {"has_refresh_token": True, "client_secret": None}
    assert redact_fields(fields) == fields


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {CANARY}",
        f"sent 'Authorization': 'Bearer {CANARY}' to it",
        f"authorization: Token {CANARY} and {CANARY}",
        f"Basic {CANARY}Om9wZW4=",
        f"DPoP {CANARY}.abc",
        f"Cookie: session={CANARY}; other={CANARY}",
        f"https://as.example/cb?code={CANARY}&state={CANARY}",
        f"https://as.example/cb?x=1&state={CANARY}#access_token={CANARY}",
        f"https://a.example/?next=https%3A%2F%2Fb%2F%3Fcode%3D{CANARY}%26state%3D{CANARY}",
        f"grant_type=refresh_token&refresh_token={CANARY}&client_secret={CANARY}",
        json.dumps({"access_token": CANARY, "refresh_token": CANARY, "expires_in": 5}),
        json.dumps(json.dumps({"access_token": CANARY})),
        json.dumps({"token": {"deep": CANARY}}),
        repr({"refresh_token": [CANARY, CANARY], "code": CANARY}),
        repr({"client_secret": CANARY.encode()}),
        repr({"code_verifier": f"with ' quote {CANARY}"}),
        f'{{"access_token": "cut off {CANARY}',
        f"TokenSet(access_token='{CANARY}', refresh_token=\"{CANARY}\")",
        f"refresh_token: {CANARY}",
        f"id_token = {CANARY}",
        f"X-Api-Key: {CANARY}",
        f"postgresql://tokenward:{CANARY}@db.example:5432/x",
        f"postgresql://tokenward:pa/ss@{CANARY}@db.example/x",
        f"https://user:{CANARY}@host.example/path",
        f"user={CANARY} password={CANARY} host=db".replace(f"user={CANARY} ", ""),
        f"input should be a string [input_value='{CANARY}', input_type=str]",
        f"DETAIL:  Failing row contains (con_1, {CANARY}, null).",
        f"client_assertion={JWT}{CANARY}",
    ],
)
def test_secrets_in_texts_are_hidden(text: str) -> None:
    """A secret that stands beside its name, or in a place made for secrets, is taken out."""
    shown = redact_text(text)
    assert CANARY not in shown
    assert REDACTED in shown


def test_tokens_with_a_shape_are_hidden() -> None:
    """JSON web tokens, and tickets in connect URLs, are known without a name beside them."""
    assert redact_text(f"got {JWT} there") == f"got {REDACTED} there"
    url = f"http://localhost:7421/connect/{TICKET}"
    assert redact_text(url) == f"http://localhost:7421/connect/{REDACTED}"


@pytest.mark.parametrize(
    "text",
    [
        "The provider did not answer within 30 seconds.",
        "POST https://as.example/oauth/token: connection reset by peer",
        "https://as.example/connect/authorize",
        "invalid_grant",
        "error=invalid_grant status=400",
        "duplicate key value violates unique constraint",
        "Key (id)=(con_1) already exists.",
        "asking for a bearer token",
        "client_secret_basic",
        "con_7Hq",
        "2026-11-21T12:00:00Z",
        "",
    ],
)
def test_ordinary_texts_are_left_alone(text: str) -> None:
    """What helps an operator is not taken away."""
    assert redact_text(text) == text


def test_what_surrounds_a_secret_is_kept() -> None:
    """Host, path and harmless parameters of a URL stay readable."""
    shown = redact_text("GET https://as.example/cb?error=denied&code=abc&iss=x failed")
    assert shown == f"GET https://as.example/cb?error=denied&code={REDACTED}&iss=x failed"


class _Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError(CANARY)


class _Kind(StrEnum):
    ONE = "one"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, None),
        (True, True),
        (7, 7),
        (1.5, 1.5),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (2**64, "18446744073709551616"),
        (_Kind.ONE, "one"),
        (Status.ACTIVE, "active"),
        (b"secret", "<6 bytes>"),
        (datetime(2026, 1, 2, 3, tzinfo=UTC), "2026-01-02T03:00:00Z"),
        (datetime(2026, 1, 2, 3, tzinfo=timezone(timedelta(hours=2))), "2026-01-02T01:00:00Z"),
        (("a", {"code": "b"}), ["a", {"code": REDACTED}]),
        ({1: "a"}, {"1": "a"}),
        (SecretStr("x"), "SecretStr('**********')"),
        (ValueError(f"token={CANARY}"), f"ValueError: token={REDACTED}"),
        (_Unprintable(), "<unprintable _Unprintable>"),
    ],
)
def test_values_become_what_json_can_hold(value: object, shown: object) -> None:
    """Every value has a plain form; bytes are never shown, and nothing raises."""
    assert redact_value(value) == shown


def test_deep_and_endless_values_end() -> None:
    """A structure that contains itself, and a long one, give a bounded line."""
    assert redact_value(10**5000) == "<unprintable int>"
    endless: list[object] = []
    endless.append(endless)
    assert len(json.dumps(redact_value(endless))) < 200
    assert len(redact_value(list(range(1000))) or ()) == 50  # type: ignore[arg-type] # a list here
    assert len(redact_text("x" * 1_000_000)) < 20_000


_NAMES = st.sampled_from(["access_token", "refresh_token", "client_secret", "code", "state"])
_SECRETS = st.text(
    alphabet=st.characters(codec="ascii", categories=("L", "N")), min_size=12, max_size=40
)


@given(name=_NAMES, secret=_SECRETS, before=st.text(max_size=20), after=st.text(max_size=20))
def test_a_named_secret_never_survives(name: str, secret: str, before: str, after: str) -> None:
    """Whatever surrounds a parameter or a JSON member, its value is gone."""
    marked = f"{secret}{CANARY}"
    for text in (f"{before} {name}={marked}&{after}", f'{before} "{name}": "{marked}"{after}'):
        assert CANARY not in redact_text(text)


@given(st.recursive(st.text() | st.integers() | st.floats() | st.binary(), st.lists, max_leaves=9))
def test_anything_can_be_written_as_json(value: object) -> None:
    """The plain form of any value is JSON, and plain again."""
    plain = redact_value(value)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
