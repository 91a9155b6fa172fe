"""[refresh] The one refresh path: claim, send, commit, publish.

The scheduler, a caller's ``min_ttl`` and an operator's button all come through here. The hard
idea: from the moment a request may have left, nothing but the end of the process can stop the
attempt's task before its reply is stored. Callers only ever wait for it through a shield.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from daemon.config.settings import Refresh
from daemon.domain.claim import Claim, Refusal, RefusalReason, Settled, Settlement
from daemon.domain.claimable import Wanted
from daemon.domain.clock import Clock
from daemon.domain.connection import Status
from daemon.domain.errors import DatabaseUnavailableError, JournalError
from daemon.domain.events import Events
from daemon.domain.journal import JournaledReply, Purpose, ReplyJournal
from daemon.domain.outcome import FailureReason, Outcome, OutcomeKind
from daemon.domain.provider import Provider
from daemon.domain.reply import RawReply
from daemon.domain.tokens import CurrentToken, TokenSet
from daemon.refresh import policy
from daemon.refresh.cache import TokenCache
from daemon.refresh.ports import CurrentTokens, Providers, Publisher, RefreshSender, RefreshStore
from daemon.refresh.settling import Settling
from daemon.refresh.slots import Slots

log = structlog.get_logger()

# Between the hard end of a request and the claim's take-over lies time to store the reply, so a
# successor never acts on a claim whose owner may still be writing.
_TIME_TO_STORE = timedelta(seconds=60)
# A reply that comes after the callers' patience is still read: it may carry the only refresh token.
_HARD_TIMEOUT_FACTOR = 2
# While the database is away a reply is held in memory and its commit tried again this often.
_COMMIT_RETRY = (0.2, 5.0)
# How often another replica's attempt is looked at, should its notification get lost.
_LOOK_AGAIN = 0.5
# A caller waits this long for a slot of the provider's rate; a Retry-After or an open circuit is
# longer and is told to the caller instead.
_WORTH_WAITING = 2.0
_SHORTEST_WAIT = 0.01
_SAYS_MORE_THAN_MEMORY = {
    RefusalReason.SUPERSEDED,
    RefusalReason.NOT_REFRESHABLE,
    RefusalReason.UNKNOWN,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What the refresher works with."""

    store: RefreshStore
    tokens: CurrentTokens
    providers: Providers
    sender: RefreshSender
    journal: ReplyJournal
    publisher: Publisher
    events: Events
    clock: Clock
    chance: Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """When a request left (wall time), how many seconds its answer took, and whether it left."""

    at: datetime
    duration: float
    asked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    """A refresh in flight here, to be awaited through a shield only."""

    task: asyncio.Task[Refusal | None]
    generation: int
    forced: bool

    def answers(self, wanted: Wanted) -> bool:
        """Tell whether its end is the answer to ``wanted``.

        A flight that set out from an older generation, or that bows to a backoff which
        ``wanted`` may pass, says nothing.
        """
        return self.generation >= wanted.generation and self.forced >= wanted.forced


class Refresher:
    """Runs refreshes, at most one at a time for each connection in this process."""

    def __init__(
        self,
        ports: Ports,
        *,
        cache: TokenCache,
        slots: Slots,
        settings: Callable[[], Refresh],
        owner: str,
        on_schedule: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._ports = ports
        self._cache = cache
        self._slots = slots
        self._settings = settings
        self._owner = owner
        self._on_schedule = on_schedule
        self._settling = Settling(ports.store, ports.clock)
        self._flights: dict[str, Flight] = {}
        self._tasks: set[asyncio.Task[Refusal | None]] = set()
        self._unwell: set[str] = set()
        self._queueing: Counter[str] = Counter()
        self._closing = False
        self._recovered = asyncio.Event()

    @property
    def hold(self) -> timedelta:
        """Return how long a claim lasts before its owner counts as vanished."""
        return timedelta(seconds=self._hard_timeout()) + _TIME_TO_STORE

    async def refresh(self, wanted: Wanted) -> Refusal | None:
        """Join or start the refresh of one connection; return why it was refused, if it was.

        Cancelling the wait never cancels the refresh.

        Raises:
            DatabaseUnavailableError: no claim could be taken; nothing was sent.
        """
        while True:
            flight = self._flights.get(wanted.connection_id)
            # One that has just ended may not have left the table yet: it must not be joined.
            if flight is None or flight.task.done():
                if self._closing:
                    return Refusal(
                        connection_id=wanted.connection_id, reason=RefusalReason.PROVIDER_PAUSED
                    )
                flight = self._fly(wanted, self._obtain(wanted))
            refusal = await asyncio.shield(flight.task)
            if flight.answers(wanted):
                return refusal

    def start(self, claim: Claim, *, since: float, on_end: Callable[[], None]) -> None:
        """Run a claim that the sweep has taken; its slot is given back at the end.

        ``since`` is the boot time before the claim was asked for.
        """
        wanted = Wanted(
            connection_id=claim.connection_id,
            provider=claim.provider,
            generation=claim.tokens.generation,
            rate=0,
            forced=True,
        )
        self._fly(wanted, self._run_claimed(claim, since, on_end))

    def begin(self) -> None:
        """Let refreshes begin: what the journal kept is stored."""
        self._recovered.set()

    def has_callers_waiting(self, provider: str) -> bool:
        """Tell whether callers wait for the provider's rate: the sweep then lets them go first."""
        return self._queueing[provider] > 0

    def learned(self, provider: str, *, unwell: bool) -> None:
        """Remember whether a provider's shared state has anything to be cleared by a success."""
        (self._unwell.add if unwell else self._unwell.discard)(provider)

    async def drain(self) -> None:
        """Start nothing more; return when every attempt in flight is stored."""
        self._closing = True
        self._recovered.set()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _fly(self, wanted: Wanted, work: Coroutine[None, None, Refusal | None]) -> Flight:
        connection_id = wanted.connection_id
        task = asyncio.create_task(work, name=f"refresh {connection_id}")
        flight = Flight(task=task, generation=wanted.generation, forced=wanted.forced)
        self._flights[connection_id] = flight
        self._tasks.add(task)

        def landed(done: asyncio.Task[Refusal | None]) -> None:
            self._tasks.discard(done)
            if self._flights.get(connection_id) is flight:
                del self._flights[connection_id]
            error = None if done.cancelled() else done.exception()
            if error is not None and not isinstance(error, DatabaseUnavailableError):
                # The claim stays open and is taken over. Only the type: a text may quote a token.
                log.error("refresh_crashed", connection=connection_id, error=type(error).__name__)

        task.add_done_callback(landed)
        return flight

    async def _run_claimed(self, claim: Claim, since: float, on_end: Callable[[], None]) -> None:
        try:
            await self._attempt(claim, since)
        finally:
            self._slots.give(claim.provider)
            on_end()

    async def _obtain(self, wanted: Wanted) -> Refusal | None:
        """Claim and refresh; where another replica is at it, wait for its result."""
        clock = self._ports.clock
        give_up = clock.boottime() + self._settings().request_timeout.total_seconds()
        await self._recovered.wait()
        await self._slots.take(wanted.provider)
        try:
            return await self._pursue(wanted, give_up)
        finally:
            self._slots.give(wanted.provider)
            self._on_schedule(0.0)

    async def _pursue(self, wanted: Wanted, give_up: float) -> Refusal | None:
        clock = self._ports.clock
        while not self._closing:
            changed = self._cache.changed(wanted.connection_id)
            since = clock.boottime()
            try:
                answer = await self._ports.store.claim(
                    wanted, owner=self._owner, hold=self.hold, now=clock.now()
                )
                if isinstance(answer, Claim):
                    await self._attempt(answer, since)
                    return None
                if clock.boottime() >= give_up:
                    return await self._refused(answer)
                if answer.reason is RefusalReason.SENDING:
                    await self._first_of(changed, _LOOK_AGAIN)
                elif not await self._waited_for_a_slot(answer, wanted.provider):
                    return await self._refused(answer)
            finally:
                changed.cancel()
        return Refusal(connection_id=wanted.connection_id, reason=RefusalReason.PROVIDER_PAUSED)

    async def _waited_for_a_slot(self, answer: Refusal, provider: str) -> bool:
        """Wait for the provider's next free slot, where the rate alone is in the way.

        Meanwhile the sweep claims nothing there: who is waited for goes first.
        """
        if answer.reason is not RefusalReason.PROVIDER_PAUSED or answer.retry_at is None:
            return False
        wait = (answer.retry_at - self._ports.clock.now()).total_seconds()
        if wait > _WORTH_WAITING:
            return False
        self._queueing[provider] += 1
        try:
            await self._ports.clock.sleep(max(wait, _SHORTEST_WAIT))
        finally:
            self._queueing[provider] -= 1
        return True

    async def _refused(self, answer: Refusal) -> Refusal | None:
        """Read what memory does not know yet, where the refusal says that there is something."""
        if answer.reason in _SAYS_MORE_THAN_MEMORY:
            await self.reload([answer.connection_id])
        return None if answer.reason is RefusalReason.SUPERSEDED else answer

    async def _first_of(self, changed: asyncio.Future[None], seconds: float) -> None:
        sleep = asyncio.ensure_future(self._ports.clock.sleep(seconds))
        try:
            await asyncio.wait({changed, sleep}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()

    async def _attempt(self, claim: Claim, since: float) -> None:
        clock = self._ports.clock
        # On boot time and from before the claim was asked for: a machine that was suspended since
        # then must not send late.
        send_by = since + claim.delay + _TIME_TO_STORE.total_seconds() / 2
        provider = self._ports.providers.get(claim.provider)
        if provider is None:
            outcome = _not_sent(f"No provider named {claim.provider} is configured any more.")
            provider = Provider(name=claim.provider, client_id="")
            sent = Sent(at=clock.now(), duration=0.0)
        elif claim.tokens.refresh_token is None:
            outcome, sent = _nothing_to_send(), Sent(at=clock.now(), duration=0.0)
        else:
            await clock.sleep(claim.delay)
            began, sent_at = clock.boottime(), clock.now()
            outcome = await self._send(
                claim, provider, claim.tokens.refresh_token, sent_at=sent_at, send_by=send_by
            )
            asked = not _is_our_own_fault(outcome)
            sent = Sent(at=sent_at, duration=clock.boottime() - began, asked=asked)
        await self.conclude(claim, provider, outcome, sent=sent)
        await self._ports.journal.settled(claim.attempt)
        if sent.asked:
            await self._learn(claim, outcome)

    async def _send(
        self,
        claim: Claim,
        provider: Provider,
        refresh_token: str,
        *,
        sent_at: datetime,
        send_by: float,
    ) -> Outcome:
        """Send once, with room held for the reply; it is on the disk before it is read."""

        async def received(reply: RawReply) -> None:
            await self._ports.journal.keep(
                JournaledReply(
                    attempt=claim.attempt,
                    purpose=Purpose.REFRESH,
                    connection_id=claim.connection_id,
                    provider=claim.provider,
                    generation=claim.tokens.generation,
                    scopes=claim.requested_scopes,
                    sent_at=sent_at,
                    reply=reply,
                )
            )

        try:
            async with self._ports.journal.reserved():
                return await self._ports.sender.refresh(
                    provider,
                    refresh_token,
                    hard_timeout=self._hard_timeout(),
                    send_by=send_by,
                    received=received,
                )
        except JournalError as error:
            return _not_sent(f"Nothing was sent, because its reply could not be kept: {error}.")

    async def conclude(
        self, claim: Claim, provider: Provider, outcome: Outcome, *, sent: Sent
    ) -> None:
        """Store what follows from an outcome, however long that takes, and tell everybody."""
        events = self._ports.events
        decision = policy.decide(
            claim,
            outcome,
            provider,
            self._settings(),
            sent_at=sent.at,
            now=self._ports.clock.now(),
            chance=self._ports.chance(),
        )
        settled = await self._commit(claim, decision.settlement)
        if settled is Settled.STORED:
            await self._publish(claim, decision.settlement)
            self._tell(claim, outcome, decision, sent.duration)
            if decision.retry_in is not None:
                self._on_schedule(decision.retry_in)
        else:
            events.refresh_superseded(claim.connection_id, claim.provider)
            await self._forget(claim.connection_id)

    def _tell(
        self, claim: Claim, outcome: Outcome, decision: policy.Decision, duration: float
    ) -> None:
        events = self._ports.events
        if outcome.kind is OutcomeKind.OK:
            lag = None
            if claim.planned_at is not None:
                lag = max(0.0, (self._ports.clock.now() - claim.planned_at).total_seconds())
            events.token_refreshed(claim, outcome, duration=duration, lag=lag)
            if claim.status is Status.FAILING:
                events.connection_recovered(claim.connection_id, claim.provider)
            return
        events.refresh_failed(claim, outcome, duration=duration, retry_in=decision.retry_in)
        error = decision.settlement.last_error
        if decision.settlement.status is Status.REAUTHORIZATION_REQUIRED and error is not None:
            events.reauthorization_required(claim.connection_id, claim.provider, cause=error.code)

    async def _commit(self, claim: Claim, settlement: Settlement) -> Settled:
        """Store until it is stored. Meanwhile the new token is served from memory."""
        wait, longest = _COMMIT_RETRY
        while True:
            try:
                return await self._settling.settle(settlement)
            except DatabaseUnavailableError:
                if settlement.tokens is not None:
                    self._cache.put(_current(claim, settlement, settlement.tokens))
                await self._ports.clock.sleep(wait)
                wait = min(wait * 2, longest)

    async def _publish(self, claim: Claim, settlement: Settlement) -> None:
        if settlement.tokens is not None:
            self._cache.put(_current(claim, settlement, settlement.tokens))
        elif settlement.touches_connection:
            await self._reload_quietly(claim.connection_id)
        if settlement.tokens is not None or settlement.touches_connection:
            self._ports.publisher.publish(claim.connection_id)

    async def reload(self, ids: list[str]) -> None:
        """Read what is current into the cache; connections that are gone leave it.

        Raises:
            DatabaseUnavailableError: the cache stays as it was.
        """
        found = {token.connection: token for token in await self._ports.tokens.current(ids)}
        for connection_id in ids:
            token = found.get(connection_id)
            if token is None:
                self._cache.drop(connection_id)
            else:
                self._cache.put(token)

    async def _reload_quietly(self, connection_id: str) -> None:
        try:
            await self.reload([connection_id])
        except DatabaseUnavailableError:
            return

    async def _forget(self, connection_id: str) -> None:
        """Take back what memory served of a reply that then was not stored."""
        try:
            found = await self._ports.tokens.current([connection_id])
        except DatabaseUnavailableError:
            return
        self._cache.drop(connection_id)
        for token in found:
            self._cache.put(token)

    async def _learn(self, claim: Claim, outcome: Outcome) -> None:
        """Let the fleet know how the provider does, where there is anything to say."""
        clean = outcome.kind in {OutcomeKind.OK, OutcomeKind.REAUTHORIZE}
        if clean and claim.provider not in self._unwell and claim.failures == 0:
            return
        try:
            before, after = await self._ports.store.learn(claim.provider, outcome)
        except DatabaseUnavailableError:
            return
        self.learned(claim.provider, unwell=after.failures > 0 or after.circuit is not None)
        if (before.circuit is None) != (after.circuit is None):
            self._ports.events.provider_circuit_changed(
                claim.provider,
                is_open=after.circuit is not None,
                reason=after.circuit or before.circuit or "",
            )

    def _hard_timeout(self) -> float:
        return self._settings().request_timeout.total_seconds() * _HARD_TIMEOUT_FACTOR


def _current(claim: Claim, settlement: Settlement, tokens: TokenSet) -> CurrentToken:
    return CurrentToken(
        connection=claim.connection_id,
        provider=claim.provider,
        status=settlement.status,
        generation=tokens.generation,
        access_token=tokens.access_token,
        token_type=tokens.token_type,
        scopes=tokens.scopes,
        issued_at=tokens.issued_at,
        expires_at=tokens.expires_at,
        refreshable=tokens.refresh_token is not None,
        failure=settlement.last_error.description if settlement.last_error else None,
        retry_at=settlement.due_at if settlement.last_error else None,
    )


def _not_sent(description: str) -> Outcome:
    return Outcome(kind=OutcomeKind.NOT_SENT, reason=FailureReason.OTHER, description=description)


def _is_our_own_fault(outcome: Outcome) -> bool:
    """Tell whether nothing was sent for a reason that says nothing about the provider."""
    return outcome.kind is OutcomeKind.NOT_SENT and outcome.reason is FailureReason.OTHER


def _nothing_to_send() -> Outcome:
    return Outcome(
        kind=OutcomeKind.REAUTHORIZE,
        reason=FailureReason.OTHER,
        error="no_refresh_token",
        description=(
            "The provider gave no refresh token and the access token has expired. Connect again; "
            "to get a refresh token, ask for offline access (scopes or authorization_params)."
        ),
    )
