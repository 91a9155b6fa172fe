"""How many token requests a provider may get now, for the whole fleet: a pure decision.

Each provider has one state, kept in the database and changed only under its row lock. The rate is
the generic cell rate algorithm: ``free_at`` is when the next regular slot begins, and up to
``burst`` requests may run ahead of it, so any one second sees at most the rate plus ``BURST``.
A pause (``Retry-After``) stops everything until its end. An open circuit lets one probe through
each ``PROBE_INTERVAL`` until a request succeeds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from daemon.domain.outcome import Outcome, OutcomeKind

# The contract: in any one second at most 10 more than the rate.
BURST = 10
# Requests that leave one after the other may arrive together: a process, a network or the provider
# stands still for so long. At a high rate that alone makes several more in a second.
ARRIVE_TOGETHER = timedelta(milliseconds=25)
# Slots may be reserved this far ahead and are then waited for, so that a high rate does not need
# a database transaction for each ten requests. Short against any Retry-After.
RESERVE_AHEAD = timedelta(milliseconds=250)
# reliability.md, G5 and T1: a provider that is down or refuses our client sees one request in 30 s.
PROBE_INTERVAL = timedelta(seconds=30)
# What datetime resolves, and what its range bears: no sensible rate comes near either.
_SHORTEST_INTERVAL = timedelta(microseconds=1)
_LONGEST_INTERVAL = timedelta(days=1)
# Fewer would let five unlucky connections stop a provider's thousands; more would hammer an outage.
FAILURES_THAT_OPEN = 5
# reliability.md, T6: refusals without an OAuth body count as our misconfiguration from the third.
BARE_REFUSALS_THAT_OPEN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderState:
    """What the fleet knows of a provider's willingness. Times are on the database's clock.

    ``failures`` counts requests in a row that found the provider down. ``circuit`` says why only
    probes are sent, and is ``None`` while the circuit is closed.
    """

    provider: str
    free_at: datetime
    paused_until: datetime | None = None
    failures: int = 0
    circuit: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """How many requests may be claimed now.

    ``delays`` has an entry for each, in seconds from now; ``state`` is to be stored if that many
    are claimed (``admitted`` gives the state for fewer). ``retry_at`` is set where none may.
    """

    state: ProviderState
    delays: tuple[float, ...]
    retry_at: datetime | None = None


def burst(rate: float) -> int:
    """Return how many requests may run ahead of a rate: ``BURST`` less what arrives together."""
    return max(1, BURST - int(min(rate, 1e6) * ARRIVE_TOGETHER.total_seconds()))


def admit(
    state: ProviderState, *, rate: float, wanted: int, now: datetime, forced: bool = False
) -> Admission:
    """Decide how many of ``wanted`` requests may be claimed at ``now``.

    ``forced`` is a person's own request: it passes a pause and an open circuit, never the rate.
    """
    paused = state.paused_until is not None and now < state.paused_until and not forced
    if wanted <= 0 or paused:
        return Admission(state=state, delays=(), retry_at=state.paused_until if paused else None)
    if state.circuit is not None:
        wanted = 1
    interval = _interval(rate)
    start = max(state.free_at, now - burst(rate) * interval)
    room = int((now + RESERVE_AHEAD - start) / interval)
    granted = min(wanted, max(room, 0))
    if granted == 0:
        return Admission(state=state, delays=(), retry_at=start + interval - RESERVE_AHEAD)
    delays = tuple(
        max(0.0, (start + (slot + 1) * interval - now).total_seconds()) for slot in range(granted)
    )
    return Admission(state=admitted(state, granted, rate=rate, now=now), delays=delays)


def admitted(state: ProviderState, count: int, *, rate: float, now: datetime) -> ProviderState:
    """Return the state after ``count`` requests were claimed at ``now``."""
    interval = _interval(rate)
    free_at = max(state.free_at, now - burst(rate) * interval) + count * interval
    probing = state.circuit is not None and count > 0
    paused_until = _later(state, now + PROBE_INTERVAL) if probing else state.paused_until
    return replace(state, free_at=free_at, paused_until=paused_until)


def again_in(
    state: ProviderState, *, places: int, taken: int, rate: float, now: datetime
) -> float | None:
    """Return the seconds until more may be claimed, where the provider was the limit."""
    next_one = admit(state, rate=rate, wanted=1, now=now)
    if next_one.retry_at is not None:
        return (next_one.retry_at - now).total_seconds()
    limited = 0 < taken < places
    return RESERVE_AHEAD.total_seconds() / 2 if limited else None


def after_outcome(state: ProviderState, outcome: Outcome, now: datetime) -> ProviderState:
    """Return what the fleet learns of a provider from one outcome."""
    learned = state
    match outcome.kind:
        case OutcomeKind.OK | OutcomeKind.REAUTHORIZE:
            return _closed(state)
        case OutcomeKind.MISCONFIGURED:
            learned = replace(state, failures=state.failures + 1)
            # A bare 401 or 404 may be a gateway's: only an OAuth error code is certain at once.
            if outcome.error is not None or learned.failures >= BARE_REFUSALS_THAT_OPEN:
                learned = _opened(learned, "misconfigured", now)
        case OutcomeKind.NOT_SENT | OutcomeKind.IN_DOUBT:
            learned = replace(state, failures=state.failures + 1)
            if learned.failures >= FAILURES_THAT_OPEN:
                learned = _opened(learned, "unavailable", now)
        case OutcomeKind.REFUSED:
            # A well-formed no is an answer: the provider is there.
            learned = _closed(state) if state.circuit == "unavailable" else state
    if outcome.retry_after is None:
        return learned
    until = now + timedelta(seconds=outcome.retry_after)
    return replace(learned, paused_until=_later(learned, until))


def _closed(state: ProviderState) -> ProviderState:
    """End the circuit with its pause; a ``Retry-After`` that is running stays in force."""
    paused_until = state.paused_until if state.circuit is None else None
    return replace(state, failures=0, circuit=None, paused_until=paused_until)


def _opened(state: ProviderState, reason: str, now: datetime) -> ProviderState:
    return replace(state, circuit=reason, paused_until=_later(state, now + PROBE_INTERVAL))


def _later(state: ProviderState, until: datetime) -> datetime:
    """Return the later of two ends of a pause: nothing shortens one."""
    return max(until, state.paused_until or until)


def _interval(rate: float) -> timedelta:
    """Return the time between two regular slots, kept where times can be computed with."""
    return min(max(timedelta(seconds=min(1 / rate, 1e6)), _SHORTEST_INTERVAL), _LONGEST_INTERVAL)
