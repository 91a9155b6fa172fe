"""Tokens of a connection (RFC 6749 1.4 and 1.5) and the one rule for how long they are good."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from daemon.domain.connection import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSet:
    """What one token reply left us with.

    ``generation`` starts at 1 and rises by one with every stored reply. ``issued_at`` is when the
    request was sent, not when the reply came: a lifetime never counts from later than the
    provider's own clock started it. ``expires_at`` is ``None`` where the token does not expire.
    """

    generation: int
    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    token_type: str
    scopes: tuple[str, ...]
    issued_at: datetime
    expires_at: datetime | None

    def good_for(self, now: datetime) -> float | None:
        """Return the seconds of life left at ``now`` (0 or less: expired); ``None`` is forever."""
        return None if self.expires_at is None else (self.expires_at - now).total_seconds()


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentToken:
    """What serving needs of a connection: its access token and its state, no refresh token.

    ``access_token`` is empty where there is none (not authorized yet, imported without one,
    erased). ``failure`` is the last error's description while refreshing fails, ``retry_at`` when
    it is tried again.
    """

    connection: str
    provider: str
    status: Status
    generation: int
    access_token: str = field(repr=False)
    token_type: str
    scopes: tuple[str, ...]
    issued_at: datetime
    expires_at: datetime | None
    refreshable: bool
    failure: str | None = None
    retry_at: datetime | None = None
