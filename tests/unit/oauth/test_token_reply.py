"""Every row of the fault catalogue of token endpoints, by table, and what holds for all replies."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import jmespath
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.outcome import FailureReason, Granted, Outcome, OutcomeKind
from daemon.domain.provider import Provider
from daemon.oauth.token_reply import read_reply

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
PROVIDER = Provider(name="acme", client_id="client", scopes=("read", "write"))
COMPLETE = {
    "access_token": "at-1",
    "token_type": "Bearer",
    "expires_in": 3600,
    "refresh_token": "rt-2",
    "scope": "read write",
}
GRANTED = Granted(
    access_token="at-1", refresh_token="rt-2", expires_in=3600.0, scopes=("read", "write")
)
OK, REFUSED, IN_DOUBT, REAUTHORIZE, MISCONFIGURED = (
    OutcomeKind.OK,
    OutcomeKind.REFUSED,
    OutcomeKind.IN_DOUBT,
    OutcomeKind.REAUTHORIZE,
    OutcomeKind.MISCONFIGURED,
)
MALFORMED = FailureReason.MALFORMED_RESPONSE
HTML = (
    b"<!doctype html><html><body>Sign in to the hotel's network. a=b&access_token=x</body></html>"
)


def read(
    body: object,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    provider: Provider = PROVIDER,
    sent: tuple[str, ...] = (),
) -> Outcome:
    """Read a reply without ``members``; what is not bytes yet becomes JSON."""
    octets = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Length": str(len(octets))} if headers is None else headers
    outcome = read_reply(
        status=status, headers=headers, body=octets, provider=provider, now=NOW, sent=sent
    )
    granted = outcome.granted and replace(outcome.granted, members={})
    return replace(outcome, granted=granted)


def complete(**members: object) -> dict[str, object]:
    """Return a complete reply with some members changed."""
    return COMPLETE | members


def without(name: str) -> dict[str, object]:
    """Return a complete reply less one member."""
    return {key: value for key, value in COMPLETE.items() if key != name}


def jwt(claims: object) -> str:
    """Return an unsigned JWT."""
    parts = (json.dumps({"alg": "none"}), json.dumps(claims), "signature")
    return ".".join(urlsafe_b64encode(part.encode()).rstrip(b"=").decode() for part in parts)


def test_a_complete_reply_is_granted_whole() -> None:
    """A reply with every member of RFC 6749 5.1 is read without a warning."""
    assert read(COMPLETE) == Outcome(kind=OK, granted=GRANTED)


@pytest.mark.parametrize(
    ("status", "error", "kind", "reason"),
    [
        # T1
        (400, "invalid_request", MISCONFIGURED, FailureReason.OTHER),
        (401, "invalid_request", MISCONFIGURED, FailureReason.OTHER),
        (400, "invalid_client", MISCONFIGURED, FailureReason.INVALID_CLIENT),
        (401, "invalid_client", MISCONFIGURED, FailureReason.INVALID_CLIENT),
        (400, "unauthorized_client", MISCONFIGURED, FailureReason.UNAUTHORIZED_CLIENT),
        (401, "unauthorized_client", MISCONFIGURED, FailureReason.UNAUTHORIZED_CLIENT),
        (400, "unsupported_grant_type", MISCONFIGURED, FailureReason.UNAUTHORIZED_CLIENT),
        (400, "invalid_target", MISCONFIGURED, FailureReason.OTHER),
        # T2
        (400, "invalid_grant", REAUTHORIZE, FailureReason.INVALID_GRANT),
        (401, "invalid_grant", REAUTHORIZE, FailureReason.INVALID_GRANT),
        (403, "invalid_grant", REAUTHORIZE, FailureReason.INVALID_GRANT),
        (200, "invalid_grant", REAUTHORIZE, FailureReason.INVALID_GRANT),
        (400, "interaction_required", REAUTHORIZE, FailureReason.INVALID_GRANT),
        (400, "consent_required", REAUTHORIZE, FailureReason.INVALID_GRANT),
        (400, "login_required", REAUTHORIZE, FailureReason.INVALID_GRANT),
        # T3
        (400, "invalid_scope", MISCONFIGURED, FailureReason.INVALID_SCOPE),
        # T4
        (400, "temporarily_unavailable", REFUSED, FailureReason.SERVER_ERROR),
        (400, "server_error", REFUSED, FailureReason.SERVER_ERROR),
        (400, "slow_down", REFUSED, FailureReason.RATE_LIMITED),
        (400, "too_many_requests", REFUSED, FailureReason.RATE_LIMITED),
        # T5
        (400, "no_such_code", REFUSED, FailureReason.OTHER),
        (401, "INVALID_GRANT", REFUSED, FailureReason.OTHER),
        (400, "invalid_grant ", REFUSED, FailureReason.OTHER),
        (200, "access_denied", REFUSED, FailureReason.OTHER),
        # T10, the dialects
        (200, "bad_refresh_token", REAUTHORIZE, FailureReason.INVALID_GRANT),
        (200, "bad_verification_code", REAUTHORIZE, FailureReason.INVALID_GRANT),
        (200, "incorrect_client_credentials", MISCONFIGURED, FailureReason.INVALID_CLIENT),
        (200, "redirect_uri_mismatch", MISCONFIGURED, FailureReason.OTHER),
        (200, "invalid_refresh_token", REAUTHORIZE, FailureReason.INVALID_GRANT),
        (200, "token_expired", REAUTHORIZE, FailureReason.INVALID_GRANT),
        (200, "token_revoked", REAUTHORIZE, FailureReason.INVALID_GRANT),
        (200, "invalid_auth", REAUTHORIZE, FailureReason.INVALID_GRANT),
        (200, "invalid_code", REAUTHORIZE, FailureReason.INVALID_GRANT),
        (200, "bad_client_secret", MISCONFIGURED, FailureReason.INVALID_CLIENT),
        (200, "ratelimited", REFUSED, FailureReason.RATE_LIMITED),
        (200, "internal_error", IN_DOUBT, FailureReason.SERVER_ERROR),
        (400, "rate_limit_exceeded", REFUSED, FailureReason.RATE_LIMITED),
    ],
)
def test_error_codes(status: int, error: str, kind: OutcomeKind, reason: FailureReason) -> None:
    """T1-T5, T10: each error code has one meaning, and the text shown is never the provider's."""
    outcome = read({"error": error, "error_description": "<b>do this</b>"}, status=status)
    assert (outcome.kind, outcome.reason, outcome.error) == (kind, reason, error.strip())
    assert outcome.description
    assert "do this" not in outcome.description


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ("", None),
        (0, None),
        (False, None),
        (17, None),
        ([], None),
        (["invalid_grant"], None),
        ({"code": "invalid_grant"}, None),
        ("\x00\n\r", None),
        ("invalid\ngrant", "invalidgrant"),
        ("invalid_gránt", "invalid_grnt"),
        ('<script>alert("1")</script>', "<script>alert(1)</script>"),
        ("\\u202e", "u202e"),
        ("x" * 10_000, "x" * 64),
        ("\ud800", None),
    ],
)
@pytest.mark.parametrize("status", [200, 400, 403])
def test_nonsense_in_error_is_a_refusal(status: int, error: object, shown: str | None) -> None:
    """T5: an empty, non-string or unprintable error is refused, cut, and never ends a grant."""
    outcome = read({"error": error}, status=status)
    assert (outcome.kind, outcome.reason, outcome.error) == (
        REFUSED,
        FailureReason.OTHER,
        shown,
    )


def test_an_error_code_that_repeats_a_secret_is_not_shown() -> None:
    """A server that echoes what it was sent, or what it gives, does not bring it into a log."""
    echo = read({"error": f"{'x' * 60}rt-secret"}, status=400, sent=("rt-secret",))
    own = read({"error": "bad at-1", "access_token": "at-1"}, status=400)
    assert (echo.error, own.error) == (None, None)


def test_a_known_code_is_shown_whatever_the_secret() -> None:
    """A client secret of ``invalid`` hides no error of the standard."""
    assert read({"error": "invalid_grant"}, status=400, sent=("invalid",)).error == "invalid_grant"


@pytest.mark.parametrize("body", [b"", b"{}", b"null", HTML, b'{"message": "no"}', b"[]"])
@pytest.mark.parametrize("status", [401, 403, 404, 405, 410, 415])
def test_a_wrong_door_is_our_configuration(status: int, body: bytes) -> None:
    """T6: without an OAuth body these statuses are a wrong configuration, told by no error code."""
    outcome = read(body, status=status)
    assert (outcome.kind, outcome.error) == (MISCONFIGURED, None)


@pytest.mark.parametrize("body", [b"", HTML, b'{"message": "Invalid refresh token"}'])
@pytest.mark.parametrize("status", [400, 402, 406, 409, 413, 418, 421, 422, 425, 431, 451])
def test_other_client_errors_are_refusals(status: int, body: bytes) -> None:
    """A 4xx that says nothing else is a refusal."""
    assert read(body, status=status).kind is REFUSED


@pytest.mark.parametrize("status", [408, 499])
def test_a_gateway_that_gave_up_is_in_doubt(status: int) -> None:
    """A gateway's timeout does not say what the origin did."""
    outcome = read(b"", status=status)
    assert (outcome.kind, outcome.reason) == (IN_DOUBT, FailureReason.TIMEOUT)


@pytest.mark.parametrize(
    ("value", "wait"),
    [(None, None), ("120", 120.0), ("-5", None), ("Sat, 21 Nov 2026 12:02:00 GMT", 120.0)],
)
@pytest.mark.parametrize("body", [b"", HTML, b'{"error": "invalid_grant"}'])
def test_too_many_requests_never_ends_a_grant(
    body: bytes, value: str | None, wait: float | None
) -> None:
    """T7: 429 is a refusal with its Retry-After, whatever the body says."""
    headers = {} if value is None else {"RETRY-AFTER": value, "Date": "junk"}
    outcome = read(body, status=429, headers=headers)
    assert (outcome.kind, outcome.reason, outcome.retry_after) == (
        REFUSED,
        FailureReason.RATE_LIMITED,
        wait,
    )


@pytest.mark.parametrize("body", [b"", HTML, b'{"error": "invalid_grant"}', COMPLETE])
@pytest.mark.parametrize("status", [500, 501, 502, 503, 504, 505, 520, 521, 524, 527, 599])
def test_server_errors_are_in_doubt(status: int, body: object) -> None:
    """T8: a gateway's 5xx does not prove that the origin did nothing, whatever it carries."""
    outcome = read(body, status=status)
    assert (outcome.kind, outcome.reason) == (IN_DOUBT, FailureReason.SERVER_ERROR)


def test_unavailable_tells_when_to_come_back() -> None:
    """T8: 503 with Retry-After keeps the wait."""
    assert read(b"", status=503, headers={"Retry-After": "7"}).retry_after == 7.0


@pytest.mark.parametrize("status", [-1, 0, 99, 100, 101, 103, 300, 304, 600, 999, 10**20])
def test_statuses_no_token_endpoint_sends_are_in_doubt(status: int) -> None:
    """What cannot be placed may hide a success."""
    assert read(COMPLETE, status=status).kind is IN_DOUBT


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_in_doubt(status: int) -> None:
    """T25: a redirect is never followed, and may come after the work was done."""
    headers = {"Location": "https://elsewhere.example/?access_token=at-1"}
    outcome = read(b"", status=status, headers=headers)
    assert (outcome.kind, outcome.reason) == (IN_DOUBT, FailureReason.OTHER)
    assert "elsewhere" not in repr(outcome)


@pytest.mark.parametrize(
    "body",
    [
        # T9
        pytest.param(HTML, id="html"),
        pytest.param(b"", id="empty"),
        pytest.param(b" \r\n", id="blank"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="array"),
        pytest.param(b'[{"access_token": "at-1"}]', id="array of reply"),
        pytest.param(b'"at-1"', id="string"),
        pytest.param(b"17", id="number"),
        pytest.param(b"NaN", id="nan"),
        pytest.param(b"true", id="true"),
        pytest.param(b"OK", id="word"),
        pytest.param(b"{}", id="empty object"),
        pytest.param(b'{"ok": false}', id="not ok"),
        pytest.param(b'{"access_token": "at-1"', id="cut"),
        pytest.param(b'{"access_token": "at-1"}}', id="too much"),
        pytest.param(b'{"access_token": "at-1"}{"access_token": "at-2"}', id="two"),
        pytest.param(b"{'access_token': 'at-1'}", id="python"),
        pytest.param(b"callback({})", id="jsonp"),
        # T19
        pytest.param(json.dumps(COMPLETE).encode("utf-16"), id="utf-16"),
        pytest.param(json.dumps(COMPLETE).encode("utf-32"), id="utf-32"),
        pytest.param(b'{"access_token": "at-\xff"}', id="invalid utf-8"),
        pytest.param(b"access_token=at%FF", id="form with invalid utf-8"),
        pytest.param(b"a=b&c=d", id="another form"),
        pytest.param(b"access_token", id="form without value"),
        pytest.param(b"access_token=at 1", id="form with a space"),
        pytest.param(b"&".join(b"a=b" for _ in range(5_000)) + b"&access_token=x", id="huge form"),
        # T20
        pytest.param(b'{"access_token": "at-1", "access_token": "at-2"}', id="duplicate"),
        pytest.param(b'{"access_token": "at-1", "access_token": "at-1"}', id="same duplicate"),
        pytest.param(
            b'{"access_token": "at-1", "expires_in": 1, "expires_in": 9}', id="duplicate lifetime"
        ),
        pytest.param(
            b'{"refresh_token": "a", "access_token": "at-1", "refresh_token": "b"}',
            id="duplicate refresh token",
        ),
        pytest.param(b"access_token=at-1&access_token=at-2", id="duplicate in a form"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, id="deep objects"),
        pytest.param(
            b'{"access_token": "at-1", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            id="deep arrays",
        ),
    ],
)
def test_unreadable_replies_are_in_doubt(body: bytes) -> None:
    """T9, T19, T20: a success that cannot be read with certainty may still be one."""
    outcome = read(body)
    assert (outcome.kind, outcome.reason) == (IN_DOUBT, MALFORMED)
    assert outcome.salvaged_refresh_token is None


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\xef\xbb\xbf" + json.dumps(COMPLETE).encode(), id="bom"),
        pytest.param(b"\r\n " + json.dumps(COMPLETE).encode() + b"\n", id="white space"),
        pytest.param(
            b"access_token=at-1&token_type=bearer&expires_in=3600&refresh_token=rt-2"
            b"&scope=read+write",
            id="form",
        ),
        pytest.param(
            b"\xef\xbb\xbfscope=read%2Cwrite&access_token=at-1&token_type=Bearer"
            b"&expires_in=3600&refresh_token=rt-2\n",
            id="form with bom and comma",
        ),
        pytest.param(json.dumps(complete(user={"name": "é"})).encode(), id="more members"),
        pytest.param(
            json.dumps(complete(**{f"k{n}": n for n in range(50_000)})).encode(), id="many members"
        ),
        pytest.param(
            json.dumps(COMPLETE).encode()[:-1] + b', "x": 1, "x": 2}', id="foreign duplicate"
        ),
        pytest.param(json.dumps(complete(error=None)).encode(), id="null error"),
        pytest.param(json.dumps(complete(error="")).encode(), id="empty error"),
        pytest.param(json.dumps(complete(ok=True)).encode(), id="slack"),
    ],
)
@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "text/html; charset=utf-16", ""]
)
def test_replies_are_read_by_what_they_are(body: bytes, content_type: str) -> None:
    """T19: the body is sniffed, the Content-Type is not believed."""
    headers = {"content-type": content_type, "content-length": str(len(body))}
    assert read(body, headers=headers).granted == GRANTED


def test_a_form_whose_end_nobody_announced_is_in_doubt() -> None:
    """T23: a close-delimited form may have been cut within a token and still look complete."""
    body = b"access_token=at-1&refresh_token=rt-"
    assert read(body, headers={}).kind is IN_DOUBT
    assert read(body, headers={"Transfer-Encoding": "chunked"}).kind is OK


def test_close_delimited_json_is_read() -> None:
    """T23: JSON tells its own end."""
    assert read(COMPLETE, headers={}).granted == GRANTED


@pytest.mark.parametrize("status", [200, 400])
def test_an_error_wins_over_a_token(status: int) -> None:
    """T10: with both, the error counts and no token of the reply is used."""
    outcome = read(complete(error="bad_refresh_token"), status=status)
    assert (outcome.kind, outcome.granted, outcome.salvaged_refresh_token) == (
        REAUTHORIZE,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("raw", "seconds", "warnings"),
    [
        # T11
        ('"3600"', 3600.0, ()),
        ("3600.0", 3600.0, ()),
        ('"3600.5"', 3600.0, ()),
        ('" 3600 "', 3600.0, ()),
        ("3.6e3", 3600.0, ()),
        ("5184000", 5184000.0, ()),
        # T12
        ("null", None, ("expires_in_missing",)),
        ('""', None, ("expires_in_unusable",)),
        ('"abc"', None, ("expires_in_unusable",)),
        ('"1e3"', None, ("expires_in_unusable",)),
        ('"0x10"', None, ("expires_in_unusable",)),
        ('"\u0663\u0666"', None, ("expires_in_unusable",)),
        ('"1_000"', None, ("expires_in_unusable",)),
        ("true", None, ("expires_in_unusable",)),
        ("{}", None, ("expires_in_unusable",)),
        ("[]", None, ("expires_in_unusable",)),
        ("[3600]", None, ("expires_in_unusable",)),
        # T13
        ("0", 0.0, ()),
        ("-1", -1.0, ()),
        ('"-1"', -1.0, ()),
        ("-0.5", -1.0, ()),
        ("5", 5.0, ()),
        # T14
        ("1e18", 2592000.0, ("expires_in_clamped",)),
        ("1000000000000000000", 2592000.0, ("expires_in_clamped",)),
        ('"99999999999999999999"', 2592000.0, ("expires_in_clamped",)),
        ("-1e18", -315360000.0, ()),
        ("1e400", None, ("expires_in_unusable",)),
        ("-1e400", None, ("expires_in_unusable",)),
        ("NaN", None, ("expires_in_unusable",)),
        ("Infinity", None, ("expires_in_unusable",)),
        ("-Infinity", None, ("expires_in_unusable",)),
        ("9" * 5_000, None, ("expires_in_unusable",)),
        ("9" * 100, 2592000.0, ("expires_in_clamped",)),
        (f'"{"9" * 5_000}"', None, ("expires_in_unusable",)),
    ],
)
def test_lifetimes(raw: str, seconds: float | None, warnings: tuple[str, ...]) -> None:
    """T11-T14: a silly lifetime never costs the token."""
    body = json.dumps(COMPLETE).replace("3600", raw).encode()
    outcome = read(body)
    assert outcome.granted == replace(GRANTED, expires_in=seconds)
    assert outcome.warnings == warnings


def test_an_absent_lifetime_is_told() -> None:
    """T12: without expires_in the provider's default counts, with a warning."""
    outcome = read(without("expires_in"))
    assert outcome.granted == replace(GRANTED, expires_in=None)
    assert outcome.warnings == ("expires_in_missing",)


@pytest.mark.parametrize(
    ("claims", "seconds"),
    [
        ({"exp": NOW.timestamp() + 900.7}, 900.0),
        ({"exp": int(NOW.timestamp()) + 900}, 900.0),
        ({"exp": NOW.timestamp() + 1e15}, 2592000.0),
        ({"exp": NOW.timestamp() - 900}, None),
        ({"exp": str(int(NOW.timestamp()) + 900)}, None),
        ({"exp": True}, None),
        ({"exp": None}, None),
        ({}, None),
        ([1], None),
        ("text", None),
    ],
)
def test_a_jwt_tells_its_own_lifetime(claims: object, seconds: float | None) -> None:
    """Without expires_in, the exp of a JWT access token counts, and nothing else of it."""
    reply = without("expires_in") | {"access_token": jwt(claims)}
    granted = read(reply).granted
    assert granted is not None
    assert granted.expires_in == seconds


@pytest.mark.parametrize("token", ["a.b.c", "a.e30.c", "..", "a.bc", "a.=.c", "a.W10.c", "a.8J-.c"])
def test_what_only_looks_like_a_jwt_is_opaque(token: str) -> None:
    """A token that is no JWT is served all the same."""
    granted = read(without("expires_in") | {"access_token": token}).granted
    assert granted is not None
    assert (granted.access_token, granted.expires_in) == (token, None)


def test_a_told_lifetime_beats_the_jwt() -> None:
    """expires_in counts where it is usable, whatever the token says."""
    granted = read(complete(access_token=jwt({"exp": NOW.timestamp() + 9}))).granted
    assert granted is not None
    assert granted.expires_in == 3600.0


@pytest.mark.parametrize(
    "token",
    [
        None,
        "",
        17,
        True,
        [],
        {},
        ["at-1"],
        "x" * 100_000,
        "at-1\r\nX-Admin: 1",
        "at\n",
        "at\x00",
        "at 1",
        " at-1",
        "at-é",
        "at-\u2028",
        "\ud800",
        "at\x7f",
    ],
)
def test_an_unusable_access_token_is_not_granted(token: object) -> None:
    """T15: what may not stand in a header is never stored; the refresh token beside it is kept."""
    outcome = read(complete(access_token=token))
    assert (outcome.kind, outcome.reason, outcome.granted) == (IN_DOUBT, MALFORMED, None)
    assert outcome.salvaged_refresh_token == "rt-2"
    assert outcome.warnings == ("access_token_unusable",)


def test_a_missing_access_token_keeps_the_refresh_token() -> None:
    """T15: a reply without access token still rotated."""
    assert read(without("access_token")).salvaged_refresh_token == "rt-2"


@pytest.mark.parametrize("status", [201, 202, 203, 204, 206, 226])
def test_another_success_is_in_doubt_and_salvaged(status: int) -> None:
    """B8: only 200 grants; the refresh token of any other success is kept."""
    outcome = read(COMPLETE, status=status)
    assert (outcome.kind, outcome.salvaged_refresh_token) == (IN_DOUBT, "rt-2")


@pytest.mark.parametrize(
    ("token_type", "warnings"),
    [
        ("BEARER", ()),
        ("bearer", ()),
        ("bearer ", ()),
        (None, ("token_type_missing",)),
        ("", ("token_type_missing",)),
    ],
)
def test_bearer_in_any_case(token_type: object, warnings: tuple[str, ...]) -> None:
    """T16: the case is folded, and a missing type is Bearer with a warning."""
    outcome = read(complete(token_type=token_type))
    assert (outcome.granted, outcome.warnings) == (GRANTED, warnings)


@pytest.mark.parametrize("token_type", ["mac", "dpop", "DPoP", "N_A", "bot", 1, [], "Bearer\x00"])
def test_other_token_types_are_not_served(token_type: object) -> None:
    """T16: a token of a type that we cannot use is not granted; the refresh token is kept."""
    outcome = read(complete(token_type=token_type))
    assert (outcome.kind, outcome.salvaged_refresh_token) == (IN_DOUBT, "rt-2")
    assert outcome.warnings == ("token_type_unknown",)


@pytest.mark.parametrize(
    ("token", "kept", "warnings"),
    [
        (None, None, ()),
        ("", None, ()),
        ("rt-2", "rt-2", ()),
        ("with space", "with space", ()),
        (17, None, ("refresh_token_unusable",)),
        (False, None, ("refresh_token_unusable",)),
        ([], None, ("refresh_token_unusable",)),
        ("x" * 100_000, None, ("refresh_token_unusable",)),
        ("   ", None, ("refresh_token_unusable",)),
        ("rt\x00", None, ("refresh_token_unusable",)),
        ("rt\r\n", None, ("refresh_token_unusable",)),
        ("rté", None, ("refresh_token_unusable",)),
    ],
)
def test_refresh_tokens(token: object, kept: str | None, warnings: tuple[str, ...]) -> None:
    """T17: an absent or unusable refresh token keeps the one in hand."""
    outcome = read(complete(refresh_token=token))
    assert outcome.granted == replace(GRANTED, refresh_token=kept)
    assert outcome.warnings == warnings


@pytest.mark.parametrize(
    ("scope", "scopes", "warnings"),
    [
        ("read", ("read",), ()),
        ("read write admin", ("read", "write", "admin"), ()),
        ("read,write", ("read", "write"), ()),
        ("read, write", ("read", "write"), ()),
        ("  read   write ", ("read", "write"), ()),
        ("read read", ("read",), ()),
        ("", (), ()),
        (["read", "write"], ("read", "write"), ()),
        ([], (), ()),
        (None, None, ()),
        ([1], None, ("scope_unusable",)),
        (["read write"], None, ("scope_unusable",)),
        (17, None, ("scope_unusable",)),
        ({"read": True}, None, ("scope_unusable",)),
        ("read\x00", None, ("scope_unusable",)),
        ("r\ud800", None, ("scope_unusable",)),
        ("lesen-für-alle", None, ("scope_unusable",)),
        ("x" * 100_000, None, ("scope_unusable",)),
        (["x" * 100_000], None, ("scope_unusable",)),
    ],
)
def test_scopes(scope: object, scopes: tuple[str, ...] | None, warnings: tuple[str, ...]) -> None:
    """T18: the scope is stored as granted, in whatever form it comes."""
    outcome = read(complete(scope=scope))
    assert outcome.granted == replace(GRANTED, scopes=scopes)
    assert outcome.warnings == warnings


def test_a_comma_may_belong_to_a_scope() -> None:
    """RFC 6749 3.3 allows commas in a scope: where one is asked for, none separates."""
    provider = replace(PROVIDER, scopes=("a,b",))
    granted = read(complete(scope="a,b c"), provider=provider).granted
    assert granted is not None
    assert granted.scopes == ("a,b", "c")


def test_the_providers_own_separator_separates() -> None:
    """A provider whose scopes are joined by another character answers with it."""
    granted = read(complete(scope="a|b"), provider=replace(PROVIDER, scope_separator="|")).granted
    assert granted is not None
    assert granted.scopes == ("a", "b")


SLACK = replace(
    PROVIDER,
    token_response={
        "access_token": jmespath.compile("authed_user.access_token"),
        "refresh_token": jmespath.compile("authed_user.refresh_token"),
        "expires_in": jmespath.compile("authed_user.expires_in"),
        "scope": jmespath.compile("authed_user.scope"),
        "token_type": jmespath.compile("'Bearer'"),
    },
)


def test_nested_replies_are_selected() -> None:
    """A selector finds its member; what stands in the member's usual place does not count."""
    user = {
        "access_token": "at-1",
        "refresh_token": "rt-2",
        "expires_in": 3600,
        "scope": "read,write",
    }
    body = {"ok": True, "access_token": "bot", "token_type": "bot", "authed_user": user}
    assert read(body, provider=SLACK).granted == GRANTED


def test_a_selector_that_finds_nothing_hides_the_member() -> None:
    """The bot's token is not served where the user's was asked for."""
    body = {"ok": True, "access_token": "bot", "token_type": "bot", "scope": "x"}
    assert read(body, provider=SLACK).kind is IN_DOUBT


def test_a_selected_error_counts() -> None:
    """Where a provider names its error otherwise, a selector finds it."""
    provider = replace(PROVIDER, token_response={"error": jmespath.compile("status")})
    outcome = read({"status": "BAD_REFRESH_TOKEN"}, status=400, provider=provider)
    assert (outcome.kind, outcome.error) == (REAUTHORIZE, "BAD_REFRESH_TOKEN")


@pytest.mark.parametrize("selector", ["abs(access_token)", "ceil(expires_in)", "join(scope, [])"])
def test_a_selector_that_fails_finds_nothing(selector: str) -> None:
    """A selector's own failure is the member's absence."""
    provider = replace(PROVIDER, token_response={"expires_in": jmespath.compile(selector)})
    body = b'{"access_token": "at-1", "token_type": "Bearer", "expires_in": Infinity}'
    granted = read(body, provider=provider).granted
    assert granted is not None
    assert granted.expires_in is None


@pytest.mark.parametrize(
    ("date", "warnings"),
    [
        ("Sat, 21 Nov 2026 12:01:59 GMT", ()),
        ("Sat, 21 Nov 2026 15:00:00 GMT", ("clock_skew",)),
        ("Sat, 21 Nov 2026 09:00:00 GMT", ("clock_skew",)),
        ("yesterday", ()),
    ],
)
def test_a_provider_with_another_clock(date: str, warnings: tuple[str, ...]) -> None:
    """T28: a provider's clock changes nothing but is told."""
    outcome = read(COMPLETE, headers={"Date": date})
    assert (outcome.granted, outcome.warnings) == (GRANTED, warnings)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
members = st.fixed_dictionaries(
    {},
    optional={
        name: json_values | st.sampled_from(["Bearer", "at", "invalid_grant", "3600", "a b"])
        for name in (*COMPLETE, "error")
    },
)
bodies = st.binary(max_size=200) | members.map(lambda reply: json.dumps(reply).encode())
header_maps = st.dictionaries(
    st.sampled_from(["Retry-After", "date", "Content-Length"]) | st.text(max_size=8), st.text()
)


@given(status=st.integers(0, 700) | st.just(200), headers=header_maps, body=bodies)
def test_every_reply_has_one_outcome(status: int, headers: dict[str, str], body: bytes) -> None:
    """Whatever comes, there is an outcome, and a granted token may stand in a header."""
    outcome = read(body, status=status, headers=headers)
    assert (outcome.granted is not None) == (outcome.kind is OK)
    assert (outcome.reason is None) == (outcome.kind is OK)
    assert outcome.description or outcome.kind is OK
    assert outcome.error is None or (outcome.error.isascii() and outcome.error.isprintable())
    assert outcome.retry_after is None or 1 <= outcome.retry_after <= 3600
    if outcome.granted is not None:
        token = outcome.granted.access_token
        assert token.isascii()
        assert token.isprintable()
        assert " " not in token
        assert outcome.granted.expires_in is None or abs(outcome.granted.expires_in) < 4e8


@given(
    status=st.sampled_from([200, 201, 400, 401, 500]),
    change=st.dictionaries(st.sampled_from([*COMPLETE, "error"]), json_values, max_size=2),
)
def test_no_outcome_shows_a_secret(status: int, change: dict[str, object]) -> None:
    """The tokens of a reply are in no outcome's repr."""
    reply = {"access_token": "canary-at", "refresh_token": "canary-rt"} | change
    assert "canary" not in repr(read(reply, status=status))
    echoed = reply | {"error": "you sent canary-rt"}
    assert "canary" not in repr(read(echoed, status=status, sent=("canary-rt",)))
