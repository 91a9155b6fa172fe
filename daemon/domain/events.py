"""The domain's events: what happened to a connection, told once.

One event is one log line (its name, in snake case past tense) and one count; nothing else logs
at level info about connections. The implementation is ``daemon.telemetry.events``.
"""

from __future__ import annotations

from typing import Protocol

from daemon.domain.claim import Claim
from daemon.domain.outcome import FailureReason, Outcome
from daemon.domain.revocation import Initiator, RevocationResult


class Events(Protocol):
    """Where the protocol's code says what happened. Never blocks, never raises."""

    def connection_created(self, connection: str, provider: str) -> None:
        """Tell that a connection came to be."""

    def connection_authorized(
        self, connection: str, provider: str, *, has_refresh_token: bool
    ) -> None:
        """Tell that an authorization was completed and its tokens stored."""

    def authorization_failed(
        self, connection: str | None, provider: str | None, *, code: str, reference: str
    ) -> None:
        """Tell that an authorization ended without tokens; ``reference`` is on the error page."""

    def token_refreshed(
        self, claim: Claim, outcome: Outcome, *, duration: float, lag: float | None
    ) -> None:
        """Tell that a refresh was stored; ``duration`` and ``lag`` (done minus planned) in s."""

    def refresh_failed(
        self, claim: Claim, outcome: Outcome, *, duration: float, retry_in: float | None
    ) -> None:
        """Tell that a refresh brought no token; ``retry_in`` seconds, ``None`` where it is over."""

    def refresh_superseded(self, connection: str, provider: str) -> None:
        """Tell that a reply came after the connection had moved on; it was not stored."""

    def reauthorization_required(
        self, connection: str, provider: str, *, cause: FailureReason | str
    ) -> None:
        """Tell that a grant is dead: ``invalid_grant``, ``reply_lost``, …."""

    def connection_recovered(self, connection: str, provider: str) -> None:
        """Tell that refreshing works again after failures."""

    def provider_circuit_changed(self, provider: str, *, is_open: bool, reason: str) -> None:
        """Tell that requests to a provider were suspended or are allowed again."""

    def connection_tested(
        self, connection: str, provider: str, *, ok: bool, status: int | None, code: str | None
    ) -> None:
        """Tell how a test request went: its HTTP ``status``, and an error ``code`` unless ok."""

    def connection_disconnected(
        self, connection: str, provider: str, *, initiator: Initiator, is_purged: bool
    ) -> None:
        """Tell that a connection's tokens are erased here, whatever the provider knows."""

    def connection_merged(self, connection: str, provider: str, *, merged: str) -> None:
        """Tell that ``merged`` gave way to ``connection``, which has the same account."""

    def revocation_ended(
        self, connection: str, provider: str, *, initiator: Initiator, result: RevocationResult
    ) -> None:
        """Tell what became of a grant at its provider; ``QUEUED`` is followed by another end."""

    def revocation_abandoned(
        self, connection: str, provider: str, *, initiator: Initiator, error: str
    ) -> None:
        """Tell that a provider could not be told for so long that it is not tried any more."""

    def webhook_delivered(self, event: str, connection: str, *, attempts: int) -> None:
        """Tell that the webhook took an event (``evt_…``), after ``attempts`` requests."""

    def webhook_delivery_failed(
        self, event: str, connection: str, *, attempts: int, error: str, retry_in: float
    ) -> None:
        """Tell that the webhook did not take an event now; ``retry_in`` seconds."""

    def webhook_delivery_dead(
        self, event: str, connection: str, *, attempts: int, error: str
    ) -> None:
        """Tell that an event is not delivered any more; it stays as a dead letter."""
