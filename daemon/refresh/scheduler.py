"""[schedule] The sweep: claims what is due, starts it, and sleeps until something else is.

Timers are a hint, the sweep of the due index is the truth. It sleeps at most ``_LONGEST_SLEEP``,
so that a suspended machine, a stepped clock or another replica's connection cannot strand a token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import inf

from daemon.domain.claim import Abandoned, DueClaims
from daemon.domain.clock import Clock
from daemon.domain.errors import DatabaseUnavailableError
from daemon.domain.provider import Provider
from daemon.refresh import policy, recording
from daemon.refresh.ports import Publisher, RefreshStore
from daemon.refresh.refresher import Refresher
from daemon.refresh.slots import Slots

# The most a missed wake-up can cost. Claims of vanished owners are looked for as often.
_LONGEST_SLEEP = 30.0
# Below this, waking up costs more than it wins.
_SHORTEST_SLEEP = 0.02
# Busy sweeps follow each other closely; a claim lies abandoned for a minute before it counts.
_LOOK_FOR_ABANDONED = 5.0
# After an outage of the database every claim in flight is overdue. Its owner, and whoever has an
# earlier reply, tries at least every 5 s to store it: nobody resends before that.
_OWNER_MAY_STORE = timedelta(seconds=10)
# That rest is on the database's clock, which may run a little behind while it is waited for.
_CLOCKS_DRIFT = 0.1
# How long to leave a database alone that has just not answered.
_DATABASE_AWAY = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What the sweep works with. ``chance`` returns a number in [0, 1)."""

    store: RefreshStore
    publisher: Publisher
    clock: Clock
    chance: Callable[[], float]
    owner: str


class Scheduler:
    """Claims due connections for as long as it runs."""

    def __init__(
        self,
        sweep: Sweep,
        *,
        refresher: Refresher,
        slots: Slots,
        providers: Callable[[], Sequence[Provider]],
    ) -> None:
        self._sweep = sweep
        self._refresher = refresher
        self._slots = slots
        self._providers = providers
        self._woken = asyncio.Event()
        self._changed = asyncio.Event()
        self._expected = inf
        self._turn = 0
        self._looks_again_at = 0.0
        # Until then what was taken over last is due and cannot be claimed yet.
        self._rests_until = -inf
        self._stopping = False
        self._at_rest = asyncio.Event()
        self._at_rest.set()

    async def run(self) -> None:
        """Sweep until ``stop``. Cancelling it between two sweeps loses nothing."""
        self._at_rest.clear()
        try:
            while not self._stopping:
                try:
                    wait = await self._once()
                except DatabaseUnavailableError:
                    wait = _DATABASE_AWAY
                await self._sleep(wait)
        finally:
            self._at_rest.set()

    def stop(self) -> None:
        """Claim nothing more."""
        self._stopping = True
        self._woken.set()

    async def stopped(self) -> None:
        """Return when no sweep is on its way any more: what the last one claimed has begun."""
        await self._at_rest.wait()

    def wake(self) -> None:
        """Sweep soon: something became due, or a place became free."""
        self._woken.set()

    def expect(self, seconds: float) -> None:
        """Make sure that a sweep runs in ``seconds``, also when told in the middle of one."""
        at = self._sweep.clock.boottime() + seconds
        if at < self._expected:
            self._expected = at
            self._changed.set()

    async def _once(self) -> float:
        """Claim and start what is due; return the seconds until the next sweep is needed."""
        await self._take_over()
        now, waits = self._sweep.clock.now(), [_LONGEST_SLEEP]
        left = self._in_turn()
        # The places of this process may not reach all providers at once: who is left comes next.
        while room := self._take_room(left):
            due = await self._claim(room, now)
            left = [provider for provider in left if provider.name not in room]
            if due.again_in is not None:
                waits.append(due.again_in)
        return await self._until_next(now, waits)

    async def _claim(self, room: Mapping[str, tuple[int, float]], now: datetime) -> DueClaims:
        """Claim what is due within ``room``, start it, and give back the places not needed."""
        taken = {name: places for name, (places, _) in room.items()}
        since = self._sweep.clock.boottime()
        try:
            with self._refresher.lost_claims.claiming():
                due = await self._sweep.store.claim_due(
                    room=room,
                    owner=self._sweep.owner,
                    hold=self._refresher.hold,
                    now=now,
                )
                for claim in due.claims:
                    taken[claim.provider] -= 1
                    self._refresher.start(claim, since=since, on_end=self.wake)
        finally:
            for name, unused in taken.items():
                self._slots.give(name, unused)
        self._note(due)
        return due

    async def _until_next(self, looked_at: datetime, waits: Sequence[float]) -> float:
        """Return the seconds until something is due that was not yet when claims were taken."""
        if self._woken.is_set():
            return 0.0
        clock = self._sweep.clock
        names = [provider.name for provider in self._providers()]
        following = await self._sweep.store.next_due(names, after=looked_at)
        soonest = min(waits)
        if (rests := self._rests_until - clock.boottime()) > 0:
            soonest = min(soonest, rests)
        if following is not None:
            soonest = min(soonest, (following - clock.now()).total_seconds())
        return max(_SHORTEST_SLEEP, soonest)

    async def _take_over(self) -> None:
        """Put claims whose owners vanished in doubt, and those that this process lost."""
        clock, store = self._sweep.clock, self._sweep.store
        mine = self._refresher.attempts.in_flight
        # Recovery may be about to store the reply to one that it has called back: they rest, too.
        lost = await self._refresher.lost_claims.find(store, self._sweep.owner, mine)
        if lost:
            await self._put_in_doubt(lost)
            self._refresher.lost_claims.forget()
        if clock.boottime() < self._looks_again_at:
            return
        names = [provider.name for provider in self._providers()]
        abandoned = [
            claim
            for claim in await store.abandoned(names, now=clock.now())
            # Nobody has vanished: this process still has a reply to store.
            if claim.attempt not in mine
        ]
        self._looks_again_at = clock.boottime() + _LOOK_FOR_ABANDONED
        if abandoned:
            await self._put_in_doubt(abandoned)

    async def _put_in_doubt(self, claims: Sequence[Abandoned]) -> None:
        """Settle claims that nobody works at, each by its provider's rotation."""
        clock = self._sweep.clock
        rotations = {provider.name: provider.rotation for provider in self._providers()}
        settlements = [
            recording.of_abandoned(
                claim,
                policy.abandoned(
                    claim,
                    rotations[claim.provider],
                    clock.now(),
                    self._sweep.chance(),
                    hold=self._refresher.hold,
                    rests=_OWNER_MAY_STORE,
                ),
            )
            for claim in claims
            if claim.provider in rotations
        ]
        if settlements:
            await self._sweep.store.settle(settlements, now=clock.now())
            rests = _OWNER_MAY_STORE.total_seconds() + _CLOCKS_DRIFT
            self._rests_until = clock.boottime() + rests
        for settlement in settlements:
            self._sweep.publisher.publish(settlement.connection_id)

    def _in_turn(self) -> list[Provider]:
        """Return all providers, beginning with another one each time."""
        providers = self._providers()
        self._turn = (self._turn + 1) % max(1, len(providers))
        return [*providers[self._turn :], *providers[: self._turn]]

    def _take_room(self, providers: Sequence[Provider]) -> dict[str, tuple[int, float]]:
        """Take every free place, for one provider after the other while there are any."""
        room: dict[str, tuple[int, float]] = {}
        for provider in providers:
            places = self._slots.free(provider.name)
            if places > 0 and not self._refresher.has_callers_waiting(provider.name):
                self._slots.take_now(provider.name, places)
                room[provider.name] = (places, provider.rate)
        return room

    def _note(self, due: DueClaims) -> None:
        for name, state in due.states.items():
            self._refresher.attempts.learned(
                name, unwell=state.failures > 0 or state.circuit is not None
            )

    async def _sleep(self, seconds: float) -> None:
        """Sleep until ``seconds`` have passed, the expected time comes, or somebody wakes us."""
        clock = self._sweep.clock
        self._expected = min(self._expected, clock.boottime() + seconds)
        while not self._woken.is_set() and (left := self._expected - clock.boottime()) > 0:
            self._changed.clear()
            waits = [
                asyncio.ensure_future(wait)
                for wait in (clock.sleep(left), self._woken.wait(), self._changed.wait())
            ]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
        self._woken.clear()
        self._expected = inf
