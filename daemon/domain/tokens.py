"""Tokens of a connection (RFC 6749 1.4 and 1.5) and the one rule for how long they are good."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from daemon.domain.connection import Status
from daemon.domain.outcome import Granted
from daemon.domain.provider import Provider


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


def lifetime_of(provider: Provider, default: timedelta) -> timedelta | None:
    """Return how long a token is good whose reply does not say it; ``None`` is until revoked.

    ``default`` is the one of the settings, where the provider has none.
    """
    if provider.tokens_never_expire:
        return None
    return provider.default_lifetime or default


def tokens_of(
    granted: Granted,
    *,
    before: TokenSet | None,
    requested: tuple[str, ...],
    sent_at: datetime,
    default_lifetime: timedelta | None,
) -> TokenSet:
    """Return the token set that a reply brings; ``before`` is the one it follows.

    The one place where a lifetime becomes a time. It counts from when the request left
    (reliability B9). ``default_lifetime`` is ``lifetime_of`` the provider: only where that is
    ``None`` may a token be without an end. A reply without ``refresh_token`` keeps the old one
    (RFC 6749 6); one without ``scope`` leaves what was granted, or grants what was ``requested``
    (5.1).
    """
    promised = granted.expires_in
    lifetime = default_lifetime if promised is None else timedelta(seconds=promised)
    unsaid = requested if before is None else before.scopes
    return TokenSet(
        generation=1 if before is None else before.generation + 1,
        access_token=granted.access_token,
        refresh_token=granted.refresh_token or (before.refresh_token if before else None),
        token_type=granted.token_type,
        scopes=unsaid if granted.scopes is None else granted.scopes,
        issued_at=sent_at,
        expires_at=None if lifetime is None else sent_at + lifetime,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentToken:
    """What serving needs of a connection: its access token and its state, no refresh token.

    ``access_token`` is empty where there is none (not authorized yet, imported without one,
    erased). ``failure`` and ``failure_code`` are the last error's description and code while
    refreshing fails, ``retry_at`` is when it is tried again.
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
    failure_code: str | None = None
    retry_at: datetime | None = None


class Version(NamedTuple):
    """What tells whether a token in memory is still the one to serve, without the token.

    ``expires_at`` is the access token's: one that its API refuses ends within its generation.
    """

    generation: int
    status: Status
    expires_at: datetime | None = None


def current_of(
    tokens: TokenSet,
    *,
    connection: str,
    provider: str,
    status: Status,
    failure: str | None = None,
    failure_code: str | None = None,
    retry_at: datetime | None = None,
) -> CurrentToken:
    """Return what serving needs of tokens that were just stored."""
    return CurrentToken(
        connection=connection,
        provider=provider,
        status=status,
        generation=tokens.generation,
        access_token=tokens.access_token,
        token_type=tokens.token_type,
        scopes=tokens.scopes,
        issued_at=tokens.issued_at,
        expires_at=tokens.expires_at,
        refreshable=tokens.refresh_token is not None,
        failure=failure,
        failure_code=failure_code,
        retry_at=retry_at,
    )
