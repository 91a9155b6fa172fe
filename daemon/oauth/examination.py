"""[test] What the reply to a test request says. Pure.

The one hard idea: only a 401 speaks of the token. Everything else (a missing value, a host that is
not allowed, the network, another status) says that the test did not work, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from daemon.domain.allowed_hosts import HostNotAllowedError
from daemon.domain.connection import Failure, TestResult
from daemon.domain.provider import TestRequest
from daemon.domain.reply import Fault, NoReply, RawReply
from daemon.domain.templates import TemplateError
from daemon.oauth.reply_body import json_value, select
from daemon.oauth.reply_members import without_tokens

_SUCCESSES = range(200, 300)
_REDIRECTS = range(300, 400)
_SERVER_ERRORS = range(500, 600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """What a test request came to.

    ``is_refused`` says that the token itself was refused. ``me`` is the reply as JSON, without
    what repeats the token; ``None`` where it has none, and then ``has_me`` is false.
    """

    result: TestResult
    is_refused: bool = False
    me: Any = field(default=None, repr=False)
    has_me: bool = False


def judge(
    reply: RawReply | NoReply,
    test: TestRequest,
    *,
    access_token: str,
    now: datetime,
) -> Examined:
    """Return what a reply says. A 2xx for which ``expect`` holds is good; never raises.

    ``expect`` is asked of the reply's own members, with ``me`` beside them for the whole reply;
    what it finds must not be null, false, 0 or empty.
    """
    if isinstance(reply, NoReply):
        return failed(*_UNANSWERED.get(reply.fault, _NETWORK), now=now)
    if reply.status == HTTPStatus.UNAUTHORIZED:
        return failed(*TOKEN_REFUSED, now=now, status=reply.status, is_refused=True)
    if reply.status not in _SUCCESSES:
        return failed("http_status", _status_words(reply.status), now=now, status=reply.status)
    me, has_me = read_me(reply.body, access_token)
    if test.expect is not None:
        if not has_me:
            return failed(*_UNEXPECTED, now=now, status=reply.status)
        members = me if isinstance(me, dict) else {}
        if not select(test.expect, {**members, "me": me}):
            return failed(*_NOT_AS_EXPECTED, now=now, status=reply.status)
    result = TestResult(ok=True, status=reply.status, checked_at=now)
    return Examined(result=result, me=me, has_me=has_me)


def failed(
    code: str,
    description: str,
    *,
    now: datetime,
    status: int | None = None,
    is_refused: bool = False,
) -> Examined:
    """Return a test that did not go well; ``description`` is a sentence safe to show."""
    failure = Failure(code=code, description=description, at=now)
    result = TestResult(ok=False, status=status, checked_at=now, error=failure)
    return Examined(result=result, is_refused=is_refused)


def unsendable(error: TemplateError | HostNotAllowedError, *, now: datetime) -> Examined:
    """Return the result of a test request that could not be built."""
    if isinstance(error, HostNotAllowedError):
        return failed("host_not_allowed", str(error), now=now)
    description = (
        f"The test request cannot be built: {error}. Set the field on the connection, or connect "
        "again where the value comes from a reply."
    )
    return failed("value_missing", description, now=now)


def read_me(body: bytes, access_token: str) -> tuple[Any, bool]:
    """Return a reply's JSON less what repeats the token, and whether it is JSON."""
    try:
        return without_tokens(json_value(body), [access_token]), True
    except (ValueError, RecursionError):
        return None, False


TOKEN_REFUSED = (
    "token_refused",
    (
        "The provider's API refused the token (status 401): it was revoked, or it is not meant for "
        "this API."
    ),
)
_UNEXPECTED = (
    "unexpected_reply",
    (
        "The provider's API did not answer the test request with JSON. Check the test request's "
        "path or url."
    ),
)
_NOT_AS_EXPECTED = (
    "expect_failed",
    "The provider's API answered the test request, but not with what `expect` asks for.",
)
_NETWORK = (
    "network",
    (
        "The provider's API could not be reached. Check its URL, this machine's network and DNS, "
        "and any firewall between."
    ),
)
_TIMEOUT = ("timeout", "The provider's API did not answer the test request in time.")
_UNREADABLE = (
    "unexpected_reply",
    (
        "The provider's API answered the test request with something that is too large or not "
        "readable HTTP. Check the test request's path or url."
    ),
)
_UNANSWERED: Mapping[Fault, tuple[str, str]] = MappingProxyType(
    {
        Fault.ADDRESS: (
            "address_refused",
            (
                "The host of the provider's API has only private or otherwise special addresses, "
                "so nothing was sent. If that is right, set allow_private_hosts: true for this "
                "provider."
            ),
        ),
        Fault.CERTIFICATE: (
            "network",
            (
                "The TLS certificate of the provider's API is not valid for its host, so nothing "
                "was sent. Check the URL and this machine's trusted certificates and clock."
            ),
        ),
        Fault.TIMEOUT: _TIMEOUT,
        Fault.OVERSIZE: _UNREADABLE,
        Fault.MALFORMED: _UNREADABLE,
    }
)


def _status_words(status: int) -> str:
    said = f"The provider's API answered the test request with status {status}"
    if status == HTTPStatus.FORBIDDEN:
        return f"{said}: the token may not do this. Check the scopes that were granted."
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return f"{said}: too many requests. Test again later."
    if status in _REDIRECTS:
        return f"{said}, a redirect, which is never followed. Configure the URL it leads to."
    if status in _SERVER_ERRORS:
        return f"{said}: it has a problem of its own. Test again later."
    return f"{said}. Check the test request's method, path or url, and body."
