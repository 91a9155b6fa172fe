"""What happened to a connection, told once: each event is one log line and at most one count.

The line's ``event`` is the method's name; its keys are the same in all of them. Numbers of
seconds are rounded to milliseconds.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

import structlog

from daemon.domain.claim import Claim
from daemon.domain.outcome import FailureReason, Outcome, OutcomeKind
from daemon.domain.revocation import Initiator, RevocationResult
from daemon.telemetry.metrics import (
    AuthorizationResult,
    DeliveryResult,
    Metrics,
    RefreshResult,
    TestOutcome,
)
from daemon.telemetry.redaction import REDACTED

log = structlog.get_logger()

# A provider's words are cut to this in the log.
_WORDS_LIMIT: Final = 256
# What is shorter is no token that anybody issues, and may well be part of a word.
_TOKEN_LENGTH: Final = 8


class TelemetryEvents:
    """The ``daemon.domain.events.Events`` of the running daemon. Never blocks, never raises."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def connection_created(self, connection: str, provider: str) -> None:
        """Tell that a connection came to be (``connections`` counts it at its next look)."""
        log.info("connection_created", connection=connection, provider=provider)

    def connection_authorized(
        self, connection: str, provider: str, *, has_refresh_token: bool
    ) -> None:
        """Tell that an authorization was completed; without a refresh token it will not last."""
        self._metrics.count_authorization(provider, AuthorizationResult.COMPLETED)
        log.info(
            "connection_authorized",
            connection=connection,
            provider=provider,
            has_refresh_token=has_refresh_token,
        )

    def authorization_failed(
        self, connection: str | None, provider: str | None, *, code: str, reference: str
    ) -> None:
        """Tell that an authorization ended without tokens; ``access_denied`` counts as denied."""
        is_denied = code == "access_denied"
        self._metrics.count_authorization(
            provider, AuthorizationResult.DENIED if is_denied else AuthorizationResult.FAILED
        )
        log.warning(
            "authorization_failed",
            connection=connection,
            provider=provider,
            error=code[:_WORDS_LIMIT],
            reference=reference,
        )

    def token_refreshed(
        self, claim: Claim, outcome: Outcome, *, duration: float, lag: float | None
    ) -> None:
        """Tell that a refresh was stored."""
        self._metrics.count_refresh(claim.provider, RefreshResult.SUCCESS)
        self._metrics.observe_refresh_duration(claim.provider, duration)
        if lag is not None:
            self._metrics.observe_refresh_lag(lag)
        log.info(
            "token_refreshed",
            connection=claim.connection_id,
            provider=claim.provider,
            generation=claim.tokens.generation + 1,
            duration=_rounded(duration),
            lag=_rounded(lag),
            expires_in=outcome.granted.expires_in if outcome.granted else None,
            warnings=outcome.warnings,
        )

    def refresh_failed(
        self, claim: Claim, outcome: Outcome, *, duration: float, retry_in: float | None
    ) -> None:
        """Tell that a refresh brought no token: rejected where the grant is dead, else failed."""
        reason = outcome.reason or FailureReason.OTHER
        self._metrics.count_refresh(claim.provider, _result(outcome))
        self._metrics.count_refresh_failure(claim.provider, reason)
        self._metrics.observe_refresh_duration(claim.provider, duration)
        log.warning(
            "refresh_failed",
            connection=claim.connection_id,
            provider=claim.provider,
            generation=claim.tokens.generation,
            outcome=outcome.kind.value,
            reason=reason.value,
            error=_words(outcome.error, claim, outcome),
            description=outcome.description,
            failures=claim.failures + 1,
            duration=_rounded(duration),
            retry_in=_rounded(retry_in),
        )

    def refresh_superseded(self, connection: str, provider: str) -> None:
        """Tell that a reply came after the connection had moved on."""
        self._metrics.count_refresh(provider, RefreshResult.SUPERSEDED)
        log.info("refresh_superseded", connection=connection, provider=provider)

    def reauthorization_required(
        self, connection: str, provider: str, *, cause: FailureReason | str
    ) -> None:
        """Tell that a grant is dead; the refresh that found out is counted as rejected."""
        log.warning(
            "reauthorization_required",
            connection=connection,
            provider=provider,
            reason=str(cause),
        )

    def connection_recovered(self, connection: str, provider: str) -> None:
        """Tell that refreshing works again after failures."""
        log.info("connection_recovered", connection=connection, provider=provider)

    def provider_circuit_changed(self, provider: str, *, is_open: bool, reason: str) -> None:
        """Tell that a provider's circuit opened or closed: both are a warning, as one story."""
        log.warning("provider_circuit_changed", provider=provider, is_open=is_open, reason=reason)

    def connection_tested(
        self, connection: str, provider: str, *, ok: bool, status: int | None, code: str | None
    ) -> None:
        """Tell how a test request went: a good one is no news, a bad one is a warning."""
        self._metrics.count_connection_test(provider, _test_outcome(ok=ok, status=status))
        tell = log.info if ok else log.warning
        tell(
            "connection_tested",
            connection=connection,
            provider=provider,
            ok=ok,
            status=status,
            error=code,
        )

    def connection_disconnected(
        self, connection: str, provider: str, *, initiator: Initiator, is_purged: bool
    ) -> None:
        """Tell that a connection's tokens are erased here."""
        log.info(
            "connection_disconnected",
            connection=connection,
            provider=provider,
            initiator=initiator.value,
            is_purged=is_purged,
        )

    def connection_merged(self, connection: str, provider: str, *, merged: str) -> None:
        """Tell that ``merged`` gave way to ``connection``."""
        log.info("connection_merged", connection=connection, provider=provider, merged=merged)

    def revocation_ended(
        self, connection: str, provider: str, *, initiator: Initiator, result: RevocationResult
    ) -> None:
        """Tell what became of a grant at its provider."""
        self._metrics.count_revocation(provider, initiator, result)
        log.info(
            "revocation_ended",
            connection=connection,
            provider=provider,
            initiator=initiator.value,
            result=result.value,
        )

    def revocation_abandoned(
        self, connection: str, provider: str, *, initiator: Initiator, error: str
    ) -> None:
        """Tell that a provider was not told; the grant may live on there."""
        log.warning(
            "revocation_abandoned",
            connection=connection,
            provider=provider,
            initiator=initiator.value,
            error=error[:_WORDS_LIMIT],
        )

    def webhook_delivered(self, event: str, connection: str, *, attempts: int) -> None:
        """Tell that the webhook took an event."""
        self._metrics.count_webhook_delivery(DeliveryResult.DELIVERED)
        log.debug("webhook_delivered", id=event, connection=connection, attempts=attempts)

    def webhook_delivery_failed(
        self, event: str, connection: str, *, attempts: int, error: str, retry_in: float
    ) -> None:
        """Tell that the webhook did not take an event now."""
        self._metrics.count_webhook_delivery(DeliveryResult.FAILED)
        log.warning(
            "webhook_delivery_failed",
            id=event,
            connection=connection,
            attempts=attempts,
            error=error[:_WORDS_LIMIT],
            retry_in=_rounded(retry_in),
        )

    def webhook_delivery_dead(
        self, event: str, connection: str, *, attempts: int, error: str
    ) -> None:
        """Tell that an event is not delivered any more."""
        self._metrics.count_webhook_delivery(DeliveryResult.DEAD)
        log.warning(
            "webhook_delivery_dead",
            id=event,
            connection=connection,
            attempts=attempts,
            error=error[:_WORDS_LIMIT],
        )


def _result(outcome: Outcome) -> RefreshResult:
    is_rejected = outcome.kind is OutcomeKind.REAUTHORIZE
    return RefreshResult.REJECTED if is_rejected else RefreshResult.FAILED


def _test_outcome(*, ok: bool, status: int | None) -> TestOutcome:
    if ok:
        return TestOutcome.OK
    if status is None:
        return TestOutcome.UNREACHABLE
    is_unauthorized = status == HTTPStatus.UNAUTHORIZED
    return TestOutcome.UNAUTHORIZED if is_unauthorized else TestOutcome.FAILED


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _words(text: str | None, claim: Claim, outcome: Outcome) -> str | None:
    """Return a provider's words, unless they echo a token, whole or cut."""
    tokens = (
        claim.tokens.access_token,
        claim.tokens.refresh_token or "",
        outcome.salvaged_refresh_token or "",
    )
    if not text:
        return None
    is_echo = any(
        len(token) >= _TOKEN_LENGTH and (token in text or text in token) for token in tokens
    )
    return REDACTED if is_echo else text[:_WORDS_LIMIT]
