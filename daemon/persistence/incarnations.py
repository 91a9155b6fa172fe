"""Which incarnation of the database this is, and who has compared it with a journal.

Its hard idea: after a failover or a restored backup the database may have forgotten replies that
were stored, and the refresh tokens it has are spent. Every such event starts a server, or makes a
new database or table. So those name the incarnation, each claim looks at the name within its own
transaction, and in one that was not compared with the journal nothing is claimed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence

from daemon.domain.claim import Standing
from daemon.domain.connection import Status
from daemon.domain.errors import DatabaseUnavailableError
from daemon.persistence.postgres import Database

# What an ordinary role may read. A start, a promoted standby (its server has another start time),
# point-in-time recovery; a database made anew; tables made anew or truncated by a restore.
INCARNATION = """(
    SELECT concat_ws('/', extract(epoch FROM pg_postmaster_start_time()), d.oid,
                     pg_relation_filenode('token_sets'))
    FROM pg_database d WHERE d.datname = current_database()
)"""

_REPLAYED = """
INSERT INTO replicas (owner, incarnation, since, seen_at)
VALUES ($1, $2, clock_timestamp(), clock_timestamp())
ON CONFLICT (owner) DO UPDATE
SET since = CASE WHEN replicas.incarnation = excluded.incarnation THEN replicas.since
                 ELSE excluded.since END,
    seen_before = CASE WHEN replicas.incarnation = excluded.incarnation THEN replicas.seen_before
                       ELSE replicas.seen_at END,
    incarnation = excluded.incarnation, seen_at = excluded.seen_at
"""

# Awaited are the replicas that were there when the database was last used before: in a restored
# backup, those of its time. Who has left has stored what it had.
_ALL_REPLAYED = """
SELECT NOT EXISTS (
    SELECT 1 FROM replicas
    WHERE incarnation <> $1 AND seen_at > '-infinity' AND seen_at >= (
        SELECT max(CASE WHEN incarnation = $1 THEN seen_before ELSE seen_at END) FROM replicas
    ) - interval '5 minutes'
) OR coalesce((SELECT min(since) FROM replicas WHERE incarnation = $1)
              <= clock_timestamp() - interval '10 minutes', false)
"""

_STANDING = """
SELECT c.id, c.status, c.epoch, coalesce(t.generation, 0) AS generation, t.granted_at
FROM connections c LEFT JOIN token_sets t ON t.connection_id = c.id WHERE c.id = ANY($1::text[])
"""


class Incarnations:
    """What this process knows of the database's incarnation.

    Until the first ``trust`` every one is trusted, so that who does not compare is not stopped.
    """

    def __init__(self, database: Database, *, owner: str) -> None:
        self._database = database
        self._owner = owner
        self._trusted: str | None = None
        self._refused: str | None = None
        self._changed = asyncio.Event()
        self.held_back: frozenset[str] = frozenset()

    async def current(self) -> str:
        """Return the name of the incarnation in use."""
        name: str = await self._database.fetchval(f"SELECT {INCARNATION}")
        return name

    def check(self, found: str) -> None:
        """Refuse what is about to be claimed in an incarnation that is not trusted.

        Raises:
            DatabaseUnavailableError: it is another one; ``changed`` returns.
        """
        if self._refused is not None:
            raise DatabaseUnavailableError(self._refused)
        if self._trusted is None or found == self._trusted:
            return
        self._changed.set()
        raise DatabaseUnavailableError(
            "the database was restarted, replaced or restored: nothing is claimed until the "
            "journal was compared with it"
        )

    def refuse(self, reason: str | None) -> None:
        """Let nothing be claimed at all, for a reason in words, until called with ``None``."""
        self._refused = reason

    async def is_known(self, incarnation: str) -> bool:
        """Tell whether this very replica has trusted it before, in this process or an earlier."""
        known: str | None = await self._database.fetchval(
            "SELECT incarnation FROM replicas WHERE owner = $1", self._owner
        )
        return known == incarnation

    async def changed(self) -> None:
        """Return when a claim has met an incarnation that is not trusted."""
        await self._changed.wait()

    async def trust(self, incarnation: str) -> None:
        """Let claims be taken in an incarnation: it has all that this process knows of."""
        await self._database.execute(_REPLAYED, self._owner, incarnation)
        self._trusted = incarnation
        self._changed.clear()

    def hold_back(self, providers: Collection[str]) -> None:
        """Let nothing be claimed at these providers, until called again without them."""
        self.held_back = frozenset(providers)

    async def all_replayed(self, incarnation: str) -> bool:
        """Tell whether no replica may still have newer replies than the database.

        That is when all that it knows have compared their journals, or 10 min after the first.
        """
        done: bool = await self._database.fetchval(_ALL_REPLAYED, incarnation)
        return done

    async def beat(self) -> None:
        """Say that this replica lives, and look whether the database is still the same."""
        await self._database.execute(
            "UPDATE replicas SET seen_at = clock_timestamp() WHERE owner = $1", self._owner
        )
        found = await self.current()
        try:
            self.check(found)
        except DatabaseUnavailableError:
            return

    async def leave(self) -> None:
        """Let nobody wait for this replica: it has stored all that it had."""
        await self._database.execute(
            "UPDATE replicas SET seen_at = '-infinity' WHERE owner = $1", self._owner
        )

    async def standing(self, ids: Sequence[str]) -> Mapping[str, Standing]:
        """Return where these connections stand; unknown ids are left out."""
        rows = await self._database.fetch(_STANDING, list(ids))
        return {
            row["id"]: Standing(
                status=Status(row["status"]),
                generation=row["generation"],
                epoch=row["epoch"],
                granted_at=row["granted_at"],
            )
            for row in rows
        }
