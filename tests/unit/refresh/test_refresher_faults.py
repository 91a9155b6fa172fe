"""The one refresh path where something goes wrong: provider, database, journal, ourselves."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from daemon.domain.claim import Claim, ClaimState, Refusal
from daemon.domain.claimable import Wanted
from daemon.domain.connection import Status
from daemon.domain.errors import DatabaseUnavailableError
from daemon.domain.outcome import FailureReason, Outcome, OutcomeKind
from daemon.domain.provider import Rotation, RotationKind
from tests.support.clock import FakeClock
from tests.support.memory_refreshes import MemoryRefreshes
from tests.support.refreshing import ACME, Replica, tokens

INVALID_GRANT = Outcome(
    kind=OutcomeKind.REAUTHORIZE,
    reason=FailureReason.INVALID_GRANT,
    error="invalid_grant",
    description="The provider no longer accepts the grant.",
)
LOST = Outcome(kind=OutcomeKind.IN_DOUBT, reason=FailureReason.TIMEOUT, description="No answer.")
DOWN = Outcome(kind=OutcomeKind.NOT_SENT, reason=FailureReason.NETWORK, description="No route.")


class SleepyStore(MemoryRefreshes):
    """A store whose answer to a claim is read ten minutes after it was given."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self._sleeps = clock

    async def claim(
        self, wanted: Wanted, *, owner: str, hold: timedelta, now: datetime
    ) -> Claim | Refusal:
        """Claim, and let the machine sleep."""
        answer = await super().claim(wanted, owner=owner, hold=hold, now=now)
        self._sleeps.advance(600)
        return answer


@pytest.mark.parametrize("written", [False, True])
async def test_the_database_is_away_at_the_commit(written: bool) -> None:  # noqa: FBT001
    """Memory serves the new token meanwhile, and the commit is tried until it is done."""
    here = Replica()
    here.add()
    here.sender.gate.clear()
    flight = asyncio.create_task(here.refresher.refresh(here.wanted()))
    await here.clock.run(1)
    here.store.is_away = not written
    here.store.unacknowledged = int(written)
    here.sender.gate.set()
    await here.clock.run(0.05)
    entry = here.cache.get("acme-1")
    assert entry is not None
    assert entry.generation == 2
    assert here.published == []
    await here.clock.run(0 if written else 60)
    here.store.is_away = False
    await here.clock.run(6)
    assert await flight is None
    assert here.row().tokens.access_token == "new access 1"
    assert here.sender.sent == ["refresh 1"]
    assert here.events.names == ["token_refreshed"]
    assert here.published == ["acme-1"]
    assert 2 <= here.store.calls.count("settle") <= 20


async def test_a_failure_whose_commit_was_not_acknowledged_is_told() -> None:
    """Also an end without tokens is recognized as written when it is repeated."""
    here = Replica()
    here.add()
    here.sender.outcomes = [INVALID_GRANT]
    here.store.unacknowledged = 1
    flight = asyncio.create_task(here.refresher.refresh(here.wanted()))
    await here.clock.run(5)
    await flight
    assert here.events.names == ["refresh_failed", "reauthorization_required"]


async def test_no_database_no_request() -> None:
    """Without a claim nothing is sent, and the caller hears why; nothing is left behind."""
    here = Replica()
    here.add()
    here.store.is_away = True
    with pytest.raises(DatabaseUnavailableError):
        await here.refresher.refresh(here.wanted())
    await here.clock.settle()
    assert here.sender.sent == []
    assert here.slots.in_flight("acme") == 0
    assert not here.cache.holds("acme-1")
    here.store.is_away = False
    flight = asyncio.create_task(here.refresher.refresh(here.wanted()))
    await here.clock.run(1)
    assert await flight is None


async def test_a_reply_that_comes_too_late_is_not_stored() -> None:
    """A connection that moved on keeps its newer tokens, in memory as well."""
    here = Replica()
    row = here.add()
    here.sender.gate.clear()
    flight = asyncio.create_task(here.refresher.refresh(here.wanted()))
    await here.clock.run(1)
    row.tokens, row.attempt, row.state = tokens(generation=2), None, ClaimState.IDLE
    here.sender.gate.set()
    await here.clock.run(1)
    await flight
    assert here.row().tokens.access_token == "access 2"
    entry = here.cache.get("acme-1")
    assert entry is not None
    assert b"access 2" in entry.head
    assert here.events.names == ["refresh_superseded"]
    assert here.published == []


async def test_memory_forgets_a_reply_that_was_not_stored() -> None:
    """What memory served while the database was away gives way to what the database says."""
    here = Replica()
    row = here.add()
    here.sender.gate.clear()
    flight = asyncio.create_task(here.refresher.refresh(here.wanted()))
    await here.clock.run(1)
    here.store.is_away = True
    here.sender.gate.set()
    await here.clock.run(1)
    entry = here.cache.get("acme-1")
    assert entry is not None
    assert entry.generation == 2
    row.attempt = "another replica's"
    row.tokens = tokens(generation=2, access_token="theirs")
    here.store.is_away = False
    await here.clock.run(6)
    await flight
    entry = here.cache.get("acme-1")
    assert entry is not None
    assert b"theirs" in entry.head


async def test_a_connection_that_is_gone_leaves_memory() -> None:
    """A reply to a connection that was removed meanwhile is dropped with it."""
    here = Replica()
    here.add()
    await here.refresher.memory.reload(["acme-1"])
    here.sender.gate.clear()
    flight = asyncio.create_task(here.refresher.refresh(here.wanted()))
    await here.clock.run(1)
    del here.store.rows["acme-1"]
    here.sender.gate.set()
    await here.clock.run(1)
    await flight
    assert here.cache.get("acme-1") is None


@pytest.mark.parametrize(
    ("outcome", "events"),
    [
        (INVALID_GRANT, ["refresh_failed", "reauthorization_required"]),
        (LOST, ["refresh_failed"]),
        (DOWN, ["refresh_failed"]),
    ],
)
async def test_failures(outcome: Outcome, events: list[str]) -> None:
    """A failure is stored, told and announced; the token in hand is still served."""
    here = Replica()
    here.add(stored=tokens(age=3000))
    here.sender.outcomes = [outcome]
    flight = asyncio.create_task(here.refresher.refresh(here.wanted()))
    await here.clock.run(1)
    assert await flight is None
    assert here.events.names == events
    assert here.published == ["acme-1"]
    entry = here.cache.get("acme-1")
    assert entry is not None
    assert entry.generation == 1
    assert entry.failure == outcome.description
    assert entry.is_good(here.clock.now().timestamp())


@pytest.mark.parametrize(
    ("rotation", "sends"),
    [(Rotation(RotationKind.STATIC), [0, 1.6]), (Rotation(RotationKind.STRICT), [0, 480])],
)
async def test_doubt_is_resolved_when_that_is_safe(rotation: Rotation, sends: list[float]) -> None:
    """After a lost answer a lenient provider is asked again soon, a strict one before expiry."""
    here = Replica(providers={"acme": replace(ACME, rotation=rotation)})
    here.add(stored=tokens(age=3000), due_in=0)
    here.sender.outcomes = [LOST]
    running = asyncio.create_task(here.scheduler.run())
    await here.clock.run(0.5)
    assert here.row().state is ClaimState.IN_DOUBT
    await here.clock.run(599)
    assert here.sender.times == pytest.approx(sends, abs=0.05)
    assert (here.row().state, here.row().status) == (ClaimState.IDLE, Status.ACTIVE)
    assert here.events.names == ["refresh_failed", "token_refreshed", "connection_recovered"]
    running.cancel()


async def test_without_a_refresh_token_a_person_is_needed_at_the_expiry() -> None:
    """Nothing is sent, and the provider is not thought of as answering."""
    here = Replica()
    here.add(stored=tokens(age=3600, refreshable=False), due_in=0)
    here.store.states["acme"] = replace(
        here.store.state_of("acme"), circuit="unavailable", failures=5
    )
    running = asyncio.create_task(here.scheduler.run())
    await here.clock.run(1)
    assert here.sender.sent == []
    assert here.row().status is Status.REAUTHORIZATION_REQUIRED
    assert here.store.states["acme"].circuit == "unavailable"
    assert "reauthorization_required" in here.events.names
    running.cancel()


async def test_a_provider_that_is_not_configured_any_more() -> None:
    """Its connection keeps its tokens and is tried again later; nothing is sent or learned."""
    here = Replica()
    here.add()
    claim = await here.store.claim(
        here.wanted(), owner="one", hold=here.refresher.hold, now=here.clock.now()
    )
    assert isinstance(claim, Claim)
    here.slots.take_now("acme", 1)
    del here.providers["acme"]
    ended: list[bool] = []
    here.refresher.start(claim, since=here.clock.boottime(), on_end=lambda: ended.append(True))
    await here.clock.run(1)
    assert ended == [True]
    assert (here.row().status, here.row().state) == (Status.FAILING, ClaimState.IDLE)
    assert here.row().tokens.refresh_token == "refresh 1"
    assert here.sender.sent == []
    assert here.store.state_of("acme").failures == 0


async def test_a_machine_that_slept_while_it_claimed_sends_nothing() -> None:
    """Time to send counts from before the claim: its answer may have waited in the socket."""
    clock = FakeClock()
    here = Replica(clock=clock, shared_store=SleepyStore(clock))
    here.add()
    flight = asyncio.create_task(here.refresher.refresh(here.wanted()))
    await clock.run_until(flight.done)
    assert await flight is None
    assert here.sender.late == 1
    assert here.sender.sent == []


async def test_a_reply_is_kept_until_it_is_stored() -> None:
    """Between its arrival and the commit a reply is in the journal, and then no more."""
    here = Replica()
    here.add()
    here.sender.gate.clear()
    flight = asyncio.create_task(here.refresher.refresh(here.wanted()))
    await here.clock.run(1)
    assert here.journal.kept == {}
    here.store.is_away = True
    here.sender.gate.set()
    await here.clock.run(1)
    (kept,) = here.journal.kept.values()
    assert (kept.connection_id, kept.provider, kept.generation) == ("acme-1", "acme", 1)
    assert kept.attempt == here.row().attempt
    here.store.is_away = False
    await here.clock.run(6)
    await flight
    assert here.journal.kept == {}


async def test_without_room_in_the_journal_nothing_is_sent() -> None:
    """A reply that could not be kept is not asked for; the connection is tried again later."""
    here = Replica()
    here.add()
    here.journal.is_full = True
    flight = asyncio.create_task(here.refresher.refresh(here.wanted()))
    await here.clock.run(1)
    assert await flight is None
    assert here.sender.sent == []
    assert (here.row().state, here.row().status) == (ClaimState.IDLE, Status.FAILING)
    assert here.row().tokens.refresh_token == "refresh 1"
    # The disk is ours: the provider is not thought of as failing, by any replica.
    assert here.store.state_of("acme").failures == 0


async def test_a_crash_is_heard() -> None:
    """An error that nobody foresaw reaches those who wait, and the claim stays for take-over."""
    here = Replica()
    here.add()
    here.sender.outcomes = [ZeroDivisionError("unforeseen")]
    flight = asyncio.create_task(here.refresher.refresh(here.wanted()))
    await here.clock.run(1)
    with pytest.raises(ZeroDivisionError):
        await flight
    assert here.row().state is ClaimState.SENDING
    assert here.slots.in_flight("acme") == 0
