"""How a token is revoked, and what each answer of a provider says of it."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from daemon.domain.provider import (
    ClientAuthentication,
    Provider,
    RequestFormat,
    RevocationAuthentication,
    RevocationRequest,
)
from daemon.domain.reply import Fault, NoReply, RawReply
from daemon.oauth.revocation import (
    Answer,
    AnswerKind,
    RevocationEndpoint,
    encode_revocation,
    read_answer,
)
from tests.support.clock import FakeClock
from tests.support.telemetry import NOW

URL = "https://auth.acme.example/revoke"
SECRET = SecretStr("s:1")
ACME = Provider(name="acme", client_id="client", client_secrets=(SECRET,))
BASIC = "Basic " + b64encode(b"client:s%3A1").decode()
BEARER = replace(
    ACME,
    revocation_request=RevocationRequest(authentication=RevocationAuthentication.BEARER),
)


def asking(**changes: Any) -> Provider:
    """Return a provider whose revocation requests differ from RFC 7009."""
    return replace(ACME, revocation_request=RevocationRequest(**changes))


@dataclass(frozen=True)
class Sent:
    """What is expected to go out."""

    method: str = "POST"
    url: str = URL
    authorization: str | None = BASIC
    content_type: str | None = "application/x-www-form-urlencoded"
    body: Mapping[str, str] | None = field(
        default_factory=lambda: {"token": "rt-1", "token_type_hint": "refresh_token"}
    )


DELETE_FORM = asking(method="DELETE")
REQUESTS: dict[str, tuple[Provider, Sent]] = {
    "RFC 7009": (ACME, Sent()),
    "secret in the body": (
        replace(ACME, token_endpoint_auth_method=ClientAuthentication.CLIENT_SECRET_POST),
        Sent(
            authorization=None,
            body={
                "token": "rt-1",
                "token_type_hint": "refresh_token",
                "client_id": "client",
                "client_secret": "s:1",
            },
        ),
    ),
    "public client": (
        replace(ACME, token_endpoint_auth_method=ClientAuthentication.NONE),
        Sent(
            authorization=None,
            body={"token": "rt-1", "token_type_hint": "refresh_token", "client_id": "client"},
        ),
    ),
    "without a hint": (asking(sends_hint=False), Sent(body={"token": "rt-1"})),
    "other names": (
        asking(token_param="refresh_token", sends_hint=False, params={"everywhere": "1"}),
        Sent(body={"refresh_token": "rt-1", "everywhere": "1"}),
    ),
    "params never replace ours": (
        asking(params={"token": "x", "token_type_hint": "y"}),
        Sent(),
    ),
    "JSON": (asking(format=RequestFormat.JSON), Sent(content_type="application/json")),
    "the token is the credential": (BEARER, Sent(authorization="Bearer rt-1")),
    "only the header": (
        asking(authentication=RevocationAuthentication.BEARER, token_param=None, sends_hint=False),
        Sent(authorization="Bearer rt-1", body={}),
    ),
    "nobody says who": (
        asking(authentication=RevocationAuthentication.NONE),
        Sent(authorization=None),
    ),
    "GET": (
        asking(method="GET"),
        Sent(
            method="GET",
            url=f"{URL}?token=rt-1&token_type_hint=refresh_token",
            content_type=None,
            body=None,
        ),
    ),
    "DELETE": (
        DELETE_FORM,
        Sent(
            method="DELETE",
            url=f"{URL}?token=rt-1&token_type_hint=refresh_token",
            content_type=None,
            body=None,
        ),
    ),
    "DELETE, with JSON": (
        asking(method="DELETE", format=RequestFormat.JSON),
        Sent(method="DELETE", content_type="application/json"),
    ),
    "a secret is never in a URL": (
        replace(DELETE_FORM, token_endpoint_auth_method=ClientAuthentication.CLIENT_SECRET_POST),
        Sent(
            method="DELETE",
            url=f"{URL}?token=rt-1&token_type_hint=refresh_token",
            content_type=None,
            body=None,
        ),
    ),
    "a bare GET": (
        asking(
            method="GET",
            authentication=RevocationAuthentication.BEARER,
            token_param=None,
            sends_hint=False,
        ),
        Sent(method="GET", authorization="Bearer rt-1", content_type=None, body=None),
    ),
}


def _read(content_type: str | None, body: bytes | None) -> Mapping[str, str] | None:
    if body is None:
        return None
    if content_type == "application/json":
        document: dict[str, str] = json.loads(body)
        return document
    return dict(parse_qsl(body.decode()))


@pytest.mark.parametrize("name", REQUESTS)
def test_what_is_sent(name: str) -> None:
    """R1: RFC 7009 by default, and whatever a provider wants instead."""
    provider, expected = REQUESTS[name]
    message = encode_revocation(
        provider, URL, secret=SECRET, token="rt-1", token_type_hint="refresh_token"
    )
    content_type = message.headers.get("Content-Type")
    assert (
        Sent(
            method=message.method,
            url=message.url,
            authorization=message.headers.get("Authorization"),
            content_type=content_type,
            body=_read(content_type, message.body),
        )
        == expected
    )
    assert "rt-1" not in repr(message)


def test_the_endpoints_own_query_is_kept() -> None:
    """What the operator configured stays, byte for byte, and the token is encoded behind it."""
    message = encode_revocation(
        asking(method="GET"), f"{URL}?v=%7E1", secret=SECRET, token="a&b", token_type_hint="x"
    )
    assert message.url == f"{URL}?v=%7E1&token=a%26b&token_type_hint=x"
    assert urlsplit(message.url).path == "/revoke"


def reply(status: int, body: object = b"", **headers: str) -> RawReply:
    """Return a reply; a body that is no bytes is sent as JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return RawReply(status=status, headers=named, body=raw)


def error(status: int, code: object) -> RawReply:
    """Return an error of RFC 6749 5.2."""
    return reply(status, {"error": code})


# The reply; what it says; whether the configuration is to blame; whether it holds for all tokens.
ANSWERS: list[tuple[RawReply, AnswerKind, bool, bool]] = [
    (reply(200), AnswerKind.REVOKED, False, False),
    (reply(200, b"<html>"), AnswerKind.REVOKED, False, False),
    (error(200, "server_error"), AnswerKind.REVOKED, False, False),
    (reply(204), AnswerKind.REVOKED, False, False),
    (error(400, "invalid_token"), AnswerKind.REVOKED, False, False),
    (error(400, "invalid_grant"), AnswerKind.REVOKED, False, False),
    (error(400, "token_revoked"), AnswerKind.REVOKED, False, False),
    (reply(400, b"error=invalid_token"), AnswerKind.REVOKED, False, False),
    (error(400, "unsupported_token_type"), AnswerKind.UNSUPPORTED, False, False),
    (error(503, "unsupported_token_type"), AnswerKind.UNSUPPORTED, False, False),
    (error(401, "invalid_client"), AnswerKind.LATER, True, True),
    (error(400, "invalid_client"), AnswerKind.LATER, True, True),
    (error(400, "invalid_request"), AnswerKind.LATER, True, False),
    (error(400, "unauthorized_client"), AnswerKind.LATER, True, False),
    (error(400, "never_heard_of"), AnswerKind.LATER, True, False),
    (error(400, {"message": "x"}), AnswerKind.LATER, True, False),
    (reply(400), AnswerKind.LATER, True, False),
    (reply(401), AnswerKind.LATER, True, True),
    (reply(403, b"<html>"), AnswerKind.LATER, True, True),
    (reply(404), AnswerKind.LATER, True, False),
    (reply(405), AnswerKind.LATER, True, False),
    (reply(410), AnswerKind.LATER, True, False),
    (reply(408), AnswerKind.LATER, False, True),
    (reply(429), AnswerKind.LATER, False, True),
    (reply(500), AnswerKind.LATER, False, True),
    (reply(503), AnswerKind.LATER, False, True),
    (reply(599), AnswerKind.LATER, False, True),
    (reply(302), AnswerKind.LATER, True, True),
    (reply(100), AnswerKind.LATER, True, True),
]


@pytest.mark.parametrize(("raw", "kind", "is_ours", "is_general"), ANSWERS)
def test_what_an_answer_says(
    *, raw: RawReply, kind: AnswerKind, is_ours: bool, is_general: bool
) -> None:
    """R2, R3: 200 is done, whatever the body; a token that is dead is revoked; else ask again."""
    answer = read_answer(raw, provider=ACME, now=NOW)
    assert (answer.kind, answer.is_ours, answer.is_general) == (kind, is_ours, is_general)
    assert bool(answer.error) is (kind is AnswerKind.LATER)


@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_the_provider_says_when_to_ask_again(status: int) -> None:
    """RFC 7009 2.2.1: Retry-After is heard."""
    answer = read_answer(reply(status, retry_after="120"), provider=ACME, now=NOW)
    assert answer.retry_after == 120


@pytest.mark.parametrize("fault", list(Fault))
def test_no_answer_is_no_revocation(fault: Fault) -> None:
    """Whatever went wrong on the way, the token is taken to be alive."""
    answer = read_answer(NoReply(sent=True, fault=fault), provider=ACME, now=NOW)
    assert answer.kind is AnswerKind.LATER
    assert answer.is_general
    assert answer.is_ours is (fault is Fault.URL)


def test_a_token_that_is_its_own_credential() -> None:
    """401 means that the token is dead where the token itself asks, and our client elsewhere."""
    assert read_answer(reply(401), provider=BEARER, now=NOW).kind is AnswerKind.REVOKED
    assert read_answer(reply(401), provider=ACME, now=NOW).kind is AnswerKind.LATER
    denied = error(401, "invalid_client")
    assert read_answer(denied, provider=BEARER, now=NOW).kind is AnswerKind.LATER


@given(status=st.integers(100, 599), body=st.binary() | st.text().map(str.encode))
def test_no_answer_surprises(status: int, body: bytes) -> None:
    """Nothing that a provider sends raises, and only a 2xx or a known code ends a revocation."""
    answer = read_answer(reply(status, body), provider=ACME, now=NOW)
    assert (answer.kind is AnswerKind.REVOKED) is (200 <= status < 300)


@dataclass
class ScriptedSession:
    """Answers in order, the last one for ever."""

    clock: FakeClock
    answers: list[RawReply | NoReply]
    takes: float = 0.0
    sent: list[tuple[str, str | None, float]] = field(default_factory=list)

    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        *,
        hard_timeout: float,
    ) -> RawReply | NoReply:
        """Record the request."""
        assert (method, url, body is not None) == ("POST", URL, True)
        self.sent.append((url, headers.get("Authorization"), hard_timeout))
        self.clock.advance(self.takes)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


TWO_SECRETS = replace(ACME, client_secrets=(SECRET, SecretStr("new")))


@pytest.mark.parametrize(
    ("provider", "answers", "takes", "requests", "kind"),
    [
        (ACME, [reply(200)], 0, 1, AnswerKind.REVOKED),
        (TWO_SECRETS, [reply(200)], 0, 1, AnswerKind.REVOKED),
        (TWO_SECRETS, [error(401, "invalid_client"), reply(200)], 0, 2, AnswerKind.REVOKED),
        (TWO_SECRETS, [error(401, "invalid_client")], 0, 2, AnswerKind.LATER),
        (TWO_SECRETS, [error(401, "invalid_client")], 10, 1, AnswerKind.LATER),
        (TWO_SECRETS, [reply(503)], 0, 1, AnswerKind.LATER),
        (TWO_SECRETS, [reply(404)], 0, 1, AnswerKind.LATER),
        (
            replace(TWO_SECRETS, revocation_request=BEARER.revocation_request),
            [reply(403)],
            0,
            1,
            AnswerKind.LATER,
        ),
    ],
)
async def test_which_secrets_are_tried(
    *,
    provider: Provider,
    answers: list[RawReply | NoReply],
    takes: float,
    requests: int,
    kind: AnswerKind,
) -> None:
    """Another client secret is tried where the first was not accepted, within the time given."""
    clock = FakeClock()
    session = ScriptedSession(clock, list(answers), takes=takes)
    endpoint = RevocationEndpoint(session=session, clock=clock)
    answer = await endpoint.revoke(provider, URL, "rt-1", "refresh_token", hard_timeout=10)
    assert (answer.kind, len(session.sent)) == (kind, requests)
    assert len({authorization for _, authorization, _ in session.sent}) == requests
    assert isinstance(answer, Answer)
