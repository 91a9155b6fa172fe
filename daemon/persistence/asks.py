"""[claim] Asking others to refresh: a connection is marked due, by a process that never claims.

Its hard idea: only a row that would be given to a caller is touched. A backoff, a doubt or an open
claim says when its time is, and asking does not change that.
"""

from __future__ import annotations

from datetime import datetime

from daemon.domain.claim import ClaimState, Refusal, RefusalReason
from daemon.domain.claimable import ScheduleRow, Wanted, refusal
from daemon.domain.connection import Status
from daemon.persistence.postgres import Database
from daemon.persistence.refresh_statements import LOCK_WANTED

# After the lock, in a statement of its own: see READ_CLAIMED.
_READ = """
SELECT c.status, t.generation, t.refresh_token IS NOT NULL AS has_refresh_token,
       coalesce(t.expires_at <= t.issued_at, false) AS arrived_expired
FROM connections c JOIN token_sets t ON t.connection_id = c.id WHERE c.id = $1
"""
_MARK_DUE = """
UPDATE refresh_schedule SET due_at = least(coalesce(due_at, $2), $2) WHERE connection_id = $1
"""


class PostgresAsks:
    """Marks connections due (port: ``daemon.refresh.ports.Asks``)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ask(self, wanted: Wanted, *, now: datetime) -> Refusal | None:
        """Mark a connection due at ``now``, or return why it would not be claimed."""
        connection_id = wanted.connection_id
        async with self._database.transaction() as session:
            locked = await session.fetchrow(LOCK_WANTED, connection_id)
            found = None if locked is None else await session.fetchrow(_READ, connection_id)
            if locked is None or found is None:
                return Refusal(connection_id=connection_id, reason=RefusalReason.UNKNOWN)
            row = ScheduleRow(
                status=Status(found["status"]),
                state=ClaimState(locked["state"]),
                due_at=locked["due_at"],
                failures=locked["failures"],
                generation=found["generation"],
                has_refresh_token=found["has_refresh_token"],
                arrived_expired=found["arrived_expired"],
            )
            reason = refusal(row, wanted, now)
            if reason is None:
                await session.execute(_MARK_DUE, connection_id, now)
                return None
        return Refusal(connection_id=connection_id, reason=reason, retry_at=row.due_at)
