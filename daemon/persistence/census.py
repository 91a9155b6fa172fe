"""Counts over all connections, for the gauges: cheap also where there are a million.

The hard idea: when a token expires is in the rows that every refresh rewrites, too many to read
for a gauge. Its index is asked instead: for what has expired, and for the next few that will.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from daemon.persistence.postgres import Database

_COUNTS = "SELECT provider, status, count(*) AS n FROM connections GROUP BY 1, 2"

# A dead grant is not refreshed: it would hide the others for ever.
_EXPIRED = """
SELECT c.provider, count(*) AS expired, min(t.expires_at) AS soonest
FROM token_sets t JOIN connections c ON c.id = t.connection_id
WHERE t.expires_at <= $1 AND c.status IN ('active', 'failing') GROUP BY 1
"""

# Nearly always every provider with a token that expires soon is among these.
_NEXT_FEW = 1000
_NEXT = """
WITH following AS MATERIALIZED (
    SELECT connection_id, expires_at FROM token_sets
    WHERE expires_at > $1 ORDER BY expires_at LIMIT $2
)
SELECT c.provider, count(*) AS n,
       min(f.expires_at) FILTER (WHERE c.status IN ('active', 'failing')) AS soonest
FROM following f JOIN connections c ON c.id = f.connection_id GROUP BY 1
"""

# Of a provider whose tokens all live longer: reads each of them.
_SOONEST = """
SELECT c.provider, min(t.expires_at) AS soonest
FROM connections c JOIN token_sets t ON t.connection_id = c.id
WHERE c.provider = ANY($2::text[]) AND c.status IN ('active', 'failing') AND t.expires_at > $1
GROUP BY 1
"""
_REFRESHED = frozenset({"active", "failing"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """Counts over all connections; keys are (provider, status) or provider names.

    ``expired`` and ``soonest`` are about active and failing connections, and name only providers
    that have any such token.
    """

    connections: Mapping[tuple[str, str], int]
    expired: Mapping[str, int]
    soonest: Mapping[str, datetime | None]


async def take_census(database: Database, *, now: datetime, few: int = _NEXT_FEW) -> Census:
    """Count. ``few`` tokens that expire next are looked at. Raises DatabaseUnavailableError."""
    counts = await database.fetch(_COUNTS)
    expired = await database.fetch(_EXPIRED, now)
    following = await database.fetch(_NEXT, now, few)
    soonest = {row["provider"]: row["soonest"] for row in following if row["soonest"] is not None}
    soonest |= {row["provider"]: row["soonest"] for row in expired}
    in_use = {row["provider"] for row in counts if row["status"] in _REFRESHED}
    unseen = sorted(in_use - soonest.keys())
    if unseen and sum(row["n"] for row in following) >= few:
        rows = await database.fetch(_SOONEST, now, unseen)
        soonest |= {row["provider"]: row["soonest"] for row in rows}
    return Census(
        connections={(row["provider"], row["status"]): row["n"] for row in counts},
        expired={row["provider"]: row["expired"] for row in expired},
        soonest=soonest,
    )
