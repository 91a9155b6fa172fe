"""Storing a completed authorization: lock, read, let ``daemon.domain.completion`` decide, write.

Everything is one transaction, so that on any number of replicas an account has one connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from daemon.domain.authorization import (
    Completion,
    NotStored,
    NotStoredReason,
    StoredAuthorization,
)
from daemon.domain.completion import Held, Kept, Refused, Repeated, authorized_detail, decide
from daemon.domain.connection import Connection
from daemon.domain.history import EventType, NewEvent
from daemon.domain.revocation import Initiator
from daemon.domain.tokens import TokenSet
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.held import (
    again_where_taken,
    holder_of,
    lock_account,
    lock_connections,
    locked_connection,
    store_schedule,
    store_tokens,
)
from daemon.persistence.history import EventRecorder
from daemon.persistence.orphans import take_orphans
from daemon.persistence.postgres import Database, DatabaseConnection
from daemon.persistence.refusals import note_refusal, refusal_of
from daemon.persistence.revocations import Revoke, queue_revocations, revocations_of
from daemon.persistence.rows import test_value

# Where a connection is now: itself, or what it was merged into.
_FIND = """
SELECT id, provider FROM connections
WHERE id = $1 OR id = (SELECT survivor FROM merged_connections WHERE id = $1)
"""

_STORE = """
UPDATE connections
SET status = 'active', last_error = NULL, fields = $2::jsonb, requested_scopes = $3,
    metadata = $4::jsonb, reply_values = $5::jsonb, label = $6, label_is_set = $7,
    account_id = $8, account_scope = $9, test_due_at = $10,
    last_test = coalesce($11::jsonb, last_test), last_tested_at = coalesce($12, last_tested_at),
    updated_at = $13
WHERE id = $1
"""

# Whatever went into the one that goes now is found at the survivor from here on.
_MERGE = """
WITH moved AS (UPDATE merged_connections SET survivor = $2 WHERE survivor = $1),
     noted AS (INSERT INTO merged_connections (id, survivor, merged_at) VALUES ($1, $2, $3))
SELECT 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """The rows that a completion is about, locked. ``target`` is ``None`` where it is gone."""

    target: Held | None
    holder: Held | None
    is_followed: bool


class Completions:
    """Stores what authorizations brought. Methods raise DatabaseUnavailableError."""

    def __init__(self, database: Database, cipher: TokenCipher, recorder: EventRecorder) -> None:
        self._database = database
        self._cipher = cipher
        self._recorder = recorder

    async def complete(
        self, completion: Completion, *, now: datetime
    ) -> StoredAuthorization | NotStored:
        """Store a completion once; see ``AuthorizationStore.complete``."""

        async def work(session: DatabaseConnection) -> StoredAuthorization | NotStored:
            refused = await refusal_of(session, completion)
            if refused is not None:
                return refused
            found = await self._lock(session, completion)
            if found.target is None:
                return await self._gone(session, completion, now)
            decided = decide(completion, found.target, found.holder, is_followed=found.is_followed)
            match decided:
                case Kept():
                    return await self._store(session, completion, decided, now)
                case Repeated():
                    merged = completion.connection_id if found.is_followed else None
                    return StoredAuthorization(connection=found.target.connection, merged=merged)
                case Refused():
                    await note_refusal(session, completion, decided.answer, now=now)
                    return await self._refuse(session, decided, found.target.connection, now)

        return await again_where_taken(self._database, work)

    async def _lock(self, session: DatabaseConnection, completion: Completion) -> _Found:
        """Lock the account, then the connections; look again where they have moved meanwhile."""
        name, account = completion.connection_id, completion.account
        while True:
            place = await session.fetchrow(_FIND, name)
            if place is None:
                return _Found(target=None, holder=None, is_followed=False)
            ids = [place["id"]]
            if account is not None and account.account_id is not None:
                wanted = (place["provider"], account.scope, account.account_id)
                await lock_account(session, *wanted)
                holder = await holder_of(session, *wanted, beside=place["id"])
                ids += [] if holder is None else [holder]
            held = await lock_connections(session, self._cipher, ids)
            if all(one in held for one in ids):
                return _Found(
                    target=held[ids[0]],
                    holder=held[ids[1]] if len(ids) > 1 else None,
                    is_followed=ids[0] != name,
                )

    async def _store(
        self,
        session: DatabaseConnection,
        completion: Completion,
        kept: Kept,
        now: datetime,
    ) -> StoredAuthorization:
        revocations = [
            one
            for replaced in kept.replaced
            for tokens in (
                replaced.tokens,
                *await take_orphans(session, self._cipher, replaced.connection.id),
            )
            for one in _revocations(tokens, replaced.connection)
        ]
        # Where nothing is revoked they go all the same: they are not of the new grant.
        await take_orphans(session, self._cipher, kept.connection_id)
        await queue_revocations(session, self._cipher, revocations, now=now)
        if kept.merged is not None:
            await session.execute(_MERGE, kept.merged, kept.connection_id, now)
            await session.execute("DELETE FROM connections WHERE id = $1", kept.merged)
        await self._store_connection(session, completion, kept, now)
        await store_tokens(
            session,
            self._cipher,
            kept.connection_id,
            kept.tokens,
            now=now,
            granted_at=kept.tokens.issued_at,
        )
        await store_schedule(session, kept.connection_id, kept.provider, kept.due_at)
        await session.execute(
            "DELETE FROM connect_tickets WHERE connection_id = $1", kept.connection_id
        )
        stored = await locked_connection(session, kept.connection_id)
        detail = authorized_detail(
            kept.tokens,
            kept.requested_scopes,
            account_known=kept.account_id is not None,
            merged=kept.merged,
        )
        event = _event(EventType.AUTHORIZED, stored, now)
        await self._recorder.record(session, [replace(event, detail=detail)])
        return StoredAuthorization(connection=stored, merged=kept.merged)

    async def _store_connection(
        self, session: DatabaseConnection, completion: Completion, kept: Kept, now: datetime
    ) -> None:
        test = None if completion.account is None else completion.account.test
        await session.execute(
            _STORE,
            kept.connection_id,
            dict(kept.fields),
            list(kept.requested_scopes),
            dict(kept.metadata),
            dict(kept.reply_values),
            kept.label,
            kept.label_is_set,
            kept.account_id,
            kept.account_scope,
            completion.next_test_at,
            None if test is None else test_value(test),
            None if test is None else test.checked_at,
            now,
        )

    async def _refuse(
        self,
        session: DatabaseConnection,
        refused: Refused,
        connection: Connection,
        now: datetime,
    ) -> NotStored:
        reason = refused.answer.reason
        if reason is NotStoredReason.SUPERSEDED:
            return refused.answer
        if refused.tokens is not None:
            revocations = _revocations(refused.tokens, connection)
            await queue_revocations(session, self._cipher, revocations, now=now)
        event = _event(EventType.AUTHORIZATION_FAILED, connection, now)
        await self._recorder.record(session, [replace(event, detail={"code": reason.value})])
        return refused.answer

    async def _gone(
        self, session: DatabaseConnection, completion: Completion, now: datetime
    ) -> NotStored:
        gone = NotStored(reason=NotStoredReason.GONE)
        if completion.provider is not None:
            revocations = revocations_of(
                completion.tokens,
                connection_id=completion.connection_id,
                provider=completion.provider,
                fields=completion.fields or {},
                initiator=Initiator.CALLER,
            )
            await queue_revocations(session, self._cipher, revocations, now=now)
            await note_refusal(session, completion, gone, now=now)
        return gone


def _revocations(tokens: TokenSet, connection: Connection) -> Sequence[Revoke]:
    return revocations_of(
        tokens,
        connection_id=connection.id,
        provider=connection.provider,
        fields=connection.fields,
        initiator=Initiator.CALLER,
    )


def _event(kind: EventType, connection: Connection, at: datetime) -> NewEvent:
    return NewEvent(type=kind, connection=connection.id, provider=connection.provider, at=at)
