"""How refresh stores bear a disconnect, and what they record: in memory and on PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from daemon.domain.claim import Claim, ClaimState, Refusal, RefusalReason, Settled, Settlement
from daemon.domain.connection import Status
from daemon.domain.history import EventType, NewEvent
from tests.support.clock import START
from tests.support.refresh_claims import (
    HOLD,
    add,
    claimed,
    due,
    failure,
    refused,
    renewal,
    settle,
    tokens,
    want,
)
from tests.support.refresh_stages import Stage

LATE = [("a", "acme", "next"), ("a", "acme", "new")]


def told(settlement: Settlement, *kinds: EventType) -> Settlement:
    """Return the settlement with events of these types."""
    events = tuple(
        NewEvent(
            type=kind,
            connection=settlement.connection_id,
            provider="acme",
            at=START,
            detail={"generation": 2, "expires_at": "2026-11-21T12:00:00Z"},
        )
        for kind in kinds
    )
    return replace(settlement, events=events)


def late(claim: Claim) -> Settlement:
    """Return the settlement of a reply that came too late."""
    return told(
        replace(renewal(claim), epoch=claim.epoch, provider=claim.provider, fields=claim.fields),
        EventType.REFRESHED,
    )


async def test_a_disconnect_wins_over_a_refresh_in_flight(stage: Stage) -> None:
    """Its reply is not stored, brings nothing back, and its tokens are to be revoked."""
    await add(stage, "a")
    claim = await claimed(stage)
    await stage.disconnect("a")
    assert await settle(stage, late(claim)) == [Settled.DISCONNECTED]
    stored = await stage.stored("a")
    assert (stored.status, stored.state) == (Status.DISCONNECTED, ClaimState.IDLE)
    assert (stored.due_at, stored.error) == (None, None)
    assert (stored.tokens.generation, stored.tokens.access_token) == (1, "")
    assert (stored.tokens.refresh_token, stored.tokens.expires_at) == (None, None)
    assert await stage.queued() == LATE
    assert await stage.history("a") == []


async def test_a_purge_wins_over_a_refresh_in_flight(stage: Stage) -> None:
    """Where the connection is gone its tokens are still to be revoked, where they came from."""
    await add(stage, "a")
    claim = await claimed(stage)
    await stage.disconnect("a", purge=True)
    assert await settle(stage, late(claim)) == [Settled.DISCONNECTED]
    assert await stage.tokens.current(["a"]) == []
    assert await stage.queued() == LATE
    assert await stage.history("a") == []


async def test_a_new_grant_takes_no_tokens_of_the_one_that_was_ended(stage: Stage) -> None:
    """A reply from before the disconnect is nobody's, also where a person has reconnected."""
    await add(stage, "a")
    claim = await claimed(stage)
    await stage.disconnect("a")
    await stage.reconnect("a", replace(tokens(stage), access_token="fresh", refresh_token="f"))
    assert await settle(stage, late(claim)) == [Settled.DISCONNECTED]
    stored = await stage.stored("a")
    assert (stored.status, stored.tokens.generation) == (Status.ACTIVE, 2)
    assert stored.tokens.access_token == "fresh"
    assert await stage.queued() == LATE


async def test_a_connection_made_anew_takes_nothing_of_the_one_purged(stage: Stage) -> None:
    """Its name and a lower generation are no reason to store a late reply over its tokens."""
    await add(stage, "a", stored=tokens(stage, generation=5))
    claim = await want(stage, generation=5)
    assert isinstance(claim, Claim)
    await stage.disconnect("a", purge=True)
    await add(stage, "a", stored=replace(tokens(stage), access_token="fresh", refresh_token="f"))
    assert await settle(stage, late(claim)) == [Settled.DISCONNECTED]
    recalled = await stage.late.recall(
        "a",
        attempt=claim.attempt,
        generation=claim.tokens.generation,
        sent_at=stage.now(),
        epoch=claim.epoch,
        owner="one",
        hold=HOLD,
    )
    assert isinstance(recalled, Refusal)
    assert recalled.reason is RefusalReason.DISCONNECTED
    stored = await stage.stored("a")
    assert (stored.tokens.generation, stored.tokens.access_token) == (1, "fresh")


async def test_a_merge_overtakes_a_refresh_in_flight(stage: Stage) -> None:
    """Its tokens are of the account that goes on: to revoke them could end the survivor's grant."""
    await add(stage, "a", "b")
    claim = await claimed(stage)
    fresh = replace(tokens(stage), access_token="fresh", refresh_token="f")
    await stage.merge("a", "b", fresh)
    assert await settle(stage, late(claim)) == [Settled.SUPERSEDED]
    recalled = await stage.late.recall(
        "a",
        attempt=claim.attempt,
        generation=claim.tokens.generation,
        sent_at=stage.now(),
        epoch=claim.epoch,
        owner="one",
        hold=HOLD,
    )
    assert recalled is None
    stored = await stage.stored("b")
    assert (stored.tokens.generation, stored.tokens.access_token) == (2, "fresh")
    assert (await stage.queued(), await stage.orphans("b")) == ([], 0)


async def test_a_disconnect_of_what_it_was_merged_into_wins(stage: Stage) -> None:
    """The whole account was disconnected: nothing of it lives on."""
    await add(stage, "a", "b")
    claim = await claimed(stage)
    await stage.merge("a", "b", replace(tokens(stage), access_token="fresh", refresh_token="f"))
    await stage.disconnect("b")
    assert await settle(stage, late(claim)) == [Settled.DISCONNECTED]
    assert await stage.queued() == LATE


async def test_a_failure_after_a_disconnect_is_nothing(stage: Stage) -> None:
    """Without tokens there is nothing to revoke, and the connection stays disconnected."""
    await add(stage, "a")
    claim = await claimed(stage)
    await stage.disconnect("a")
    for state in (ClaimState.IDLE, ClaimState.IN_DOUBT):
        assert await settle(stage, failure(claim, stage, state=state)) == [Settled.DISCONNECTED]
    assert (await stage.stored("a")).status is Status.DISCONNECTED
    assert await stage.queued() == []


async def test_only_what_came_too_late_is_revoked(stage: Stage) -> None:
    """In a group each settlement has its own end."""
    await add(stage, "a", "b", "c")
    one, two, three = [await claimed(stage, name) for name in "abc"]
    await stage.disconnect("a")
    superseded = replace(late(three), attempt="another")
    assert await settle(stage, late(one), late(two), superseded) == [
        Settled.DISCONNECTED,
        Settled.STORED,
        Settled.UNCLAIMED,
    ]
    assert await stage.queued() == LATE


async def test_nothing_is_claimed_after_a_disconnect(stage: Stage) -> None:
    """Neither the sweep nor a person's own request refreshes a disconnected connection."""
    await add(stage, "a")
    await stage.disconnect("a")
    assert (await due(stage)).claims == []
    assert await refused(stage) is RefusalReason.NOT_REFRESHABLE
    assert await refused(stage, forced=True) is RefusalReason.NOT_REFRESHABLE
    assert await stage.store.next_due(["acme"], after=stage.now().replace(year=2000)) is None
    assert await stage.store.abandoned_by("one") == []


async def test_a_kept_reply_does_not_claim_what_was_disconnected(stage: Stage) -> None:
    """After a restart the reply of a disconnected connection is refused, and its row untouched."""
    await add(stage, "a", "b")
    claims = {name: await claimed(stage, name) for name in "ab"}
    await stage.disconnect("a")
    await stage.disconnect("b", purge=True)
    answers = [
        await stage.store.reclaim(name, attempt=claim.attempt, generation=1, owner="one", hold=HOLD)
        for name, claim in claims.items()
    ]
    assert answers == [
        Refusal(connection_id="a", reason=RefusalReason.DISCONNECTED),
        Refusal(connection_id="b", reason=RefusalReason.UNKNOWN),
    ]
    assert (await stage.stored("a")).state is ClaimState.IDLE


async def test_disowned_tokens_are_revoked(stage: Stage) -> None:
    """Tokens that belong to no connection any more are queued, refresh token first."""
    late_ones = replace(tokens(stage), access_token="new", refresh_token="next")
    for found in (late_ones, replace(late_ones, access_token="")):
        await stage.store.disown(
            "a", found, provider="acme", fields={"region": "us"}, now=stage.now()
        )
    assert await stage.queued() == [*LATE, LATE[0]]


async def test_a_disconnect_and_a_settlement_at_once(stage: Stage) -> None:
    """Whoever comes first, no token is left that is neither erased nor to be revoked."""
    names = [f"c{number}" for number in range(20)]
    await add(stage, *names)
    claims = [await claimed(stage, name) for name in names]
    answers = await asyncio.gather(
        *(settle(stage, late(claim)) for claim in claims),
        *(stage.disconnect(name) for name in names),
    )
    for name, answer in zip(names, answers, strict=False):
        stored = await stage.stored(name)
        assert (stored.status, stored.tokens.access_token) == (Status.DISCONNECTED, "")
        assert stored.tokens.generation == (2 if answer == [Settled.STORED] else 1)
        recorded = [EventType.REFRESHED] if answer == [Settled.STORED] else []
        assert await stage.history(name) == recorded


async def test_what_is_stored_is_recorded_with_it(stage: Stage) -> None:
    """Each settlement's events, in their order, once, however often it is settled."""
    await add(stage, "a", "b")
    one, two = [await claimed(stage, name) for name in "ab"]
    settled = (
        told(renewal(one), EventType.REFRESHED, EventType.RECOVERED),
        told(failure(two, stage), EventType.REFRESH_FAILED),
    )
    for _ in range(2):
        assert await settle(stage, *settled) == [Settled.STORED, Settled.STORED]
    assert await stage.history("a") == [EventType.REFRESHED, EventType.RECOVERED]
    assert await stage.history("b") == [EventType.REFRESH_FAILED]


async def test_what_is_not_stored_is_not_recorded(stage: Stage) -> None:
    """A reply that came after the connection had moved on leaves no event."""
    await add(stage, "a")
    claim = await claimed(stage)
    stale = replace(told(renewal(claim), EventType.REFRESHED), attempt="another")
    assert await settle(stage, stale) == [Settled.UNCLAIMED]
    assert await stage.history("a") == []
    assert await stage.queued() == []


async def test_a_claim_has_what_urls_are_made_of(stage: Stage) -> None:
    """The connection's fields and what is kept of its replies come with every kind of claim."""
    await add(stage, "a")
    await stage.set_values("a", fields={"region": "us"}, reply_values={"token.host": "x"})
    swept = (await due(stage)).claims[0]
    again = await stage.store.reclaim(
        "a", attempt=swept.attempt, generation=1, owner="one", hold=HOLD
    )
    await settle(stage, failure(swept, stage))
    wanted = await claimed(stage, forced=True)
    for claim in (swept, again, wanted):
        assert isinstance(claim, Claim)
        assert (claim.fields, claim.reply_values) == ({"region": "us"}, {"token.host": "x"})
        assert claim.epoch == await stage.epoch("a")


async def test_a_reply_may_tell_something_else(stage: Stage) -> None:
    """What a refresh says otherwise is kept beside what it does not say."""
    await add(stage, "a")
    await stage.set_values("a", fields={}, reply_values={"token.host": "x", "me.id": "7"})
    settlement = replace(renewal(await claimed(stage)), reply_values={"token.host": "y"})
    assert await settle(stage, settlement) == [Settled.STORED]
    assert await stage.reply_values("a") == {"token.host": "y", "me.id": "7"}


@pytest.mark.parametrize("purge", ["", "purge"])
async def test_a_take_over_after_a_disconnect_is_nothing(stage: Stage, purge: str) -> None:
    """A vanished owner's claim ends with the connection: it is neither found nor doubted."""
    await add(stage, "a")
    claim = await claimed(stage)
    await stage.disconnect("a", purge=bool(purge))
    await stage.pass_time(HOLD.total_seconds() + 1)
    assert await stage.store.abandoned(["acme"], now=stage.now()) == []
    doubt = failure(claim, stage, state=ClaimState.IN_DOUBT)
    assert await settle(stage, doubt) == [Settled.DISCONNECTED]
