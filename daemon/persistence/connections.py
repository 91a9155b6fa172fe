"""Connections in PostgreSQL: create, find, list, and what serving reads."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any

import asyncpg

from daemon.domain.completion import authorized_detail
from daemon.domain.connection import ID_LETTERS, Connection, Status
from daemon.domain.history import EventType, NewEvent
from daemon.domain.tokens import CurrentToken, TokenSet, Version
from daemon.persistence.census import Census, take_census
from daemon.persistence.held import store_schedule, store_tokens
from daemon.persistence.life import ConnectionLife
from daemon.persistence.postgres import DatabaseConnection
from daemon.persistence.rows import SELECT_CONNECTION, connection_value, current_token

_CURRENT_COLUMNS = """
SELECT c.id, c.provider, c.status, c.last_error, c.created_at, t.generation, t.access_token,
       t.token_type, t.scopes, t.issued_at, t.expires_at,
       t.refresh_token IS NOT NULL AS has_refresh_token, s.due_at
"""
_WITH_TOKENS = """
LEFT JOIN token_sets t ON t.connection_id = c.id
LEFT JOIN refresh_schedule s ON s.connection_id = c.id
"""
_CURRENT = _CURRENT_COLUMNS + "FROM connections c" + _WITH_TOKENS

# The few are chosen before anything is joined: sorting all with their tokens is a gigabyte on
# disk where there are a million. What was never used comes from the index of creation, and only
# where that is needed.
_RECENTLY_USED = (
    _CURRENT_COLUMNS
    + """FROM (
    (SELECT id FROM connections WHERE status IN ('active', 'failing') AND last_used_at IS NOT NULL
     ORDER BY last_used_at DESC LIMIT $1)
    UNION ALL
    (SELECT id FROM connections WHERE status IN ('active', 'failing') AND last_used_at IS NULL
     ORDER BY created_at DESC, id DESC LIMIT $1)
    LIMIT $1
) few JOIN LATERAL (SELECT * FROM connections WHERE id = few.id OFFSET 0) c ON true
LEFT JOIN LATERAL (SELECT * FROM token_sets WHERE connection_id = c.id OFFSET 0) t ON true
LEFT JOIN LATERAL (SELECT * FROM refresh_schedule WHERE connection_id = c.id OFFSET 0) s ON true
"""
)

# What is under way for a connection that was purged carries its epoch. One made anew under the same
# name begins above it, or the late reply would become its own.
_INSERT = """
INSERT INTO connections (id, provider, grant_type, status, label, label_is_set, fields,
                         requested_scopes, metadata, reply_values, return_url, created_by,
                         test_due_at, created_at, updated_at, epoch)
VALUES ($1, $2, $3, $4, $5, $5::text IS NOT NULL, $6::jsonb, $7, $8::jsonb, $9::jsonb, $10, $11,
        $12, $13, $13, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)
"""

# A set in brackets (a first `]` is a member), or a single character.
_GLOB_PART = re.compile(r"\[!?\]?[^\]]*\]|.", re.DOTALL)
_NOTHING = "(?!.)."
# Rows of a long result that are in memory at once.
_AT_A_TIME = 500


def regular_expression(glob: str) -> str:
    """Return PostgreSQL's regular expression for a glob over connection ids. Pure.

    It matches the ids that ``fnmatchcase`` matches. The two languages differ in what may stand in
    brackets, so those are replaced by the letters that they stand for.
    """
    parts: list[str] = []
    for part in _GLOB_PART.findall(glob):
        if part == "*":
            parts.append(".*")
        else:
            letters = [letter for letter in ID_LETTERS if fnmatchcase(letter, part)]
            parts.append(f"[{re.escape(''.join(letters))}]" if letters else _NOTHING)
    return "^(?:" + "".join(parts) + ")$"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What a listing is narrowed to.

    ``patterns`` are globs over the ids that the caller may see; ``None`` is all of them.
    """

    provider: str | None = None
    status: str | None = None
    text: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    patterns: tuple[str, ...] | None = None


class PostgresConnections(ConnectionLife):
    """The connection store on PostgreSQL. Methods raise DatabaseUnavailableError."""

    async def create(
        self,
        connection: Connection,
        tokens: TokenSet | None,
        *,
        due_at: datetime | None,
        next_test_at: datetime | None = None,
    ) -> bool:
        """Store a new connection, with tokens where they were imported; ``False``: id taken.

        Its account is not stored: only what the provider says makes it this account's.
        """
        try:
            async with self._database.transaction() as session:
                await self._insert(session, connection, next_test_at)
                if tokens is not None:
                    name, now = connection.id, connection.created_at
                    await store_tokens(session, self._cipher, name, tokens, now=now, granted_at=now)
                    await store_schedule(session, name, connection.provider, due_at)
                await self._recorder.record(session, _creation(connection, tokens))
        except asyncpg.UniqueViolationError:
            return False
        return True

    async def get(self, connection_id: str) -> Connection | None:
        """Return one connection."""
        row = await self._database.fetchrow(SELECT_CONNECTION + " WHERE c.id = $1", connection_id)
        return None if row is None else connection_value(row)

    async def page(
        self, wanted: Filter, *, limit: int, before: tuple[datetime, str] | None
    ) -> list[Connection]:
        """Return up to ``limit`` connections, newest first, that come after ``before``."""
        where = ["true"]
        values: list[Any] = []

        def condition(text: str, *arguments: Any) -> None:
            numbers = [f"${len(values) + place}" for place in range(1, len(arguments) + 1)]
            where.append(text.format(*numbers))
            values.extend(arguments)

        if wanted.provider is not None:
            condition("c.provider = {}", wanted.provider)
        if wanted.status is not None:
            condition("c.status = {}", wanted.status)
        if wanted.text is not None:
            condition(
                "position(lower({}) in lower(concat_ws(' ', c.id, c.label, c.account_id))) > 0",
                wanted.text,
            )
        if wanted.metadata:
            condition("c.metadata @> {}::jsonb", dict(wanted.metadata))
        if wanted.patterns is not None:
            condition("c.id ~ ANY({}::text[])", [regular_expression(p) for p in wanted.patterns])
        if before is not None:
            condition("(c.created_at, c.id) < ({}, {})", *before)
        condition("true ORDER BY c.created_at DESC, c.id DESC LIMIT {}", limit)
        rows = await self._database.fetch(
            SELECT_CONNECTION + " WHERE " + " AND ".join(where), *values
        )
        return [connection_value(row) for row in rows]

    async def current(self, ids: Sequence[str]) -> list[CurrentToken]:
        """Return what serving needs of these connections; unknown ids are left out."""
        rows = await self._database.fetch(_CURRENT + " WHERE c.id = ANY($1::text[])", list(ids))
        return [current_token(row, self._cipher) for row in rows]

    async def recently_used(self, limit: int) -> AsyncIterator[CurrentToken]:
        """Yield the tokens most likely to be asked for, to warm the cache with.

        Only a few are in memory at a time: what is freed after a start is seldom given back.
        """
        async with self._database.transaction() as session:
            rows = session.cursor(_RECENTLY_USED, limit, prefetch=_AT_A_TIME)
            async for row in rows:
                yield current_token(row, self._cipher)

    async def versions(self, ids: Sequence[str]) -> dict[str, Version]:
        """Return what tells which cache entries are stale; unknown ids are left out."""
        rows = await self._database.fetch(
            "SELECT c.id, c.status, coalesce(t.generation, 0) AS generation, t.expires_at"
            " FROM connections c LEFT JOIN token_sets t ON t.connection_id = c.id"
            " WHERE c.id = ANY($1::text[])",
            list(ids),
        )
        return {
            row["id"]: Version(row["generation"], Status(row["status"]), row["expires_at"])
            for row in rows
        }

    async def mark_used(self, used: Mapping[str, datetime]) -> None:
        """Remember when connections were last used; older times change nothing."""
        await self._database.execute(
            "UPDATE connections c SET last_used_at = greatest(c.last_used_at, u.at)"
            " FROM unnest($1::text[], $2::timestamptz[]) AS u (id, at) WHERE c.id = u.id",
            list(used),
            list(used.values()),
        )

    async def census(self, *, now: datetime) -> Census:
        """Return the counts behind the gauges."""
        return await take_census(self._database, now=now)

    async def providers_in_use(self) -> dict[str, int]:
        """Return how many connections hold tokens, by provider."""
        rows = await self._database.fetch(
            "SELECT provider, count(*) AS n FROM connections"
            " WHERE status IN ('active', 'failing') GROUP BY 1"
        )
        return {row["provider"]: row["n"] for row in rows}

    async def _insert(
        self, session: DatabaseConnection, connection: Connection, next_test_at: datetime | None
    ) -> None:
        await session.execute(
            _INSERT,
            connection.id,
            connection.provider,
            connection.grant,
            connection.status.value,
            connection.label,
            dict(connection.fields),
            list(connection.requested_scopes),
            dict(connection.metadata),
            dict(connection.reply_values),
            connection.return_url,
            connection.created_by,
            next_test_at,
            connection.created_at,
        )
        # An id that once went into another connection is one of its own again.
        await session.execute("DELETE FROM merged_connections WHERE id = $1", connection.id)


def _creation(connection: Connection, tokens: TokenSet | None) -> list[NewEvent]:
    created = NewEvent(
        type=EventType.CREATED,
        connection=connection.id,
        provider=connection.provider,
        at=connection.created_at,
        detail={"grant": connection.grant},
    )
    if tokens is None:
        return [created]
    detail = authorized_detail(tokens, connection.requested_scopes, account_known=False)
    imported = replace(created, type=EventType.AUTHORIZED, detail={**detail, "imported": True})
    return [created, imported]
