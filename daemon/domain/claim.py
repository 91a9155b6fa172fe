"""A claim: the durable, exclusive right to send one connection's refresh token once.

A claim is taken before a request leaves and closed after its reply is stored. While it is open
nobody else may send. Its take-over time passing does not make it free: it makes it *in doubt*,
because the provider may have answered somebody who can no longer tell us.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from daemon.domain.admission import ProviderState
from daemon.domain.connection import Failure, Status
from daemon.domain.history import NewEvent
from daemon.domain.tokens import TokenSet


class ClaimState(StrEnum):
    """Where a connection's refresh stands, for all replicas alike."""

    IDLE = "idle"
    SENDING = "sending"
    """A request may be on its way; exactly one owner knows."""
    IN_DOUBT = "in_doubt"
    """A request was sent, its reply is unknown; resent when the rotation profile says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One claimed attempt, with all that sending needs.

    ``was_in_doubt`` tells that the attempt before it has an unknown end; ``doubted_since`` is when
    the first of such attempts in a row was claimed, where that is known. ``failures`` counts
    the failed attempts since the last stored reply, ``planned_at`` is when it was due, ``delay``
    how many seconds after the claim the fleet-wide rate allows the send. ``fields``,
    ``reply_values`` and ``epoch`` are the connection's at the claim. ``stored_generation`` is what
    the database has where it has forgotten newer ones (a restored backup, a failover); the tokens
    then carry the generation that they really are of.
    """

    connection_id: str
    provider: str
    attempt: str
    status: Status
    tokens: TokenSet = field(repr=False)
    requested_scopes: tuple[str, ...]
    was_in_doubt: bool
    failures: int
    planned_at: datetime | None
    delay: float
    fields: Mapping[str, str] = field(default_factory=dict)
    reply_values: Mapping[str, str] = field(default_factory=dict, repr=False)
    epoch: int = 0
    stored_generation: int | None = None
    doubted_since: datetime | None = None

    @property
    def fence(self) -> int:
        """Return the generation that must still be stored when the claim is settled."""
        if self.stored_generation is None:
            return self.tokens.generation
        return self.stored_generation


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """A refresh token out of a reply that came when its connection had moved on.

    ``generation`` is the one that the reply would have become.
    """

    id: int
    generation: int
    refresh_token: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the database has of a connection, to be compared with what the journal kept.

    ``granted_at`` is when the first tokens of its grant were asked for; ``None``: not known.
    """

    status: Status
    generation: int
    epoch: int
    granted_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandoned:
    """A claim whose owner vanished: now in doubt, never free.

    ``overdue`` is the time since its take-over time; negative where that lies ahead.
    ``doubted_since`` is when it was claimed, or the first before it whose end is not known either.
    """

    connection_id: str
    provider: str
    attempt: str
    failures: int
    generation: int
    issued_at: datetime
    expires_at: datetime | None
    overdue: timedelta
    doubted_since: datetime | None = None


class RefusalReason(StrEnum):
    """Why a wanted claim was not given."""

    SENDING = "sending"
    """Another attempt is open, or was until a moment ago: wait for its result."""
    BACKING_OFF = "backing_off"
    """The connection, after a failure, waits for its next time."""
    PROVIDER_PAUSED = "provider_paused"
    """``Retry-After``, an open circuit, or the rate limit."""
    NOT_REFRESHABLE = "not_refreshable"
    """No refresh token, or a state in which nothing is refreshed."""
    SUPERSEDED = "superseded"
    """A newer generation is stored than the one the asker knows."""
    UNKNOWN = "unknown"
    """There is no such connection."""
    DISCONNECTED = "disconnected"
    """It was disconnected since its request was sent: the reply's tokens are to be revoked."""
    NOT_TAKEN_UP = "not_taken_up"
    """Others were asked to refresh, and none has begun: none runs, or the provider is paused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A claim not given. ``retry_at`` is when asking again makes sense, where that is known."""

    connection_id: str
    reason: RefusalReason
    retry_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """How a claimed attempt ended: what the store writes, in one compare-and-set.

    ``generation`` is ``Claim.fence``. ``tokens`` is the new set (its generation above that, by one
    unless the database has forgotten some) or ``None`` where nothing came. ``state`` is the claim
    state afterwards, ``due_at`` the next time (``None``: never). ``touches_connection`` is false
    where the connection's own row stays as it is, as after most refreshes: it then is not written.
    ``reply_values`` are those that the reply changed; they touch the connection. ``events`` are
    recorded with it, and only if it is stored.

    ``epoch`` is the connection's when it was claimed: a disconnect since then wins. ``provider``
    and ``fields`` are for the revocation of tokens whose connection is gone. ``adopts`` is the
    orphan whose refresh token is among ``tokens``: it is an orphan no more. ``rests`` is for how
    long nobody may claim, but whoever recalls: on the store's clock, whatever ``due_at`` says.
    ``doubted_since`` goes with a doubt about the refresh token that is stored: see ``Claim``.
    """

    connection_id: str
    attempt: str
    generation: int
    tokens: TokenSet | None = field(default=None, repr=False)
    state: ClaimState
    due_at: datetime | None
    status: Status
    failures: int
    last_error: Failure | None
    touches_connection: bool
    reply_values: Mapping[str, str] = field(default_factory=dict, repr=False)
    events: tuple[NewEvent, ...] = ()
    epoch: int = 0
    provider: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    adopts: int | None = None
    rests: timedelta = timedelta(0)
    doubted_since: datetime | None = None


class Settled(StrEnum):
    """What became of a settlement."""

    STORED = "stored"
    SUPERSEDED = "superseded"
    """The row had moved on: nothing was written; tokens of its grant were kept as an orphan."""
    UNCLAIMED = "unclaimed"
    """Tokens, and nothing newer is stored, but the claim is gone: to be recalled and settled."""
    DISCONNECTED = "disconnected"
    """It was disconnected meanwhile, or is gone: its new tokens are queued for revocation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DueClaims:
    """What one sweep received. ``again_in``: seconds until the rate or a pause allows more."""

    claims: Sequence[Claim]
    states: Mapping[str, ProviderState]
    again_in: float | None
