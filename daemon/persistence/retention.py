"""Rows that nobody needs any more: removed a few at a time, and by one replica at a time.

The hard idea: a backlog of millions must not cost a single refresh its turn. Each batch is a
transaction of its own that passes over what others hold, and after it the database rests for as
long as it took. docs/backup.md tells operators what is kept for how long.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from daemon.domain.clock import Clock
from daemon.persistence.postgres import Database, DatabaseConnection

# Some milliseconds of work and some hundred kilobytes of WAL.
_BATCH = 1000
# One turn. What it leaves over is the next one's, some minutes later and on any replica.
_PATIENCE = 60.0
# The session that holds the turn is ended by the server when it is idle for 15 s.
_LONGEST_REST = 4.0
# Held by an idle transaction: it ends with its connection, and no leader has to be found missing.
_TURN = "SELECT pg_try_advisory_xact_lock(20261124)"
# Before PostgreSQL ends a transaction that is idle for 15 s. By the simple protocol, which also
# drops the portal of the statement above: its snapshot would hold VACUUM back.
_STILL_HERE = "SELECT 1"

_DELETE = """
DELETE FROM {table} WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM {table} WHERE {since} < $1 LIMIT $2 FOR UPDATE SKIP LOCKED
))
"""
# By id, which rises with time: an index over times would cost every refresh for one sweep.
_DELETE_EVENTS = """
WITH oldest AS (SELECT id, at FROM events ORDER BY id LIMIT $2)
DELETE FROM events WHERE id IN (SELECT id FROM oldest WHERE at < $1)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Rows of ``table`` go ``keep`` after the time in ``since``; ``None``: as configured."""

    table: str
    since: str
    keep: timedelta | None
    statement: str = _DELETE

    @property
    def sql(self) -> str:
        """Return the statement; its arguments are the oldest time that stays, and how many go."""
        return self.statement.format(table=self.table, since=self.since)


RULES = (
    Rule(table="connect_tickets", since="expires_at", keep=timedelta()),
    # A callback that comes a little late is told that it is late, not that it is unknown.
    Rule(table="authorizations", since="expires_at", keep=timedelta(hours=1)),
    # With their deliveries, however those stand: the retention bounds the webhook's patience.
    Rule(table="events", since="at", keep=None, statement=_DELETE_EVENTS),
    Rule(table="orphans", since="received_at", keep=timedelta(days=30)),
    Rule(table="replicas", since="greatest(seen_at, since)", keep=timedelta(days=30)),
    # Longer than any journal is left lying and started again.
    Rule(table="refused_replies", since="refused_at", keep=timedelta(days=400)),
    # Longer than anybody who uses a connection at all goes without asking for it.
    Rule(table="merged_connections", since="merged_at", keep=timedelta(days=400)),
)
"""What is removed by age. Revocations end by themselves after 7 days (``upkeep.revoking``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """Rows removed in one turn, by table; not ``complete`` where time ran out first."""

    rows: Mapping[str, int]
    complete: bool


class Retention:
    """Removes what is old."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def prune(self, *, events: timedelta, patience: float = _PATIENCE) -> Removed | None:
        """Remove what is old for about ``patience`` seconds; ``None``: another replica is at it.

        ``events`` is how long events are kept. Cancelling loses nothing but the rest of the turn.
        Raises DatabaseUnavailableError.
        """
        give_up = self._clock.boottime() + patience
        rows: dict[str, int] = {}
        complete = True
        async with self._database.transaction() as turn:
            if not await turn.fetchval(_TURN):
                return None
            for rule in RULES:
                keep = events if rule.keep is None else rule.keep
                rows[rule.table], is_all = await self._apply(rule, keep, turn, give_up)
                complete = complete and is_all
        return Removed(rows={table: n for table, n in rows.items() if n}, complete=complete)

    async def _apply(
        self, rule: Rule, keep: timedelta, turn: DatabaseConnection, give_up: float
    ) -> tuple[int, bool]:
        """Remove one table's rows; return how many, and whether none is left."""
        oldest, removed = self._clock.now() - keep, 0
        while True:
            await turn.execute(_STILL_HERE)
            began = self._clock.boottime()
            tag = await self._database.execute(rule.sql, oldest, _BATCH)
            count = int(tag.rpartition(" ")[2])
            removed += count
            now = self._clock.boottime()
            if count < _BATCH or now >= give_up:
                return removed, count < _BATCH
            # Shorter than what ends the session that holds the turn (``dialing.Limits``).
            await self._clock.sleep(min(now - began, _LONGEST_REST))
