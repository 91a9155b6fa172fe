"""Replies whose claim is gone, and a store that has forgotten: in memory and on PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from daemon.domain.claim import Claim, ClaimState, Refusal, RefusalReason, Settled, Settlement
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
    tokens,
    want,
)
from tests.support.refresh_stages import Stage

REST = timedelta(seconds=10)


async def recalled(
    stage: Stage,
    name: str = "a",
    *,
    attempt: str = "kept",
    generation: int = 1,
    sent_at: datetime | None = None,
    epoch: int | None = None,
) -> Claim | Refusal | None:
    """Claim for a reply out of the journal."""
    return await stage.late.recall(
        name,
        attempt=attempt,
        generation=generation,
        sent_at=sent_at or stage.now(),
        epoch=await stage.epoch(name) if epoch is None else epoch,
        owner="one",
        hold=HOLD,
    )


async def overtaken(stage: Stage, name: str = "a") -> Settlement:
    """Return the settlement of a reply that came after its successor was stored."""
    await add(stage, name)
    late = await claimed(stage, name)
    await stage.pass_time(HOLD.total_seconds() + 1)
    await settle(stage, failure(late, stage, state=ClaimState.IN_DOUBT, due_in=0))
    assert await settle(stage, renewal(await claimed(stage, name))) == [Settled.STORED]
    settlement = renewal(late, access="late")
    assert settlement.tokens is not None
    issued = replace(settlement.tokens, refresh_token="orphan", issued_at=stage.now())
    return replace(settlement, tokens=issued)


async def test_what_came_too_late_is_kept_as_an_orphan(stage: Stage) -> None:
    """Its tokens are found again, once, however often it is settled; nothing is revoked."""
    late = await overtaken(stage)
    for _ in range(2):
        assert await settle(stage, late) == [Settled.SUPERSEDED]
    orphan = await stage.late.newest_orphan("a")
    assert orphan is not None
    assert (orphan.refresh_token, orphan.generation) == ("orphan", 2)
    assert (await stage.stored("a")).tokens.access_token == "new"
    assert await stage.queued() == []
    assert await stage.orphans("a") == 1


async def test_an_orphan_is_adopted_once(stage: Stage) -> None:
    """The settlement that makes its refresh token the stored one takes it away, if it is stored."""
    await settle(stage, await overtaken(stage))
    orphan = await stage.late.newest_orphan("a")
    assert orphan is not None
    claim = await want(stage, generation=9, forced=True)
    assert isinstance(claim, Claim)
    adopting = replace(renewal(claim), adopts=orphan.id)
    assert await settle(stage, replace(adopting, attempt="another")) == [Settled.UNCLAIMED]
    assert await stage.late.newest_orphan("a") == orphan
    assert await settle(stage, adopting) == [Settled.STORED]
    assert await stage.late.newest_orphan("a") is None


async def test_the_newest_orphan_comes_first(stage: Stage) -> None:
    """Of several the last to come; one without a refresh token is none to be tried."""
    late = await overtaken(stage)
    assert late.tokens is not None
    for number, token in enumerate(("first", "second", None)):
        one = replace(late.tokens, refresh_token=token)
        await settle(stage, replace(late, attempt=f"attempt {number}", tokens=one))
    orphan = await stage.late.newest_orphan("a")
    assert orphan is not None
    assert orphan.refresh_token == "second"
    assert await stage.orphans("a") == 3


async def test_a_new_grant_has_no_orphans(stage: Stage) -> None:
    """Neither those from before a reconnect, nor a reply of the old grant that comes after it."""
    late = await overtaken(stage)
    await settle(stage, late)
    fresh = replace(tokens(stage), issued_at=stage.now() + timedelta(seconds=5))
    await stage.reconnect("a", fresh)
    assert await stage.late.newest_orphan("a") is None
    assert await settle(stage, replace(late, attempt="later")) == [Settled.SUPERSEDED]
    assert await stage.late.newest_orphan("a") is None
    assert await stage.orphans("a") == 0


async def test_a_disconnect_ends_orphans_too(stage: Stage) -> None:
    """They are to be revoked like the tokens in force, or go with the connection."""
    await settle(stage, await overtaken(stage))
    await settle(stage, await overtaken(stage, "b"))
    await stage.disconnect("a")
    await stage.disconnect("b", purge=True)
    assert await stage.orphans("a") == 0
    assert await stage.orphans("b") == 0


async def test_forgotten_generations_are_stored_over(stage: Stage) -> None:
    """The tokens keep the generation that they had, and the older one is the fence."""
    await add(stage, "a")
    claim = await recalled(stage, generation=7)
    assert isinstance(claim, Claim)
    assert (claim.tokens.generation, claim.stored_generation, claim.fence) == (7, 1, 1)
    assert claim.tokens.access_token == "access 1"
    settlement = replace(renewal(claim), generation=claim.fence)
    assert await settle(stage, settlement) == [Settled.STORED]
    assert (await stage.stored("a")).tokens == settlement.tokens
    assert await settle(stage, settlement) == [Settled.STORED]
    assert await recalled(stage, generation=7) is None
    assert (await stage.stored("a")).tokens.generation == 8


async def test_a_recall_where_nothing_was_forgotten(stage: Stage) -> None:
    """It is a reclaim: on top of the same generation, and never of a newer one."""
    await add(stage, "a")
    claim = await recalled(stage)
    assert isinstance(claim, Claim)
    assert (claim.tokens.generation, claim.stored_generation, claim.fence) == (1, None, 1)
    assert await settle(stage, renewal(claim)) == [Settled.STORED]
    assert await recalled(stage) is None


async def test_who_is_not_recalled(stage: Stage) -> None:
    """What another attempt is at, what is disconnected or gone, and another grant's."""
    await add(stage, "a", "b", "c")
    await claimed(stage, "a")
    await stage.disconnect("b")
    later = replace(tokens(stage), issued_at=stage.now())
    await stage.reconnect("c", later)
    before = stage.now() - timedelta(minutes=1)
    reasons = {"a": RefusalReason.SENDING, "b": RefusalReason.DISCONNECTED}
    for name, reason in {**reasons, "nobody": RefusalReason.UNKNOWN}.items():
        answer = await recalled(stage, name, generation=7)
        assert isinstance(answer, Refusal)
        assert answer.reason is reason
    assert await recalled(stage, "c", generation=7, sent_at=before) is None
    assert isinstance(await recalled(stage, "c", generation=7), Claim)


async def test_a_reply_in_a_store_that_has_forgotten_is_unclaimed(stage: Stage) -> None:
    """With tokens it is to be recalled; without any there is nothing to be saved."""
    await add(stage, "a")
    claim = replace(await claimed(stage), tokens=tokens(stage, generation=5))
    assert await settle(stage, renewal(claim)) == [Settled.UNCLAIMED]
    assert await settle(stage, failure(claim, stage)) == [Settled.SUPERSEDED]
    assert await stage.late.newest_orphan("a") is None


@pytest.mark.parametrize("access", ["", "access"])
async def test_a_reply_that_is_stored_is_known_by_what_it_brought(
    stage: Stage, access: str
) -> None:
    """Also a refresh token alone: it is no orphan of itself."""
    await add(stage, "a")
    claim = await claimed(stage)
    settled = renewal(claim, access="access")
    assert settled.tokens is not None
    assert await settle(stage, settled) == [Settled.STORED]
    again = replace(settled, tokens=replace(settled.tokens, access_token=access))
    assert await settle(stage, again) == [Settled.STORED]
    assert (await stage.stored("a")).status is Status.ACTIVE
    assert await stage.orphans("a") == 0


async def test_what_was_taken_over_rests_whatever_the_claimants_clock_says(stage: Stage) -> None:
    """Whoever has an earlier reply may still store it, and nobody else claims, whoever asks."""
    await add(stage, "a")
    first = await claimed(stage)
    await stage.pass_time(HOLD.total_seconds() + 1)
    taken_over = failure(first, stage, state=ClaimState.IN_DOUBT, due_in=-60)
    assert await settle(stage, replace(taken_over, rests=REST)) == [Settled.STORED]
    assert (await due(stage)).claims == []
    for forced in (False, True):
        assert await refused(stage, forced=forced) is RefusalReason.SENDING
    assert isinstance(await recalled(stage, attempt="another"), Claim)


async def test_a_rest_ends(stage: Stage) -> None:
    """Then the resend is due as the rotation profile says."""
    await add(stage, "a")
    first = await claimed(stage)
    await stage.pass_time(HOLD.total_seconds() + 1)
    ending = failure(first, stage, state=ClaimState.IN_DOUBT, due_in=-60)
    assert await settle(stage, replace(ending, rests=REST)) == [Settled.STORED]
    await stage.pass_time(REST.total_seconds() + 1)
    (claim,) = (await due(stage)).claims
    assert claim.was_in_doubt
