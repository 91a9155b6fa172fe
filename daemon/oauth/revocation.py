"""[revoke] The revocation endpoint (RFC 7009), and what providers have instead of one.

The one hard idea: only the provider's word ends a revocation. A token that it does not know (any
more) is revoked; everything that could hide a living grant is tried again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from http import HTTPStatus
from typing import Protocol
from urllib.parse import urlencode

from pydantic import SecretStr

from daemon.domain.clock import Clock
from daemon.domain.outcome import FailureReason, OutcomeKind
from daemon.domain.provider import (
    ClientAuthentication,
    Provider,
    RequestFormat,
    RevocationAuthentication,
)
from daemon.domain.reply import Fault, NoReply, RawReply
from daemon.oauth.error_codes import meaning_of
from daemon.oauth.reply_body import read_document
from daemon.oauth.retry_after import retry_after
from daemon.oauth.token_request import (
    CONTENT_TYPES,
    USER_AGENT,
    ClientProof,
    client_authentication,
    client_secrets,
    encoded_body,
)

_SUCCESSES = range(200, 300)
# Codes that say: this token opens nothing any more. RFC 7009 2.2 wants 200 for such a token;
# Google and others answer 400 and one of these.
_SPENT = frozenset(
    {
        "invalid_token",
        "invalid_grant",
        "token_expired",
        "expired_token",
        "token_revoked",
        "bad_refresh_token",
        "invalid_refresh_token",
        "BAD_REFRESH_TOKEN",
    }
)


class RevocationSession(Protocol):
    """What sends. ``daemon.oauth.outbound.Outbound`` is the one that does."""

    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        *,
        hard_timeout: float,
    ) -> RawReply | NoReply:
        """Send once; never raises for what a server or network does."""


class AnswerKind(StrEnum):
    """What a provider said to a revocation."""

    REVOKED = "revoked"
    """The token is of no use any more."""
    UNSUPPORTED = "unsupported"
    """Tokens of this type cannot be revoked there (RFC 7009 2.2.1)."""
    LATER = "later"
    """The token must be assumed to be alive: ask again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The end of one revocation request.

    For ``LATER``: ``error`` is a sentence safe to show, ``retry_after`` (s) what the provider
    asked for. ``is_ours`` tells that nothing changes until somebody corrects the configuration,
    ``is_general`` that the provider would answer the same for any other token.
    """

    kind: AnswerKind
    error: str = ""
    retry_after: float | None = None
    is_ours: bool = False
    is_general: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationMessage:
    """A request as it goes out. Any part of it may hold the token."""

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(repr=False)


class RevocationEndpoint:
    """Sends revocation requests and says what became of the token."""

    def __init__(self, *, session: RevocationSession, clock: Clock) -> None:
        self._session = session
        self._clock = clock

    async def revoke(
        self, provider: Provider, url: str, token: str, token_type_hint: str, *, hard_timeout: float
    ) -> Answer:
        """Ask the provider to revoke ``token``; ``url`` is a configured or discovered endpoint.

        A client that was not recognized brings the next client secret. ``hard_timeout`` (s) covers
        all tries. Never raises for what the provider does; may be repeated and cancelled freely.
        """
        ends_at = self._clock.boottime() + hard_timeout
        answer = Answer(kind=AnswerKind.LATER)
        for secret in _proofs(provider):
            left = ends_at - self._clock.boottime()
            if left <= 0:
                break
            message = encode_revocation(
                provider, url, secret=secret, token=token, token_type_hint=token_type_hint
            )
            reply = await self._session.send(
                message.method, message.url, message.headers, message.body, hard_timeout=left
            )
            answer = read_answer(reply, provider=provider, now=self._clock.now())
            if not (answer.is_ours and answer.is_general):
                break
        return answer


def encode_revocation(
    provider: Provider, url: str, *, secret: SecretStr | None, token: str, token_type_hint: str
) -> RevocationMessage:
    """Return the request that revokes ``token``, as the provider's configuration wants it. Pure.

    ``params`` of the configuration add to the request and never replace what is ours.
    """
    form = provider.revocation_request
    headers = {"Accept": "application/json", "Accept-Encoding": "identity", "Connection": "close"}
    headers["User-Agent"] = USER_AGENT
    params = dict(form.params)
    if form.token_param is not None:
        params[form.token_param] = token
    if form.sends_hint:
        params["token_type_hint"] = token_type_hint
    in_query = form.method == "GET" or (
        form.method == "DELETE" and form.format is RequestFormat.FORM
    )
    if form.authentication is RevocationAuthentication.BEARER:
        headers["Authorization"] = f"Bearer {token}"
    elif form.authentication is RevocationAuthentication.CLIENT:
        proof = _client_proof(provider, secret, in_query=in_query)
        headers |= proof.headers
        params |= proof.params
    if in_query:
        return RevocationMessage(
            method=form.method, url=_with_query(url, params), headers=headers, body=None
        )
    headers["Content-Type"] = CONTENT_TYPES[form.format]
    return RevocationMessage(
        method=form.method, url=url, headers=headers, body=encoded_body(form.format, params)
    )


def read_answer(reply: RawReply | NoReply, *, provider: Provider, now: datetime) -> Answer:
    """Return what a reply says of the token. Pure; never raises, whatever the provider sent."""
    if isinstance(reply, NoReply):
        return _unanswered(reply.fault)
    if reply.status in _SUCCESSES:
        # RFC 7009 2.2: the body is ignored, and a token that is not known is a success.
        return Answer(kind=AnswerKind.REVOKED)
    wait = retry_after(reply.headers.get("retry-after"), reply.headers.get("date"), now)
    code = _error_code(reply)
    if code in _SPENT or _is_unknown_bearer(reply.status, code, provider):
        return Answer(kind=AnswerKind.REVOKED)
    if code == "unsupported_token_type":
        return Answer(kind=AnswerKind.UNSUPPORTED)
    meaning = meaning_of(code)
    if meaning.kind is OutcomeKind.MISCONFIGURED:
        is_client = meaning.reason is FailureReason.INVALID_CLIENT
        return _misconfigured(reply.status, wait, is_general=is_client)
    return _by_status(reply.status, wait)


def _by_status(status: int, wait: float | None) -> Answer:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return _later("The provider limits how often it may be asked (429).", wait)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        # RFC 7009 2.2.1: after a 503 the token must be assumed to exist.
        return _later(f"The provider could not revoke it now ({status}).", wait)
    if status == HTTPStatus.REQUEST_TIMEOUT:
        return _later("The provider waited too long for our request (408).", wait)
    if status < HTTPStatus.BAD_REQUEST:
        return Answer(
            kind=AnswerKind.LATER,
            error=f"The revocation endpoint redirects ({status}), which is not followed. Correct "
            "revocation_endpoint.",
            is_ours=True,
            is_general=True,
        )
    is_client = status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
    return _misconfigured(status, wait, is_general=is_client)


def _misconfigured(status: int, wait: float | None, *, is_general: bool) -> Answer:
    return Answer(
        kind=AnswerKind.LATER,
        error=f"The provider refused the revocation request ({status}). Check this provider's "
        "revocation_endpoint, client authentication and how it wants tokens revoked.",
        retry_after=wait,
        is_ours=True,
        is_general=is_general,
    )


def _later(error: str, wait: float | None) -> Answer:
    return Answer(kind=AnswerKind.LATER, error=error, retry_after=wait, is_general=True)


def _unanswered(fault: Fault) -> Answer:
    if fault is Fault.URL:
        error = "The revocation endpoint is not a usable URL. Correct revocation_endpoint."
        return Answer(kind=AnswerKind.LATER, error=error, is_ours=True, is_general=True)
    return _later(f"The provider gave no usable answer ({fault.value}).", None)


def _error_code(reply: RawReply) -> str | None:
    document = read_document(reply.body, whole=True)
    code = None if document is None else document.get("error")
    return code if isinstance(code, str) else None


def _is_unknown_bearer(status: int, code: str | None, provider: Provider) -> bool:
    """Tell whether the token itself was the credential, and is not accepted any more."""
    is_bearer = provider.revocation_request.authentication is RevocationAuthentication.BEARER
    return is_bearer and status == HTTPStatus.UNAUTHORIZED and code is None


def _proofs(provider: Provider) -> tuple[SecretStr | None, ...]:
    if provider.revocation_request.authentication is RevocationAuthentication.CLIENT:
        return client_secrets(provider)
    return (None,)


def _client_proof(provider: Provider, secret: SecretStr | None, *, in_query: bool) -> ClientProof:
    """Return the client's authentication; a secret never stands in a URL (RFC 6749 2.3.1)."""
    method = provider.token_endpoint_auth_method
    if in_query and method is ClientAuthentication.CLIENT_SECRET_POST:
        basic = ClientAuthentication.CLIENT_SECRET_BASIC
        return client_authentication(replace(provider, token_endpoint_auth_method=basic), secret)
    return client_authentication(provider, secret)


def _with_query(url: str, params: Mapping[str, str]) -> str:
    if not params:
        return url
    return f"{url}{'&' if '?' in url else '?'}{urlencode(params)}"
