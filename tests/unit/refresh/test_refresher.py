"""The one refresh path: claim, send, commit, publish."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from daemon.domain.admission import PROBE_INTERVAL
from daemon.domain.claim import ClaimState, RefusalReason
from daemon.domain.connection import Status
from daemon.domain.outcome import FailureReason, Outcome, OutcomeKind
from tests.support.refreshing import ACME, Replica, tokens

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
        await here.refresher.memory.reload(["acme-1"])
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
    await here.refresher.memory.reload(["acme-1"])
    row.status = status
    refusal = await here.refresher.refresh(here.wanted())
    assert refusal is not None
    assert refusal.reason is RefusalReason.NOT_REFRESHABLE
    entry = here.cache.get("acme-1")
    assert entry is not None
    assert entry.status is status


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


async def test_nothing_begins_before_the_journal_is_stored() -> None:
    """What a crash left behind comes first: until then callers wait, and nothing is claimed."""
    here = Replica(recovered=False)
    here.add()
    flight = asyncio.create_task(here.refresher.refresh(here.wanted()))
    await here.clock.run(5)
    assert here.store.calls == []
    here.refresher.begin()
    await here.clock.run(1)
    assert await flight is None


async def test_drain_before_the_journal_is_stored() -> None:
    """Who waits for the recovery when the end comes is let go, with nothing sent."""
    here = Replica(recovered=False)
    here.add()
    flight = asyncio.create_task(here.refresher.refresh(here.wanted()))
    await here.clock.run(1)
    await here.refresher.drain()
    refusal = await flight
    assert refusal is not None
    assert here.store.calls == []
