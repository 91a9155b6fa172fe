"""What happens to a connection beside its refreshes: changed, tested, found dead, disconnected.

Each is one transaction together with its events, and bears being done again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from daemon.domain.account import Account
from daemon.domain.completion import Held
from daemon.domain.connection import Connection, Failure, Status
from daemon.domain.history import DetailValue, EventType, NewEvent
from daemon.domain.revocation import Initiator
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.held import again_where_taken, lock_connections, locked_connection
from daemon.persistence.history import EventRecorder
from daemon.persistence.orphans import take_orphans
from daemon.persistence.postgres import Database, DatabaseConnection
from daemon.persistence.revocations import count_revocations, queue_revocations, revocations_of
from daemon.persistence.rows import failure_value
from daemon.persistence.tested import claim_tests, store_test

_LOCK = "SELECT 1 FROM connections WHERE id = $1 FOR UPDATE"

# Also of the ids that were merged into it: they are the same account's.
_FORGET_HISTORY = """
DELETE FROM events WHERE connection_id = $1
    OR connection_id IN (SELECT id FROM merged_connections WHERE survivor = $1)
"""

_UPDATE = """
UPDATE connections
SET label = CASE WHEN $2::text IS NULL THEN label ELSE nullif($2, '') END,
    label_is_set = CASE WHEN $2::text IS NULL THEN label_is_set ELSE $2 <> '' END,
    metadata = coalesce($3::jsonb, metadata), fields = coalesce($4::jsonb, fields),
    updated_at = $5
WHERE id = $1 RETURNING id
"""

_MARK_DEAD = """
UPDATE connections
SET status = 'reauthorization_required', last_error = $2::jsonb, test_due_at = NULL, updated_at = $3
WHERE id = $1
"""
# A token that its API refuses is not served until its time any more.
_END_TOKEN = "UPDATE token_sets SET expires_at = least(expires_at, $2) WHERE connection_id = $1"
_END_SCHEDULE = """
UPDATE refresh_schedule
SET due_at = NULL, state = 'idle', attempt = NULL, owner = NULL, take_over_at = NULL,
    doubted_since = NULL, failures = 0
WHERE connection_id = $1
"""

# The row stays for its generation, which must never fall.
_ERASE_TOKENS = """
UPDATE token_sets
SET access_token = $2, refresh_token = NULL, expires_at = NULL, scopes = '{}'
WHERE connection_id = $1
"""
_DISCONNECT = """
UPDATE connections
SET status = 'disconnected', epoch = epoch + 1, last_error = NULL, test_due_at = NULL,
    updated_at = $2
WHERE id = $1
"""
_FORGET_AUTHORIZATIONS = """
WITH tickets AS (DELETE FROM connect_tickets WHERE connection_id = $1)
DELETE FROM authorizations WHERE connection_id = $1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a manager changes; ``None`` leaves it as it is, anything else replaces all of it.

    An empty ``label`` gives the naming back to the provider's replies.
    """

    label: str | None = None
    metadata: Mapping[str, str] | None = None
    fields: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TestRecorded:
    """A connection after its test. ``conflict`` is the id of another that has its account."""

    __test__ = False  # not a test of ours

    connection: Connection
    conflict: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnected:
    """A connection as it is (or, purged, was last), and how many of its tokens are queued."""

    connection: Connection
    queued: int


class ConnectionLife:
    """The changes of a connection on PostgreSQL. Methods raise DatabaseUnavailableError."""

    def __init__(self, database: Database, cipher: TokenCipher, recorder: EventRecorder) -> None:
        self._database = database
        self._cipher = cipher
        self._recorder = recorder

    async def update(
        self, connection_id: str, changing: Callable[[Connection], Change], *, now: datetime
    ) -> Connection | None:
        """Change label, metadata and fields; ``None`` where there is no such connection.

        ``changing`` is given the connection while nobody else can change it, so that of two who
        merge into its metadata neither is lost. What it raises changes nothing.
        """
        async with self._database.transaction() as session:
            if await session.fetchval(_LOCK, connection_id) is None:
                return None
            change = changing(await locked_connection(session, connection_id))
            await session.execute(
                _UPDATE,
                connection_id,
                change.label,
                None if change.metadata is None else dict(change.metadata),
                None if change.fields is None else dict(change.fields),
                now,
            )
            return await locked_connection(session, connection_id)

    async def record_test(
        self,
        connection_id: str,
        account: Account,
        *,
        now: datetime,
        next_test_at: datetime | None,
    ) -> TestRecorded | None:
        """Store how a test went and what it told; ``None`` where there is no such connection.

        The account is stored where none is known yet and no other connection has it. The label
        is, unless a person has set one. What was disconnected meanwhile stays as it is.
        """

        async def work(session: DatabaseConnection) -> TestRecorded | None:
            stored = await store_test(
                session, connection_id, account, now=now, next_test_at=next_test_at
            )
            if stored is None:
                return None
            await self._recorder.record(session, stored.events)
            return TestRecorded(connection=stored.connection, conflict=stored.conflict)

        return await again_where_taken(self._database, work)

    async def claim_tests(self, *, now: datetime, limit: int) -> list[str]:
        """Return ids whose test is due, each hidden from other replicas for an hour."""
        async with self._database.transaction() as session:
            return await claim_tests(session, now=now, limit=limit)

    async def mark_dead(
        self, connection_id: str, *, generation: int, failure: Failure, now: datetime
    ) -> bool:
        """Say that the provider has ended a grant; ``False`` where it is not up to the caller.

        That is where the generation has changed, or a refresh has an open or doubtful end: its
        own decides. The access token counts as expired from ``now`` on. Where a refresh has
        found out before, its words stay, and only the revocation is news.
        """

        async def work(session: DatabaseConnection) -> bool:
            held = (await lock_connections(session, self._cipher, [connection_id])).get(
                connection_id
            )
            if held is None or not await _may_be_declared_dead(session, held, generation, now):
                return False
            news = [EventType.REVOKED_AT_PROVIDER]
            await session.execute(_END_TOKEN, connection_id, now)
            if held.connection.status is not Status.REAUTHORIZATION_REQUIRED:
                news.append(EventType.REAUTHORIZATION_REQUIRED)
                await session.execute(_MARK_DEAD, connection_id, failure_value(failure), now)
                await session.execute(_END_SCHEDULE, connection_id)
            detail: dict[str, DetailValue] = {"cause": failure.code, "generation": generation}
            await self._recorder.record(
                session, [_event(held.connection, kind, now, detail) for kind in news]
            )
            return True

        return await self._database.idempotent(work)

    async def disconnect(
        self,
        connection_id: str,
        *,
        initiator: Initiator,
        now: datetime,
        revoke: bool,
        purge: bool,
    ) -> Disconnected | None:
        """Erase a connection's tokens; ``None`` where there is no such connection.

        ``revoke`` queues them for revocation in the same transaction; ``purge`` removes the
        connection with its events as well. What has begun before and ends later, a refresh or
        an authorization, cannot bring it back. A second call answers what is still queued.
        """

        async def work(session: DatabaseConnection) -> Disconnected | None:
            held = (await lock_connections(session, self._cipher, [connection_id])).get(
                connection_id
            )
            if held is None:
                return None
            events: list[NewEvent] = []
            if held.connection.status is not Status.DISCONNECTED:
                detail = await self._end(session, held, initiator, now, revoke=revoke)
                events.append(_event(held.connection, EventType.DISCONNECTED, now, detail))
            after = await locked_connection(session, connection_id)
            queued = await count_revocations(session, connection_id)
            if purge:
                await session.execute(_FORGET_HISTORY, connection_id)
                await session.execute("DELETE FROM connections WHERE id = $1", connection_id)
            else:
                await self._recorder.record(session, events)
            return Disconnected(connection=after, queued=queued)

        return await self._database.idempotent(work)

    async def survivor_of(self, connection_id: str) -> str | None:
        """Return the id of the connection that one was merged into."""
        found: str | None = await self._database.fetchval(
            "SELECT survivor FROM merged_connections WHERE id = $1", connection_id
        )
        return found

    async def _end(
        self,
        session: DatabaseConnection,
        held: Held,
        initiator: Initiator,
        now: datetime,
        *,
        revoke: bool,
    ) -> dict[str, DetailValue]:
        connection = held.connection
        orphans = await take_orphans(session, self._cipher, connection.id)
        revocations = [
            one
            for tokens in (held.tokens, *orphans)
            if revoke and tokens is not None
            for one in revocations_of(
                tokens,
                connection_id=connection.id,
                provider=connection.provider,
                fields=connection.fields,
                initiator=initiator,
            )
        ]
        await queue_revocations(session, self._cipher, revocations, now=now)
        nothing = self._cipher.encrypt(
            "",
            connection=connection.id,
            column="access_token",
            generation=connection.generation,
        )
        await session.execute(_ERASE_TOKENS, connection.id, nothing)
        await session.execute(_END_SCHEDULE, connection.id)
        await session.execute(_DISCONNECT, connection.id, now)
        await session.execute(_FORGET_AUTHORIZATIONS, connection.id)
        detail: dict[str, DetailValue] = {
            "initiator": initiator.value,
            "generation": connection.generation,
            "queued": len(revocations),
        }
        return detail if held.is_readable else {**detail, "tokens_undecryptable": True}


async def _may_be_declared_dead(
    session: DatabaseConnection, held: Held, generation: int, now: datetime
) -> bool:
    connection = held.connection
    if connection.generation != generation:
        return False
    if connection.status is Status.REAUTHORIZATION_REQUIRED:
        return connection.expires_at is None or connection.expires_at > now
    if connection.status not in {Status.ACTIVE, Status.FAILING}:
        return False
    state = await session.fetchval(
        "SELECT state FROM refresh_schedule WHERE connection_id = $1", held.connection.id
    )
    return state in {None, "idle"}


def _event(
    connection: Connection, kind: EventType, at: datetime, detail: Mapping[str, DetailValue]
) -> NewEvent:
    return NewEvent(
        type=kind, connection=connection.id, provider=connection.provider, at=at, detail=detail
    )
