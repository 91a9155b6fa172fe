"""Whether one connection's refresh may be claimed now: a pure decision over its schedule row."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from daemon.domain.claim import ClaimState, RefusalReason
from daemon.domain.connection import Status

_REFRESHED = {Status.ACTIVE, Status.FAILING}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A claim that somebody waits for.

    ``generation`` is the newest one the asker knows: where a newer one is stored, nothing needs
    to be sent. ``forced`` is a person's own request, which passes backoff and doubt.
    """

    connection_id: str
    provider: str
    generation: int
    rate: float
    forced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRow:
    """What is stored of a connection's schedule.

    ``arrived_expired`` tells that the token in hand had no life left when it came, ``rests`` that
    whoever had the claim may still have a reply to store.
    """

    status: Status
    state: ClaimState
    due_at: datetime | None
    failures: int
    generation: int
    has_refresh_token: bool
    arrived_expired: bool = False
    rests: bool = False


def refusal(row: ScheduleRow | None, wanted: Wanted, now: datetime) -> RefusalReason | None:
    """Return why the claim is not given, or ``None`` where it may be.

    In doubt, the due time is the rotation profile's word on when a resend is safe; while failing,
    it is the backoff's; where tokens arrive expired, it keeps callers from asking the provider as
    often as they read. All bind everybody but a person.
    """
    if row is None:
        return RefusalReason.UNKNOWN
    if row.status not in _REFRESHED or not row.has_refresh_token:
        return RefusalReason.NOT_REFRESHABLE
    if row.generation > wanted.generation:
        return RefusalReason.SUPERSEDED
    if row.state is ClaimState.SENDING or row.rests:
        return RefusalReason.SENDING
    waits = row.state is ClaimState.IN_DOUBT or row.failures > 0 or row.arrived_expired
    later = row.due_at is None or row.due_at > now
    if waits and later and not wanted.forced:
        return RefusalReason.BACKING_OFF
    return None
