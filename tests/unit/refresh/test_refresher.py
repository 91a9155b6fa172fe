"""The one refresh path: claim, send, commit, publish."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from daemon.domain.admission import PROBE_INTERVAL
from daemon.domain.claim import Claim, ClaimState, RefusalReason
from daemon.domain.connection import Status
from daemon.domain.errors import DatabaseUnavailableError
from daemon.domain.outcome import FailureReason, Outcome, OutcomeKind
from daemon.domain.provider import Rotation, RotationKind
from tests.support.refreshing import ACME, Replica, tokens

INVALID_GRANT = Outcome(
    kind=OutcomeKind.REAUTHORIZE,
    reason=FailureReason.INVALID_GRANT,
    error="invalid_grant",
    description="The provider no longer accepts the grant.",
)
LOST = Outcome(kind=OutcomeKind.IN_DOUBT, reason=FailureReason.TIMEOUT, description="No answer.")
DOWN = Outcome(kind=OutcomeKind.NOT_SENT, reason=FailureReason.NETWORK, description="No route.")


async def test_a_refresh_is_stored_served_and_told() -> None:
    """New tokens are in the store, in memory and announced; the event has lag and duration."""
    here = Replica()
    here.add(stored=tokens(age=3000), due_in=-5)
    await here.clock.run(1)
    flight = asyncio.create_task(here.refresher.refresh(here.wanted()))
    await here.clock.run(1)
    assert await flight is None
    row = here.row()
    assert (row.tokens.access_token, row.tokens.refresh_token) == ("new access 1", "new refresh 1")
    assert (row.tokens.generation, row.state) == (2, ClaimState.IDLE)
    assert row.tokens.issued_at == here.clock.now() - timedelta(seconds=1)
    entry = here.cache.get("acme-1")
    assert entry is not None
    assert (entry.generation, entry.status) == (2, Status.ACTIVE)
    assert here.published == ["acme-1"]
    ((event, name, details),) = here.events.told
    assert (event, name) == ("token_refreshed", "acme-1")
    assert details["duration"] == pytest.approx(0.1)
    assert details["lag"] == pytest.approx(6.1)
    assert here.slots.in_flight("acme") == 0
    assert max(here.expected) > 2500


async def test_ten_thousand_callers_cause_one_request() -> None:
    """Whoever wants the same refresh joins it, however many they are."""
    here = Replica()
    here.add()
    callers = [asyncio.create_task(here.refresher.refresh(here.wanted())) for _ in range(10_000)]
    await here.clock.run(1)
    assert await asyncio.gather(*callers) == [None] * 10_000
    assert here.sender.sent == ["refresh 1"]
    assert here.store.calls.count("claim") == 1


async def test_a_caller_that_gives_up_stops_nothing() -> None:
    """A refresh whose only caller is cancelled goes on to its stored end."""
    here = Replica()
    here.add()
    here.sender.gate.clear()
    caller = asyncio.create_task(here.refresher.refresh(here.wanted()))
    await here.clock.run(1)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    here.sender.gate.set()
    await here.clock.run(1)
    assert here.row().tokens.generation == 2
    assert here.published == ["acme-1"]


async def test_the_slot_is_the_providers() -> None:
    """No more requests are in flight than the provider takes; the rest follow."""
    here = Replica(providers={"acme": replace(ACME, concurrency=2)})
    names = [f"acme-{number}" for number in range(6)]
    for name in names:
        here.add(name)
    callers = [asyncio.create_task(here.refresher.refresh(here.wanted(n))) for n in names]
    await here.clock.run(0.05)
    assert len(here.sender.sent) == 2
    await here.clock.run(0.3)
    assert len(here.sender.sent) == 6
    assert await asyncio.gather(*callers) == [None] * 6


async def test_the_fleets_rate_delays_the_send() -> None:
    """A claim that the rate has put off is sent when it is its turn."""
    here = Replica(providers={"acme": replace(ACME, rate=10.0, concurrency=64)})
    names = [f"acme-{number}" for number in range(12)]
    for name in names:
        here.add(name)
    await here.clock.run(10)
    wishes = [replace(here.wanted(name), rate=10.0) for name in names]
    callers = [asyncio.create_task(here.refresher.refresh(wish)) for wish in wishes]
    await here.clock.run(1)
    await asyncio.gather(*callers)
    assert here.sender.times == pytest.approx([10.0] * 10 + [10.1, 10.2])


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
    here.store.is_away = False
    await here.clock.run(6)
    await flight
    entry = here.cache.get("acme-1")
    assert entry is not None
    assert entry.generation == 1


async def test_a_connection_that_is_gone_leaves_memory() -> None:
    """A reply to a connection that was removed meanwhile is dropped with it."""
    here = Replica()
    here.add()
    await here.refresher.reload(["acme-1"])
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


async def test_drain_waits_for_what_is_in_flight() -> None:
    """Nothing new begins, and the end waits for every reply to be stored."""
    here = Replica()
    here.add()
    here.add("acme-2")
    here.sender.gate.clear()
    flight = asyncio.create_task(here.refresher.refresh(here.wanted()))
    await here.clock.run(1)
    drained = asyncio.create_task(here.refresher.drain())
    await here.clock.run(30)
    refusal = await here.refresher.refresh(here.wanted("acme-2"))
    assert refusal is not None
    assert refusal.reason is RefusalReason.PROVIDER_PAUSED
    assert not drained.done()
    here.sender.gate.set()
    await here.clock.run(1)
    await drained
    assert await flight is None
    assert here.row().tokens.generation == 2
    assert here.sender.sent == ["refresh 1"]


async def test_drain_does_not_wait_for_those_who_wait_for_a_place() -> None:
    """Who has not claimed yet when the end comes never sends."""
    here = Replica(providers={"acme": replace(ACME, concurrency=1)})
    for name in ("acme-1", "acme-2"):
        here.add(name)
    flights = [
        asyncio.create_task(here.refresher.refresh(here.wanted(name)))
        for name in ("acme-1", "acme-2")
    ]
    await here.clock.run(0.05)
    drained = asyncio.create_task(here.refresher.drain())
    await here.clock.run(1)
    await drained
    first, second = await asyncio.gather(*flights)
    assert first is None
    assert second is not None
    assert len(here.sender.sent) == 1


@pytest.mark.parametrize("told", [False, True])
async def test_another_replica_is_sending(told: bool) -> None:  # noqa: FBT001
    """Its result is waited for and taken, by its notification or by looking again."""
    there = Replica()
    here = Replica(clock=there.clock, shared_store=there.store, owner="two")
    there.add()
    there.sender.takes = 3.0
    theirs = asyncio.create_task(there.refresher.refresh(there.wanted()))
    await here.clock.run(1)
    ours = asyncio.create_task(here.refresher.refresh(here.wanted()))
    await here.clock.run(1)
    assert not ours.done()
    await here.clock.run_until(lambda: bool(there.published))
    if told:
        await here.refresher.reload(["acme-1"])
    await here.clock.run(0.6)
    assert await ours is None
    assert await theirs is None
    assert here.sender.sent == []
    entry = here.cache.get("acme-1")
    assert entry is not None
    assert entry.generation == 2


async def test_patience_with_another_replica_ends() -> None:
    """After the callers' patience the refusal is handed on, and the place given back."""
    there = Replica()
    here = Replica(clock=there.clock, shared_store=there.store, owner="two")
    there.add()
    there.sender.gate.clear()
    theirs = asyncio.create_task(there.refresher.refresh(there.wanted()))
    await here.clock.run(1)
    ours = asyncio.create_task(here.refresher.refresh(here.wanted()))
    await here.clock.run(31)
    refusal = await ours
    assert refusal is not None
    assert refusal.reason is RefusalReason.SENDING
    assert here.slots.in_flight("acme") == 0
    there.sender.gate.set()
    await here.clock.run(1)
    await theirs


@pytest.mark.parametrize("status", [Status.REAUTHORIZATION_REQUIRED, Status.DISCONNECTED])
async def test_a_refusal_that_memory_did_not_expect_is_looked_into(status: Status) -> None:
    """What another replica has stored is read, where the refusal says that there is something."""
    here = Replica()
    row = here.add()
    await here.refresher.reload(["acme-1"])
    row.status = status
    refusal = await here.refresher.refresh(here.wanted())
    assert refusal is not None
    assert refusal.reason is RefusalReason.NOT_REFRESHABLE
    entry = here.cache.get("acme-1")
    assert entry is not None
    assert entry.status is status


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
    here.refresher.start(claim, on_end=lambda: ended.append(True))
    await here.clock.run(1)
    assert ended == [True]
    assert (here.row().status, here.row().state) == (Status.FAILING, ClaimState.IDLE)
    assert here.row().tokens.refresh_token == "refresh 1"
    assert here.sender.sent == []
    assert here.store.state_of("acme").failures == 0


async def test_the_fleet_learns_of_failures_and_of_their_end() -> None:
    """Failures in a row open the provider's circuit for all; an answer closes it again."""
    here = Replica()
    for number in range(6):
        here.add(f"acme-{number}")
    here.sender.outcomes = [DOWN] * 5
    for number in range(5):
        flight = asyncio.create_task(here.refresher.refresh(here.wanted(f"acme-{number}")))
        await here.clock.run(1)
        await flight
    assert here.events.names.count("provider_circuit_changed") == 1
    refusal = await here.refresher.refresh(here.wanted("acme-5"))
    assert refusal is not None
    assert refusal.reason is RefusalReason.PROVIDER_PAUSED
    await here.clock.run(PROBE_INTERVAL.total_seconds())
    flight = asyncio.create_task(here.refresher.refresh(here.wanted("acme-5")))
    await here.clock.run(1)
    assert await flight is None
    assert here.store.states["acme"].circuit is None
    assert here.events.told[-1][2] == {"is_open": False, "reason": "unavailable"}


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
