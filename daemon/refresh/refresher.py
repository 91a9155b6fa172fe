"""[refresh] The one refresh path, at most one at a time for each connection.

The scheduler, a caller's ``min_ttl`` and an operator's button all come through here, and all who
want the same thing join one flight. Callers only ever wait for it through a shield: who stops
waiting stops nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta

import structlog

from daemon.config.settings import Refresh
from daemon.domain.claim import Claim, Refusal, RefusalReason
from daemon.domain.claimable import Wanted
from daemon.domain.errors import DatabaseUnavailableError
from daemon.refresh.attempts import Attempts, Ports
from daemon.refresh.cache import TokenCache
from daemon.refresh.lost_claims import LostClaims
from daemon.refresh.memory import Memory
from daemon.refresh.slots import Slots

log = structlog.get_logger()

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
        self.memory = Memory(cache, ports.tokens)
        self.attempts = Attempts(
            ports,
            cache=cache,
            memory=self.memory,
            settings=settings,
            on_schedule=on_schedule,
            owner=owner,
        )
        self.lost_claims = LostClaims()
        self._slots = slots
        self._settings = settings
        self._owner = owner
        self._on_schedule = on_schedule
        self._flights: dict[str, Flight] = {}
        self._tasks: set[asyncio.Task[Refusal | None]] = set()
        self._queueing: Counter[str] = Counter()
        self._closing = False
        self._recovered = asyncio.Event()

    @property
    def hold(self) -> timedelta:
        """Return how long a claim lasts before its owner counts as vanished."""
        return self.attempts.hold

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
        self.attempts.take(claim)
        self._fly(wanted, self._run_claimed(claim, since, on_end))

    def asked(self, wanted: Wanted) -> None:
        """Refresh for a caller of a process that only serves; nobody here waits for it."""
        flight = self._flights.get(wanted.connection_id)
        if not self._closing and (flight is None or flight.task.done()):
            self._fly(wanted, self._obtain(wanted))

    def begin(self) -> None:
        """Let refreshes begin: what the journal kept is stored."""
        self._recovered.set()

    def has_callers_waiting(self, provider: str) -> bool:
        """Tell whether callers wait for the provider's rate: the sweep then lets them go first."""
        return self._queueing[provider] > 0

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
            await self.attempts.run(claim, since)
        finally:
            self._slots.give(claim.provider)
            on_end()

    async def _obtain(self, wanted: Wanted) -> Refusal | None:
        """Claim and refresh; where another replica is at it, wait for its result."""
        clock = self._ports.clock
        give_up = clock.boottime() + self._settings().request_timeout.total_seconds()
        await self._recovered.wait()
        while not self._closing:
            changed = self._cache.changed(wanted.connection_id)
            try:
                answer = await self._try(wanted)
                if answer is None:
                    return None
                if clock.boottime() >= give_up:
                    return await self._refused(answer)
                # Whoever waits here holds no place: it is for those who can send.
                if answer.reason is RefusalReason.SENDING:
                    await self._first_of(changed, _LOOK_AGAIN)
                elif not await self._waited_for_a_slot(answer, wanted.provider):
                    return await self._refused(answer)
            finally:
                changed.cancel()
        return Refusal(connection_id=wanted.connection_id, reason=RefusalReason.PROVIDER_PAUSED)

    async def _try(self, wanted: Wanted) -> Refusal | None:
        """Take a place, claim, and run the attempt; or return why there is no claim."""
        await self._slots.take(wanted.provider)
        try:
            if self._closing:
                return Refusal(
                    connection_id=wanted.connection_id, reason=RefusalReason.PROVIDER_PAUSED
                )
            since = self._ports.clock.boottime()
            with self.lost_claims.claiming():
                answer = await self._ports.store.claim(
                    wanted, owner=self._owner, hold=self.hold, now=self._ports.clock.now()
                )
                if isinstance(answer, Refusal):
                    return answer
                self.attempts.take(answer)
            await self.attempts.run(answer, since, is_forced=wanted.forced)
            return None
        finally:
            self._slots.give(wanted.provider)
            self._on_schedule(0.0)

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
            await self.memory.reload([answer.connection_id])
        return None if answer.reason is RefusalReason.SUPERSEDED else answer

    async def _first_of(self, changed: asyncio.Future[None], seconds: float) -> None:
        sleep = asyncio.ensure_future(self._ports.clock.sleep(seconds))
        try:
            await asyncio.wait({changed, sleep}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
