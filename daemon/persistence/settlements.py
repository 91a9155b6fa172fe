"""How claimed attempts end in PostgreSQL: one statement for many, with what history keeps of them.

The hard idea: an attempt that finds its claim gone writes nothing, but its tokens exist at the
provider all the same. Where a disconnect came first they are queued for revocation, where a newer
generation did they are kept as an orphan, and where nothing newer is stored they are not too late.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import orjson
import structlog

from daemon.domain.claim import Settled, Settlement
from daemon.domain.connection import Status
from daemon.domain.errors import DecryptionError, StorageError
from daemon.domain.revocation import Initiator
from daemon.domain.tokens import TokenSet
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.held import merged_of
from daemon.persistence.history import INSERT_EVENTS, EventRecorder, event_columns
from daemon.persistence.orphans import Late, keep_orphans
from daemon.persistence.postgres import Database
from daemon.persistence.revocations import Revoke, queue_revocations, revocations_of
from daemon.persistence.rows import Row, failure_json, seal_tokens
from daemon.persistence.unavailable import LIBRARY_ERRORS

log = structlog.get_logger()

# The claim's attempt id is the fence, the generation the second line: a settlement that matches
# neither writes nothing. A reply may still settle its own attempt after it was taken over. The id
# stays until the next claim, so that a settlement repeated after a lost answer is recognized. A
# status that a take-over has changed since the claim is put right whatever ``touches`` says. A
# claim that was taken over rests on this clock: replicas' clocks do not agree on when it is due.
_SETTLE = f"""
WITH input AS (
    SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::timestamptz[],
                         $6::int[], $7::bool[], $8::bytea[], $9::bytea[], $10::text[],
                         $11::text[], $12::timestamptz[], $13::timestamptz[], $14::text[],
                         $15::text[], $16::bool[], $17::text[], $18::bigint[], $19::bigint[],
                         $28::interval[], $29::timestamptz[])
    AS i (id, attempt, generation, state, due_at, failures, has_tokens, access_token,
          refresh_token, token_type, scopes, issued_at, expires_at, status, last_error, touches,
          reply_values, new_generation, adopts, rests, doubted_since)
), fenced AS (
    UPDATE refresh_schedule s
    SET state = i.state, due_at = i.due_at, failures = i.failures, owner = NULL,
        take_over_at = clock_timestamp() + i.rests, doubted_since = i.doubted_since
    FROM input i JOIN token_sets t ON t.connection_id = i.id AND t.generation = i.generation
    WHERE s.connection_id = i.id AND s.attempt = i.attempt
      AND (s.state = 'sending' OR (s.state = 'in_doubt' AND i.has_tokens))
    RETURNING s.connection_id, s.attempt
), stored AS (
    UPDATE token_sets t
    SET generation = i.new_generation, access_token = i.access_token,
        refresh_token = i.refresh_token, token_type = i.token_type,
        scopes = string_to_array(i.scopes, ' '), issued_at = i.issued_at,
        expires_at = i.expires_at, stored_at = $20
    FROM input i JOIN fenced f ON f.connection_id = i.id AND f.attempt = i.attempt
    WHERE i.has_tokens AND t.connection_id = i.id AND t.generation = i.generation
    RETURNING t.connection_id
), told AS (
    UPDATE connections c
    SET status = i.status, last_error = i.last_error::jsonb, updated_at = $20,
        reply_values = c.reply_values || coalesce(i.reply_values::jsonb, '{{}}')
    FROM input i JOIN fenced f ON f.connection_id = i.id AND f.attempt = i.attempt
    WHERE (i.touches OR c.status <> i.status) AND c.id = i.id
), adopted AS (
    DELETE FROM orphans o USING input i JOIN fenced f
        ON f.connection_id = i.id AND f.attempt = i.attempt
    WHERE o.id = i.adopts AND o.connection_id = i.id
), happened AS (
    SELECT e.* FROM unnest($21::text[], $22::timestamptz[], $23::text[], $24::text[], $25::text[],
                           $26::text[])
    WITH ORDINALITY AS e (attempt, at, connection, provider, type, detail, place)
    JOIN fenced f ON f.connection_id = e.connection AND f.attempt = e.attempt
), {INSERT_EVENTS.format(delivers="$27")}
SELECT attempt FROM fenced
"""
_COLUMNS, _EVENT_COLUMNS = 19, 6

_UNWRITTEN = """
SELECT c.id, c.provider, c.fields, c.status, c.epoch, t.generation, t.access_token,
       t.refresh_token, t.grant_generation, t.granted_at, s.attempt, s.state
FROM connections c LEFT JOIN token_sets t ON t.connection_id = c.id
LEFT JOIN refresh_schedule s ON s.connection_id = c.id WHERE c.id = ANY($1::text[])
"""


class Settlements:
    """Writes settlements. Raises StorageError: what PostgreSQL refuses may be granted later."""

    def __init__(self, database: Database, cipher: TokenCipher, recorder: EventRecorder) -> None:
        self._database = database
        self._cipher = cipher
        self._recorder = recorder

    async def settle(self, settlements: Sequence[Settlement], *, now: datetime) -> list[Settled]:
        """Write how attempts ended, all in one statement; see ``Settled`` for the answers.

        Only where some were not written is there a second transaction, which finds out why.

        Raises:
            DatabaseUnavailableError: it is unknown whether anything was written. Doing it again
                is safe: an attempt settles once, and a token that is queued for revocation twice
                is revoked twice.
            StorageError: the database refuses, for a reason that does not go away by itself.
        """
        with refusals_told():
            return await self._settle(settlements, now=now)

    async def _settle(self, settlements: Sequence[Settlement], *, now: datetime) -> list[Settled]:
        columns = _transposed(map(self._columns, settlements), _COLUMNS)
        events = [
            (one.attempt, *event_columns(event)) for one in settlements for event in one.events
        ]
        rows = await self._database.fetch(
            _SETTLE,
            *columns,
            now,
            *_transposed(events, _EVENT_COLUMNS),
            self._recorder.delivers,
            [one.rests or None for one in settlements],
            [one.doubted_since for one in settlements],
        )
        stored = {row["attempt"] for row in rows}
        unwritten = [one for one in settlements if one.attempt not in stored]
        answers = await self._explain(unwritten, now) if unwritten else {}
        return [answers.get(one.attempt, Settled.STORED) for one in settlements]

    async def _explain(
        self, unwritten: Sequence[Settlement], now: datetime
    ) -> Mapping[str, Settled]:
        """Tell by attempt why it was not written, and keep or queue the tokens that are late."""
        async with self._database.transaction() as session:
            rows = await session.fetch(_UNWRITTEN, [one.connection_id for one in unwritten])
            known: dict[str, Row] = {row["id"]: row for row in rows}
            gone = [one.connection_id for one in unwritten if one.connection_id not in known]
            merged = await merged_of(session, gone) if gone else ()
            answers = {
                one.attempt: Settled.SUPERSEDED
                if one.connection_id in merged
                else self._answer(known.get(one.connection_id), one)
                for one in unwritten
            }
            late = [one for one in unwritten if answers[one.attempt] is Settled.DISCONNECTED]
            revocations = [
                each for one in late for each in _revocations(known.get(one.connection_id), one)
            ]
            await queue_revocations(session, self._cipher, revocations, now=now)
            orphans = [
                Late(connection_id=one.connection_id, attempt=one.attempt, tokens=one.tokens)
                for one in unwritten
                if one.tokens is not None
                and answers[one.attempt] is Settled.SUPERSEDED
                and one.connection_id not in merged
                and _is_of_grant(known[one.connection_id], one.tokens)
            ]
            await keep_orphans(session, self._cipher, orphans, now=now)
        for one in orphans:
            log.warning(
                "refresh_reply_orphaned",
                connection=one.connection_id,
                generation=one.tokens.generation,
            )
        return answers

    def _answer(self, row: Row | None, settlement: Settlement) -> Settled:
        """Tell why one was not written.

        A commit whose acknowledgement was lost is repeated; it then finds its own attempt settled
        or its own generation stored already, which is a success. A connection that was
        disconnected and connected again since the claim has another epoch.
        """
        if row is None or row["status"] == Status.DISCONNECTED:
            return Settled.DISCONNECTED
        if self._is_written(row, settlement):
            return Settled.STORED
        if row["epoch"] > settlement.epoch:
            return Settled.DISCONNECTED
        # Without any generation it is another connection, made anew under the name of one purged.
        stored = row["generation"]
        is_newest = stored is not None and stored <= settlement.generation
        return Settled.UNCLAIMED if settlement.tokens and is_newest else Settled.SUPERSEDED

    def _is_written(self, row: Row, settlement: Settlement) -> bool:
        tokens = settlement.tokens
        if tokens is None:
            settled = (settlement.attempt, settlement.state, settlement.generation)
            return (row["attempt"], row["state"], row["generation"]) == settled
        # A reply that was salvaged has brought a refresh token alone.
        column = "access_token" if tokens.access_token else "refresh_token"
        if row["generation"] != tokens.generation or row[column] is None:
            return False
        try:
            stored = self._cipher.decrypt(
                row[column],
                connection=settlement.connection_id,
                column=column,
                generation=tokens.generation,
            )
        except DecryptionError:
            # Not ours then: written meanwhile with a key that this process does not have.
            return False
        return stored == (tokens.access_token or tokens.refresh_token)

    def _columns(self, settlement: Settlement) -> tuple[Any, ...]:
        tokens = settlement.tokens
        access, refresh = (
            (None, None)
            if tokens is None
            else seal_tokens(self._cipher, settlement.connection_id, tokens)
        )
        return (
            settlement.connection_id,
            settlement.attempt,
            settlement.generation,
            settlement.state.value,
            settlement.due_at,
            settlement.failures,
            tokens is not None,
            access,
            refresh,
            tokens.token_type if tokens else None,
            " ".join(tokens.scopes) if tokens else None,
            tokens.issued_at if tokens else None,
            tokens.expires_at if tokens else None,
            settlement.status.value,
            failure_json(settlement.last_error),
            settlement.touches_connection or bool(settlement.reply_values),
            orjson.dumps(dict(settlement.reply_values)).decode()
            if settlement.reply_values
            else None,
            tokens.generation if tokens else None,
            settlement.adopts,
        )


@contextmanager
def refusals_told() -> Iterator[None]:
    """Raise StorageError for what PostgreSQL refuses for good, in words without any value."""
    try:
        yield
    except LIBRARY_ERRORS as error:
        code = getattr(error, "sqlstate", None) or "no code"
        raise StorageError(
            f"the database refuses to store this: {type(error).__name__} ({code}). Look at its log "
            "and at the rights of tokenward's role"
        ) from error


def _is_of_grant(row: Row, tokens: TokenSet) -> bool:
    """Tell whether late tokens descend from the grant that the connection has now.

    Only beside the generation that they would have become: further on they may have been stored
    and spent long ago, by a process that died before its journal could note that.
    """
    granted_at, began = row["granted_at"], row["grant_generation"]
    if began is None or tokens.generation <= began or tokens.generation != row["generation"]:
        return False
    return granted_at is None or granted_at <= tokens.issued_at


def _revocations(row: Row | None, settlement: Settlement) -> tuple[Revoke, ...]:
    """Return what revokes the tokens of a settlement that came too late."""
    if settlement.tokens is None:
        return ()
    return revocations_of(
        settlement.tokens,
        connection_id=settlement.connection_id,
        provider=settlement.provider if row is None else row["provider"],
        fields=settlement.fields if row is None else row["fields"],
        initiator=Initiator.CALLER,
    )


def _transposed(rows: Iterable[Sequence[Any]], width: int) -> list[list[Any]]:
    """Return the columns of ``rows``, also where there are none."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    return columns or [[] for _ in range(width)]
