"""The refresh store in memory: the same pure decisions over dictionaries, and a few faults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

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
from daemon.domain.claimable import ScheduleRow, Wanted, refusal
from daemon.domain.clock import Clock
from daemon.domain.connection import Failure, Status
from daemon.domain.errors import DatabaseUnavailableError, StorageError
from daemon.domain.history import NewEvent
from daemon.domain.outcome import Outcome
from daemon.domain.tokens import CurrentToken, TokenSet, Version


@dataclass
class MemoryRow:
    """What is stored of one connection."""

    id: str
    provider: str
    tokens: TokenSet
    due_at: datetime | None
    status: Status = Status.ACTIVE
    state: ClaimState = ClaimState.IDLE
    attempt: str | None = None
    owner: str | None = None
    take_over_at: datetime | None = None
    doubted_since: datetime | None = None
    failures: int = 0
    last_error: Failure | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    reply_values: Mapping[str, str] = field(default_factory=dict)
    epoch: int = 0
    grant_generation: int = 0
    granted_at: datetime | None = None

    def disconnect(self) -> None:
        """Do as a disconnect does; what it queues for revocation is not kept."""
        self.status, self.state, self.epoch = Status.DISCONNECTED, ClaimState.IDLE, self.epoch + 1
        self.attempt = self.owner = self.due_at = self.last_error = self.doubted_since = None
        self.tokens = replace(self.tokens, access_token="", refresh_token=None, expires_at=None)

    def schedule(self) -> ScheduleRow:
        """Return what the decision over a claim looks at."""
        expires_at = self.tokens.expires_at
        return ScheduleRow(
            status=self.status,
            state=self.state,
            due_at=self.due_at,
            failures=self.failures,
            generation=self.tokens.generation,
            has_refresh_token=self.tokens.refresh_token is not None,
            arrived_expired=expires_at is not None and expires_at <= self.tokens.issued_at,
        )


class MemoryRefreshes:
    """Ports: RefreshStore and CurrentTokens. Each method is one turn of the event loop.

    While ``is_away`` every method raises; while ``is_refusing`` nothing is settled.
    ``unacknowledged`` makes that many next calls of ``settle`` raise after they have written, as a
    connection does that is cut after the commit. ``events`` has what was recorded, ``disowned``
    (connection, provider, tokens) that were queued for revocation, ``orphans`` (connection,
    attempt, tokens) of what came when it had moved on. ``merged`` says into which other one a
    connection went.
    """

    def __init__(self, clock: Clock) -> None:
        self.rows: dict[str, MemoryRow] = {}
        self.states: dict[str, ProviderState] = {}
        self.is_away = False
        self.is_refusing = False
        self.unacknowledged = 0
        self.calls: list[str] = []
        self.events: list[NewEvent] = []
        self.disowned: list[tuple[str, str, TokenSet]] = []
        self.orphans: dict[int, tuple[str, str, TokenSet]] = {}
        self.merged: dict[str, str] = {}
        self._clock = clock
        self._attempts = 0
        self._orphans = 0

    async def claim_due(
        self, *, room: Mapping[str, tuple[int, float]], owner: str, hold: timedelta, now: datetime
    ) -> DueClaims:
        """Claim what is due."""
        self._called("claim_due")
        clock = self._clock.now()
        claims: list[Claim] = []
        waits: list[float | None] = []
        for name, (places, rate) in room.items():
            admission = admit(self.state_of(name), rate=rate, wanted=places, now=clock)
            due = sorted(
                (row.due_at, row.id)
                for row in self.rows.values()
                if row.provider == name and row.due_at is not None and row.due_at <= now
                if row.state is not ClaimState.SENDING and not self._rests(row)
            )
            taken = [self.rows[one] for _, one in due[: len(admission.delays)]]
            claims += [
                self._claim(row, delay, owner, hold)
                for row, delay in zip(taken, admission.delays, strict=False)
            ]
            state = admitted(self.state_of(name), len(taken), rate=rate, now=clock)
            self.states[name] = state
            waits.append(again_in(state, places=places, taken=len(taken), rate=rate, now=clock))
        soonest = min((wait for wait in waits if wait is not None), default=None)
        return DueClaims(
            claims=claims, states={name: self.states[name] for name in room}, again_in=soonest
        )

    async def claim(
        self, wanted: Wanted, *, owner: str, hold: timedelta, now: datetime
    ) -> Claim | Refusal:
        """Claim one connection."""
        self._called("claim")
        row = self.rows.get(wanted.connection_id)
        schedule = None if row is None else replace(row.schedule(), rests=self._rests(row))
        reason = refusal(schedule, wanted, now)
        if row is None or reason is not None:
            return Refusal(
                connection_id=wanted.connection_id,
                reason=reason or RefusalReason.UNKNOWN,
                retry_at=None if row is None else row.due_at,
            )
        admission = admit(
            self.state_of(row.provider),
            rate=wanted.rate,
            wanted=1,
            now=self._clock.now(),
            forced=wanted.forced,
        )
        self.states[row.provider] = admission.state
        if not admission.delays:
            return Refusal(
                connection_id=row.id,
                reason=RefusalReason.PROVIDER_PAUSED,
                retry_at=admission.retry_at,
            )
        claim = self._claim(row, admission.delays[0], owner, hold)
        row.due_at = min(row.due_at or now, now)
        return claim

    async def settle(self, settlements: Sequence[Settlement], *, now: datetime) -> list[Settled]:
        """Write how attempts ended."""
        del now
        self._called("settle")
        if self.is_refusing:
            raise StorageError("permission denied")
        # As one statement does: what is written first, then why the rest was not.
        order = sorted(
            range(len(settlements)), key=lambda place: not self._is_open(settlements[place])
        )
        found = {place: self._settle(settlements[place]) for place in order}
        answers = [found[place] for place in range(len(settlements))]
        if self.unacknowledged > 0:
            self.unacknowledged -= 1
            raise DatabaseUnavailableError("the connection was cut after the commit")
        return answers

    async def abandoned(self, providers: Sequence[str], *, now: datetime) -> list[Abandoned]:
        """Return claims whose take-over time has passed."""
        del now
        self._called("abandoned")
        return [
            _abandoned(row, self._clock.now())
            for row in self.rows.values()
            if row.provider in providers and row.state is ClaimState.SENDING
            if row.take_over_at is not None and row.take_over_at < self._clock.now()
        ]

    async def reclaim(
        self, connection_id: str, *, attempt: str, generation: int, owner: str, hold: timedelta
    ) -> Claim | Refusal | None:
        """Claim again for a reply that the journal kept."""
        self._called("reclaim")
        row = self.rows.get(connection_id)
        if row is None:
            return Refusal(connection_id=connection_id, reason=RefusalReason.UNKNOWN)
        if row.tokens.generation != generation:
            return None
        if row.status is Status.DISCONNECTED:
            return Refusal(connection_id=connection_id, reason=RefusalReason.DISCONNECTED)
        if row.state is ClaimState.SENDING and row.attempt != attempt:
            return Refusal(connection_id=connection_id, reason=RefusalReason.SENDING)
        if row.state is ClaimState.IDLE and row.attempt == attempt:
            return None
        claim = self._claim(row, 0.0, owner, hold)
        row.attempt = attempt
        return replace(claim, attempt=attempt, was_in_doubt=False)

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
        """Claim again, also where generations are forgotten."""
        self._called("recall")
        row = self.rows.get(connection_id)
        if self._is_merged(connection_id):
            return None
        if row is None:
            return Refusal(connection_id=connection_id, reason=RefusalReason.UNKNOWN)
        stored = row.tokens.generation
        if stored > generation or (row.granted_at or sent_at) > sent_at + timedelta(seconds=10):
            return None
        if row.epoch > epoch:
            return Refusal(connection_id=connection_id, reason=RefusalReason.DISCONNECTED)
        claim = await self.reclaim(
            connection_id, attempt=attempt, generation=stored, owner=owner, hold=hold
        )
        if not isinstance(claim, Claim) or stored == generation:
            return claim
        forgotten = replace(claim.tokens, generation=generation)
        return replace(claim, tokens=forgotten, stored_generation=stored)

    async def newest_orphan(self, connection_id: str) -> Orphan | None:
        """Return the newest of the connection's grant."""
        self._called("newest_orphan")
        row = self.rows.get(connection_id)
        if row is None:
            return None
        for number, (name, _, tokens) in sorted(self.orphans.items(), reverse=True):
            is_of_grant = name == connection_id and tokens.generation > row.grant_generation
            if is_of_grant and tokens.refresh_token is not None:
                return Orphan(
                    id=number, generation=tokens.generation, refresh_token=tokens.refresh_token
                )
        return None

    def forget_orphans(self, connection_id: str) -> None:
        """Do as a disconnect and a reconnect do."""
        kept = {key: one for key, one in self.orphans.items() if one[0] != connection_id}
        self.orphans = kept

    async def disown(
        self,
        connection_id: str,
        tokens: TokenSet,
        *,
        provider: str,
        fields: Mapping[str, str],
        now: datetime,
    ) -> None:
        """Keep tokens that are nobody's."""
        del fields, now
        self._called("disown")
        self.disowned.append((connection_id, provider, tokens))

    async def abandoned_by(self, owner: str) -> list[Abandoned]:
        """Return the open claims of an owner that has just started."""
        self._called("abandoned_by")
        return [
            _abandoned(row, self._clock.now())
            for row in self.rows.values()
            if row.owner == owner and row.state is ClaimState.SENDING
        ]

    async def next_due(self, providers: Sequence[str], *, after: datetime) -> datetime | None:
        """Return the soonest due time later than ``after``."""
        self._called("next_due")
        times = [row.due_at for row in self.rows.values() if row.provider in providers]
        return min((time for time in times if time is not None and time > after), default=None)

    async def learn(self, provider: str, outcome: Outcome) -> tuple[ProviderState, ProviderState]:
        """Let the fleet know."""
        self._called("learn")
        before = self.state_of(provider)
        self.states[provider] = after_outcome(before, outcome, self._clock.now())
        return before, self.states[provider]

    async def current(self, ids: Sequence[str]) -> list[CurrentToken]:
        """Return what serving needs."""
        self._called("current")
        return [_current(self.rows[one]) for one in ids if one in self.rows]

    async def versions(self, ids: Sequence[str]) -> dict[str, Version]:
        """Return what tells whether memory is stale."""
        self._called("versions")
        rows = [self.rows[one] for one in ids if one in self.rows]
        return {
            row.id: Version(row.tokens.generation, row.status, row.tokens.expires_at)
            for row in rows
        }

    def _called(self, method: str) -> None:
        self.calls.append(method)
        if self.is_away:
            raise DatabaseUnavailableError("the database is away")

    def state_of(self, provider: str) -> ProviderState:
        """Return what the fleet knows of a provider."""
        fresh = ProviderState(provider=provider, free_at=self._clock.now())
        return self.states.setdefault(provider, fresh)

    def _claim(self, row: MemoryRow, delay: float, owner: str, hold: timedelta) -> Claim:
        self._attempts += 1
        if row.state is ClaimState.IDLE or row.doubted_since is None:
            row.doubted_since = self._clock.now()
        claim = Claim(
            connection_id=row.id,
            provider=row.provider,
            attempt=f"attempt {self._attempts}",
            status=row.status,
            tokens=row.tokens,
            requested_scopes=(),
            was_in_doubt=row.state is ClaimState.IN_DOUBT,
            failures=row.failures,
            planned_at=row.due_at,
            delay=delay,
            fields=row.fields,
            reply_values=row.reply_values,
            epoch=row.epoch,
            doubted_since=row.doubted_since if row.state is ClaimState.IN_DOUBT else None,
        )
        row.state, row.attempt, row.owner = ClaimState.SENDING, claim.attempt, owner
        row.take_over_at = self._clock.now() + hold
        return claim

    def _rests(self, row: MemoryRow) -> bool:
        return row.take_over_at is not None and row.take_over_at > self._clock.now()

    def _is_open(self, settlement: Settlement) -> bool:
        row = self.rows.get(settlement.connection_id)
        if row is None or row.status is Status.DISCONNECTED:
            return False
        open_ = row.state is ClaimState.SENDING or (
            row.state is ClaimState.IN_DOUBT and settlement.tokens is not None
        )
        is_stale = row.tokens.generation != settlement.generation
        return row.attempt == settlement.attempt and open_ and not is_stale

    def _is_merged(self, name: str) -> bool:
        survivor = self.rows.get(self.merged.get(name, ""))
        return survivor is not None and survivor.status is not Status.DISCONNECTED

    def _settle(self, settlement: Settlement) -> Settled:
        row = self.rows.get(settlement.connection_id)
        if self._is_merged(settlement.connection_id):
            return Settled.SUPERSEDED
        if row is None or row.status is Status.DISCONNECTED:
            return self._disowned(row, settlement)
        if not self._is_open(settlement):
            if _is_written(row, settlement):
                return Settled.STORED
            if row.epoch > settlement.epoch:
                return self._disowned(row, settlement)
            return self._late(row, settlement)
        row.state, row.due_at = settlement.state, settlement.due_at
        row.failures, row.take_over_at = settlement.failures, None
        row.doubted_since = settlement.doubted_since
        if settlement.rests:
            row.take_over_at = self._clock.now() + settlement.rests
        row.tokens = settlement.tokens or row.tokens
        self.orphans.pop(settlement.adopts or 0, None)
        touches = settlement.touches_connection or settlement.reply_values
        if touches or row.status is not settlement.status:
            row.status, row.last_error = settlement.status, settlement.last_error
            row.reply_values = {**row.reply_values, **settlement.reply_values}
        self.events += settlement.events
        return Settled.STORED

    def _late(self, row: MemoryRow, settlement: Settlement) -> Settled:
        tokens = settlement.tokens
        if tokens is None:
            return Settled.SUPERSEDED
        if row.tokens.generation <= settlement.generation:
            return Settled.UNCLAIMED
        known = {(name, attempt) for name, attempt, _ in self.orphans.values()}
        is_beside = row.grant_generation < tokens.generation == row.tokens.generation
        is_of_grant = is_beside and (row.granted_at is None or row.granted_at <= tokens.issued_at)
        if is_of_grant and (row.id, settlement.attempt) not in known:
            self._orphans += 1
            self.orphans[self._orphans] = (row.id, settlement.attempt, tokens)
        return Settled.SUPERSEDED

    def _disowned(self, row: MemoryRow | None, settlement: Settlement) -> Settled:
        if settlement.tokens is not None:
            provider = settlement.provider if row is None else row.provider
            self.disowned.append((settlement.connection_id, provider, settlement.tokens))
        return Settled.DISCONNECTED


def _abandoned(row: MemoryRow, now: datetime) -> Abandoned:
    return Abandoned(
        connection_id=row.id,
        provider=row.provider,
        attempt=row.attempt or "",
        failures=row.failures,
        generation=row.tokens.generation,
        issued_at=row.tokens.issued_at,
        expires_at=row.tokens.expires_at,
        overdue=now - (row.take_over_at or now),
        doubted_since=row.doubted_since,
    )


def _is_written(row: MemoryRow, settlement: Settlement) -> bool:
    tokens = settlement.tokens
    if tokens is not None and not tokens.access_token:
        return row.tokens.refresh_token == tokens.refresh_token
    if tokens is not None:
        return row.tokens == tokens
    return (row.attempt, row.state) == (settlement.attempt, settlement.state)


def _current(row: MemoryRow) -> CurrentToken:
    failing = row.status is not Status.ACTIVE and row.last_error is not None
    return CurrentToken(
        connection=row.id,
        provider=row.provider,
        status=row.status,
        generation=row.tokens.generation,
        access_token=row.tokens.access_token,
        token_type=row.tokens.token_type,
        scopes=row.tokens.scopes,
        issued_at=row.tokens.issued_at,
        expires_at=row.tokens.expires_at,
        refreshable=row.tokens.refresh_token is not None,
        failure=row.last_error.description if failing and row.last_error else None,
        failure_code=row.last_error.code if failing and row.last_error else None,
        retry_at=row.due_at if failing else None,
    )
