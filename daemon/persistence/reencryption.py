"""Everything that is encrypted, and encrypting it again with another key while it is in use.

Its hard idea: a row is read, sealed anew outside of any lock, and written back only where it is
still the very same ciphertext at the same generation. A refresh that comes between wins; a row that
somebody has locked is left for the next pass. So nothing waits for this for longer than one short
statement, and this waits for nothing. It may stop anywhere: what is left is what is not done.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import asyncpg

from daemon.domain.clock import Clock
from daemon.domain.errors import DecryptionError
from daemon.persistence.agreement import LOCK_KEYS, replicas_of
from daemon.persistence.cipher import TokenCipher, header_of
from daemon.persistence.dialing import DatabaseConnection

# Locked together for one statement, some milliseconds: what a refresh may have to wait.
_BATCH = 100
# Who holds a row's lock holds it for milliseconds; more passes than this find no more of them.
_PASSES = 100
_BETWEEN_PASSES = 0.1
# Transactions that write end within seconds; a dump of the database writes nothing.
_OTHERS_SECONDS = 30.0
# A million rows are counted in a second or two.
_COUNT_SECONDS = 600.0

Counts = Mapping[str, Mapping[str, int]]
"""Ciphertexts by key id, then by table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A table with ciphertexts.

    ``key`` is its primary key, of type ``key_type`` and always above ``first``. ``generation`` is
    the expression that ciphertexts are bound to beside the connection; ``columns`` maps each
    column to the name that they are bound to.
    """

    table: str
    key: str
    key_type: str
    first: object
    generation: str
    columns: Mapping[str, str]


TABLES = (
    Sealed(
        table="token_sets",
        key="connection_id",
        key_type="text",
        first="",
        generation="t.generation",
        columns={"access_token": "access_token", "refresh_token": "refresh_token"},
    ),
    Sealed(
        table="orphans",
        key="id",
        key_type="bigint",
        first=-1,
        generation="t.generation",
        columns={"access_token": "orphan_access_token", "refresh_token": "orphan_refresh_token"},
    ),
    Sealed(
        table="revocations",
        key="id",
        key_type="bigint",
        first=-1,
        generation="t.id",
        columns={"token": "revocation"},
    ),
    Sealed(
        table="authorizations",
        key="state_hash",
        key_type="bytea",
        first=b"",
        generation="0::bigint",
        columns={"code_verifier": "code_verifier"},
    ),
)


@dataclass(slots=True)
class Rotation:
    """How far it is. ``unopened`` ciphertexts cannot be read with the keys at hand: they stay."""

    rewritten: int = 0
    unopened: int = 0
    busy: int = 0
    """Rows of this pass that somebody else had locked or changed."""


async def unhurried(connection: DatabaseConnection) -> None:
    """Lift the server's limit on statements for this session: some read every row."""
    await connection.execute("SET statement_timeout = 0")


async def count_ciphertexts(connection: DatabaseConnection) -> Counts:
    """Return how many ciphertexts each key has in each table.

    What is no ciphertext of ours counts for the key ``?``. Reads every row.
    """
    counts: dict[str, Counter[str]] = {}
    for sealed in TABLES:
        rows = await connection.fetch(_count_statement(sealed), timeout=_COUNT_SECONDS)
        for row in rows:
            name = "?" if row["key"] is None else row["key"].decode("utf-8", "replace")
            counts.setdefault(name, Counter())[sealed.table] += row["count"]
    return counts


async def rows_left(connection: DatabaseConnection, cipher: TokenCipher) -> int:
    """Return how many rows are encrypted with another key than the primary one. Reads all."""
    header = header_of(cipher.primary)
    counts = [
        await connection.fetchval(
            f"SELECT count(*) FROM {sealed.table} t WHERE {_others(sealed, 1)}",
            header,
            timeout=_COUNT_SECONDS,
        )
        for sealed in TABLES
    ]
    return sum(counts)


async def reencrypt(
    connection: DatabaseConnection, cipher: TokenCipher, *, clock: Clock
) -> AsyncIterator[Rotation]:
    """Encrypt everything with the cipher's primary key; yield how far it is after each batch.

    Ends when a pass finds nothing to do, and no row busy. ``connection`` is one of its own, see
    ``unhurried``. Its commits do not wait for the disk: what is lost in a crash is done again.
    """
    await connection.execute("SET synchronous_commit = off")
    rotation = Rotation()
    for number in range(_PASSES):
        if number:
            await clock.sleep(_BETWEEN_PASSES)
        before = rotation.rewritten
        rotation.busy = rotation.unopened = 0
        for sealed in TABLES:
            async for _ in _pass(connection, cipher, sealed, rotation):
                yield rotation
        if rotation.rewritten == before and not rotation.busy:
            return


async def retire(connection: DatabaseConnection, *, keep: str, clock: Clock) -> tuple[str, ...]:
    """Let go of the keys that nothing needs any more, ``keep`` apart; return their ids.

    Nothing in the tables is encrypted with them and no live replica encrypts with them. Whoever
    starts without them is not refused any more. Durable with all that was done before. None is let
    go of while a transaction is open that may have written with them and that nobody sees yet.
    """
    if not await _others_have_ended(connection, clock):
        return ()
    counts = await count_ciphertexts(connection)
    async with connection.transaction():
        await connection.execute("SET LOCAL synchronous_commit = on")
        await connection.execute(LOCK_KEYS)
        replicas = await replicas_of(connection)
        writing = {
            key_id
            for replica in replicas
            if replica.is_live
            for key_id in (*replica.encrypts, *(replica.key_ids or ())[:1])
        }
        rows = await connection.fetch(
            "UPDATE encryption_keys SET in_use = false WHERE in_use AND NOT key_id = ANY($1)"
            " RETURNING key_id",
            [keep, *counts, *writing],
        )
    return tuple(row["key_id"] for row in rows)


async def _others_have_ended(connection: DatabaseConnection, clock: Clock) -> bool:
    """Return once all transactions have ended that write now; ``False``: they take too long."""
    horizon = await connection.fetchval("SELECT pg_current_xact_id()::text::bigint")
    give_up = clock.boottime() + _OTHERS_SECONDS
    while clock.boottime() < give_up:
        oldest = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
        if await connection.fetchval(oldest) > horizon:
            return True
        await clock.sleep(_BETWEEN_PASSES)
    return False


async def _pass(
    connection: DatabaseConnection, cipher: TokenCipher, sealed: Sealed, rotation: Rotation
) -> AsyncIterator[None]:
    last = sealed.first
    header = header_of(cipher.primary)
    select, update = _select_statement(sealed), _update_statement(sealed)
    while rows := await connection.fetch(select, last, header, _BATCH, timeout=_COUNT_SECONDS):
        last = rows[-1]["key"]
        batch = [_resealed(cipher, sealed, row, rotation) for row in rows]
        columns = [list(column) for column in zip(*filter(None, batch), strict=True)]
        if columns:
            written = await _written(connection, update, columns)
            rotation.rewritten += written
            rotation.busy += len(columns[0]) - written
        yield
        # Between two batches everybody else may have the processor.
        await asyncio.sleep(0)


async def _written(connection: DatabaseConnection, update: str, columns: list[list[Any]]) -> int:
    try:
        return len(await connection.fetch(update, *columns))
    except asyncpg.LockNotAvailableError:  # the table itself: a migration, or VACUUM FULL
        return 0


def _resealed(
    cipher: TokenCipher, sealed: Sealed, row: asyncpg.Record, rotation: Rotation
) -> tuple[Any, ...] | None:
    """Return the arguments that write a row back; ``None`` where nothing of it opens."""
    values: list[Any] = [row["key"], row["generation"]]
    is_changed = False
    for column, name in sealed.columns.items():
        old = new = row[column]
        if old is not None:
            try:
                new = cipher.reseal(
                    old, connection=row["connection_id"], column=name, generation=row["generation"]
                )
            except DecryptionError:
                rotation.unopened += 1
        is_changed = is_changed or new is not old
        values += (old, new)
    return tuple(values) if is_changed else None


def _count_statement(sealed: Sealed) -> str:
    every = " UNION ALL ".join(
        f"SELECT {column} AS sealed FROM {sealed.table} WHERE {column} IS NOT NULL"
        for column in sealed.columns
    )
    # The second byte is the length of the key id that follows it (``cipher``).
    return f"""
    SELECT key, count(*) FROM (
        SELECT CASE WHEN octet_length(sealed) > 2 AND get_byte(sealed, 0) = 1
                    THEN substring(sealed FROM 3 FOR get_byte(sealed, 1)) END AS key
        FROM ({every}) every
    ) named GROUP BY key
    """


def _select_statement(sealed: Sealed) -> str:
    return f"""
    SELECT t.{sealed.key} AS key, t.connection_id, {sealed.generation} AS generation,
           {", ".join(f"t.{column}" for column in sealed.columns)}
    FROM {sealed.table} t
    WHERE t.{sealed.key} > $1::{sealed.key_type} AND ({_others(sealed, 2)})
    ORDER BY t.{sealed.key} LIMIT $3
    """


def _others(sealed: Sealed, parameter: int) -> str:
    """Return the condition that a ciphertext does not begin with a parameter's header."""
    return " OR ".join(
        f"substring(t.{column} FROM 1 FOR octet_length(${parameter}::bytea)) <> ${parameter}::bytea"
        for column in sealed.columns
    )


def _update_statement(sealed: Sealed) -> str:
    """Return what writes rows back that are unchanged and free, and returns one row for each.

    Locked first, without waiting: whoever waits while he holds locks may wait in a circle.
    """
    names = [name for column in sealed.columns for name in (f"old_{column}", f"new_{column}")]
    arrays = ", ".join(f"${number}::bytea[]" for number in range(3, 3 + len(names)))
    same = " AND ".join(
        (
            f"t.{sealed.key} = i.key AND {sealed.generation} = i.generation",
            *(f"t.{column} IS NOT DISTINCT FROM i.old_{column}" for column in sealed.columns),
        )
    )
    return f"""
    WITH input AS (
        SELECT * FROM unnest($1::{sealed.key_type}[], $2::bigint[], {arrays})
        AS i (key, generation, {", ".join(names)})
    ), free AS (
        SELECT i.key FROM {sealed.table} t JOIN input i ON {same}
        FOR NO KEY UPDATE OF t SKIP LOCKED
    )
    UPDATE {sealed.table} t
    SET {", ".join(f"{column} = i.new_{column}" for column in sealed.columns)}
    FROM input i JOIN free f ON f.key = i.key WHERE {same}
    RETURNING 1
    """
