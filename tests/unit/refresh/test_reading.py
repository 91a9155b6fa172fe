"""A token read: what the cache has, if it will do; else one refresh, joined by all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from dataclasses import replace
from math import inf
from typing import Any, TypeVar

import pytest

from daemon.domain.claim import ClaimState
from daemon.domain.connection import Failure, Status
from daemon.domain.errors import Problem
from daemon.domain.outcome import FailureReason, Outcome, OutcomeKind
from daemon.domain.tokens import CurrentToken
from daemon.refresh.cache import Entry
from daemon.refresh.reading import Need, Reading, need
from tests.support.clock import START
from tests.support.refreshing import Replica, tokens

T = TypeVar("T")
DOWN = Outcome(kind=OutcomeKind.NOT_SENT, reason=FailureReason.NETWORK, description="No route.")
INVALID_GRANT = Outcome(
    kind=OutcomeKind.REAUTHORIZE,
    error="invalid_grant",
    description="The provider no longer accepts the grant.",
)


def entry(lifetime: float | None, **members: object) -> Entry:
    """Return the entry of a token that was issued at the start, generation 3."""
    stored = tokens(lifetime or 0)
    token = CurrentToken(
        connection="acme-1",
        provider="acme",
        status=Status.ACTIVE,
        generation=3,
        access_token="a",
        token_type="Bearer",
        scopes=(),
        issued_at=START,
        expires_at=None if lifetime is None else stored.expires_at,
        refreshable=True,
    )
    return Entry(replace(token, **members))  # type: ignore[arg-type] # members by name


@pytest.mark.parametrize(
    ("lifetime", "age", "min_ttl", "newer_than", "expected"),
    [
        (3600, 0, 0, None, Need.NOTHING),
        (3600, 3599, 0, None, Need.NOTHING),
        (3600, 3599.5, 0, None, Need.REFRESH),
        (3600, 3601, 0, None, Need.REFRESH),
        (None, 1e9, 1e8, None, Need.NOTHING),
        # min_ttl
        (3600, 1000, 2600, None, Need.NOTHING),
        (3600, 1000, 2601, None, Need.REFRESH),
        (3600, 1000, 3599, None, Need.REFRESH),
        # More than is ever given: the newest token will do, however old it is.
        (3600, 0, 3600, None, Need.NOTHING),
        (3600, 1, 3600, None, Need.LONGER_THAN_GIVEN),
        (3600, 3500, 7200, None, Need.LONGER_THAN_GIVEN),
        # Nearly a whole lifetime: a young token will do.
        (3600, 29, 3599, None, Need.LONGER_THAN_GIVEN),
        (3600, 31, 3599, None, Need.REFRESH),
        (100, 4, 99, None, Need.LONGER_THAN_GIVEN),
        (100, 6, 99, None, Need.REFRESH),
        # newer_than
        (3600, 0, 0, 2, Need.NOTHING),
        (3600, 0, 0, 3, Need.REFRESH),
        (3600, 0, 0, 4, Need.REFRESH),
        (3600, 0, 7200, 3, Need.REFRESH),
        (None, 0, 0, 3, Need.REFRESH),
        # A clock that was set back makes no token old.
        (3600, -100, 3599, None, Need.NOTHING),
    ],
)
def test_need(
    *,
    lifetime: float | None,
    age: float,
    min_ttl: float,
    newer_than: int | None,
    expected: Need,
) -> None:
    """What a read needs follows from the token, the two wishes and the time."""
    now = START.timestamp() + age
    found = need(entry(lifetime), min_ttl=min_ttl, newer_than=newer_than, now=now)
    assert found is expected


@pytest.mark.parametrize("status", [Status.PENDING, Status.DISCONNECTED])
def test_nothing_to_serve_needs_a_refresh(status: Status) -> None:
    """Without a token there is nothing that could satisfy anybody."""
    nothing = entry(None, status=status, access_token="")
    assert nothing.expires_at < inf
    assert need(nothing, min_ttl=0, newer_than=None, now=START.timestamp()) is Need.REFRESH


async def during(here: Replica, work: Coroutine[Any, Any, T], seconds: float = 1.0) -> T:
    """Return what ``work`` comes to while time passes."""
    task = asyncio.create_task(work)
    await here.clock.run(seconds)
    assert task.done(), "it still waits"
    return await task


async def read(
    here: Replica, *, min_ttl: float = 0, newer_than: int | None = None, seconds: float = 1.0
) -> Reading:
    """Read the token of acme-1."""
    work = here.reader.read("acme-1", min_ttl=min_ttl, newer_than=newer_than)
    reading = await during(here, work, seconds)
    assert reading is not None
    return reading


async def refused(
    here: Replica, *, newer_than: int | None = None, seconds: float = 1.0
) -> tuple[int, str, object]:
    """Return status, code and retry_after of a read that is refused."""
    with pytest.raises(Problem) as caught:
        await read(here, newer_than=newer_than, seconds=seconds)
    problem = caught.value
    assert problem.members["connection"] == "acme-1"
    return problem.status, problem.code, problem.members.get("retry_after")


async def test_a_good_token_is_served_from_memory() -> None:
    """After the first read nothing but memory is asked."""
    here = Replica()
    here.add()
    assert (await read(here)).outcome == "served"
    here.store.is_away = True
    reading = await read(here, min_ttl=60)
    assert (reading.outcome, reading.warning) == ("served", None)
    assert here.store.calls == ["current"]


async def test_an_unknown_connection() -> None:
    """A connection that is nowhere is nothing, which is no error here."""
    assert await Replica().reader.read("nobody") is None


async def test_an_expired_token_is_refreshed_first() -> None:
    """Who asks waits for the new token, and never sees the old one."""
    here = Replica()
    here.add(stored=tokens(age=3700))
    reading = await read(here)
    assert (reading.outcome, reading.entry.generation) == ("refreshed", 2)
    assert here.sender.sent == ["refresh 1"]


async def test_min_ttl_refreshes_once_and_is_clamped() -> None:
    """More life than the provider gives brings the newest token and no request for each read."""
    here = Replica()
    here.sender.lifetime = 300.0
    here.add(stored=tokens(300, age=200))
    assert (await read(here, min_ttl=200)).outcome == "refreshed"
    readings = [await read(here, min_ttl=7200) for _ in range(3)]
    assert [reading.outcome for reading in readings] == ["warned"] * 3
    reading = readings[-1]
    assert reading.warning is not None
    assert "live for 300 s" in reading.warning
    body = json.loads(reading.entry.body(here.clock.now().timestamp(), warning=reading.warning))
    assert body["warning"] == reading.warning
    assert here.sender.sent == ["refresh 1"]


async def test_newer_than_refreshes_a_token_that_looks_good() -> None:
    """A caller whose token was refused gets a newer generation, if there is none yet."""
    here = Replica()
    here.add()
    assert (await read(here, newer_than=1)).entry.generation == 2
    reading = await read(here, newer_than=1)
    assert (reading.outcome, reading.entry.generation) == ("served", 2)
    assert here.sender.sent == ["refresh 1"]


async def test_callers_at_once_cause_one_request() -> None:
    """Ten thousand reads of one expired token are one refresh."""
    here = Replica()
    here.add(stored=tokens(age=3700))
    reads = [asyncio.create_task(here.reader.read("acme-1")) for _ in range(10_000)]
    await here.clock.run(1)
    readings = await asyncio.gather(*reads)
    assert {reading.entry.generation for reading in readings if reading} == {2}
    assert here.sender.sent == ["refresh 1"]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (Status.PENDING, "not_authorized_yet"),
        (Status.DISCONNECTED, "disconnected"),
        (Status.REAUTHORIZATION_REQUIRED, "reauthorization_required"),
    ],
)
async def test_where_a_person_must_act(status: Status, code: str) -> None:
    """Without a good token the answer is what a person has to do, at once."""
    here = Replica()
    here.add(stored=tokens(age=3700), status=status)
    assert await refused(here) == (409, code, None)
    assert here.sender.sent == []


async def test_a_grant_that_dies_while_somebody_waits() -> None:
    """Who waits for the refresh that finds the grant dead hears so."""
    here = Replica()
    here.add(stored=tokens(age=3700))
    here.sender.outcomes = [INVALID_GRANT]
    assert await refused(here) == (409, "reauthorization_required", None)


async def test_a_good_token_of_a_dead_grant() -> None:
    """It is served to its end with a warning, without a look at the database each time."""
    here = Replica()
    row = here.add(stored=tokens(age=3000), status=Status.REAUTHORIZATION_REQUIRED, due_in=None)
    row.last_error = Failure(code="invalid_grant", description="It was revoked.", at=START)
    assert (await read(here)).outcome == "warned"
    reading = await read(here, min_ttl=900)
    assert reading.outcome == "warned"
    assert reading.warning is not None
    assert "It was revoked." in reading.warning
    assert (await read(here, newer_than=0, min_ttl=900)).outcome == "warned"
    assert here.store.calls == ["current"]
    assert await refused(here, newer_than=1) == (409, "reauthorization_required", None)
    here.clock.advance(700)
    assert await refused(here) == (409, "reauthorization_required", None)


async def test_without_a_refresh_token() -> None:
    """A token that cannot be renewed is served to its end; then a person is needed."""
    here = Replica()
    here.add(stored=tokens(age=3000, refreshable=False))
    assert (await read(here)).outcome == "served"
    reading = await read(here, min_ttl=900)
    assert reading.warning is not None
    assert "no refresh token" in reading.warning
    here.clock.advance(700)
    assert await refused(here) == (409, "reauthorization_required", None)


async def test_a_refresh_that_fails_while_the_token_is_good() -> None:
    """The best there is goes out with a warning that says why it is no better."""
    here = Replica()
    here.add(stored=tokens(age=3000))
    here.sender.outcomes = [DOWN]
    reading = await read(here, min_ttl=900)
    assert (reading.outcome, reading.entry.generation) == ("warned", 1)
    assert reading.warning is not None
    assert "No route." in reading.warning
    again = await read(here)
    assert (again.outcome, again.warning) == ("warned", None)
    assert b"No route." in again.entry.tail


async def test_a_refresh_that_fails_after_the_expiry() -> None:
    """An expired token is never served; the answer says when to come again."""
    here = Replica()
    here.add(stored=tokens(age=3700))
    here.sender.outcomes = [replace(DOWN, retry_after=42.5)]
    assert await refused(here) == (503, "token_unavailable", 43)
    here.clock.advance(10)
    status, code, retry_after = await refused(here)
    assert (status, code) == (503, "token_unavailable")
    assert retry_after == 32
    assert here.sender.sent == ["refresh 1"]


async def test_a_refresh_that_fails_with_newer_than() -> None:
    """A token that its caller knows to be refused is not handed out again."""
    here = Replica()
    here.add()
    here.sender.outcomes = [DOWN]
    assert (await refused(here, newer_than=1))[:2] == (503, "token_unavailable")


async def test_the_database_is_away_and_memory_has_nothing() -> None:
    """What is not in memory cannot be said without the database."""
    here = Replica()
    here.add()
    here.store.is_away = True
    assert await refused(here) == (503, "token_unavailable", 2)


async def test_the_database_is_away_and_a_refresh_is_needed() -> None:
    """A good token is served to its end, with a warning where more was asked for."""
    here = Replica()
    here.add(stored=tokens(age=3000))
    await read(here)
    here.store.is_away = True
    assert (await read(here, min_ttl=900)).outcome == "warned"
    here.clock.advance(700)
    assert await refused(here) == (503, "token_unavailable", 1)
    assert here.sender.sent == []


async def test_another_replica_has_refreshed_already() -> None:
    """What is stored is read, and nothing is sent."""
    here = Replica()
    row = here.add(stored=tokens(age=3000))
    await read(here)
    row.tokens = tokens(generation=2)
    reading = await read(here, min_ttl=900)
    assert (reading.outcome, reading.entry.generation) == ("refreshed", 2)
    assert here.sender.sent == []


async def test_a_connection_that_went_away_meanwhile() -> None:
    """It is nothing any more, also for who waits for its refresh."""
    here = Replica()
    here.add(stored=tokens(age=3000))
    await read(here)
    del here.store.rows["acme-1"]
    assert await during(here, here.reader.read("acme-1", min_ttl=900)) is None


async def test_patience_ends_before_the_refresh() -> None:
    """A caller waits no longer than configured; the refresh goes on and is there for the next."""
    here = Replica()
    here.settings = replace(here.settings, request_timeout=here.settings.request_timeout / 3000)
    here.add(stored=tokens(age=3000))
    here.sender.gate.clear()
    task = asyncio.create_task(here.reader.read("acme-1", min_ttl=900))
    # The patience is the event loop's, not the fake clock's: here it is 10 ms.
    reading = await task
    assert reading is not None
    assert reading.warning is not None
    assert "not finished in time" in reading.warning
    here.sender.gate.set()
    await here.clock.run(1)
    assert (await read(here, min_ttl=900)).entry.generation == 2


async def test_a_person_refreshes() -> None:
    """A forced refresh passes the backoff and returns when it is stored."""
    here = Replica()
    here.add(status=Status.FAILING, failures=4)
    await during(here, here.reader.refresh_now(here.wanted(forced=True)))
    assert here.row().tokens.generation == 2
    assert here.row().status is Status.ACTIVE


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (DOWN, (503, "token_unavailable")),
        (INVALID_GRANT, (409, "reauthorization_required")),
    ],
)
async def test_a_person_hears_of_a_failure(outcome: Outcome, expected: tuple[int, str]) -> None:
    """A forced refresh that brought nothing says why, though the token in hand is good."""
    here = Replica()
    here.add()
    here.sender.outcomes = [outcome]
    with pytest.raises(Problem) as caught:
        await during(here, here.reader.refresh_now(here.wanted(forced=True)))
    assert (caught.value.status, caught.value.code) == expected


async def test_a_person_finds_another_attempt_open() -> None:
    """Nothing is sent beside an open attempt, and the answer says to come again."""
    here = Replica()
    here.add(state=ClaimState.SENDING)
    with pytest.raises(Problem) as caught:
        await during(here, here.reader.refresh_now(here.wanted(forced=True)), 40)
    assert caught.value.code == "token_unavailable"
    assert here.sender.sent == []
