"""How claimed attempts end in PostgreSQL: one statement for many, with what history keeps of them.

The hard idea: an attempt that finds its claim gone writes nothing, but its tokens exist at the
provider all the same. Where a disconnect came first they are queued for revocation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson

from daemon.domain.claim import Settled, Settlement
from daemon.domain.connection import Status
from daemon.domain.errors import DecryptionError
from daemon.domain.revocation import Initiator
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.history import INSERT_EVENTS, EventRecorder, event_columns
from daemon.persistence.postgres import Database
from daemon.persistence.revocations import Revoke, queue_revocations, revocations_of
from daemon.persistence.rows import Row, failure_json, seal_tokens

# The claim's attempt id is the fence, the generation the second line: a settlement that matches
# neither writes nothing. A reply may still settle its own attempt after it was taken over. The id
# stays until the next claim, so that a settlement repeated after a lost answer is recognized. A
# status that a take-over has changed since the claim is put right whatever ``touches`` says.
_SETTLE = f"""
WITH input AS (
    SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::timestamptz[],
                         $6::int[], $7::bool[], $8::bytea[], $9::bytea[], $10::text[],
                         $11::text[], $12::timestamptz[], $13::timestamptz[], $14::text[],
                         $15::text[], $16::bool[], $17::text[])
    AS i (id, attempt, generation, state, due_at, failures, has_tokens, access_token,
          refresh_token, token_type, scopes, issued_at, expires_at, status, last_error, touches,
          reply_values)
), fenced AS (
    UPDATE refresh_schedule s
    SET state = i.state, due_at = i.due_at, failures = i.failures, owner = NULL,
        take_over_at = NULL
    FROM input i JOIN token_sets t ON t.connection_id = i.id AND t.generation = i.generation
    WHERE s.connection_id = i.id AND s.attempt = i.attempt
      AND (s.state = 'sending' OR (s.state = 'in_doubt' AND i.has_tokens))
    RETURNING s.connection_id, s.attempt
), stored AS (
    UPDATE token_sets t
    SET generation = i.generation + 1, access_token = i.access_token,
        refresh_token = i.refresh_token, token_type = i.token_type,
        scopes = string_to_array(i.scopes, ' '), issued_at = i.issued_at,
        expires_at = i.expires_at, stored_at = $18
    FROM input i JOIN fenced f ON f.connection_id = i.id AND f.attempt = i.attempt
    WHERE i.has_tokens AND t.connection_id = i.id AND t.generation = i.generation
    RETURNING t.connection_id
), told AS (
    UPDATE connections c
    SET status = i.status, last_error = i.last_error::jsonb, updated_at = $18,
        reply_values = c.reply_values || coalesce(i.reply_values::jsonb, '{{}}')
    FROM input i JOIN fenced f ON f.connection_id = i.id AND f.attempt = i.attempt
    WHERE (i.touches OR c.status <> i.status) AND c.id = i.id
), happened AS (
    SELECT e.* FROM unnest($19::text[], $20::timestamptz[], $21::text[], $22::text[], $23::text[],
                           $24::text[])
    WITH ORDINALITY AS e (attempt, at, connection, provider, type, detail, place)
    JOIN fenced f ON f.connection_id = e.connection AND f.attempt = e.attempt
), {INSERT_EVENTS.format(delivers="$25")}
SELECT attempt FROM fenced
"""
_COLUMNS, _EVENT_COLUMNS = 17, 6

_UNWRITTEN = """
SELECT c.id, c.provider, c.fields, c.status, c.epoch, t.generation, t.access_token, s.attempt,
       s.state
FROM connections c LEFT JOIN token_sets t ON t.connection_id = c.id
LEFT JOIN refresh_schedule s ON s.connection_id = c.id WHERE c.id = ANY($1::text[])
"""


class Settlements:
    """Writes settlements. Raises DatabaseUnavailableError."""

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
        """
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
        )
        stored = {row["attempt"] for row in rows}
        unwritten = [one for one in settlements if one.attempt not in stored]
        answers = await self._explain(unwritten, now) if unwritten else {}
        return [answers.get(one.attempt, Settled.STORED) for one in settlements]

    async def _explain(
        self, unwritten: Sequence[Settlement], now: datetime
    ) -> Mapping[str, Settled]:
        """Tell by attempt why it was not written, and queue the tokens that are nobody's now."""
        async with self._database.transaction() as session:
            rows = await session.fetch(_UNWRITTEN, [one.connection_id for one in unwritten])
            known: dict[str, Row] = {row["id"]: row for row in rows}
            answers = {
                one.attempt: self._answer(known.get(one.connection_id), one) for one in unwritten
            }
            late = [one for one in unwritten if answers[one.attempt] is Settled.DISCONNECTED]
            revocations = [
                each for one in late for each in _revocations(known.get(one.connection_id), one)
            ]
            await queue_revocations(session, self._cipher, revocations, now=now)
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
        return Settled.DISCONNECTED if row["epoch"] > settlement.epoch else Settled.SUPERSEDED

    def _is_written(self, row: Row, settlement: Settlement) -> bool:
        tokens = settlement.tokens
        if tokens is None:
            settled = (settlement.attempt, settlement.state, settlement.generation)
            return (row["attempt"], row["state"], row["generation"]) == settled
        if row["generation"] != tokens.generation:
            return False
        try:
            stored = self._cipher.decrypt(
                row["access_token"],
                connection=settlement.connection_id,
                column="access_token",
                generation=tokens.generation,
            )
        except DecryptionError:
            # Not ours then: written meanwhile with a key that this process does not have.
            return False
        return stored == tokens.access_token

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
        )


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
