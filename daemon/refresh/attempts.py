"""[refresh] One attempt of a claimed refresh: send, keep, commit, publish.

The hard idea: from the moment a request may have left, nothing but the end of the process stops
an attempt before its reply is stored. The reply is on the disk before it is read, and its commit
is tried until it is done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from daemon.config.settings import Refresh
from daemon.domain.claim import Claim, Settled, Settlement
from daemon.domain.clock import Clock
from daemon.domain.connection import Status
from daemon.domain.errors import DatabaseUnavailableError, JournalError
from daemon.domain.events import Events
from daemon.domain.journal import JournaledReply, Purpose, ReplyJournal
from daemon.domain.outcome import FailureReason, Outcome, OutcomeKind
from daemon.domain.provider import Provider
from daemon.domain.reply import RawReply
from daemon.domain.tokens import CurrentToken, TokenSet, current_of
from daemon.refresh import policy, recording
from daemon.refresh.cache import TokenCache
from daemon.refresh.memory import Memory
from daemon.refresh.ports import CurrentTokens, Providers, Publisher, RefreshSender, RefreshStore
from daemon.refresh.settling import Settling

# Between the hard end of a request and the claim's take-over lies time to store the reply, so a
# successor never acts on a claim whose owner may still be writing.
_TIME_TO_STORE = timedelta(seconds=60)
# A reply that comes after the callers' patience is still read: it may carry the only refresh token.
_HARD_TIMEOUT_FACTOR = 2
# While the database is away a reply is held in memory and its commit tried again this often.
_COMMIT_RETRY = (0.2, 5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What the refresher works with.

    ``on_disowned`` is called where tokens came too late for a connection and were queued for
    revocation.
    """

    store: RefreshStore
    tokens: CurrentTokens
    providers: Providers
    sender: RefreshSender
    journal: ReplyJournal
    publisher: Publisher
    events: Events
    clock: Clock
    chance: Callable[[], float]
    on_disowned: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """When a request left (wall time), how many seconds its answer took, and whether it left."""

    at: datetime
    duration: float
    asked: bool = False


class Attempts:
    """Runs claimed attempts to their end. Never cancel one: run it in a task of its own."""

    def __init__(
        self,
        ports: Ports,
        *,
        cache: TokenCache,
        memory: Memory,
        settings: Callable[[], Refresh],
        on_schedule: Callable[[float], None],
    ) -> None:
        self._ports = ports
        self._cache = cache
        self._memory = memory
        self._settings = settings
        self._on_schedule = on_schedule
        self._settling = Settling(ports.store, ports.clock)
        self._unwell: set[str] = set()

    @property
    def hold(self) -> timedelta:
        """Return how long a claim lasts before its owner counts as vanished."""
        return timedelta(seconds=self._hard_timeout()) + _TIME_TO_STORE

    def learned(self, provider: str, *, unwell: bool) -> None:
        """Remember whether a provider's shared state has anything to be cleared by a success."""
        (self._unwell.add if unwell else self._unwell.discard)(provider)

    async def run(self, claim: Claim, since: float) -> None:
        """Send, store and tell. ``since`` is the boot time before the claim was asked for."""
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
        # Tokens are stored before anything else. Without any, the fleet hears first of an outage or
        # a Retry-After, so that nobody else sends meanwhile.
        brings_token = outcome.granted is not None or outcome.salvaged_refresh_token is not None
        learns_first = sent.asked and not brings_token
        if learns_first:
            await self._learn(claim, outcome)
        await self.conclude(claim, provider, outcome, sent=sent)
        await self._ports.journal.settled(claim.attempt)
        if sent.asked and not learns_first:
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
                    epoch=claim.epoch,
                    fields=claim.fields,
                )
            )

        try:
            async with self._ports.journal.reserved():
                return await self._ports.sender.refresh(
                    provider,
                    refresh_token,
                    fields=claim.fields,
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
        now = self._ports.clock.now()
        decision = policy.decide(
            claim,
            outcome,
            provider,
            self._settings(),
            sent_at=sent.at,
            now=now,
            chance=self._ports.chance(),
        )
        settlement = replace(
            decision.settlement,
            reply_values=recording.changed_values(claim, outcome, provider),
            events=recording.events_of(
                claim, outcome, decision.settlement, now=now, duration=sent.duration
            ),
        )
        match await self._commit(claim, settlement):
            case Settled.STORED:
                await self._publish(claim, settlement)
                self._tell(claim, outcome, decision, sent.duration)
                if decision.retry_in is not None:
                    self._on_schedule(decision.retry_in)
            case Settled.SUPERSEDED:
                await self._forget(claim)
            case Settled.DISCONNECTED:
                self._ports.on_disowned()
                await self._forget(claim)

    async def _forget(self, claim: Claim) -> None:
        self._ports.events.refresh_superseded(claim.connection_id, claim.provider)
        await self._memory.forget(claim.connection_id)

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
                if settlement.tokens is not None and not self._is_disconnected(claim):
                    self._cache.put(_current(claim, settlement, settlement.tokens))
                await self._ports.clock.sleep(wait)
                wait = min(wait * 2, longest)

    def _is_disconnected(self, claim: Claim) -> bool:
        """Tell whether memory knows already that the claim's grant has ended."""
        known = self._cache.get(claim.connection_id)
        if known is None or known.status is not Status.DISCONNECTED:
            return False
        return known.generation >= claim.tokens.generation

    async def _publish(self, claim: Claim, settlement: Settlement) -> None:
        if settlement.tokens is not None:
            self._cache.put(_current(claim, settlement, settlement.tokens))
        elif settlement.touches_connection:
            await self._memory.reload_quietly(claim.connection_id)
        if settlement.tokens is not None or settlement.touches_connection:
            self._ports.publisher.publish(claim.connection_id)

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
    error = settlement.last_error
    return current_of(
        tokens,
        connection=claim.connection_id,
        provider=claim.provider,
        status=settlement.status,
        failure=error.description if error else None,
        retry_at=settlement.due_at if error else None,
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
