"""The refresh protocol's rows in PostgreSQL: claim, settle, take over.

Each claim and each settlement is one short transaction; none is ever open while a request is on
its way. Provider rows are always locked before schedule rows, so that replicas cannot deadlock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from daemon.domain.admission import ProviderState, admit, admitted, after_outcome, again_in
from daemon.domain.claim import (
    Abandoned,
    Claim,
    ClaimState,
    DueClaims,
    Orphan,
    Refusal,
    RefusalReason,
    Settled,
    Settlement,
)
from daemon.domain.claimable import Wanted, refusal
from daemon.domain.connection import Failure
from daemon.domain.errors import DecryptionError
from daemon.domain.outcome import Outcome
from daemon.domain.revocation import Initiator
from daemon.domain.tokens import TokenSet
from daemon.persistence import refresh_statements as statements
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.claim_rows import (
    claim_of,
    has_ended,
    held_back,
    is_older,
    not_reclaimed,
    schedule_of,
)
from daemon.persistence.held import merged_of
from daemon.persistence.history import EventRecorder
from daemon.persistence.incarnations import Incarnations
from daemon.persistence.orphans import PostgresOrphans
from daemon.persistence.postgres import Database, DatabaseConnection
from daemon.persistence.revocations import queue_revocations, revocations_of
from daemon.persistence.rows import Row, failure_json, token_set
from daemon.persistence.settlements import Settlements, refusals_told

# What cannot be decrypted is neither sent nor overwritten: a key may be about to come back.
_LOOK_AGAIN = timedelta(minutes=5)


class PostgresRefreshes:
    """The refresh store on PostgreSQL (port: ``daemon.refresh.ports.RefreshStore``)."""

    def __init__(
        self,
        database: Database,
        cipher: TokenCipher,
        *,
        recorder: EventRecorder,
        incarnations: Incarnations | None = None,
    ) -> None:
        """Without ``incarnations`` claims are given whatever the database may have forgotten."""
        self._database = database
        self._cipher = cipher
        self._settlements = Settlements(database, cipher, recorder)
        self._orphans = PostgresOrphans(database, cipher)
        self._incarnations = incarnations

    async def add_providers(self, providers: Sequence[str]) -> None:
        """Make sure that every provider has a state row."""
        await self._database.execute(
            "INSERT INTO provider_state (provider) SELECT unnest($1::text[])"
            " ON CONFLICT DO NOTHING",
            list(providers),
        )

    async def claim_due(
        self, *, room: Mapping[str, tuple[int, float]], owner: str, hold: timedelta, now: datetime
    ) -> DueClaims:
        """Claim what is due at ``now``: ``room`` gives (places, rate) for each provider."""
        room = {name: places for name, places in room.items() if not self._is_held_back(name)}
        async with self._database.transaction() as connection:
            states, clock = await self._lock(connection, room, claims=True)
            # Again: while this waited for the database its incarnation may have been trusted, and
            # its providers held back with that.
            states = {name: s for name, s in states.items() if not self._is_held_back(name)}
            admissions = {
                name: admit(state, rate=room[name][1], wanted=room[name][0], now=clock)
                for name, state in states.items()
            }
            places = {name: len(a.delays) for name, a in admissions.items() if a.delays}
            claimed = await connection.fetch(
                statements.CLAIM_DUE, list(places), list(places.values()), now, owner, hold
            )
            rows = await self._with_tokens(connection, claimed)
            delays = {name: iter(admissions[name].delays) for name in places}
            claims = await self._opened(connection, rows, delays, now)
            counts = Counter(claim.provider for claim in claims)
            for name, count in counts.items():
                states[name] = admitted(states[name], count, rate=room[name][1], now=clock)
                await self._store(connection, states[name])
        waits = [
            again_in(
                states[name],
                places=room[name][0],
                taken=counts[name],
                rate=room[name][1],
                now=clock,
            )
            for name in states
        ]
        return DueClaims(
            claims=claims,
            states=states,
            again_in=min((wait for wait in waits if wait is not None), default=None),
        )

    async def claim(
        self, wanted: Wanted, *, owner: str, hold: timedelta, now: datetime
    ) -> Claim | Refusal:
        """Claim one connection that somebody waits for."""
        if self._is_held_back(wanted.provider):
            return held_back(wanted)
        async with self._database.transaction() as connection:
            states, clock = await self._lock(connection, [wanted.provider], claims=True)
            if self._is_held_back(wanted.provider):
                return held_back(wanted)
            row = await self._locked(connection, wanted.connection_id)
            reason = refusal(None if row is None else schedule_of(row), wanted, now)
            if row is None or reason is not None:
                retry_at = None if row is None else row["due_at"]
                return Refusal(
                    connection_id=wanted.connection_id,
                    reason=reason or RefusalReason.UNKNOWN,
                    retry_at=retry_at,
                )
            admission = admit(
                states[wanted.provider],
                rate=wanted.rate,
                wanted=1,
                now=clock,
                forced=wanted.forced,
            )
            if not admission.delays:
                return Refusal(
                    connection_id=wanted.connection_id,
                    reason=RefusalReason.PROVIDER_PAUSED,
                    retry_at=None
                    if admission.retry_at is None
                    else now + (admission.retry_at - clock),
                )
            attempt = await connection.fetchval(
                statements.CLAIM_WANTED, wanted.connection_id, owner, hold, now
            )
            await self._store(connection, admission.state)
            opened = {**row, "attempt": attempt}
            delays = {wanted.provider: iter(admission.delays)}
            claims = await self._opened(connection, [opened], delays, now)
        if not claims:
            return Refusal(connection_id=wanted.connection_id, reason=RefusalReason.NOT_REFRESHABLE)
        return claims[0]

    async def reclaim(
        self, connection_id: str, *, attempt: str, generation: int, owner: str, hold: timedelta
    ) -> Claim | Refusal | None:
        """Claim again for a reply that the journal kept; ``None`` where it is not wanted any more.

        It is wanted on top of the generation it was asked for, also where the database has
        forgotten the claim (a restored backup, a failover). Refused while another attempt is on
        its way: only the end of that one tells. Refused, too, where the connection is gone or
        disconnected: its tokens are then nobody's.
        """
        async with self._database.transaction() as connection:
            row = await self._locked(connection, connection_id)
            if row is not None and (row["generation"] != generation or has_ended(row, attempt)):
                return None
            refused = not_reclaimed(row, connection_id, attempt)
            if row is None or refused is not None:
                return refused
            await connection.execute(statements.RECLAIM, connection_id, attempt, owner, hold)
        claimed = {**row, "attempt": attempt, "state": ClaimState.SENDING}
        return claim_of(claimed, token_set(row, self._cipher), 0.0)

    async def recall(
        self,
        connection_id: str,
        *,
        attempt: str,
        generation: int,
        sent_at: datetime,
        epoch: int,
        owner: str,
        hold: timedelta,
    ) -> Claim | Refusal | None:
        """Claim for a reply whose claim the database has forgotten, with generations or without.

        ``generation`` is the one that the request was sent for, at ``sent_at``. Like ``reclaim``,
        but also where the database has an older one, unless a later grant has put it there. A
        disconnect since ``epoch`` refuses it, and with that a connection that was purged and made
        anew under the same name. Not wanted where it was merged into another one.
        """
        with refusals_told():
            async with self._database.transaction() as connection:
                row = await self._locked(connection, connection_id)
                if row is not None and (
                    not is_older(row, generation, sent_at) or has_ended(row, attempt)
                ):
                    return None
                if row is None and await merged_of(connection, [connection_id]):
                    return None
                refused = not_reclaimed(row, connection_id, attempt, epoch=epoch)
                if row is None or refused is not None:
                    return refused
                await connection.execute(statements.RECLAIM, connection_id, attempt, owner, hold)
        claimed = {**row, "attempt": attempt, "state": ClaimState.SENDING}
        claim = claim_of(claimed, token_set(row, self._cipher), 0.0)
        if row["generation"] == generation:
            return claim
        return replace(
            claim,
            tokens=replace(claim.tokens, generation=generation),
            stored_generation=row["generation"],
        )

    async def newest_orphan(self, connection_id: str) -> Orphan | None:
        """Return the newest orphan of a connection's grant; see ``PostgresOrphans.newest``."""
        with refusals_told():
            return await self._orphans.newest(connection_id)

    async def abandoned_by(self, owner: str) -> list[Abandoned]:
        """Return the open claims of an owner that has just started, and so has sent nothing."""
        rows = await self._database.fetch(statements.ABANDONED_BY, owner)
        return [Abandoned(**dict(row)) for row in rows]

    async def settle(self, settlements: Sequence[Settlement], *, now: datetime) -> list[Settled]:
        """Write how attempts ended; see ``Settlements.settle``."""
        return await self._settlements.settle(settlements, now=now)

    async def disown(
        self,
        connection_id: str,
        tokens: TokenSet,
        *,
        provider: str,
        fields: Mapping[str, str],
        now: datetime,
    ) -> None:
        """Queue tokens for revocation that came too late for their connection."""
        revocations = revocations_of(
            tokens,
            connection_id=connection_id,
            provider=provider,
            fields=fields,
            initiator=Initiator.CALLER,
        )
        async with self._database.transaction() as session:
            await queue_revocations(session, self._cipher, revocations, now=now)

    async def abandoned(self, providers: Sequence[str], *, now: datetime) -> list[Abandoned]:
        """Return claims whose take-over time has passed; their owners can no longer settle."""
        rows = await self._database.fetch(statements.ABANDONED, list(providers), now)
        return [Abandoned(**dict(row)) for row in rows]

    async def next_due(self, providers: Sequence[str], *, after: datetime) -> datetime | None:
        """Return the soonest due time later than ``after``."""
        value: datetime | None = await self._database.fetchval(
            statements.NEXT_DUE, list(providers), after
        )
        return value

    async def count_due(self, *, now: datetime) -> int:
        """Return how many connections are due at ``now`` and not being refreshed."""
        value = await self._database.fetchval(
            "SELECT count(*) FROM refresh_schedule WHERE due_at <= $1 AND state <> 'sending'", now
        )
        return int(value)

    async def learn(self, provider: str, outcome: Outcome) -> tuple[ProviderState, ProviderState]:
        """Let the fleet know what an outcome says of its provider; return before and after."""
        with refusals_told():
            async with self._database.transaction() as connection:
                states, clock = await self._lock(connection, [provider])
                learned = after_outcome(states[provider], outcome, clock)
                if learned != states[provider]:
                    await self._store(connection, learned)
        return states[provider], learned

    async def reset_provider(self, provider: str) -> None:
        """Close a provider's circuit and end its pause: its configuration has changed."""
        await self._database.execute(
            "UPDATE provider_state SET circuit = NULL, failures = 0, paused_until = NULL"
            " WHERE provider = $1",
            provider,
        )

    def _is_held_back(self, provider: str) -> bool:
        return self._incarnations is not None and provider in self._incarnations.held_back

    async def _locked(
        self, connection: DatabaseConnection, connection_id: str
    ) -> dict[str, Any] | None:
        """Lock a connection's schedule and return it with its tokens, where it has any."""
        locked = await connection.fetch(statements.LOCK_WANTED, connection_id)
        return next(iter(await self._with_tokens(connection, locked)), None)

    async def _lock(
        self,
        connection: DatabaseConnection,
        names: Mapping[str, Any] | Sequence[str],
        *,
        claims: bool = False,
    ) -> tuple[dict[str, ProviderState], datetime]:
        """Lock providers; whoever ``claims`` may only where the database has forgotten nothing."""
        rows = await connection.fetch(statements.LOCK_PROVIDERS, list(names))
        if len(rows) < len(names):
            await connection.execute(
                "INSERT INTO provider_state (provider) SELECT unnest($1::text[])"
                " ON CONFLICT DO NOTHING",
                list(names),
            )
            rows = await connection.fetch(statements.LOCK_PROVIDERS, list(names))
        states: dict[str, ProviderState] = {}
        clock = datetime.min.replace(tzinfo=UTC)
        for row in rows:
            values = dict(row)
            clock, incarnation = values.pop("now"), values.pop("incarnation")
            if claims and self._incarnations is not None:
                self._incarnations.check(incarnation)
            states[values["provider"]] = ProviderState(**values)
        return states, clock

    async def _store(self, connection: DatabaseConnection, state: ProviderState) -> None:
        await connection.execute(
            statements.STORE_PROVIDER,
            state.provider,
            state.free_at,
            state.paused_until,
            state.failures,
            state.circuit,
        )

    async def _with_tokens(
        self, connection: DatabaseConnection, rows: Sequence[asyncpg.Record]
    ) -> list[dict[str, Any]]:
        """Return locked schedule rows with their connections and tokens, in the same order."""
        if not rows:
            return []
        found = await connection.fetch(
            statements.READ_CLAIMED, [row["connection_id"] for row in rows]
        )
        rest = {row["connection_id"]: row for row in found}
        return [{**row, **rest[row["connection_id"]]} for row in rows]

    async def _opened(
        self,
        connection: DatabaseConnection,
        rows: Sequence[Row],
        delays: Mapping[str, Iterator[float]],
        now: datetime,
    ) -> list[Claim]:
        """Return the claims of rows that decrypt; put the others aside, so none blocks the rest."""
        claims: list[Claim] = []
        for row in rows:
            try:
                tokens = token_set(row, self._cipher)
            except DecryptionError as error:
                failure = Failure(code="decrypt_error", description=str(error), at=now)
                await connection.execute(
                    statements.PUT_ASIDE,
                    row["connection_id"],
                    now + _LOOK_AGAIN,
                    failure_json(failure),
                    row["state"],
                )
            else:
                claims.append(claim_of(row, tokens, next(delays[row["provider"]])))
        return claims
