"""Connections locked with their schedules and tokens: how every change of a grant begins.

Its hard idea is the one order of locks: account, ids, schedules, then the rest. Refreshes lock
schedules first as well, so that neither they nor two changes at once wait in a circle.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import TypeVar

import asyncpg

from daemon.domain.completion import Held
from daemon.domain.connection import Connection
from daemon.domain.errors import DatabaseUnavailableError
from daemon.domain.tokens import TokenSet
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.postgres import Database, DatabaseConnection
from daemon.persistence.rows import (
    SELECT_CONNECTION,
    connection_value,
    readable_tokens,
    seal_tokens,
)

T = TypeVar("T")

# Two that give one account to two connections at once, without the account's lock, are rare.
_TRIES = 5

# Two numbers: spaces of their own beside the migrations' lock. The first only have to stay the
# same. A hash that two share makes them wait for each other, and no more.
_LOCK_ACCOUNT = "SELECT pg_advisory_xact_lock(20261122, hashtext($1))"
_LOCK_IDS = """
SELECT pg_advisory_xact_lock(20261121, place)
FROM (SELECT DISTINCT hashtext(id) AS place FROM unnest($1::text[]) AS id ORDER BY 1) places
"""
_LOCK_SCHEDULES = """
SELECT 1 FROM refresh_schedule WHERE connection_id = ANY($1::text[]) ORDER BY connection_id
FOR UPDATE
"""
_LOCK_CONNECTIONS = "SELECT 1 FROM connections WHERE id = ANY($1::text[]) ORDER BY id FOR UPDATE"
# A disconnect of the survivor is one of all that went into it.
_MERGED = """
SELECT m.id FROM merged_connections m JOIN connections c ON c.id = m.survivor
WHERE m.id = ANY($1::text[]) AND c.status <> 'disconnected'
"""
_READ_TOKENS = """
SELECT connection_id, generation, access_token, refresh_token, token_type, scopes, issued_at,
       expires_at
FROM token_sets WHERE connection_id = ANY($1::text[])
"""

_STORE_TOKENS = """
INSERT INTO token_sets (connection_id, generation, access_token, refresh_token, token_type, scopes,
                        issued_at, expires_at, stored_at, grant_generation, granted_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $2, $10)
ON CONFLICT (connection_id) DO UPDATE
SET generation = excluded.generation, access_token = excluded.access_token,
    refresh_token = excluded.refresh_token, token_type = excluded.token_type,
    scopes = excluded.scopes, issued_at = excluded.issued_at, expires_at = excluded.expires_at,
    stored_at = excluded.stored_at, grant_generation = excluded.grant_generation,
    granted_at = excluded.granted_at
"""
# Clearing the attempt is what fences off a refresh that is still on its way.
_STORE_SCHEDULE = """
INSERT INTO refresh_schedule (connection_id, provider, due_at) VALUES ($1, $2, $3)
ON CONFLICT (connection_id) DO UPDATE
SET due_at = excluded.due_at, state = 'idle', attempt = NULL, owner = NULL, take_over_at = NULL,
    doubted_since = NULL, failures = 0
"""


async def lock_account(
    session: DatabaseConnection, provider: str, scope: str, account_id: str
) -> None:
    """Let nobody else give this account to a connection until the transaction ends."""
    await session.execute(_LOCK_ACCOUNT, f"{provider} {scope} {account_id}")


async def holder_of(
    session: DatabaseConnection, provider: str, scope: str, account_id: str, *, beside: str
) -> str | None:
    """Return the id of the connection that has an account, ``beside`` apart."""
    found: str | None = await session.fetchval(
        "SELECT id FROM connections WHERE provider = $1 AND account_scope = $2"
        " AND account_id = $3 AND id <> $4",
        provider,
        scope,
        account_id,
        beside,
    )
    return found


async def merged_of(session: DatabaseConnection, ids: Sequence[str]) -> frozenset[str]:
    """Return those of ``ids`` that went into another connection, which goes on.

    A reply to a refresh of theirs is superseded, like one that a reconnect has overtaken. To revoke
    its tokens could end the survivor's grant: it is the same account's.
    """
    return frozenset(row["id"] for row in await session.fetch(_MERGED, list(ids)))


async def lock_connections(
    session: DatabaseConnection, cipher: TokenCipher, ids: Sequence[str]
) -> dict[str, Held]:
    """Lock connections against every other change and return those that there are, by id.

    What is returned was read after the locks were there. Never raises DecryptionError.
    """
    names = sorted(ids)
    # A connection without tokens has no schedule to lock yet.
    await session.execute(_LOCK_IDS, names)
    await session.execute(_LOCK_SCHEDULES, names)
    await session.execute(_LOCK_CONNECTIONS, names)
    tokens = {
        row["connection_id"]: readable_tokens(row, cipher)
        for row in await session.fetch(_READ_TOKENS, names)
    }
    rows = await session.fetch(SELECT_CONNECTION + " WHERE c.id = ANY($1::text[])", names)
    return {
        row["id"]: Held(
            connection=connection_value(row),
            account_scope=row["account_scope"],
            label_is_set=row["label_is_set"],
            epoch=row["epoch"],
            tokens=tokens.get(row["id"], (None, True))[0],
            is_readable=tokens.get(row["id"], (None, True))[1],
        )
        for row in rows
    }


async def locked_connection(session: DatabaseConnection, connection_id: str) -> Connection:
    """Return a connection that this transaction has locked, as it now is."""
    [row] = await session.fetch(SELECT_CONNECTION + " WHERE c.id = $1", connection_id)
    return connection_value(row)


async def store_tokens(
    session: DatabaseConnection,
    cipher: TokenCipher,
    connection_id: str,
    tokens: TokenSet,
    *,
    now: datetime,
    granted_at: datetime,
) -> None:
    """Write the first tokens of a grant at their generation, over whatever there is.

    ``granted_at`` is when they were asked for: what was sent earlier is another grant's.
    """
    access, refresh = seal_tokens(cipher, connection_id, tokens)
    await session.execute(
        _STORE_TOKENS,
        connection_id,
        tokens.generation,
        access,
        refresh,
        tokens.token_type,
        list(tokens.scopes),
        tokens.issued_at,
        tokens.expires_at,
        now,
        granted_at,
    )


async def store_schedule(
    session: DatabaseConnection, connection_id: str, provider: str, due_at: datetime | None
) -> None:
    """Write when a connection is due, and end whatever refresh is on its way."""
    await session.execute(_STORE_SCHEDULE, connection_id, provider, due_at)


async def again_where_taken(
    database: Database, work: Callable[[DatabaseConnection], Awaitable[T]]
) -> T:
    """Run ``work``, again where another has just given the same account to a connection.

    Raises DatabaseUnavailableError, also where that does not end.
    """
    tries = 0
    while True:
        tries += 1
        try:
            return await database.idempotent(work)
        except asyncpg.UniqueViolationError as error:
            if tries == _TRIES:
                raise DatabaseUnavailableError(
                    "another connection takes the same account again and again"
                ) from error
