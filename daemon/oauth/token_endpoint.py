"""[exchange] The token endpoint (RFC 6749 3.2): authenticate, POST, return one outcome.

The only door to a token endpoint. The one hard idea: a message is sent again only after an error
that proves it was not looked at: a client that was not recognized, or a scope that was refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol

from pydantic import SecretStr

from daemon.domain.clock import Clock
from daemon.domain.outcome import FailureReason, Outcome, OutcomeKind
from daemon.domain.provider import Provider
from daemon.domain.reply import Fault, NoReply, RawReply
from daemon.domain.tracing import NO_TRACER, SpanKind, Tracer, host_of
from daemon.oauth.outbound import MaySend
from daemon.oauth.pacing import Pacing
from daemon.oauth.token_reply import read_reply
from daemon.oauth.token_request import (
    EncodedRequest,
    Message,
    Refresh,
    client_secrets,
    encode,
    secrets_of,
)

Received = Callable[[RawReply], Awaitable[None]]
"""What is done with a raw reply before anybody reads it (the journal). It must not raise."""


class TokenSession(Protocol):
    """What sends. ``daemon.oauth.outbound.Outbound`` is the one that does."""

    async def post(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        hard_timeout: float,
        may_send: MaySend | None = None,
    ) -> RawReply | NoReply:
        """Send once; never raises for what a server or network does."""


@dataclass(frozen=True, slots=True)
class _Explanation:
    reason: FailureReason
    description: str


_UNKNOWN_FATE = (
    "Whether it processed the request is unknown; it will be asked again when that is safe."
)
_NETWORK = FailureReason.NETWORK
_MALFORMED = FailureReason.MALFORMED_RESPONSE
_EXPLANATIONS: Mapping[Fault, _Explanation] = MappingProxyType(
    {
        Fault.URL: _Explanation(
            FailureReason.OTHER,
            "The provider's token endpoint is not a usable URL. Correct it in the configuration.",
        ),
        Fault.NAME: _Explanation(
            _NETWORK,
            "The provider's host name could not be resolved. Check the token endpoint's spelling "
            "and this machine's DNS.",
        ),
        Fault.CONNECT: _Explanation(
            _NETWORK,
            "No connection to the provider could be made. Check the token endpoint, this "
            "machine's network, and any firewall between.",
        ),
        Fault.ADDRESS: _Explanation(
            FailureReason.OTHER,
            "The provider's host name resolves to an address that may not be reached, so nothing "
            "was sent. Check the token endpoint and this machine's DNS.",
        ),
        Fault.CERTIFICATE: _Explanation(
            _NETWORK,
            "The provider's TLS certificate is not valid for its host, so nothing was sent. Check "
            "the token endpoint and this machine's trusted certificates and clock.",
        ),
        Fault.TLS: _Explanation(
            _NETWORK,
            "No TLS session with the provider could be made (version 1.2 or later is needed), so "
            "nothing was sent. Check the token endpoint and any proxy between.",
        ),
        Fault.LATE: _Explanation(
            FailureReason.TIMEOUT,
            "Connecting to the provider took so long that sending was no longer safe; nothing was "
            "sent. It will be tried again.",
        ),
        Fault.TIMEOUT: _Explanation(
            FailureReason.TIMEOUT, f"The provider did not answer in time. {_UNKNOWN_FATE}"
        ),
        Fault.DISCONNECTED: _Explanation(
            _NETWORK,
            f"The provider closed the connection before its answer was complete. {_UNKNOWN_FATE}",
        ),
        Fault.OVERSIZE: _Explanation(
            _MALFORMED, f"The provider's answer is larger than any token reply. {_UNKNOWN_FATE}"
        ),
        Fault.MALFORMED: _Explanation(
            _MALFORMED, f"The provider's answer is not readable HTTP. {_UNKNOWN_FATE}"
        ),
    }
)


class TokenEndpoint:
    """Sends token requests and classifies their ends."""

    def __init__(self, *, session: TokenSession, clock: Clock, tracer: Tracer = NO_TRACER) -> None:
        self._session = session
        self._clock = clock
        self._pacing = Pacing(clock)
        self._tracer = tracer

    async def request(
        self,
        provider: Provider,
        url: str,
        message: Message,
        *,
        hard_timeout: float,
        send_by: float | None = None,
        received: Received | None = None,
    ) -> Outcome:
        """Send ``message`` to ``url``, whose URL must be one configured or discovered and checked.

        ``hard_timeout`` (seconds) covers all tries together. ``send_by`` is a boot time: where
        connecting takes longer, nothing is sent; and with it the provider's rate is kept to. A
        definite ``invalid_client`` brings the next client secret (the client is authenticated
        before its grant is looked at, RFC 6749 3.2.1, so a code is still *used* once);
        ``invalid_scope`` one try without the scope. Never raises for what the provider does. When
        cancelled, the fate of the request is unknown.
        """
        attempt = _Attempt(
            session=self._session,
            clock=self._clock,
            provider=provider,
            url=url,
            ends_at=self._clock.boottime() + hard_timeout,
            send_by=send_by,
            received=received,
            tracer=self._tracer,
            pacing=self._pacing,
        )
        outcome = await attempt.with_any_secret(message)
        if outcome.reason is FailureReason.INVALID_SCOPE and _sends_scope(message):
            outcome = await attempt.with_any_secret(_without_scope(message), otherwise=outcome)
        return outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """What stays the same over the tries of one request."""

    session: TokenSession
    clock: Clock
    provider: Provider
    url: str
    ends_at: float
    send_by: float | None
    received: Received | None
    tracer: Tracer
    pacing: Pacing

    async def with_any_secret(
        self, message: Message, *, otherwise: Outcome | None = None
    ) -> Outcome:
        """Try the client secrets in order; with no time left, ``otherwise`` or the last outcome."""
        first, *others = client_secrets(self.provider)
        if otherwise is not None and self._is_over():
            return otherwise
        outcome = await self._send(message, first)
        for secret in others:
            if not _is_unknown_client(outcome) or self._is_over():
                break
            outcome = await self._send(message, secret)
        return outcome

    async def _send(self, message: Message, secret: SecretStr | None) -> Outcome:
        reply = await self._post(encode(self.provider, secret, message))
        if isinstance(reply, NoReply):
            return _unanswered(reply)
        if self.received is not None:
            with self.tracer.span("keep"):
                await self.received(reply)
        return read_reply(
            status=reply.status,
            headers=reply.headers,
            body=reply.body,
            provider=self.provider,
            now=self.clock.now(),
            sent=secrets_of(message, secret),
        )

    async def _post(self, request: EncodedRequest) -> RawReply | NoReply:
        told = {
            "http.request.method": "POST",
            "server.address": host_of(self.url),
            "tokenward.provider": self.provider.name,
        }
        with self.tracer.span("POST", told, kind=SpanKind.CLIENT) as span:
            reply = await self.session.post(
                self.url,
                request.headers,
                request.body,
                hard_timeout=self.ends_at - self.clock.boottime(),
                may_send=self._may_send,
            )
            if isinstance(reply, NoReply):
                span.fail(reply.fault.value)
            else:
                span.set("http.response.status_code", reply.status)
            return reply

    def _is_over(self) -> bool:
        return self.clock.boottime() >= self.ends_at

    async def _may_send(self) -> bool:
        if self.send_by is None:
            return True
        may = await self.pacing.turn(self.provider.name, rate=self.provider.rate, by=self.send_by)
        return may and self.clock.boottime() <= self.send_by


def _is_unknown_client(outcome: Outcome) -> bool:
    """Tell whether the provider said, in so many words, that it did not accept the client."""
    return outcome.reason is FailureReason.INVALID_CLIENT and outcome.error is not None


def _sends_scope(message: Message) -> bool:
    return isinstance(message, Refresh) and bool(message.scopes)


def _without_scope(message: Message) -> Message:
    return replace(message, scopes=()) if isinstance(message, Refresh) else message


def _unanswered(reply: NoReply) -> Outcome:
    explanation = _EXPLANATIONS[reply.fault]
    return Outcome(
        kind=OutcomeKind.IN_DOUBT if reply.sent else OutcomeKind.NOT_SENT,
        reason=explanation.reason,
        description=explanation.description,
    )
