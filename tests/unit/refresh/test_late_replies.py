"""Replies whose claim is gone, and refresh tokens that were never used: from end to end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from daemon.domain.claim import Claim, ClaimState, Settled, Settlement
from daemon.domain.connection import Status
from daemon.domain.history import EventType
from daemon.domain.outcome import FailureReason, Outcome, OutcomeKind
from tests.support.clock import START, FakeClock
from tests.support.memory_refreshes import MemoryRefreshes
from tests.support.refreshing import Replica, tokens

INVALID_GRANT = Outcome(
    kind=OutcomeKind.REAUTHORIZE, reason=FailureReason.OTHER, error="invalid_grant"
)
NO_ANSWER = Outcome(kind=OutcomeKind.IN_DOUBT, reason=FailureReason.TIMEOUT)


def orphaned(here: Replica, *refresh_tokens: str) -> None:
    """Keep orphans of the connection's grant."""
    for number, token in enumerate(refresh_tokens, start=1):
        late = replace(tokens(generation=2), refresh_token=token)
        here.store.orphans[number] = ("acme-1", f"late {number}", late)


async def refreshed(here: Replica) -> None:
    """Refresh, as a person asks for it."""
    wanted = here.wanted(generation=here.row().tokens.generation, forced=True)
    flight = asyncio.create_task(here.refresher.refresh(wanted))
    await here.clock.run(10)
    assert await flight is None


async def test_an_orphan_is_tried_before_a_grant_is_given_up() -> None:
    """It is sent once by the next claim, and brings the connection back."""
    here = Replica()
    here.add()
    orphaned(here, "orphan")
    here.sender.outcomes = [INVALID_GRANT]
    await refreshed(here)
    row = here.row()
    assert (row.status, row.state, row.tokens.generation) == (
        Status.FAILING,
        ClaimState.IN_DOUBT,
        2,
    )
    assert here.expected[-1] == 0.0 or 0.0 in here.expected
    await refreshed(here)
    assert here.sender.sent == ["refresh 1", "orphan"]
    assert (row.status, row.tokens.generation) == (Status.ACTIVE, 3)
    assert here.store.orphans == {}
    assert EventType.RECOVERED in [event.type for event in here.store.events]
    assert "reauthorization_required" not in here.events.names


async def test_every_orphan_is_tried_once_and_then_the_reply_was_lost() -> None:
    """The newest first; after the last one the grant is dead, and why is told apart."""
    here = Replica()
    here.add()
    orphaned(here, "older", "newer")
    here.sender.outcomes = [INVALID_GRANT] * 3
    for _ in range(3):
        await refreshed(here)
    assert here.sender.sent == ["refresh 1", "newer", "older"]
    row = here.row()
    assert row.status is Status.REAUTHORIZATION_REQUIRED
    assert row.last_error is not None
    assert row.last_error.code == "reply_lost"


async def test_a_late_reply_waits_for_another_attempt() -> None:
    """While somebody else sends its token is served; when that came to nothing it is stored."""
    here = Replica()
    row = here.add()
    here.sender.gate.clear()
    flight = asyncio.create_task(here.refresher.refresh(here.wanted()))
    await here.clock.run(1)
    row.attempt = "another's"
    here.sender.gate.set()
    await here.clock.run(5)
    assert not flight.done()
    entry = here.cache.get("acme-1")
    assert entry is not None
    assert (entry.generation, row.tokens.generation) == (2, 1)
    row.state = ClaimState.IN_DOUBT
    await here.clock.run(5)
    assert await flight is None
    assert (row.tokens.refresh_token, row.status) == ("new refresh 1", Status.ACTIVE)


async def test_a_late_reply_gives_way_to_what_another_attempt_brought() -> None:
    """Its tokens are an orphan then, and nothing of it is to be stored after a crash."""
    here = Replica()
    row = here.add()
    here.sender.gate.clear()
    flight = asyncio.create_task(here.refresher.refresh(here.wanted()))
    await here.clock.run(1)
    row.attempt = "another's"
    here.sender.gate.set()
    await here.clock.run(5)
    row.tokens, row.state = tokens(generation=2, access_token="theirs"), ClaimState.IDLE
    await here.clock.run(5)
    await flight
    entry = here.cache.get("acme-1")
    assert entry is not None
    assert b"theirs" in entry.head
    ((_, _, orphan),) = here.store.orphans.values()
    assert orphan.refresh_token == "new refresh 1"
    assert here.journal.kept == {}
    assert here.journal.history == []


async def test_a_reply_in_a_database_that_has_forgotten() -> None:
    """It keeps its generation, and what the request was made with."""
    here = Replica()
    row = here.add(stored=tokens(generation=7))
    here.sender.gate.clear()
    flight = asyncio.create_task(here.refresher.refresh(here.wanted(generation=7)))
    await here.clock.run(1)
    row.tokens, row.attempt, row.state = tokens(generation=3), None, ClaimState.IDLE
    here.sender.gate.set()
    await here.clock.run(5)
    assert await flight is None
    assert (row.tokens.generation, row.tokens.refresh_token) == (8, "new refresh 1")


async def test_no_generation_falls_that_memory_knows() -> None:
    """A token that is asked for anew is above what callers have seen, whatever is stored."""
    here = Replica()
    row = here.add(stored=tokens(generation=8))
    await here.refresher.memory.reload(["acme-1"])
    row.tokens = tokens(generation=3, age=60)
    await refreshed(here)
    assert row.tokens.generation == 9
    entry = here.cache.get("acme-1")
    assert entry is not None
    assert entry.generation == 9
    detail = [event.detail for event in here.store.events if event.type is EventType.REFRESHED]
    assert detail[0]["generation"] == 9


async def test_a_refusal_of_the_database_ends_no_attempt() -> None:
    """It is tried until it is stored; meanwhile memory serves the token."""
    here = Replica()
    row = here.add()
    here.store.is_refusing = True
    flight = asyncio.create_task(here.refresher.refresh(here.wanted()))
    await here.clock.run(130)
    assert not flight.done()
    assert list(here.journal.kept) == ["attempt 1"]
    here.store.is_refusing = False
    await here.clock.run(10)
    assert await flight is None
    assert row.tokens.generation == 2


async def test_memory_keeps_a_newer_token_than_the_database() -> None:
    """Until it expires it is served; a later token replaces it, and so does a disconnect."""
    here = Replica()
    row = here.add(stored=tokens(generation=8))
    memory = here.refresher.memory
    await memory.reload(["acme-1"])
    row.tokens = tokens(generation=3, age=60)
    await memory.reload(["acme-1"])
    entry = here.cache.get("acme-1")
    assert entry is not None
    assert entry.generation == 8
    row.tokens = replace(tokens(generation=4), issued_at=here.clock.now() + timedelta(seconds=1))
    await memory.reload(["acme-1"])
    entry = here.cache.get("acme-1")
    assert entry is not None
    assert entry.generation == 4
    row.tokens = tokens(generation=2, age=60)
    row.disconnect()
    await memory.reload(["acme-1"])
    entry = here.cache.get("acme-1")
    assert entry is not None
    assert (entry.generation, entry.status) == (2, Status.DISCONNECTED)


@pytest.mark.parametrize("asked_in_vain", [0, 1])
async def test_an_orphan_whose_request_was_in_vain(asked_in_vain: int) -> None:
    """It is the stored token now, and goes the way of any other: in doubt, then sent again."""
    here = Replica()
    here.add()
    orphaned(here, "orphan")
    here.sender.outcomes = [INVALID_GRANT, *[NO_ANSWER] * asked_in_vain]
    await refreshed(here)
    for _ in range(asked_in_vain):
        await refreshed(here)
        assert here.row().state is ClaimState.IN_DOUBT
    await refreshed(here)
    assert here.sender.sent == ["refresh 1", *["orphan"] * (asked_in_vain + 1)]
    assert here.row().status is Status.ACTIVE


class HeldStore(MemoryRefreshes):
    """A store whose settlements wait, once, until ``let_go`` is set; ``reached`` says so."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.reached, self.let_go = asyncio.Event(), asyncio.Event()

    async def settle(self, settlements: Sequence[Settlement], *, now: datetime) -> list[Settled]:
        """Settle, later."""
        self.reached.set()
        await self.let_go.wait()
        return await super().settle(settlements, now=now)


async def test_no_claim_is_taken_again_for_an_attempt_that_has_ended() -> None:
    """It would be nobody's: what is done about open attempts waits for an end being stored."""
    clock = FakeClock()
    store = HeldStore(clock)
    here = Replica(clock=clock, shared_store=store)
    here.add()
    here.sender.outcomes = [NO_ANSWER]
    flight = asyncio.create_task(here.refresher.refresh(here.wanted(forced=True)))
    await clock.run(3)
    assert store.reached.is_set()
    again: list[str] = []

    async def claim_again(claim: Claim, _: datetime) -> None:
        again.append(claim.attempt)

    claiming = asyncio.create_task(here.refresher.attempts.each_open(claim_again))
    await clock.settle()
    assert not claiming.done()
    store.let_go.set()
    await clock.run(5)
    await asyncio.gather(claiming, flight)
    assert again == []


async def test_a_claim_is_taken_again_while_its_end_cannot_be_stored() -> None:
    """Between two tries: the reply in hand is what nobody else may ask for."""
    here = Replica()
    here.add()
    here.store.is_refusing = True
    flight = asyncio.create_task(here.refresher.refresh(here.wanted(forced=True)))
    await here.clock.run(3)
    again: list[str] = []

    async def claim_again(claim: Claim, _: datetime) -> None:
        again.append(claim.connection_id)

    await here.refresher.attempts.each_open(claim_again)
    assert again == ["acme-1"]
    here.store.is_refusing = False
    await here.clock.run(10)
    await flight
    await here.refresher.attempts.each_open(claim_again)
    assert again == ["acme-1"]


async def test_no_claim_is_taken_again_over_a_later_grant() -> None:
    """What asks for it goes by when the attempt began, also much later, as for others' ends."""
    here = Replica()
    here.add()
    here.sender.takes = 30.0
    flight = asyncio.create_task(here.refresher.refresh(here.wanted(forced=True)))
    await here.clock.run(20)
    began: list[datetime] = []

    async def claim_again(_: Claim, begun_at: datetime) -> None:
        began.append(begun_at)

    await here.refresher.attempts.each_open(claim_again)
    assert began == [START]
    await here.clock.run(20)
    await flight


async def test_what_is_stored_is_compared_although_its_attempt_still_runs() -> None:
    """Between its commit and its end a failover may forget it: it is no request on its way."""
    here = Replica()
    row = here.add()
    here.journal.gate.clear()
    flight = asyncio.create_task(here.refresher.refresh(here.wanted()))
    await here.clock.run(5)
    assert row.tokens.generation == 2
    assert len(here.journal.kept) == 1
    assert not here.refresher.attempts.in_flight
    here.journal.gate.set()
    await flight
    assert here.journal.kept == {}
