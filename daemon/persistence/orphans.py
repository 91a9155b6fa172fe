"""Tokens of replies that found their connection at a newer generation, in PostgreSQL.

Their hard idea: which of two replies a provider regards as the last is known to the provider only.
So the one that was not stored is kept, and its refresh token is tried before a grant is given up.
An orphan of a grant that a person has since replaced would be somebody else's: it is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from daemon.domain.claim import Orphan
from daemon.domain.errors import DecryptionError
from daemon.domain.tokens import TokenSet
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.postgres import Database, DatabaseConnection
from daemon.persistence.rows import Row

log = structlog.get_logger()

_ACCESS, _REFRESH = "orphan_access_token", "orphan_refresh_token"

# The same settlement may be repeated after a lost acknowledgement.
_INSERT = """
INSERT INTO orphans (connection_id, generation, attempt, access_token, refresh_token, expires_at,
                     received_at)
VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (connection_id, attempt) DO NOTHING
"""
_ORPHAN = (
    "o.id, o.connection_id, o.generation, o.access_token, o.refresh_token, o.expires_at,"
    " o.received_at"
)
_NEWEST = f"""
SELECT {_ORPHAN} FROM orphans o JOIN token_sets t ON t.connection_id = o.connection_id
WHERE o.connection_id = $1 AND o.refresh_token IS NOT NULL
  AND o.generation > t.grant_generation
ORDER BY o.received_at DESC, o.id DESC
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Late:
    """Tokens that came too late for their connection."""

    connection_id: str
    attempt: str
    tokens: TokenSet = field(repr=False)


async def keep_orphans(
    session: DatabaseConnection, cipher: TokenCipher, late: Sequence[Late], *, now: datetime
) -> None:
    """Keep what came too late, in the transaction of ``session``; each attempt's once."""
    if late:
        await session.executemany(_INSERT, [_columns(cipher, one, now) for one in late])


async def take_orphans(
    session: DatabaseConnection, cipher: TokenCipher, connection_id: str
) -> list[TokenSet]:
    """Remove a connection's orphans and return their tokens, newest first, to be revoked.

    What does not decrypt is removed as well: nobody can revoke it.
    """
    rows = await session.fetch(
        f"DELETE FROM orphans o WHERE o.connection_id = $1 RETURNING {_ORPHAN}", connection_id
    )
    found: list[TokenSet] = []
    for row in sorted(rows, key=lambda row: (row["received_at"], row["id"]), reverse=True):
        try:
            found.append(_tokens(cipher, row))
        except DecryptionError as error:
            log.warning("orphan_dropped", connection=connection_id, error=str(error))
    return found


class PostgresOrphans:
    """The orphans of all connections. Methods raise DatabaseUnavailableError."""

    def __init__(self, database: Database, cipher: TokenCipher) -> None:
        self._database = database
        self._cipher = cipher

    async def newest(self, connection_id: str) -> Orphan | None:
        """Return the newest orphan of a connection's present grant that has a refresh token.

        One that does not decrypt is passed over, and stays: its key may come back.
        """
        for row in await self._database.fetch(_NEWEST, connection_id):
            try:
                tokens = _tokens(self._cipher, row)
            except DecryptionError as error:
                log.warning("orphan_not_opened", connection=connection_id, error=str(error))
                continue
            if tokens.refresh_token is not None:
                return Orphan(
                    id=row["id"],
                    generation=row["generation"],
                    refresh_token=tokens.refresh_token,
                )
        return None


def _columns(cipher: TokenCipher, late: Late, now: datetime) -> tuple[object, ...]:
    tokens = late.tokens

    def sealed(text: str, column: str) -> bytes:
        return cipher.encrypt(
            text, connection=late.connection_id, column=column, generation=tokens.generation
        )

    return (
        late.connection_id,
        tokens.generation,
        late.attempt,
        sealed(tokens.access_token, _ACCESS),
        None if tokens.refresh_token is None else sealed(tokens.refresh_token, _REFRESH),
        tokens.expires_at,
        now,
    )


def _tokens(cipher: TokenCipher, row: Row) -> TokenSet:
    generation = row["generation"]

    def opened(sealed: bytes, column: str) -> str:
        return cipher.decrypt(
            sealed, connection=row["connection_id"], column=column, generation=generation
        )

    refresh = row["refresh_token"]
    return TokenSet(
        generation=generation,
        access_token=opened(row["access_token"], _ACCESS),
        refresh_token=None if refresh is None else opened(refresh, _REFRESH),
        token_type="Bearer",  # noqa: S106 - a type; nobody is told it
        scopes=(),
        issued_at=row["received_at"],
        expires_at=row["expires_at"],
    )
