"""[test] Token introspection (RFC 7662): the test of a token whose provider has no test request.

Our client asks, not the token's bearer. A 401 therefore speaks of the client, and only an
``active`` that is false says that the token is refused.
"""

from __future__ import annotations

from datetime import datetime
from http import HTTPStatus

from daemon.domain.connection import TestResult
from daemon.domain.provider import Provider, RequestFormat
from daemon.domain.reply import NoReply, RawReply
from daemon.oauth.examination import Examined, failed, read_me
from daemon.oauth.token_endpoint import TokenSession
from daemon.oauth.token_request import (
    CONTENT_TYPES,
    USER_AGENT,
    client_authentication,
    client_secrets,
    encoded_body,
)

_REVOKED = (
    "token_refused",
    "The provider says that the token is not active: it was revoked or has expired.",
)
_UNEXPECTED = (
    "unexpected_reply",
    (
        "The provider's introspection endpoint did not answer as RFC 7662 says. Check "
        "introspection_endpoint, or configure a test request."
    ),
)
_CLIENT = (
    "http_status",
    (
        "The provider's introspection endpoint did not accept our client (status 401). Check "
        "whether this client may introspect tokens, or configure a test request."
    ),
)
_UNREACHED = (
    "network",
    (
        "The provider's introspection endpoint could not be reached, or did not answer in time. "
        "Check introspection_endpoint and this machine's network."
    ),
)


async def introspect(
    session: TokenSession, provider: Provider, url: str, access_token: str, *, hard_timeout: float
) -> RawReply | NoReply:
    """Ask ``url`` about a token; the next client secret is tried where one is not accepted.

    ``hard_timeout`` (seconds) is for all tries, each of which has its share. Never raises for what
    a server or network does.
    """
    token = {"token": access_token, "token_type_hint": "access_token"}
    headers = {
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "Connection": "close",
        "Content-Type": CONTENT_TYPES[RequestFormat.FORM],
        "User-Agent": USER_AGENT,
    }
    replies: list[RawReply | NoReply] = []
    secrets = client_secrets(provider)
    for secret in secrets:
        proof = client_authentication(provider, secret)
        body = encoded_body(RequestFormat.FORM, {**token, **proof.params})
        sent = {**headers, **proof.headers}
        share = hard_timeout / len(secrets)
        replies.append(await session.post(url, sent, body, hard_timeout=share))
        if not _is_unknown_client(replies[-1]):
            break
    return replies[-1]


def judge_introspection(reply: RawReply | NoReply, *, access_token: str, now: datetime) -> Examined:
    """Return what an introspection reply says of the token; its members become ``me``."""
    if isinstance(reply, NoReply):
        return failed(*_UNREACHED, now=now)
    if reply.status == HTTPStatus.UNAUTHORIZED:
        return failed(*_CLIENT, now=now, status=reply.status)
    if reply.status != HTTPStatus.OK:
        words = f"The provider's introspection endpoint answered with status {reply.status}."
        return failed("http_status", words, now=now, status=reply.status)
    me, _ = read_me(reply.body, access_token)
    active = me.get("active") if isinstance(me, dict) else None
    if not isinstance(active, bool):
        return failed(*_UNEXPECTED, now=now, status=reply.status)
    if not active:
        return failed(*_REVOKED, now=now, status=reply.status, is_refused=True)
    result = TestResult(ok=True, status=reply.status, checked_at=now)
    return Examined(result=result, me=me, has_me=True)


def _is_unknown_client(reply: RawReply | NoReply) -> bool:
    return isinstance(reply, RawReply) and reply.status == HTTPStatus.UNAUTHORIZED
