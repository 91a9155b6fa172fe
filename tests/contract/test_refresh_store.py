"""How refresh stores settle claims: one suite, on the fake in memory and on PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from daemon.domain.claim import (
    Claim,
    ClaimState,
    Refusal,
    RefusalReason,
    Settled,
)
from daemon.domain.connection import Status
from tests.support.refresh_claims import (
    HOLD,
    add,
    claimed,
    due,
    failure,
    refused,
    renewal,
    settle,
    want,
)
from tests.support.refresh_stages import Stage


async def test_a_renewal_is_stored(stage: Stage) -> None:
    """New tokens replace the old ones one generation up, and the connection is free again."""
    await add(stage, "a")
    claim = await claimed(stage)
    due_at = stage.now() + timedelta(minutes=45)
    settlement = renewal(claim, due_at=due_at)
    assert await settle(stage, settlement) == [Settled.STORED]
    stored = await stage.stored("a")
    assert stored.tokens == settlement.tokens
    assert (stored.state, stored.due_at, stored.failures) == (ClaimState.IDLE, due_at, 0)
    (current,) = await stage.tokens.current(["a"])
    assert (current.generation, current.access_token) == (2, "new")
    assert await stage.tokens.versions(["a"]) == {
        "a": (2, Status.ACTIVE, settlement.tokens.expires_at)
    }


@pytest.mark.parametrize(
    ("state", "status", "due_in"),
    [
        (ClaimState.IDLE, Status.FAILING, 30.0),
        (ClaimState.IN_DOUBT, Status.FAILING, 300.0),
        (ClaimState.IDLE, Status.REAUTHORIZATION_REQUIRED, None),
    ],
)
async def test_a_failure_is_stored(
    stage: Stage, state: ClaimState, status: Status, due_in: float | None
) -> None:
    """A failure keeps the tokens and shows; settling it again is no second failure."""
    await add(stage, "a")
    claim = await claimed(stage)
    settlement = failure(claim, stage, state=state, status=status, due_in=due_in)
    assert await settle(stage, settlement) == [Settled.STORED]
    stored = await stage.stored("a")
    assert (stored.state, stored.status) == (state, status)
    assert (stored.due_at, stored.failures) == (settlement.due_at, 1)
    assert (stored.tokens, stored.error) == (claim.tokens, "oops")
    (current,) = await stage.tokens.current(["a"])
    assert (current.failure, current.retry_at) == ("It failed.", settlement.due_at)
    assert await settle(stage, settlement) == [Settled.STORED]
    assert (await stage.stored("a")).failures == 1


async def test_a_lost_acknowledgement(stage: Stage) -> None:
    """A renewal that is settled again is recognized as stored, also while another is on its way."""
    await add(stage, "a")
    settlement = renewal(await claimed(stage), due_at=stage.now())
    assert await settle(stage, settlement) == [Settled.STORED]
    assert await settle(stage, settlement) == [Settled.STORED]
    assert isinstance(await want(stage, generation=2), Claim)
    assert await settle(stage, settlement) == [Settled.STORED]
    assert (await stage.stored("a")).tokens == settlement.tokens


async def test_only_the_claims_own_attempt_settles(stage: Stage) -> None:
    """Another attempt or another generation writes nothing at all."""
    await add(stage, "a")
    claim = await claimed(stage)
    before = await stage.stored("a")
    assert await settle(stage, replace(renewal(claim), attempt="another")) == [Settled.UNCLAIMED]
    stale = replace(failure(claim, stage), attempt="another")
    assert await settle(stage, stale) == [Settled.SUPERSEDED]
    assert await stage.stored("a") == before
    assert await settle(stage, renewal(claim)) == [Settled.STORED]
    assert await settle(stage, renewal(claim, access="other")) == [Settled.SUPERSEDED]
    assert (await stage.stored("a")).tokens.access_token == "new"


async def test_each_settlement_of_a_group_has_its_answer(stage: Stage) -> None:
    """One statement settles many, each by itself and in order."""
    await add(stage, "a", "b", "c")
    claims = [await claimed(stage, name) for name in "abc"]
    answers = await settle(
        stage,
        renewal(claims[0]),
        replace(renewal(claims[1]), attempt="another"),
        replace(renewal(claims[2]), connection_id="nobody", attempt="nobody's"),
        failure(claims[2], stage),
    )
    assert answers == [
        Settled.STORED,
        Settled.UNCLAIMED,
        Settled.DISCONNECTED,
        Settled.STORED,
    ]


async def test_two_attempts_of_one_connection_in_a_group(stage: Stage) -> None:
    """Of a late reply and its successor's only the one whose attempt is open is written."""
    await add(stage, "a")
    late = await claimed(stage)
    await stage.pass_time(HOLD.total_seconds() + 1)
    assert await settle(stage, failure(late, stage, state=ClaimState.IN_DOUBT, due_in=0)) == [
        Settled.STORED
    ]
    successor = await claimed(stage)
    answers = await settle(stage, renewal(late, access="late"), renewal(successor))
    assert answers == [Settled.SUPERSEDED, Settled.STORED]
    assert (await stage.stored("a")).tokens.access_token == "new"


async def test_a_disconnected_connection_takes_no_tokens(stage: Stage) -> None:
    """A reply for a connection that was disconnected meanwhile is told apart."""
    await add(stage, "a")
    claim = await claimed(stage)
    attempt = replace(renewal(claim), attempt="fenced off")
    await stage.set_status("a", Status.DISCONNECTED)
    assert await settle(stage, attempt) == [Settled.DISCONNECTED]
    assert (await stage.stored("a")).tokens == claim.tokens


async def test_a_vanished_owners_claim_is_found_when_its_time_has_passed(stage: Stage) -> None:
    """Until its take-over time a claim is its owner's, whoever looks."""
    await add(stage, "a")
    await add(stage, "b", due_in=3600)
    swept, wanted = (await due(stage)).claims[0], await claimed(stage, "b")
    assert await stage.store.abandoned(["acme"], now=stage.now()) == []
    await stage.pass_time(HOLD.total_seconds() + 1)
    found = await stage.store.abandoned(["acme"], now=stage.now())
    assert {one.attempt for one in found} == {swept.attempt, wanted.attempt}
    one = next(one for one in found if one.connection_id == "a")
    assert (one.provider, one.failures, one.generation) == ("acme", 0, 1)
    assert timedelta(0) < one.overdue < timedelta(seconds=30)
    assert (one.issued_at, one.expires_at) == (swept.tokens.issued_at, swept.tokens.expires_at)
    assert await stage.store.abandoned(["other"], now=stage.now()) == []
    assert await refused(stage) is RefusalReason.SENDING


async def test_take_over_puts_in_doubt_and_a_late_reply_still_counts(stage: Stage) -> None:
    """After a take-over nobody resends before it is due, but the owner's own reply is stored."""
    await add(stage, "a")
    late = await claimed(stage)
    await stage.pass_time(HOLD.total_seconds() + 1)
    doubt = failure(late, stage, state=ClaimState.IN_DOUBT, due_in=300)
    assert await settle(stage, doubt) == [Settled.STORED]
    assert (await due(stage)).claims == []
    assert await refused(stage) is RefusalReason.BACKING_OFF
    assert await settle(stage, failure(late, stage, due_in=1)) == [Settled.SUPERSEDED]
    assert await settle(stage, renewal(late)) == [Settled.STORED]
    stored = await stage.stored("a")
    assert (stored.state, stored.tokens.generation) == (ClaimState.IDLE, 2)
    assert (stored.status, stored.error) == (Status.ACTIVE, None)
    assert await settle(stage, doubt) == [Settled.SUPERSEDED]


async def test_a_resend_knows_that_it_is_one(stage: Stage) -> None:
    """When the safe time has come the sweep claims it again, and fences the first attempt off."""
    await add(stage, "a")
    first = await claimed(stage)
    await settle(stage, failure(first, stage, state=ClaimState.IN_DOUBT, due_in=300))
    await stage.pass_time(301)
    (resend,) = (await due(stage)).claims
    assert resend.was_in_doubt
    assert (resend.failures, resend.status) == (1, Status.FAILING)
    assert resend.attempt != first.attempt
    assert await settle(stage, renewal(first)) == [Settled.UNCLAIMED]
    assert await settle(stage, renewal(resend)) == [Settled.STORED]
    assert (await stage.stored("a")).status is Status.ACTIVE


async def test_a_doubt_keeps_when_it_began(stage: Stage) -> None:
    """A provider's grace runs from the first request, whoever repeats it and however often."""
    await add(stage, "a")
    claim, began = await claimed(stage), stage.now()
    assert claim.doubted_since is None
    await stage.pass_time(HOLD.total_seconds() + 1)
    (left,) = await stage.store.abandoned(["acme"], now=stage.now())
    assert left.doubted_since == began
    for _ in range(2):
        doubtful = failure(claim, stage, state=ClaimState.IN_DOUBT, due_in=0)
        await settle(stage, replace(doubtful, doubted_since=began))
        await stage.pass_time(60)
        (claim,) = (await due(stage)).claims
        assert claim.doubted_since == began
    assert await settle(stage, renewal(claim)) == [Settled.STORED]
    assert (await want_next(stage)).doubted_since is None
    await stage.pass_time(HOLD.total_seconds() + 1)
    (left,) = await stage.store.abandoned(["acme"], now=stage.now())
    assert left.doubted_since is not None
    assert left.doubted_since > began


async def want_next(stage: Stage) -> Claim:
    """Claim what has been refreshed once."""
    claim = await want(stage, generation=2)
    assert isinstance(claim, Claim)
    return claim


async def test_a_reply_from_the_journal_claims_again(stage: Stage) -> None:
    """After a restart the kept reply's own attempt is claimed anew, and then settles."""
    await add(stage, "a")
    before = await claimed(stage)
    again = await stage.store.reclaim(
        "a", attempt=before.attempt, generation=1, owner="one", hold=HOLD
    )
    assert isinstance(again, Claim)
    assert (again.attempt, again.tokens) == (before.attempt, before.tokens)
    assert await settle(stage, renewal(again)) == [Settled.STORED]
    late = await stage.store.reclaim(
        "a", attempt=before.attempt, generation=1, owner="one", hold=HOLD
    )
    assert late is None


async def test_a_reply_from_the_journal_waits_for_another_attempt(stage: Stage) -> None:
    """Where another attempt is on its way its end decides; what is gone wants nothing."""
    await add(stage, "a")
    await claimed(stage)
    answers = [
        await stage.store.reclaim(name, attempt="kept", generation=1, owner="one", hold=HOLD)
        for name in ("a", "nobody")
    ]
    assert answers == [
        Refusal(connection_id="a", reason=RefusalReason.SENDING),
        Refusal(connection_id="nobody", reason=RefusalReason.UNKNOWN),
    ]


async def test_an_owner_finds_the_claims_it_left_open(stage: Stage) -> None:
    """After a restart an owner's open claims are known at once; settled ones are not open."""
    await add(stage, "a", "b")
    open_one, settled = await claimed(stage, "a"), await claimed(stage, "b")
    await settle(stage, renewal(settled))
    (found,) = await stage.store.abandoned_by("one")
    assert (found.connection_id, found.attempt) == ("a", open_one.attempt)
    assert await stage.store.abandoned_by("two") == []
