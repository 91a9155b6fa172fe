"""What a token request came to: one closed set, and the only words in which the rest decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class OutcomeKind(StrEnum):
    """The six ends of a token request. Every reply and every fault maps to exactly one."""

    OK = "ok"
    NOT_SENT = "not_sent"
    """Provably not processed: no name, no connection, no TLS session."""
    REFUSED = "refused"
    """A well-formed error: the provider did not rotate; try again later."""
    IN_DOUBT = "in_doubt"
    """The provider may have rotated: timeout, reset, 5xx, redirect, unreadable 2xx."""
    REAUTHORIZE = "reauthorize"
    """The grant is dead."""
    MISCONFIGURED = "misconfigured"
    """Our client registration or configuration is wrong: no fault of the connection."""


class FailureReason(StrEnum):
    """The ``reason`` label of ``tokenward_refresh_failures_total``."""

    NETWORK = "network"
    TIMEOUT = "timeout"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    MALFORMED_RESPONSE = "malformed_response"
    INVALID_GRANT = "invalid_grant"
    INVALID_CLIENT = "invalid_client"
    INVALID_SCOPE = "invalid_scope"
    UNAUTHORIZED_CLIENT = "unauthorized_client"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """A successful token reply (RFC 6749 5.1), read and checked.

    ``refresh_token`` is ``None`` where the reply has none: the one in hand stays. ``expires_in``
    is in seconds, may be 0 or negative, and is ``None`` where the reply says nothing usable.
    ``scopes`` is ``None`` where the reply has none: the requested ones were granted. ``members``
    are those of the whole reply less everything secret, for templates and selectors (``token.``).
    """

    access_token: str = field(repr=False)
    token_type: str = "Bearer"
    refresh_token: str | None = field(default=None, repr=False)
    expires_in: float | None = None
    scopes: tuple[str, ...] | None = None
    members: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of one token request.

    ``granted`` is set for, and only for, ``OK``. ``error`` is the provider's own error code, cut
    and restricted to printable ASCII; ``description`` is a sentence of ours, never the provider's
    text, and safe to show. ``retry_after`` is in seconds. ``salvaged_refresh_token`` is a
    refresh token found in a reply that is otherwise unusable: it must be stored all the same,
    for the provider may have spent the one before it. ``warnings`` name oddities that did not
    change the outcome.
    """

    kind: OutcomeKind
    granted: Granted | None = None
    reason: FailureReason | None = None
    error: str | None = None
    description: str = ""
    retry_after: float | None = None
    salvaged_refresh_token: str | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()
