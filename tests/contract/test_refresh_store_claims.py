"""How refresh stores give claims: one suite, on the fake in memory and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest

from daemon.domain.claim import (
    Claim,
    ClaimState,
    Refusal,
    RefusalReason,
)
from daemon.domain.claimable import Wanted
from daemon.domain.connection import Status
from daemon.domain.outcome import Granted, Outcome, OutcomeKind
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.history import EventRecorder
from daemon.persistence.postgres import Database
from daemon.persistence.refreshes import PostgresRefreshes
from tests.support.database import open_database
from tests.support.polling import eventually
from tests.support.refresh_claims import (
    HOLD,
    RATE,
    add,
    claimed,
    due,
    failure,
    refused,
    settle,
    tokens,
    want,
)
from tests.support.refresh_stages import PostgresStage, Stage


async def test_a_claim_has_all_that_sending_needs(stage: Stage) -> None:
    """What is due is claimed with its tokens, as they were stored."""
    await add(stage, "a")
    stored = (await stage.stored("a")).tokens
    (claim,) = (await due(stage)).claims
    assert (claim.connection_id, claim.provider) == ("a", "acme")
    assert claim.tokens == stored
    assert claim.status is Status.ACTIVE
    assert (claim.was_in_doubt, claim.failures, claim.delay) == (False, 0, 0.0)
    assert claim.planned_at == stage.now() - timedelta(seconds=21)
    assert (await stage.stored("a")).state is ClaimState.SENDING


async def test_nobody_else_gets_a_claimed_connection(stage: Stage) -> None:
    """An open claim is exclusive: for the sweep, for callers, and for a person."""
    await add(stage, "a")
    assert len((await due(stage)).claims) == 1
    assert (await due(stage)).claims == []
    assert await refused(stage) is RefusalReason.SENDING
    assert await refused(stage, forced=True) is RefusalReason.SENDING


async def test_who_is_due_longest_comes_first(stage: Stage) -> None:
    """Of many that are due the longest overdue are claimed, and only what is due."""
    for number in (3, 1, 4, 2):
        await stage.add(
            f"c{number}",
            tokens(stage),
            provider="acme",
            due_at=stage.now() - timedelta(seconds=100 - number),
        )
    await add(stage, "later", due_in=60)
    await add(stage, "never", due_in=None)
    first, second = await due(stage, 2), await due(stage, 8)
    assert {claim.connection_id for claim in first.claims} == {"c1", "c2"}
    assert {claim.connection_id for claim in second.claims} == {"c3", "c4"}


async def test_each_provider_has_its_places(stage: Stage) -> None:
    """A provider's backlog takes none of the places of another; unnamed ones get nothing."""
    await add(stage, "a1", "a2", "a3")
    await add(stage, "b1", "b2", provider="other")
    await add(stage, "c1", provider="third")
    found = await stage.store.claim_due(
        room={"acme": (2, RATE), "other": (5, RATE)}, owner="one", hold=HOLD, now=stage.now()
    )
    counts = Counter(claim.provider for claim in found.claims)
    assert counts == {"acme": 2, "other": 2}
    assert set(found.states) == {"acme", "other"}


async def test_the_rate_bounds_a_sweep(stage: Stage) -> None:
    """No more is claimed than the fleet-wide rate admits, and the sweep learns when to come."""
    await add(stage, *(f"c{number}" for number in range(20)))
    found = await due(stage, 20, rate=1.0)
    assert 10 <= len(found.claims) <= 11
    assert found.again_in is not None
    assert 0 < found.again_in <= 1
    assert len((await due(stage, 20, rate=1.0)).claims) <= 1
    await stage.pass_time(3)
    assert 2 <= len((await due(stage, 20, rate=1.0)).claims) <= 4


async def test_the_rate_holds_for_those_who_wait_too(stage: Stage) -> None:
    """A caller's claim uses up the same rate, and is refused with the time it is possible."""
    await add(stage, *(f"c{number}" for number in range(12)))
    wishes = [
        Wanted(connection_id=f"c{number}", provider="acme", generation=1, rate=1.0, forced=True)
        for number in range(12)
    ]
    answers = [
        await stage.store.claim(wish, owner="one", hold=HOLD, now=stage.now()) for wish in wishes
    ]
    refusals = [answer for answer in answers if isinstance(answer, Refusal)]
    assert 1 <= len(refusals) <= 2
    assert refusals[0].reason is RefusalReason.PROVIDER_PAUSED
    assert refusals[0].retry_at is not None
    assert timedelta(0) < refusals[0].retry_at - stage.now() <= timedelta(seconds=1)


async def test_refusals(stage: Stage) -> None:
    """Each reason for which a wanted claim is not given."""
    await add(stage, "a", "dead", "failing", due_in=3600)
    await add(stage, "bare", stored=tokens(stage, refreshable=False), due_in=3600)
    await stage.set_status("dead", Status.REAUTHORIZATION_REQUIRED)
    await settle(stage, failure(await claimed(stage, "failing"), stage))
    assert await refused(stage, "nobody") is RefusalReason.UNKNOWN
    assert await refused(stage, "dead") is RefusalReason.NOT_REFRESHABLE
    assert await refused(stage, "bare") is RefusalReason.NOT_REFRESHABLE
    assert await refused(stage, "failing") is RefusalReason.BACKING_OFF
    assert await refused(stage, "a", generation=0) is RefusalReason.SUPERSEDED
    waiting = await want(stage, "failing")
    assert isinstance(waiting, Refusal)
    assert waiting.retry_at == stage.now() + timedelta(seconds=30)


async def test_a_person_passes_backoff_and_pause(stage: Stage) -> None:
    """A forced claim is given where only waiting stands against it."""
    await add(stage, "a", "b", due_in=3600)
    await settle(stage, failure(await claimed(stage), stage))
    await stage.store.learn("acme", Outcome(kind=OutcomeKind.REFUSED, retry_after=600.0))
    assert await refused(stage, "b") is RefusalReason.PROVIDER_PAUSED
    assert (await claimed(stage, "a", forced=True)).failures == 1


async def test_tokens_that_arrive_expired_do_not_loop(stage: Stage) -> None:
    """Where the provider gives no life, callers wait for the planned time like everybody."""
    lifeless = replace(tokens(stage), expires_at=stage.now() - timedelta(hours=1))
    await add(stage, "a", stored=lifeless, due_in=50)
    assert await refused(stage) is RefusalReason.BACKING_OFF
    await stage.pass_time(31)
    assert isinstance(await want(stage), Claim)


async def test_the_next_due_time(stage: Stage) -> None:
    """The soonest time later than the one asked for, at the providers asked for."""
    start = stage.now()
    await add(stage, "a", due_in=60)
    await add(stage, "b", due_in=600)
    await add(stage, "c", due_in=30, provider="other")
    await add(stage, "d", due_in=None)
    soonest = await stage.store.next_due(["acme"], after=start)
    assert soonest == start + timedelta(seconds=60)
    assert soonest is not None
    assert await stage.store.next_due(["acme"], after=soonest) == start + timedelta(seconds=620)
    assert await stage.store.next_due(["none"], after=start) is None
    assert await stage.store.next_due([], after=start) is None


async def test_a_pause_holds_for_the_fleet_and_ends(stage: Stage) -> None:
    """While a provider wants a rest nothing of its backlog is claimed; others go on."""
    await add(stage, "a")
    await add(stage, "b", provider="other")
    told = Outcome(kind=OutcomeKind.REFUSED, retry_after=60.0)
    before, after = await stage.store.learn("acme", told)
    assert (before.paused_until, after.circuit) == (None, None)
    paused = await due(stage)
    assert paused.claims == []
    assert paused.again_in == pytest.approx(60, abs=2)
    assert len((await due(stage, provider="other")).claims) == 1
    await stage.pass_time(61)
    assert len((await due(stage)).claims) == 1


async def test_a_circuit_opens_probes_and_closes(stage: Stage) -> None:
    """After failures in a row one request is let through each 30 s, until one succeeds."""
    await add(stage, "a", "b", "c")
    for _ in range(5):
        await stage.store.learn("acme", Outcome(kind=OutcomeKind.NOT_SENT))
    assert (await due(stage)).claims == []
    await stage.pass_time(31)
    assert len((await due(stage)).claims) == 1
    assert (await due(stage)).claims == []
    success = Outcome(kind=OutcomeKind.OK, granted=Granted(access_token="a"))
    before, after = await stage.store.learn("acme", success)
    assert (before.circuit, after.circuit, after.failures) == ("unavailable", None, 0)
    assert len((await due(stage)).claims) == 2


async def test_learning_of_a_provider_that_nobody_has_added(stage: Stage) -> None:
    """A provider's state comes to be when it is first needed."""
    before, after = await stage.store.learn("fresh", Outcome(kind=OutcomeKind.IN_DOUBT))
    assert (before.failures, after.failures) == (0, 1)
    assert (await due(stage, provider="newer")).claims == []


async def test_a_race_has_one_winner(stage: Stage) -> None:
    """Many who want one connection at once: exactly one receives the claim."""
    await add(stage, "a")
    answers = await asyncio.gather(*(want(stage) for _ in range(20)))
    assert sum(isinstance(answer, Claim) for answer in answers) == 1
    reasons = {answer.reason for answer in answers if isinstance(answer, Refusal)}
    assert reasons == {RefusalReason.SENDING}


async def test_two_replicas_share_the_work(migrated_url: str, cipher: TokenCipher) -> None:
    """Two processes on one database: each due connection is claimed by exactly one of them."""
    first, second = open_database(migrated_url), open_database(migrated_url)
    await asyncio.gather(first.start(), second.start())
    try:
        stage = PostgresStage(first, cipher)
        names = [f"c{number}" for number in range(40)]
        await add(stage, *names)
        other = PostgresRefreshes(second, cipher, recorder=EventRecorder(delivers=lambda: False))
        found = await asyncio.gather(
            *(
                store.claim_due(room={"acme": (8, RATE)}, owner="x", hold=HOLD, now=stage.now())
                for store in (stage.refreshes, other) * 4
            )
        )
        claims = [claim.connection_id for one in found for claim in one.claims]
        assert len(claims) == len(set(claims))
        assert sorted(claims) == sorted(names)
    finally:
        await asyncio.gather(first.close(), second.close())


async def test_a_claim_that_had_to_wait_sees_what_was_written(
    database: Database, cipher: TokenCipher
) -> None:
    """Tokens are read after the lock is there: a refresh token that was just spent is not sent."""
    stage = PostgresStage(database, cipher)
    await add(stage, "a")

    async def blocked() -> int:
        return int(await database.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

    async with database.transaction() as session:
        await session.execute("SELECT 1 FROM refresh_schedule FOR UPDATE")
        await session.execute("UPDATE token_sets SET generation = 2")
        waiting = asyncio.create_task(want(stage))
        await eventually(blocked, what="the wait for the lock")
    refusal = await waiting
    assert isinstance(refusal, Refusal)
    assert refusal.reason is RefusalReason.SUPERSEDED
