"""What a locked row says of a claim: whether it is given, and what it is. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

from daemon.domain.claim import Claim, ClaimState, Refusal, RefusalReason
from daemon.domain.claimable import ScheduleRow, Wanted
from daemon.domain.connection import Status
from daemon.domain.tokens import TokenSet
from daemon.persistence.rows import Row

# Replicas' clocks may differ by this much. A person's reconnect takes longer than a reply.
_CLOCKS_DIFFER = timedelta(seconds=10)


def held_back(wanted: Wanted) -> Refusal:
    """Return the answer while other replicas' journals are waited for."""
    return Refusal(connection_id=wanted.connection_id, reason=RefusalReason.PROVIDER_PAUSED)


def claim_of(row: Row, tokens: TokenSet, delay: float) -> Claim:
    """Return the claim of a row as it was before it was taken; ``delay`` is in seconds."""
    was_in_doubt = row["state"] == ClaimState.IN_DOUBT
    return Claim(
        connection_id=row["connection_id"],
        provider=row["provider"],
        attempt=row["attempt"],
        status=Status(row["status"]),
        tokens=tokens,
        requested_scopes=tuple(row["requested_scopes"]),
        was_in_doubt=was_in_doubt,
        doubted_since=row["doubted_since"] if was_in_doubt else None,
        failures=row["failures"],
        planned_at=row["due_at"],
        delay=delay,
        fields=row["fields"],
        reply_values=row["reply_values"],
        epoch=row["epoch"],
    )


def has_ended(row: Row, attempt: str) -> bool:
    """Tell whether it is stored already how the attempt ended; its journal may not know."""
    return bool(row["state"] == ClaimState.IDLE and row["attempt"] == attempt)


def not_reclaimed(
    row: Row | None, connection_id: str, attempt: str, *, epoch: int | None = None
) -> Refusal | None:
    """Return why a reply's claim is not taken again."""
    if row is None:
        reason = RefusalReason.UNKNOWN
    elif row["status"] == Status.DISCONNECTED or (epoch is not None and row["epoch"] > epoch):
        reason = RefusalReason.DISCONNECTED
    elif row["state"] == ClaimState.SENDING and row["attempt"] != attempt:
        reason = RefusalReason.SENDING
    else:
        return None
    return Refusal(connection_id=connection_id, reason=reason)


def is_older(row: Row, generation: int, sent_at: datetime) -> bool:
    """Tell whether the database has nothing newer than a reply to what was sent then.

    A grant that began after the request left is another one, whatever its generation.
    """
    if row["generation"] > generation:
        return False
    return row["granted_at"] is None or row["granted_at"] <= sent_at + _CLOCKS_DIFFER


def schedule_of(row: Row) -> ScheduleRow:
    """Return what decides whether somebody who waits may claim."""
    return ScheduleRow(
        status=Status(row["status"]),
        state=ClaimState(row["state"]),
        due_at=row["due_at"],
        failures=row["failures"],
        generation=row["generation"],
        has_refresh_token=row["refresh_token"] is not None,
        arrived_expired=row["expires_at"] is not None and row["expires_at"] <= row["issued_at"],
        rests=row["rests"],
    )
