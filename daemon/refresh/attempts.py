"""[refresh] One attempt of a claimed refresh: send, keep, commit, publish.

The hard idea: from the moment a request may have left, nothing but the end of the process stops
an attempt before its reply is stored. The reply is on the disk before it is read, and its commit
is tried until it is done, whatever the database says meanwhile and whatever it has forgotten.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

from daemon.config.settings import Refresh
from daemon.domain.claim import Claim, Settled, Settlement
from daemon.domain.connection import Status
from daemon.domain.errors import JournalError, StorageError
from daemon.domain.journal import JournaledReply, Purpose
from daemon.domain.outcome import FailureReason, Outcome, OutcomeKind
from daemon.domain.provider import Provider
from daemon.domain.reply import RawReply
from daemon.domain.tracing import Attribute
from daemon.refresh import policy, recording
from daemon.refresh.cache import TokenCache
from daemon.refresh.committing import Committing, Ports, current_token
from daemon.refresh.memory import Memory

__all__ = ["Attempts", "Ports", "Sent"]

# Between the hard end of a request and the claim's take-over lies time to store the reply, so a
# successor never acts on a claim whose owner may still be writing.
_TIME_TO_STORE = timedelta(seconds=60)
# A reply that comes after the callers' patience is still read: it may carry the only refresh token.
_HARD_TIMEOUT_FACTOR = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """When a request left (wall time), how many seconds its answer took, and whether it left."""

    at: datetime
    duration: float
    asked: bool = False


class Attempts:
    """Runs claimed attempts to their end. Never cancel one: run it in a task of its own.

    ``waiting`` has, by attempt, the connections whose reply is in the journal and not stored yet:
    nothing is sent for these.
    """

    def __init__(
        self,
        ports: Ports,
        *,
        cache: TokenCache,
        memory: Memory,
        settings: Callable[[], Refresh],
        on_schedule: Callable[[float], None],
        owner: str = "",
    ) -> None:
        self._ports = ports
        self._cache = cache
        self._memory = memory
        self._settings = settings
        self._on_schedule = on_schedule
        self._committing = Committing(ports, cache=cache, owner=owner)
        self._unwell: set[str] = set()
        self._in_flight: dict[str, Claim] = {}
        # No request left before its claim was begun with.
        self._begun_at: dict[str, datetime] = {}
        self.waiting: dict[str, str] = {}

    @property
    def hold(self) -> timedelta:
        """Return how long a claim lasts before its owner counts as vanished."""
        return timedelta(seconds=self._hard_timeout()) + _TIME_TO_STORE

    @property
    def in_flight(self) -> Mapping[str, Claim]:
        """Return the claims whose end is not stored yet, by attempt."""
        return self._in_flight

    def learned(self, provider: str, *, unwell: bool) -> None:
        """Remember whether a provider's shared state has anything to be cleared by a success."""
        (self._unwell.add if unwell else self._unwell.discard)(provider)

    def take(self, claim: Claim) -> None:
        """Hold a claim as in flight, as soon as it is known; ``run`` must follow."""
        self._in_flight[claim.attempt] = claim
        self._begun_at.setdefault(claim.attempt, self._ports.clock.now())

    async def run(self, claim: Claim, since: float, *, is_forced: bool = False) -> None:
        """Send, store and tell. ``since`` is the boot time before the claim was asked for.

        ``is_forced``: a person asks for it, who passes any doubt.
        """
        self.take(claim)
        try:
            with self._committing.open(claim.attempt):
                await self._traced(claim, since, is_forced=is_forced)
        finally:
            self._in_flight.pop(claim.attempt, None)
            del self._begun_at[claim.attempt]

    async def each_open(self, work: Callable[[Claim, datetime], Awaitable[object]]) -> None:
        """Do something about every claim in flight whose end is not stored meanwhile.

        ``work`` is told, too, when the attempt began: its request left no earlier.
        """
        in_flight = [(claim, self._begun_at[attempt]) for attempt, claim in self._in_flight.items()]
        for claim, begun_at in in_flight:
            await self._committing.while_open(claim.attempt, partial(work, claim, begun_at))

    async def _traced(self, claim: Claim, since: float, *, is_forced: bool) -> None:
        told: dict[str, Attribute] = {
            "tokenward.provider": claim.provider,
            "tokenward.connection": claim.connection_id,
            "tokenward.generation": claim.tokens.generation,
        }
        tracer, ago = self._ports.tracer, self._ports.clock.boottime() - since
        withheld = claim.fields.values()
        with tracer.span("refresh", told, began_ago=ago, withheld=withheld) as span:
            with tracer.span("claim", began_ago=ago):
                pass
            outcome = await self._run(claim, since, is_forced=is_forced)
            span.set("tokenward.outcome", outcome.kind.value)
            if outcome.kind is not OutcomeKind.OK:
                span.fail((outcome.reason or FailureReason.OTHER).value)

    async def _run(self, claim: Claim, since: float, *, is_forced: bool) -> Outcome:
        clock = self._ports.clock
        # On boot time and from before the claim was asked for: a machine that was suspended since
        # then must not send late.
        send_by = since + claim.delay + _TIME_TO_STORE.total_seconds() / 2
        provider = self._ports.providers.get(claim.provider)
        if provider is None:
            outcome = _not_sent(f"No provider named {claim.provider} is configured any more.")
            provider = Provider(name=claim.provider, client_id="")
            sent = Sent(at=clock.now(), duration=0.0)
        elif self._has_another(claim):
            outcome = _not_sent("The answer to an earlier request is about to be stored.")
            sent = Sent(at=clock.now(), duration=0.0)
        elif claim.tokens.refresh_token is None:
            outcome, sent = _nothing_to_send(), Sent(at=clock.now(), duration=0.0)
        elif not is_forced and policy.comes_too_late(claim, provider.rotation, clock.now()):
            outcome, sent = _too_late(), Sent(at=clock.now(), duration=0.0)
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
        settled = await self.conclude(claim, provider, outcome, sent=sent)
        # What is stored may be forgotten from here on, like any other commit: see Reconciliation.
        self._in_flight.pop(claim.attempt, None)
        # Should the database forget a disconnect, this is what follows the token that it has then;
        # while it remembers, the epoch keeps the reply out.
        keeps = settled in {Settled.STORED, Settled.DISCONNECTED}
        await self._ports.journal.settled(claim.attempt, stored=keeps)
        if sent.asked and not learns_first:
            await self._learn(claim, outcome)
        return outcome

    def _has_another(self, claim: Claim) -> bool:
        """Tell whether this process has, or may have, the reply to another attempt."""
        if claim.connection_id in self.waiting.values():
            return True
        return any(
            other.connection_id == claim.connection_id and other.attempt != claim.attempt
            for other in self._in_flight.values()
        )

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
                    was_in_doubt=claim.was_in_doubt,
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
    ) -> Settled:
        """Store what follows from an outcome, however long that takes, and tell everybody.

        Return what became of it: something else may have come first.
        """
        decision = await self._decide(claim, provider, outcome, sent)
        settled = await self._committing.commit(claim, decision.settlement)
        while settled is Settled.UNCLAIMED:
            again = await self._committing.recall(
                claim, decision.settlement, sent_at=sent.at, hold=self.hold
            )
            claim = again or claim
            decision = await self._decide(claim, provider, outcome, sent)
            settled = await self._committing.commit(claim, decision.settlement)
            if again is None:
                # Not wanted any more, or disconnected: this once it was said what became of it.
                break
        if settled is Settled.STORED:
            await self._publish(claim, decision.settlement)
            self._tell(claim, outcome, decision, sent.duration)
            if decision.retry_in is not None:
                self._on_schedule(decision.retry_in)
            return settled
        if settled is Settled.DISCONNECTED:
            self._ports.on_disowned()
        await self._forget(claim)
        return settled

    async def _decide(
        self, claim: Claim, provider: Provider, outcome: Outcome, sent: Sent
    ) -> policy.Decision:
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
        if decision.settlement.status is Status.REAUTHORIZATION_REQUIRED:
            orphan = await self._committing.newest_orphan(claim)
            if orphan is not None:
                decision = policy.adopted(claim, orphan, decision, now=now)
        settlement = decision.settlement
        known = self._cache.get(claim.connection_id)
        if sent.asked and known is not None:
            settlement = policy.above(settlement, known.generation)
        settlement = replace(
            settlement,
            reply_values=recording.changed_values(claim, outcome, provider),
            events=recording.events_of(claim, outcome, settlement, now=now, duration=sent.duration),
        )
        return replace(decision, settlement=settlement)

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
            if claim.status in {Status.FAILING, Status.REAUTHORIZATION_REQUIRED}:
                events.connection_recovered(claim.connection_id, claim.provider)
            return
        events.refresh_failed(claim, outcome, duration=duration, retry_in=decision.retry_in)
        error = decision.settlement.last_error
        if decision.settlement.status is Status.REAUTHORIZATION_REQUIRED and error is not None:
            events.reauthorization_required(claim.connection_id, claim.provider, cause=error.code)

    async def _publish(self, claim: Claim, settlement: Settlement) -> None:
        if settlement.tokens is not None:
            self._cache.put(current_token(claim, settlement, settlement.tokens))
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
        except StorageError:
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


def _not_sent(description: str) -> Outcome:
    return Outcome(kind=OutcomeKind.NOT_SENT, reason=FailureReason.OTHER, description=description)


def _too_late() -> Outcome:
    return Outcome(
        kind=OutcomeKind.NOT_SENT,
        reason=FailureReason.OTHER,
        error=OutcomeKind.IN_DOUBT.value,
        description=(
            "The answer to an earlier refresh is not known, and the time in which the provider "
            "lets it be repeated has passed. It is tried once more shortly before the token "
            "expires."
        ),
    )


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
