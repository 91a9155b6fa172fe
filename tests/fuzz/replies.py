"""What providers answer: token replies, waits, revocations, metadata."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import jmespath
from pydantic import SecretStr
from yarl import URL

from daemon.catalog.metadata import Metadata, is_safe_endpoint, metadata_urls, read_metadata
from daemon.config.settings import Refresh
from daemon.domain.claim import Claim
from daemon.domain.connection import Status
from daemon.domain.errors import DiscoveryError
from daemon.domain.outcome import Granted, Outcome, OutcomeKind
from daemon.domain.provider import Provider, RevocationAuthentication, RevocationRequest
from daemon.domain.reply import Fault, NoReply, RawReply
from daemon.domain.templates import look_up
from daemon.domain.tokens import TokenSet
from daemon.oauth.retry_after import http_date, retry_after
from daemon.oauth.revocation import AnswerKind, read_answer
from daemon.oauth.token_reply import read_reply
from daemon.refresh import policy

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
SENT = "sent-refresh-token-canary"
ISSUER = "https://as.example"
_PLAIN = Provider(name="acme", client_id="us", client_secrets=(SecretStr("s"),), scopes=("read",))
_NAMES = ("token.a", "token.id.x", "token.team.id", "token.list[0].id", "token.expires_in")
_NAMING = replace(_PLAIN, reply_names=frozenset(_NAMES))
_PROVIDERS = (
    _NAMING,
    replace(_NAMING, scopes=("a,b",), tokens_never_expire=True),
    replace(_PLAIN, scope_separator=","),
    replace(
        _NAMING,
        token_response={
            "access_token": jmespath.compile("authed_user.access_token"),
            "expires_in": jmespath.compile("max(times)"),
            "scope": jmespath.compile("join(' ', scopes)"),
        },
    ),
)
_REVOKERS = (
    _PLAIN,
    replace(
        _PLAIN,
        revocation_request=RevocationRequest(authentication=RevocationAuthentication.BEARER),
    ),
)
_BEFORE = TokenSet(
    generation=3,
    access_token="old",
    refresh_token=SENT,
    token_type="Bearer",
    scopes=("read",),
    issued_at=NOW - timedelta(minutes=50),
    expires_at=NOW + timedelta(minutes=10),
)
_CLAIM = Claim(
    connection_id="c",
    provider="acme",
    attempt="a",
    status=Status.ACTIVE,
    tokens=_BEFORE,
    requested_scopes=("read",),
    was_in_doubt=False,
    failures=0,
    planned_at=NOW,
    delay=0.0,
)
_CODE = re.compile(r"[\x20-\x7e]{1,64}", re.ASCII)
_LONGEST_LIFETIME = 3_650 * 86_400.0
_LONG_ENOUGH_TO_LOOK_FOR = 8


def token_reply(data: bytes) -> None:
    """``STATUS WORD`` and header lines, an empty line, a body: one outcome, nothing of it secret.

    The length of the word picks a provider.
    """
    status, word, headers, body = _message(data)
    provider = _PROVIDERS[len(word) % len(_PROVIDERS)]
    outcome = read_reply(
        status=status, headers=headers, body=body, provider=provider, now=NOW, sent=(SENT,)
    )
    _check_outcome(outcome)
    # Whatever was read can be planned with and stored.
    decision = policy.decide(_CLAIM, outcome, provider, Refresh(), sent_at=NOW, now=NOW, chance=0.5)
    due = decision.settlement.due_at
    dead = outcome.kind is OutcomeKind.REAUTHORIZE
    assert dead or due is None or due > NOW, "due at once: a hot loop"


def _check_outcome(outcome: Outcome) -> None:
    assert (outcome.granted is not None) == (outcome.kind is OutcomeKind.OK)
    assert (outcome.reason is None) == (outcome.kind is OutcomeKind.OK)
    assert outcome.retry_after is None or 1 <= outcome.retry_after <= 3600
    assert outcome.error is None or _CODE.fullmatch(outcome.error)
    assert outcome.description.isprintable()
    assert SENT not in repr(outcome)
    saved = outcome.salvaged_refresh_token
    assert saved is None or (saved.isascii() and saved.isprintable())
    if outcome.granted is not None:
        _check_granted(outcome.granted)


def _check_granted(granted: Granted) -> None:
    access, refresh = granted.access_token, granted.refresh_token
    assert access
    assert all("!" <= letter <= "~" for letter in access)
    assert granted.token_type == "Bearer"
    assert refresh is None or (refresh.strip() and refresh.isascii() and refresh.isprintable())
    assert granted.expires_in is None or abs(granted.expires_in) <= _LONGEST_LIFETIME
    assert all(scope and " " not in scope for scope in granted.scopes or ())
    json.dumps(granted.members, allow_nan=False)
    secrets = [s for s in (access, refresh, SENT) if s and len(s) >= _LONG_ENOUGH_TO_LOOK_FOR]
    for text in _texts(granted.members):
        assert not any(secret in text for secret in secrets), "a token is kept with the members"
    for name in _NAMES:
        value = look_up(name, {"token": granted.members})
        assert value is None or "\0" not in value.encode().decode()


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, member in value.items():
            yield str(key)
            yield from _texts(member)
    elif isinstance(value, list):
        for member in value:
            yield from _texts(member)
    else:
        yield value if isinstance(value, str) else json.dumps(value)


def waits(data: bytes) -> None:
    """``Retry-After`` and ``Date``, a line each: from 1 s to 1 h, or nothing."""
    text = data.decode("utf-8", "surrogateescape")
    value, separator, date = text.partition("\n")
    seconds = retry_after(value, date if separator else None, NOW)
    assert seconds is None or 1.0 <= seconds <= 3600.0
    for each in (value, date):
        moment = http_date(each, NOW)
        assert moment is None or moment.tzinfo is UTC
    if seconds is not None and not value.strip(" \t").isdecimal():
        assert http_date(value, NOW) is not None


def revocation_reply(data: bytes) -> None:
    """As a token reply, or ``fault NAME``: the token is gone, or is asked for again."""
    status, word, headers, body = _message(data)
    provider = _REVOKERS[len(word) % len(_REVOKERS)]
    fault = next((each for each in Fault if data == f"fault {each}".encode()), None)
    reply: RawReply | NoReply = RawReply(status=status, headers=headers, body=body)
    if fault is not None:
        reply = NoReply(sent=True, fault=fault)
    answer = read_answer(reply, provider=provider, now=NOW)
    assert (answer.kind is AnswerKind.LATER) == bool(answer.error)
    assert answer.retry_after is None or 1 <= answer.retry_after <= 3600
    assert answer.error.isascii()
    assert answer.error.isprintable()
    if isinstance(reply, RawReply) and reply.status >= 500:
        assert answer.kind is not AnswerKind.REVOKED or b"error" in reply.body


def metadata(data: bytes) -> None:
    """A metadata document counts whole or not at all; each endpoint in it may see a secret."""
    try:
        found = read_metadata(ISSUER, data)
    except DiscoveryError as error:
        assert str(error).isprintable()
        assert "canary" not in str(error)
    else:
        _check_metadata(found)
    text = data.decode("utf-8", "replace")
    if is_safe_endpoint(text):
        _check_endpoint(text)
        assert metadata_urls(text)


def _check_metadata(found: Metadata) -> None:
    assert found.issuer == ISSUER
    assert found.token_endpoint
    for url in (
        found.token_endpoint,
        found.authorization_endpoint,
        found.revocation_endpoint,
        found.introspection_endpoint,
    ):
        if url is not None:
            _check_endpoint(url)


def _check_endpoint(url: str) -> None:
    """What checks a URL and what opens it must mean the same host."""
    parts = urlsplit(url)
    assert parts.scheme in {"https", "http"}
    try:
        opened = URL(url)
    except ValueError:
        return
    assert opened.user is None
    assert not opened.fragment
    # The one writes an IPv6 address out, the other not.
    host = parts.hostname or ""
    if ":" not in host:
        assert (opened.raw_host or "") == host, f"{opened.raw_host} is opened, {host} was checked"


def _message(data: bytes) -> tuple[int, str, dict[str, str], bytes]:
    head, _, body = data.partition(b"\n\n")
    first, *lines = head.decode("utf-8", "surrogateescape").split("\n")
    digits, _, word = first.partition(" ")
    is_status = len(digits) == 3 and digits.isascii() and digits.isdigit()
    pairs = (line.partition(":") for line in lines if ":" in line)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    return int(digits) if is_status else 200, word, headers, body
