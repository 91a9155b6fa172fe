"""[refresh] What else is stored with an attempt's end: its history, and what the reply told. Pure.

An outage makes every connection fail every minute: history keeps the first failure in a row, and
then the second, fourth, eighth, …; the counter in each tells of those between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from daemon.domain.claim import Abandoned, Claim, Settlement
from daemon.domain.connection import Status
from daemon.domain.history import DetailValue, EventType, NewEvent
from daemon.domain.outcome import Outcome, OutcomeKind
from daemon.domain.provider import Provider
from daemon.oauth.account import evaluate

_MILLISECONDS = 3
# A reply may also bring back what was given up: one that came late, or that an orphan obtained.
_UNWELL = {Status.FAILING, Status.REAUTHORIZATION_REQUIRED}


def events_of(
    claim: Claim, outcome: Outcome, settlement: Settlement, *, now: datetime, duration: float
) -> tuple[NewEvent, ...]:
    """Return what history keeps of an attempt; ``duration`` is that of the request in seconds."""

    def event(kind: EventType, **detail: DetailValue) -> NewEvent:
        told = {name: value for name, value in detail.items() if value is not None}
        return NewEvent(
            type=kind, connection=claim.connection_id, provider=claim.provider, at=now, detail=told
        )

    tokens = settlement.tokens
    if outcome.kind is OutcomeKind.OK:
        refreshed = event(
            EventType.REFRESHED,
            generation=None if tokens is None else tokens.generation,
            expires_at=_time(None if tokens is None else tokens.expires_at),
            duration=round(duration, _MILLISECONDS),
        )
        if claim.status not in _UNWELL:
            return (refreshed,)
        return (refreshed, event(EventType.RECOVERED, failures=claim.failures))
    is_dead = settlement.status is Status.REAUTHORIZATION_REQUIRED
    error = settlement.last_error
    events: list[NewEvent] = []
    if is_dead or is_told(settlement.failures):
        failed = event(
            EventType.REFRESH_FAILED,
            reason=None if outcome.reason is None else outcome.reason.value,
            error=outcome.error,
            outcome=outcome.kind.value,
            failures=settlement.failures,
            retry_at=_time(settlement.due_at),
        )
        events.append(failed)
    if is_dead:
        cause = None if error is None else error.code
        events.append(event(EventType.REAUTHORIZATION_REQUIRED, cause=cause))
    return tuple(events)


def of_abandoned(claim: Abandoned, settlement: Settlement) -> Settlement:
    """Return the settlement of a vanished owner's claim with what history keeps of it."""
    error = settlement.last_error
    if error is None or not is_told(settlement.failures):
        return settlement
    detail: dict[str, DetailValue] = {
        "error": error.code,
        "outcome": OutcomeKind.IN_DOUBT.value,
        "failures": settlement.failures,
        "retry_at": _time(settlement.due_at),
    }
    failed = NewEvent(
        type=EventType.REFRESH_FAILED,
        connection=claim.connection_id,
        provider=claim.provider,
        at=error.at,
        detail=detail,
    )
    return replace(settlement, events=(failed,))


def is_told(failures: int) -> bool:
    """Tell whether the so-manieth failure in a row is worth an event: 1, 2, 4, 8, …."""
    return failures & (failures - 1) == 0


def changed_values(claim: Claim, outcome: Outcome, provider: Provider) -> Mapping[str, str]:
    """Return what a reply says otherwise than the connection's ``reply_values``.

    Only what templates need (``Provider.reply_names``); what the reply does not say stays.
    """
    if outcome.granted is None or not any(map(_is_of_reply, provider.reply_names)):
        return {}
    found = evaluate(provider, {"token": outcome.granted.members}, scope="").reply_values
    return {
        name: value
        for name, value in found.items()
        if _is_of_reply(name) and claim.reply_values.get(name) != value
    }


def _is_of_reply(name: str) -> bool:
    return name.startswith("token.")


def _time(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="seconds").replace("+00:00", "Z")
