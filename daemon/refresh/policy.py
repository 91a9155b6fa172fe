"""When a connection is refreshed next, and what follows from each outcome. Pure.

The one hard idea: after a request with an unknown end the refresh token may be spent. Where the
provider punishes reuse, waiting costs nothing while the access token lives, and a hasty resend
can turn "maybe fine" into "surely dead". So a strict provider is asked again only shortly before
the token in hand expires.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import assert_never

from daemon.config.settings import Refresh
from daemon.domain.claim import Abandoned, Claim, ClaimState, Orphan, Settlement
from daemon.domain.connection import Failure, Status
from daemon.domain.outcome import Outcome, OutcomeKind
from daemon.domain.provider import Provider, Rotation, RotationKind
from daemon.domain.tokens import TokenSet, lifetime_of, tokens_of

# A token that lives no longer than its margin would be refreshed for ever: the margin gives way
# to half of the lifetime.
_LARGEST_MARGIN = 0.5
# However short a lifetime, one connection never asks more often than this.
_SHORTEST_INTERVAL = timedelta(seconds=1)
# A reply that says "expired already" (expires_in 0 or less) is the provider's mistake: reliability
# T13 asks for at least this long between attempts.
_EXPIRED_ON_ARRIVAL = timedelta(seconds=30)
# First retry within 2 s, so that a blip is over before anybody notices; the cap keeps a recovered
# provider's connections from being late by more than a minute.
_FIRST_BACKOFF = 2.0
_LONGEST_BACKOFF = 60.0
# A failing connection keeps at least this many tries before its token expires.
_TRIES_BEFORE_EXPIRY = 4
# A strict provider is asked again this long before expiry: time for one slow request and one more.
_STRICT_LEAD = timedelta(minutes=2)
_STRICT_LEAD_FRACTION = 0.1
# Below this a grace period cannot be told from network delay, and counts as strict.
_SHORTEST_GRACE = timedelta(seconds=20)
# What is left of one must still hold the resend's own way to the provider.
_LEAST_GRACE_LEFT = timedelta(seconds=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """From when to when the access token in hand is good."""

    issued_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What follows from an outcome: what to store, and what became of the grant."""

    settlement: Settlement
    retry_in: float | None


def due_at(tokens: TokenSet, connection_id: str, settings: Refresh) -> datetime | None:
    """Return when ``tokens`` need attention; ``None`` where they never do.

    Without a refresh token that is their expiry, when the connection needs a person.

    The time lies ``at`` ± ``jitter``/2 of the lifetime after issue, at a place derived from the
    connection id (stable over restarts), and never later than expiry minus ``margin``.
    """
    if tokens.refresh_token is None or tokens.expires_at is None:
        return tokens.expires_at
    lifetime = tokens.expires_at - tokens.issued_at
    if lifetime <= timedelta(0):
        return tokens.issued_at + _EXPIRED_ON_ARRIVAL
    margin = min(settings.margin, lifetime * _LARGEST_MARGIN)
    latest = min(lifetime * (settings.at + settings.jitter / 2), lifetime - margin)
    planned = latest - lifetime * settings.jitter * share(connection_id)
    return tokens.issued_at + max(planned, _SHORTEST_INTERVAL)


def share(connection_id: str) -> float:
    """Return a number in [0, 1) that belongs to the connection, evenly spread over ids."""
    digest = blake2b(connection_id.encode(), digest_size=6, person=b"tokenward").digest()
    return int.from_bytes(digest, "big") / 2**48


def backoff(failures: int, chance: float, remaining: float | None) -> float:
    """Return the seconds to wait after the ``failures``-th failure in a row.

    Exponential with jitter over the upper half (``chance`` in [0, 1)); while a token has
    ``remaining`` seconds the wait is cut so that several tries fit before it expires.
    """
    ceiling = min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2.0 ** min(failures - 1, 10))
    wait = ceiling * (0.5 + chance / 2)
    if remaining is not None and remaining > 0:
        wait = min(wait, remaining / _TRIES_BEFORE_EXPIRY)
    return max(wait, _SHORTEST_INTERVAL.total_seconds())


def decide(
    claim: Claim,
    outcome: Outcome,
    provider: Provider,
    settings: Refresh,
    *,
    sent_at: datetime,
    now: datetime,
    chance: float,
) -> Decision:
    """Decide what to store after ``outcome`` and when to try again."""
    if outcome.granted is not None:
        tokens = tokens_of(
            outcome.granted,
            before=claim.tokens,
            requested=claim.requested_scopes,
            sent_at=sent_at,
            default_lifetime=lifetime_of(provider, settings.default_lifetime),
        )
        due = due_at(tokens, claim.connection_id, settings)
        touched = claim.status is not Status.ACTIVE or claim.failures > 0
        # After its grant was given up it came late. If that was right, a reply was lost.
        is_late = claim.status is Status.REAUTHORIZATION_REQUIRED
        state, due = (ClaimState.IN_DOUBT, now) if is_late else (ClaimState.IDLE, due)
        return _decision(claim, now, tokens=tokens, state=state, due=due, touched=touched)
    retry = _retry_at(claim, outcome, now, chance)
    if outcome.salvaged_refresh_token is not None:
        tokens = replace(
            claim.tokens,
            generation=claim.tokens.generation + 1,
            refresh_token=outcome.salvaged_refresh_token,
        )
        return _decision(claim, now, outcome, tokens=tokens, due=retry)
    match outcome.kind:
        case OutcomeKind.REAUTHORIZE:
            return _dead(claim, outcome, now)
        case OutcomeKind.IN_DOUBT:
            since = _earlier(claim.doubted_since, sent_at)
            due = _resend_after(
                claim, provider.rotation, retry, now, sent_at=since, again=claim.was_in_doubt
            )
            return _doubted(_decision(claim, now, outcome, due=due), since)
        case (
            OutcomeKind.OK | OutcomeKind.NOT_SENT | OutcomeKind.REFUSED | OutcomeKind.MISCONFIGURED
        ):
            if not claim.was_in_doubt:
                return _decision(claim, now, outcome, due=retry)
            # This attempt says nothing about the one whose end is unknown: its doubt stays.
            since = _earlier(claim.doubted_since, sent_at)
            due = _resend_after(claim, provider.rotation, retry, now, sent_at=since, again=False)
            return _doubted(_decision(claim, now, outcome, due=due), claim.doubted_since)
        case _:
            assert_never(outcome.kind)


def adopted(claim: Claim, orphan: Orphan, decision: Decision, *, now: datetime) -> Decision:
    """Return what follows instead of a grant's end, where a refresh token was never used.

    It becomes the stored one and is sent by the next ordinary claim. The doubt stays: if it is
    refused, too, a reply was lost.
    """
    settlement = replace(
        decision.settlement,
        tokens=replace(
            claim.tokens,
            generation=claim.tokens.generation + 1,
            refresh_token=orphan.refresh_token,
        ),
        state=ClaimState.IN_DOUBT,
        due_at=now,
        status=Status.FAILING,
        last_error=Failure(
            code="invalid_grant",
            description=(
                "The provider refuses the refresh token in use. One that a late reply has brought "
                "is tried next."
            ),
            at=now,
        ),
        adopts=orphan.id,
    )
    return Decision(settlement=settlement, retry_in=0.0)


def above(settlement: Settlement, generation: int) -> Settlement:
    """Return a settlement whose tokens are not below a generation that callers know already.

    Only for a reply that was just asked for: a database that has forgotten generations must not
    make them fall, but an older reply must never pass for a newer one.
    """
    tokens = settlement.tokens
    if tokens is None or tokens.generation >= generation:
        return settlement
    return replace(settlement, tokens=replace(tokens, generation=generation + 1))


def resend_at(
    rotation: Rotation,
    life: Life,
    *,
    sent_at: datetime,
    now: datetime,
    retry: datetime,
    again: bool = False,
) -> datetime:
    """Return when a refresh token with an unknown fate may be sent again.

    ``retry`` is when an ordinary retry would run; ``again`` tells that the resend itself ended in
    doubt. A server that keeps old tokens alive is asked at ``retry``; one with a grace period
    within half of what is left of it, which may have begun at ``sent_at``; a strict one, or one
    whose grace is over, shortly before the access token expires, once, and after that
    only when there is nothing left to lose.
    """
    if rotation.kind in {RotationKind.STATIC, RotationKind.OVERLAP}:
        return retry
    if rotation.grace is not None and rotation.grace >= _SHORTEST_GRACE:
        left = sent_at + rotation.grace - now
        if left >= _LEAST_GRACE_LEFT:
            return min(retry, now + left / 2)
    if life.expires_at is None or life.expires_at <= now:
        return retry
    if again:
        return max(retry, life.expires_at)
    lead = min(_STRICT_LEAD, (life.expires_at - life.issued_at) * _STRICT_LEAD_FRACTION)
    return max(retry, life.expires_at - lead)


def comes_too_late(claim: Claim, rotation: Rotation, now: datetime) -> bool:
    """Tell whether a resend that was safe when it was planned is not any more.

    Outages and pauses may have delayed it beyond the provider's grace.
    """
    if claim.doubted_since is None:
        return False
    life = Life(issued_at=claim.tokens.issued_at, expires_at=claim.tokens.expires_at)
    since = _earlier(claim.doubted_since, now)
    return resend_at(rotation, life, sent_at=since, now=now, retry=now) > now


def abandoned(
    claim: Abandoned,
    rotation: Rotation,
    now: datetime,
    chance: float,
    *,
    hold: timedelta,
    rests: timedelta = timedelta(0),
) -> Settlement:
    """Settle a claim of length ``hold`` whose owner vanished: in doubt, never free.

    It ``rests`` before any resend, whatever the rotation profile says.
    """
    life = Life(issued_at=claim.issued_at, expires_at=claim.expires_at)
    remaining = None if life.expires_at is None else (life.expires_at - now).total_seconds()
    retry = now + timedelta(seconds=backoff(claim.failures + 1, chance, remaining))
    # Whoever claimed it may have held it for longer than this process does.
    since = _earlier(claim.doubted_since, now - claim.overdue - hold)
    due = resend_at(rotation, life, sent_at=since, now=now, retry=retry)
    return Settlement(
        connection_id=claim.connection_id,
        attempt=claim.attempt,
        generation=claim.generation,
        state=ClaimState.IN_DOUBT,
        due_at=max(due, now + rests),
        rests=rests,
        doubted_since=since,
        status=Status.FAILING,
        failures=claim.failures + 1,
        last_error=Failure(
            code="in_doubt",
            description=(
                "A refresh was interrupted before its answer was stored. It is tried again when "
                "that is safe at this provider."
            ),
            at=now,
        ),
        touches_connection=True,
    )


def _earlier(known: datetime | None, at: datetime) -> datetime:
    """Return the earlier time: a clock that was set back must not prolong any grace."""
    return at if known is None else min(known, at)


def _doubted(decision: Decision, since: datetime | None) -> Decision:
    """Return a decision that leaves the fate of the stored refresh token open."""
    settlement = replace(decision.settlement, state=ClaimState.IN_DOUBT, doubted_since=since)
    return replace(decision, settlement=settlement)


def _retry_at(claim: Claim, outcome: Outcome, now: datetime, chance: float) -> datetime:
    wait = backoff(claim.failures + 1, chance, claim.tokens.good_for(now))
    if outcome.retry_after is not None:
        wait = max(outcome.retry_after, _SHORTEST_INTERVAL.total_seconds())
    return now + timedelta(seconds=wait)


def _resend_after(
    claim: Claim,
    rotation: Rotation,
    retry: datetime,
    now: datetime,
    *,
    sent_at: datetime,
    again: bool,
) -> datetime:
    life = Life(issued_at=claim.tokens.issued_at, expires_at=claim.tokens.expires_at)
    return resend_at(rotation, life, sent_at=sent_at, now=now, retry=retry, again=again)


def _dead(claim: Claim, outcome: Outcome, now: datetime) -> Decision:
    error = Failure(
        code="reply_lost" if claim.was_in_doubt else outcome.error or "invalid_grant",
        description=(
            "The provider's answer to an earlier refresh was lost, and it no longer accepts the "
            "refresh token that was in use before. Connect again."
            if claim.was_in_doubt
            else outcome.description
        ),
        at=now,
    )
    settlement = Settlement(
        connection_id=claim.connection_id,
        attempt=claim.attempt,
        generation=claim.fence,
        state=ClaimState.IDLE,
        due_at=None,
        status=Status.REAUTHORIZATION_REQUIRED,
        failures=claim.failures + 1,
        last_error=error,
        touches_connection=True,
        epoch=claim.epoch,
        provider=claim.provider,
        fields=claim.fields,
    )
    return Decision(settlement=settlement, retry_in=None)


def _decision(
    claim: Claim,
    now: datetime,
    outcome: Outcome | None = None,
    *,
    due: datetime | None,
    state: ClaimState = ClaimState.IDLE,
    tokens: TokenSet | None = None,
    touched: bool = True,
) -> Decision:
    """Compose a decision; ``outcome`` is what failed, ``None`` where nothing did."""
    error = None
    if outcome is not None:
        code = outcome.error or (outcome.reason.value if outcome.reason else outcome.kind.value)
        error = Failure(code=code, description=outcome.description, at=now)
    settlement = Settlement(
        connection_id=claim.connection_id,
        attempt=claim.attempt,
        generation=claim.fence,
        tokens=tokens,
        state=state,
        due_at=due,
        status=Status.ACTIVE if outcome is None else Status.FAILING,
        failures=0 if outcome is None else claim.failures + 1,
        last_error=error,
        touches_connection=touched,
        epoch=claim.epoch,
        provider=claim.provider,
        fields=claim.fields,
    )
    retry_in = None if due is None else max(0.0, (due - now).total_seconds())
    return Decision(settlement=settlement, retry_in=retry_in)
