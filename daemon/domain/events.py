"""The domain's events: what happened to a connection, told once.

One event is one log line (its name, in snake case past tense) and one count; nothing else logs
at level info about connections. The implementation is ``daemon.telemetry.events``.
"""

from __future__ import annotations

from typing import Protocol

from daemon.domain.claim import Claim
from daemon.domain.outcome import FailureReason, Outcome


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
