"""The sweep: claims what is due, starts it, and sleeps until something else is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TypeVar

import pytest

from daemon.domain.claim import Claim, ClaimState, DueClaims, Refusal, Settled, Settlement
from daemon.domain.claimable import Wanted
from daemon.domain.connection import Status
from daemon.domain.errors import DatabaseUnavailableError
from daemon.domain.history import EventType
from daemon.domain.outcome import FailureReason, Outcome, OutcomeKind
from daemon.domain.provider import Rotation, RotationKind
from tests.support.clock import FakeClock
from tests.support.memory_refreshes import MemoryRefreshes
from tests.support.refreshing import ACME, Replica, tokens

T = TypeVar("T")


@asynccontextmanager
async def sweeping(here: Replica) -> AsyncIterator[asyncio.Task[None]]:
    """Run the sweep."""
    running = asyncio.create_task(here.scheduler.run())
    await here.clock.settle()
    try:
        yield running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_what_is_due_is_refreshed_when_it_is_due() -> None:
    """Each connection is refreshed at its time, and none before."""
    here = Replica()
    for name, due_in in [("a", 5.0), ("b", 100.0), ("c", 12.5)]:
        here.add(name, due_in=due_in)
    async with sweeping(here):
        await here.clock.run(200)
    assert here.sender.times == pytest.approx([5, 12.5, 100], abs=0.1)


async def test_a_refresh_plans_the_next() -> None:
    """The life of short tokens goes on from refresh to refresh, each before the expiry."""
    here = Replica()
    here.sender.lifetime = 20.0
    here.add(due_in=0, stored=tokens(20))
    async with sweeping(here):
        await here.clock.run(200)
    gaps = [later - sooner for sooner, later in pairwise(here.sender.times)]
    assert len(gaps) >= 10
    assert all(8 <= gap <= 15 for gap in gaps)
    assert "refresh_failed" not in here.events.names


async def test_an_idle_sweep_looks_twice_a_minute() -> None:
    """With nothing due the database is asked each half minute, and no more."""
    here = Replica()
    here.add(due_in=None)
    async with sweeping(here):
        await here.clock.run(301)
    assert 10 <= here.store.calls.count("claim_due") <= 12


async def test_what_becomes_due_elsewhere_is_found() -> None:
    """A connection that another replica has planned is late by half a minute at most."""
    here = Replica()
    async with sweeping(here):
        await here.clock.run(1)
        here.add(due_in=0)
        await here.clock.run(31)
    assert len(here.sender.sent) == 1


@pytest.mark.parametrize("seconds", [0.0, 3.0])
async def test_what_is_expected_is_not_late(seconds: float) -> None:
    """Who plans something tells the sweep, which wakes up for it."""
    here = Replica()
    async with sweeping(here):
        await here.clock.run(1)
        here.add(due_in=seconds)
        here.scheduler.expect(seconds)
        await here.clock.run(seconds + 0.05)
    assert here.sender.times == pytest.approx([1 + seconds], abs=0.05)


class SlowStore(MemoryRefreshes):
    """A store that takes a moment to answer one kind of question."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.meanwhile: Callable[[], None] = lambda: None
        self.slow = ""
        self._waits = clock

    def _called(self, method: str) -> None:
        super()._called(method)
        if method == self.slow:
            self.slow = ""
            self.meanwhile()


@pytest.mark.parametrize("question", ["claim_due", "next_due"])
async def test_what_is_expected_during_a_sweep_is_not_late(question: str) -> None:
    """What is planned while the sweep asks the database is not overlooked."""
    clock = FakeClock()
    store = SlowStore(clock)
    here = Replica(clock=clock, shared_store=store)

    def plan() -> None:
        # After the answer was given: the sweep's own look did not see it.
        asyncio.get_running_loop().call_soon(add)

    def add() -> None:
        here.add(due_in=2)
        here.scheduler.expect(2)

    store.meanwhile, store.slow = plan, question
    async with sweeping(here):
        await here.clock.run(3)
    assert here.sender.times == pytest.approx([2], abs=0.05)


async def test_what_becomes_due_during_a_sweep_is_not_late() -> None:
    """Between the claim and the look for the next due time nothing falls through."""
    clock = FakeClock()
    store = SlowStore(clock)
    here = Replica(clock=clock, shared_store=store)
    here.add(due_in=0.5)
    store.meanwhile, store.slow = lambda: clock.advance(1), "next_due"
    async with sweeping(here):
        await here.clock.run(0.1)
    assert here.sender.times == pytest.approx([1], abs=0.1)


async def test_a_backlog_is_worked_off_at_the_rate() -> None:
    """After an outage nothing rushes: the fleet's rate holds, and everybody has a turn."""
    here = Replica(providers={"acme": replace(ACME, rate=10.0, concurrency=64)})
    for number in range(100):
        here.add(f"c{number}", due_in=-3600)
    async with sweeping(here):
        await here.clock.run(12)
    assert len(here.sender.sent) == 100
    times = here.sender.times
    for moment in times:
        assert sum(moment <= other < moment + 1 for other in times) <= 20
    assert 9 <= max(times) <= 11


async def test_places_come_free_and_are_used() -> None:
    """With few places the sweep goes on the moment that one comes free."""
    here = Replica(providers={"acme": replace(ACME, concurrency=2)})
    here.sender.takes = 1.0
    for number in range(10):
        here.add(f"c{number}", due_in=-1)
    async with sweeping(here):
        await here.clock.run(5.5)
    assert len(here.sender.sent) == 10


async def test_callers_who_hold_all_places_do_not_starve_the_sweep() -> None:
    """What is due while callers' own refreshes fill a provider starts when they end."""
    here = Replica(providers={"acme": replace(ACME, concurrency=1)})
    here.sender.takes = 2.0
    here.add("asked", due_in=3600)
    caller = asyncio.create_task(here.refresher.refresh(here.wanted("asked")))
    await here.clock.run(0.5)
    here.add("due", due_in=0)
    async with sweeping(here):
        await here.clock.run(3)
        await caller
        assert here.sender.times == pytest.approx([0, 2], abs=0.1)


async def test_a_slow_provider_delays_no_other() -> None:
    """Where one provider's places are all taken the others are swept as ever."""
    other = replace(ACME, name="other")
    here = Replica(providers={"acme": replace(ACME, concurrency=1), "other": other})
    here.sender.takes = 60.0
    for number in range(5):
        here.add(f"slow{number}", due_in=-1)
    for number in range(3):
        here.add(f"quick{number}", due_in=5.0 + number, provider="other")
    async with sweeping(here):
        await here.clock.run(10)
    assert here.sender.times == pytest.approx([0, 5, 6, 7], abs=0.1)


async def test_the_database_is_away() -> None:
    """The sweep goes on when it is back; no place was lost meanwhile."""
    here = Replica()
    here.add(due_in=1)
    here.store.is_away = True
    async with sweeping(here):
        await here.clock.run(60)
        assert here.sender.sent == []
        assert here.slots.free("acme") == ACME.concurrency
        here.store.is_away = False
        await here.clock.run(2.1)
    assert len(here.sender.sent) == 1


@pytest.mark.parametrize(
    ("kind", "resent"), [(RotationKind.STATIC, 132), (RotationKind.STRICT, 3480)]
)
async def test_vanished_owners_are_taken_over(kind: RotationKind, resent: float) -> None:
    """A claim past its time is put in doubt, told, and resent when that is safe."""
    here = Replica(providers={"acme": replace(ACME, rotation=Rotation(kind))})
    row = here.add(due_in=0)
    gone = Replica(clock=here.clock, shared_store=here.store, owner="gone")
    await gone.store.claim_due(
        room={"acme": (8, 1000.0)},
        owner="gone",
        hold=timedelta(seconds=120),
        now=here.clock.now(),
    )
    assert row.state is ClaimState.SENDING
    async with sweeping(here):
        await here.clock.run(151)
        if kind is RotationKind.STRICT:
            assert (row.state, row.status) == (ClaimState.IN_DOUBT, Status.FAILING)
        assert here.published[0] == "acme-1"
        await here.clock.run(3400)
    assert here.sender.times[0] == pytest.approx(resent, abs=32)
    assert row.status is Status.ACTIVE


NO_ANSWER = Outcome(kind=OutcomeKind.IN_DOUBT, reason=FailureReason.TIMEOUT)
NOT_SENT = Outcome(kind=OutcomeKind.NOT_SENT, reason=FailureReason.NETWORK)
A_MINUTE = replace(ACME, rotation=Rotation(RotationKind.GRACE, timedelta(minutes=1)))


@pytest.mark.parametrize("repeated", [NO_ANSWER, NOT_SENT])
async def test_a_grace_runs_from_the_first_request(repeated: Outcome) -> None:
    """Tries without an answer do not prolong it: after it the token is sent as a strict one is."""
    here = Replica(providers={"acme": A_MINUTE})
    row = here.add(due_in=0)
    here.sender.outcomes = [NO_ANSWER, *[repeated] * 5]
    async with sweeping(here):
        await here.clock.run(3400)
        assert len(here.sender.times) == 6
        assert here.sender.times[-1] <= 60
        assert (row.state, row.status) == (ClaimState.IN_DOUBT, Status.FAILING)
        await here.clock.run(200)
    assert here.sender.times[6] == pytest.approx(3480, abs=1)
    assert row.status is Status.ACTIVE


async def test_a_resend_that_was_held_up_past_its_grace_waits() -> None:
    """It was safe when it was planned: an outage of the database has outlasted that."""
    here = Replica(providers={"acme": A_MINUTE})
    row = here.add(due_in=0)
    here.sender.outcomes = [NO_ANSWER]
    async with sweeping(here):
        await here.clock.run(0.5)
        here.store.is_away = True
        await here.clock.run(100)
        here.store.is_away = False
        await here.clock.run(3000)
        assert len(here.sender.times) == 1
        assert row.last_error is not None
        assert row.last_error.code == "in_doubt"
        await here.clock.run(500)
    assert here.sender.times[1] == pytest.approx(3480, abs=1)
    assert row.status is Status.ACTIVE


async def test_a_person_may_resend_after_the_grace() -> None:
    """Whoever asks for it in so many words passes any doubt."""
    here = Replica(providers={"acme": A_MINUTE})
    row = here.add(due_in=0, state=ClaimState.IN_DOUBT, failures=1)
    row.doubted_since = here.clock.now() - timedelta(hours=1)
    flight = asyncio.create_task(here.refresher.refresh(here.wanted(forced=True)))
    await here.clock.run(1)
    assert await flight is None
    assert len(here.sender.times) == 1


class RestingStore(MemoryRefreshes):
    """A store on whose clock a rest ends a moment after the claimant's due time."""

    async def settle(self, settlements: Sequence[Settlement], *, now: datetime) -> list[Settled]:
        """Settle, and let what rests rest a little longer."""
        answers = await super().settle(settlements, now=now)
        for settlement in settlements:
            row = self.rows[settlement.connection_id]
            if settlement.rests and row.take_over_at is not None:
                row.take_over_at += timedelta(milliseconds=50)
        return answers


async def test_what_was_taken_over_is_resent_when_its_rest_ends() -> None:
    """It is due by then, so no due time wakes the sweep: it knows of the rest by itself."""
    clock = FakeClock()
    store = RestingStore(clock)
    rotation = Rotation(RotationKind.STATIC)
    here = Replica(
        clock=clock, shared_store=store, providers={"acme": replace(ACME, rotation=rotation)}
    )
    here.add(
        due_in=0,
        state=ClaimState.SENDING,
        attempt="lost",
        owner="gone",
        take_over_at=clock.now() - timedelta(seconds=1),
    )
    async with sweeping(here):
        await here.clock.run(3)
        here.scheduler.wake()
        await here.clock.run(12)
    assert here.sender.times == pytest.approx([10.1], abs=0.15)


async def test_a_pause_is_slept_through() -> None:
    """A provider that wants a rest is left alone until its end, then its backlog goes on."""
    here = Replica()
    for number in range(3):
        here.add(f"c{number}", due_in=0)
    await here.store.learn("acme", Outcome(kind=OutcomeKind.REFUSED, retry_after=100.0))
    async with sweeping(here):
        await here.clock.run(99)
        assert here.sender.sent == []
        await here.clock.run(2)
    assert len(here.sender.sent) == 3


async def test_more_providers_than_places_starve_none() -> None:
    """Where the places of the process do not reach all providers, each is looked at in turn."""
    names = [f"p{number}" for number in range(30)]
    here = Replica(providers={name: replace(ACME, name=name) for name in names})
    for name in names:
        here.add(name, due_in=5, provider=name)
        here.store.state_of(name)
    async with sweeping(here):
        await here.clock.run(6)
    assert len(here.sender.sent) == len(names)


async def test_stop() -> None:
    """After ``stop`` nothing more is claimed, and the sweep ends by itself."""
    here = Replica()
    here.add(due_in=5)
    async with sweeping(here) as running:
        here.scheduler.stop()
        await here.clock.settle()
        assert running.done()
        await here.clock.run(10)
    assert here.sender.sent == []


async def test_stopping_in_the_middle_of_a_sweep() -> None:
    """What the last sweep has claimed is begun before the sweep counts as stopped."""
    clock = FakeClock()
    store = SlowStore(clock)
    here = Replica(clock=clock, shared_store=store)
    here.add(due_in=0)
    store.meanwhile, store.slow = here.scheduler.stop, "claim_due"
    await here.scheduler.stopped()
    async with sweeping(here):
        await asyncio.wait_for(here.scheduler.stopped(), 5)
        drained = asyncio.create_task(here.refresher.drain())
        await clock.run(1)
        await drained
    assert len(here.sender.sent) == 1
    assert here.row().tokens.generation == 2


async def test_without_providers_nothing_happens() -> None:
    """A configuration without providers is swept without harm."""
    here = Replica(providers={})
    async with sweeping(here) as running:
        await here.clock.run(100)
        assert not running.done()


class Forgetful(MemoryRefreshes):
    """A store whose connection is cut after the commit of the next call of ``cuts``."""

    cuts = ""

    async def claim_due(
        self, *, room: Mapping[str, tuple[int, float]], owner: str, hold: timedelta, now: datetime
    ) -> DueClaims:
        """Claim, and tell nobody."""
        due = await super().claim_due(room=room, owner=owner, hold=hold, now=now)
        return self._told("claim_due", due)

    async def claim(
        self, wanted: Wanted, *, owner: str, hold: timedelta, now: datetime
    ) -> Claim | Refusal:
        """Claim, and tell nobody."""
        return self._told("claim", await super().claim(wanted, owner=owner, hold=hold, now=now))

    def _told(self, method: str, answer: T) -> T:
        if self.cuts != method:
            return answer
        self.cuts = ""
        raise DatabaseUnavailableError("the connection was cut")


@pytest.mark.parametrize("cuts", ["claim_due", "claim"])
async def test_a_claim_whose_commit_nobody_heard_of(cuts: str) -> None:
    """It does not lie there until its time has passed: soon it is in doubt, and goes on."""
    clock = FakeClock()
    store = Forgetful(clock)
    static = replace(ACME, rotation=Rotation(kind=RotationKind.STATIC))
    here = Replica(clock=clock, shared_store=store, providers={"acme": static})
    row = here.add(due_in=0 if cuts == "claim_due" else None)
    store.cuts = cuts
    if cuts == "claim":
        with pytest.raises(DatabaseUnavailableError):
            await here.refresher.refresh(here.wanted())
    async with sweeping(here):
        if cuts == "claim_due":
            assert (row.state, here.sender.sent) == (ClaimState.SENDING, [])
        await clock.run(13)
    assert here.sender.sent == ["refresh 1"]
    assert EventType.REFRESH_FAILED in [event.type for event in here.store.events]
    assert (row.state, row.tokens.generation) == (ClaimState.IDLE, 2)
