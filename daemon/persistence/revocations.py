"""Tokens that are still to be revoked, in PostgreSQL (port: RevocationQueue).

They are put here by the transaction that takes them from their connection, and bound to this row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from daemon.domain.errors import DecryptionError
from daemon.domain.revocation import GIVE_UP_AFTER, Initiator, QueuedRevocation
from daemon.domain.tokens import TokenSet
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.postgres import Database, DatabaseConnection
from daemon.persistence.rows import Row

log = structlog.get_logger()

_COLUMN = "revocation"
# What cannot be decrypted waits for its key, and does not take the places of others meanwhile.
_LOOK_AGAIN = timedelta(hours=1)

_IDS = """
SELECT nextval(pg_get_serial_sequence('revocations', 'id')) AS id FROM generate_series(1, $1::int)
"""

_INSERT = """
INSERT INTO revocations (id, connection_id, provider, token, token_type_hint, fields, initiator,
                         next_at, created_at)
VALUES ($1, $2, $3, $4, $5, $6::jsonb, $7, $8, $8)
"""

_CLAIM = """
UPDATE revocations SET next_at = $1::timestamptz + $2::interval
WHERE id IN (
    SELECT id FROM revocations
    WHERE next_at <= $1 AND ($4::text IS NULL OR connection_id = $4)
    ORDER BY next_at, id LIMIT $3 FOR UPDATE SKIP LOCKED
)
RETURNING id, connection_id, provider, token, token_type_hint, fields, initiator, attempts,
          created_at
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoke:
    """One token to revoke. ``token_type_hint`` is ``refresh_token`` or ``access_token``."""

    connection_id: str
    provider: str
    token: str = field(repr=False)
    token_type_hint: str
    fields: Mapping[str, str]
    initiator: Initiator


def revocations_of(
    tokens: TokenSet,
    *,
    connection_id: str,
    provider: str,
    fields: Mapping[str, str],
    initiator: Initiator,
) -> tuple[Revoke, ...]:
    """Return what revokes ``tokens``, refresh token first (RFC 7009 2.1); empty ones are none."""
    values = {"refresh_token": tokens.refresh_token, "access_token": tokens.access_token}
    return tuple(
        Revoke(
            connection_id=connection_id,
            provider=provider,
            token=token,
            token_type_hint=hint,
            fields=fields,
            initiator=initiator,
        )
        for hint, token in values.items()
        if token
    )


async def queue_revocations(
    session: DatabaseConnection,
    cipher: TokenCipher,
    revocations: Sequence[Revoke],
    *,
    now: datetime,
) -> None:
    """Queue tokens in the transaction of ``session``, due at once and in this order."""
    if not revocations:
        return
    ids = await session.fetch(_IDS, len(revocations))
    rows = [
        (
            row["id"],
            one.connection_id,
            one.provider,
            cipher.encrypt(
                one.token, connection=one.connection_id, column=_COLUMN, generation=row["id"]
            ),
            one.token_type_hint,
            dict(one.fields),
            one.initiator.value,
            now,
        )
        for row, one in zip(ids, revocations, strict=True)
    ]
    await session.executemany(_INSERT, rows)


async def count_revocations(session: DatabaseConnection, connection_id: str) -> int:
    """Return how many tokens of a connection are still queued."""
    value: int = await session.fetchval(
        "SELECT count(*) FROM revocations WHERE connection_id = $1", connection_id
    )
    return value


class PostgresRevocations:
    """The queue on PostgreSQL. Methods raise DatabaseUnavailableError."""

    def __init__(self, database: Database, cipher: TokenCipher) -> None:
        self._database = database
        self._cipher = cipher

    async def queue(self, revocations: Sequence[Revoke], *, now: datetime) -> None:
        """Queue tokens that belong to no other transaction."""
        async with self._database.transaction() as session:
            await queue_revocations(session, self._cipher, revocations, now=now)

    async def claim(
        self, *, now: datetime, hold: timedelta, limit: int, connection_id: str | None = None
    ) -> Sequence[QueuedRevocation]:
        """Return what is due, oldest first, each hidden from others for ``hold``.

        Only one connection's if given. A row whose token does not decrypt is not returned and
        stays, for its key may come back; but no longer than any other.
        """
        rows = await self._database.fetch(_CLAIM, now, hold, limit, connection_id)
        claimed: list[QueuedRevocation] = []
        # In the order in which they were queued: a refresh token before its access token.
        for row in sorted(rows, key=lambda row: row["id"]):
            try:
                claimed.append(self._opened(row))
            except DecryptionError as error:
                if now < row["created_at"] + GIVE_UP_AFTER:
                    await self._set_aside(row["id"], at=now + _LOOK_AGAIN, error=str(error))
                    continue
                await self.done(row["id"])
                log.warning(
                    "revocation_abandoned", connection=row["connection_id"], error=str(error)
                )
        return claimed

    async def done(self, revocation_id: int) -> None:
        """Remove a row: the provider has said yes, or cannot be told at all."""
        await self._database.execute("DELETE FROM revocations WHERE id = $1", revocation_id)

    async def later(self, revocation_id: int, *, at: datetime, error: str) -> None:
        """Try again at ``at``, one attempt more; ``error`` is a sentence safe to show."""
        await self._database.execute(
            "UPDATE revocations SET next_at = $2, last_error = $3, attempts = attempts + 1"
            " WHERE id = $1",
            revocation_id,
            at,
            error,
        )

    async def next_at(self) -> datetime | None:
        """Return when the next row is due; ``None`` where the queue is empty."""
        value: datetime | None = await self._database.fetchval(
            "SELECT min(next_at) FROM revocations"
        )
        return value

    async def count(self, connection_id: str) -> int:
        """Return how many tokens of a connection are still to be revoked."""
        async with self._database.acquire() as session:
            return await count_revocations(session, connection_id)

    async def _set_aside(self, revocation_id: int, *, at: datetime, error: str) -> None:
        await self._database.execute(
            "UPDATE revocations SET next_at = $2, last_error = $3 WHERE id = $1",
            revocation_id,
            at,
            error,
        )

    def _opened(self, row: Row) -> QueuedRevocation:
        token = self._cipher.decrypt(
            row["token"],
            connection=row["connection_id"],
            column=_COLUMN,
            generation=row["id"],
        )
        return QueuedRevocation(
            id=row["id"],
            connection_id=row["connection_id"],
            provider=row["provider"],
            token=token,
            token_type_hint=row["token_type_hint"],
            fields=row["fields"],
            initiator=Initiator(row["initiator"]),
            attempts=row["attempts"],
            created_at=row["created_at"],
        )
