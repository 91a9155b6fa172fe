"""Reading what a browser brings back: strict, and without sending anything anywhere."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.authorization import PendingAuthorization
from daemon.domain.provider import Endpoints, Provider
from daemon.oauth.authorization import fingerprint
from daemon.oauth.authorization_errors import Fault
from daemon.oauth.authorization_response import (
    MAX_RESPONSE,
    AcceptedCode,
    CallbackParams,
    CallbackRejection,
    judge_response,
    parse_callback,
    transaction_fault,
)
from daemon.oauth.query import with_query
from tests.support.authorization import ACME, ISSUER, START

STATE = "s" * 43
BROWSER = "b" * 43
AUTHORIZATION = PendingAuthorization(
    state_hash=fingerprint(STATE),
    connection_id="acme-1",
    provider="acme",
    issuer=ISSUER,
    token_endpoint=f"{ISSUER}/token",
    redirect_uri="http://localhost:7421/callback",
    code_verifier="v" * 43,
    browser_hash=fingerprint(BROWSER),
    scopes=("read",),
    return_url=None,
    expires_at=START + timedelta(minutes=10),
)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (f"code=c&state={STATE}", CallbackParams(state=STATE, code="c")),
        (f"code=a%2Fb+c%20d&state={STATE}", CallbackParams(state=STATE, code="a/b c d")),
        (f"state={STATE}&error=access_denied", CallbackParams(state=STATE, error="access_denied")),
        (
            f"code=c&state={STATE}&iss=https%3A%2F%2Fa.example",
            CallbackParams(state=STATE, code="c", iss="https://a.example"),
        ),
        (f"code=c&state={STATE}&iss=", CallbackParams(state=STATE, code="c", iss="")),
        (f"code=c&state={STATE}&error=", CallbackParams(state=STATE, code="c")),
        (f"code=&state={STATE}&error=x", CallbackParams(state=STATE, error="x")),
        (f"&&code=c&&state={STATE}&", CallbackParams(state=STATE, code="c")),
        (f"code=c&state={STATE}&x=1&x=2&y", CallbackParams(state=STATE, code="c")),
        (
            f"code=c&state={STATE}&code[]=d&Code=e",
            CallbackParams(state=STATE, code="c", others={"Code": "e"}),
        ),
        # Azure's descriptions have line breaks, others are not UTF-8: nobody reads them.
        (
            f"error=x&state={STATE}&error_description=a%0D%0ATrace&error_uri=%E9%00",
            CallbackParams(state=STATE, error="x"),
        ),
        (f"code={'c' * 4096}&state={STATE}", CallbackParams(state=STATE, code="c" * 4096)),
        (f"code=%F0%9F%94%91&state={STATE}", CallbackParams(state=STATE, code="\U0001f511")),
    ],
)
def test_a_well_formed_response_is_read(raw: str, expected: CallbackParams) -> None:
    """What RFC 6749 4.1.2 allows is understood, unknown parameters are ignored."""
    assert parse_callback(raw) == expected


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "code=c",
        "code=c&state=",
        "code=c&state=short",
        f"code=c&state={STATE}&state={STATE}",
        f"code=c&state={STATE}&state=",
        f"code=c&state={STATE}%00",
        f"code=c&state%5B%5D={STATE}",
        f"code=%zz&state={STATE}",
        f"code=c%&state={STATE}",
        f"code=c&state={STATE}&x=%f",
        f"code=a b&state={STATE}",
        f"code=\x00&state={STATE}",
        f"code=c\r\n&state={STATE}",
        f"code=\udc80&state={STATE}",
        f"code=ä&state={STATE}",
        f"code={'c' * MAX_RESPONSE}&state={STATE}",
    ],
)
def test_an_unreadable_response_names_no_transaction(raw: str) -> None:
    """Without exactly one well-formed state in a well-formed query, nothing is looked up."""
    assert parse_callback(raw) == CallbackRejection(state=None)


@pytest.mark.parametrize(
    "raw",
    [
        f"state={STATE}",
        f"code=&state={STATE}",
        f"code[]=c&state={STATE}",
        f"code=a&code=b&state={STATE}",
        f"code=a&code=a&state={STATE}",
        f"code=a&c%6Fde=b&state={STATE}",
        f"error=a&error=b&state={STATE}",
        f"code=c&iss=a&iss=b&state={STATE}",
        f"code=c&error=access_denied&state={STATE}",
        f"code=a%00b&state={STATE}",
        f"code=a%0d%0ab&state={STATE}",
        f"code=%ED%A0%80&state={STATE}",
        f"code=%C3&state={STATE}",
        f"code=c&iss=%00&state={STATE}",
        f"error=%1b&state={STATE}",
    ],
)
def test_a_contradictory_response_still_names_its_transaction(raw: str) -> None:
    """A response no honest provider sends is refused, and the state in it will be used up."""
    assert parse_callback(raw) == CallbackRejection(state=STATE)


MANY = "&".join(f"p{number:02}=v" for number in range(30))


@pytest.mark.parametrize(
    ("raw", "others"),
    [
        ("realmId=42&x.y=1", {"realmId": "42", "x.y": "1"}),
        ("a=%C3%A9+b", {"a": "é b"}),
        ("a=1&a=2&b=3", {"b": "3"}),
        ("a=&b", {}),
        ("a=%00&b=%0a&c=%ff&d=1", {"d": "1"}),
        (f"a={'x' * 1024}&b={'x' * 1025}", {"a": "x" * 1024}),
        ("a%20b=1&-x=1&1x=1&%C3%A9=1&a[]=1", {}),
        (f"{'n' * 64}=1&{'n' * 65}=1", {"n" * 64: "1"}),
        ("error_description=a&error_uri=b&access_token=c&id_token=d&token_type=e", {}),
        (MANY, {f"p{number:02}": "v" for number in range(20)}),
    ],
)
def test_other_parameters_are_kept_within_bounds(raw: str, others: dict[str, str]) -> None:
    """S16: up to 20 names for templates, each once, of up to 1 KiB; the rest never fails it."""
    expected = CallbackParams(state=STATE, code="c", others=others)

    assert parse_callback(f"code=c&state={STATE}&{raw}") == expected
    assert parse_callback(f"{raw}&state={STATE}&code=c") == expected


def test_other_parameters_are_not_shown() -> None:
    """They may be anything, so they are in no log."""
    assert "canary" not in repr(CallbackParams(state=STATE, code="c", others={"x": "canary"}))


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_.-]{0,8}", fullmatch=True).filter(
            lambda name: name not in {"code", "state", "iss", "error"}
        ),
        st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20),
        max_size=5,
    )
)
def test_a_form_post_becomes_the_same_query(others: dict[str, str]) -> None:
    """What a ``form_post`` brought goes through a redirect of ours and comes out equal."""
    kept = {name: value for name, value in others.items() if name != "access_token"}
    params = CallbackParams(state=STATE, code="c/ +", iss=ISSUER, others=kept)

    query = with_query("", params.as_query()).removeprefix("?")

    assert parse_callback(query) == params


@given(st.text())
def test_any_text_is_read_without_an_error(raw: str) -> None:
    """No query string can make the reader raise; what it accepts has one of code and error."""
    params = parse_callback(raw)

    assert isinstance(params, CallbackRejection) or (params.code is None) != (params.error is None)


@given(code=st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), min_size=1))
def test_any_printable_code_survives(code: str) -> None:
    """A code is opaque: it comes out as the provider put it in."""
    encoded = "".join(f"%{ord(character):02x}" for character in code)

    assert parse_callback(f"code={encoded}&state={STATE}") == CallbackParams(state=STATE, code=code)


def test_a_response_hides_its_secrets() -> None:
    """Neither code nor state shows in what might be logged."""
    shown = repr(CallbackParams(state=STATE, code="code-canary"))

    assert "code-canary" not in shown
    assert STATE not in shown


@pytest.mark.parametrize(
    ("binding", "age", "expected"),
    [
        (BROWSER, timedelta(0), None),
        (BROWSER, timedelta(minutes=9, seconds=59), None),
        (BROWSER, timedelta(minutes=10), Fault("expired_state")),
        (None, timedelta(0), Fault("other_browser")),
        ("", timedelta(0), Fault("other_browser")),
        ("c" * 43, timedelta(0), Fault("other_browser")),
        ("ä" * 43, timedelta(0), Fault("other_browser")),
    ],
)
def test_only_the_browser_that_started_may_end_it_in_time(
    binding: str | None, age: timedelta, expected: Fault | None
) -> None:
    """Another browser, no cookie, or ten minutes end a transaction."""
    assert transaction_fault(AUTHORIZATION, binding, START + age) == expected


CODE = CallbackParams(state=STATE, code="c", iss=ISSUER)
DENIED = CallbackParams(state=STATE, error="access_denied", iss=ISSUER)
FORGED = Fault("issuer_mismatch")


@pytest.mark.parametrize(
    ("params", "provider", "expected"),
    [
        (CODE, ACME, AcceptedCode(ACME, "c")),
        (replace(CODE, iss=None), ACME, AcceptedCode(ACME, "c")),
        (replace(CODE, iss=ISSUER + "/"), ACME, FORGED),
        (replace(CODE, iss=ISSUER.upper()), ACME, FORGED),
        (replace(CODE, iss=""), ACME, FORGED),
        (replace(DENIED, iss="https://evil.example"), ACME, FORGED),
        (replace(CODE, iss=None), replace(ACME, requires_iss=True), FORGED),
        (replace(DENIED, iss=None), replace(ACME, requires_iss=True), FORGED),
        (
            CODE,
            replace(ACME, requires_iss=True),
            AcceptedCode(replace(ACME, requires_iss=True), "c"),
        ),
        (DENIED, ACME, Fault("access_denied", from_provider=True)),
        (DENIED, None, Fault("access_denied", from_provider=True)),
        (CODE, None, Fault("provider_not_configured")),
        (CODE, replace(ACME, issuer="https://b.example"), Fault("provider_not_configured")),
        (
            CODE,
            replace(ACME, endpoints=Endpoints(token="https://b.example/token")),
            Fault("provider_not_configured"),
        ),
        (
            CODE,
            replace(ACME, endpoints=Endpoints()),
            AcceptedCode(replace(ACME, endpoints=Endpoints()), "c"),
        ),
    ],
)
def test_a_response_is_judged_before_anything_is_sent(
    params: CallbackParams, provider: Provider | None, expected: AcceptedCode | Fault
) -> None:
    """``iss`` is compared byte for byte, on errors too, and the provider must be the same."""
    assert judge_response(AUTHORIZATION, params, provider) == expected


def test_an_issuer_nobody_knows_is_not_compared() -> None:
    """Without a configured issuer the pinned token endpoint alone decides where a code goes."""
    nameless = replace(ACME, issuer=None)

    judged = judge_response(replace(AUTHORIZATION, issuer=None), CODE, nameless)

    assert judged == AcceptedCode(nameless, "c")
