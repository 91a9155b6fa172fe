"""Tickets and authorization transactions in PostgreSQL (port: AuthorizationStore)."""

from __future__ import annotations

from datetime import datetime

from daemon.domain.authorization import (
    Completion,
    NotStored,
    PendingAuthorization,
    StoredAuthorization,
    Ticket,
)
from daemon.domain.clock import Clock
from daemon.domain.connection import Connection
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.completions import Completions
from daemon.persistence.connections import PostgresConnections
from daemon.persistence.history import EventRecorder
from daemon.persistence.postgres import Database

_VERIFIER = "code_verifier"
# The command tag of a statement that has inserted its row.
_ADDED = "INSERT 0 1"
_LOCK_CONNECTION = "SELECT 1 FROM connections WHERE id = $1 FOR KEY SHARE"
_BEGIN = """
INSERT INTO authorizations (state_hash, connection_id, provider, issuer, token_endpoint,
                            redirect_uri, code_verifier, browser_hash, scopes, return_url,
                            expires_at, fields, caller)
SELECT $1, connection_id, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12::jsonb, $13
FROM connect_tickets WHERE ticket_hash = $14 AND connection_id = $2
"""


class PostgresAuthorizations:
    """The authorization store on PostgreSQL. Methods raise DatabaseUnavailableError."""

    def __init__(
        self,
        database: Database,
        cipher: TokenCipher,
        connections: PostgresConnections,
        clock: Clock,
        *,
        recorder: EventRecorder,
    ) -> None:
        self._database = database
        self._cipher = cipher
        self._connections = connections
        self._clock = clock
        self._completions = Completions(database, cipher, recorder)

    async def add_ticket(self, ticket: Ticket) -> bool:
        """Store a ticket; ``False`` where its connection is gone."""
        added = await self._database.execute(
            "INSERT INTO connect_tickets (ticket_hash, connection_id, caller, return_url,"
            " expires_at) SELECT $1, id, $3, $4, $5 FROM connections WHERE id = $2 FOR KEY SHARE",
            ticket.ticket_hash,
            ticket.connection_id,
            ticket.caller,
            ticket.return_url,
            ticket.expires_at,
        )
        return added == _ADDED

    async def ticket(
        self, ticket_hash: bytes, *, now: datetime
    ) -> tuple[Ticket, Connection] | None:
        """Return a live ticket with its connection; ``None`` where unknown, used or expired."""
        row = await self._database.fetchrow(
            "SELECT ticket_hash, connection_id, caller, return_url, expires_at"
            " FROM connect_tickets WHERE ticket_hash = $1 AND expires_at > $2",
            ticket_hash,
            now,
        )
        if row is None:
            return None
        connection = await self._connections.get(row["connection_id"])
        return None if connection is None else (Ticket(**dict(row)), connection)

    async def begin(self, authorization: PendingAuthorization, *, ticket_hash: bytes) -> bool:
        """Store a transaction; ``False`` where its ticket is gone."""
        async with self._database.transaction() as session:
            # Before the look at the ticket, which a disconnect deletes under this lock.
            await session.execute(_LOCK_CONNECTION, authorization.connection_id)
            begun = await session.execute(
                _BEGIN,
                authorization.state_hash,
                authorization.connection_id,
                authorization.provider,
                authorization.issuer,
                authorization.token_endpoint,
                authorization.redirect_uri,
                self._seal(authorization),
                authorization.browser_hash,
                list(authorization.scopes),
                authorization.return_url,
                authorization.expires_at,
                dict(authorization.fields),
                authorization.caller,
                ticket_hash,
            )
        return bool(begun == _ADDED)

    async def consume(self, state_hash: bytes) -> PendingAuthorization | None:
        """Remove and return a transaction, expired or not: of many who ask, one receives it."""
        row = await self._database.fetchrow(
            "DELETE FROM authorizations a USING connections c"
            " WHERE a.state_hash = $1 AND c.id = a.connection_id RETURNING a.state_hash,"
            " a.connection_id, a.provider, a.issuer, a.token_endpoint, a.redirect_uri,"
            " a.code_verifier, a.browser_hash, a.scopes, a.return_url, a.expires_at, a.fields,"
            " a.caller, c.epoch, coalesce("
            "(SELECT generation FROM token_sets t WHERE t.connection_id = a.connection_id), 0)"
            " AS generation",
            state_hash,
        )
        if row is None:
            return None
        verifier = row["code_verifier"]
        opened = verifier and self._cipher.decrypt(
            verifier, connection=row["connection_id"], column=_VERIFIER, generation=0
        )
        values = {**dict(row), "code_verifier": opened, "scopes": tuple(row["scopes"])}
        return PendingAuthorization(**values)

    async def complete(self, completion: Completion) -> StoredAuthorization | NotStored:
        """Store the tokens of a completed authorization in one transaction; see the port."""
        return await self._completions.complete(completion, now=self._clock.now())

    def _seal(self, authorization: PendingAuthorization) -> bytes | None:
        if authorization.code_verifier is None:
            return None
        return self._cipher.encrypt(
            authorization.code_verifier,
            connection=authorization.connection_id,
            column=_VERIFIER,
            generation=0,
        )
