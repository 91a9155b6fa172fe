"""Which tokens are revoked when, what each answer does to the queue, and who is told."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.errors import DatabaseUnavailableError
from daemon.domain.provider import Endpoints, Provider, RevocationRequest
from daemon.domain.revocation import GIVE_UP_AFTER, RevocationResult
from daemon.oauth.revocation import Answer, AnswerKind
from daemon.upkeep.revoking import Revoking, RevokingParts, next_try, retry_delay, to_send
from tests.support.clock import FakeClock
from tests.support.memory_revocations import (
    ACME,
    AWAY,
    LATER,
    REVOKED,
    UNSUPPORTED,
    ConfiguredPlaces,
    MemoryRevocations,
    ScriptedRevocations,
)
from tests.support.refreshing import RecordedEvents

RT, AT = "refresh_token-of-con_1", "access_token-of-con_1"
OURS = Answer(kind=AnswerKind.LATER, error="No such client.", is_ours=True, is_general=True)


@dataclass
class Stage:
    """A queue, a provider, and the worker between them."""

    clock: FakeClock = field(default_factory=FakeClock)
    providers: dict[str, Provider] = field(default_factory=lambda: {"acme": ACME})
    chance: float = 0.0

    def __post_init__(self) -> None:
        """Join the parts."""
        self.queue = MemoryRevocations(self.clock)
        self.endpoint = ScriptedRevocations(self.clock)
        self.places = ConfiguredPlaces()
        self.events = RecordedEvents()
        self.revoking = Revoking(
            RevokingParts(
                queue=self.queue,
                endpoint=self.endpoint,
                places=self.places,
                providers=self.providers,
                events=self.events,
                clock=self.clock,
                chance=lambda: self.chance,
            )
        )

    @property
    def results(self) -> list[object]:
        """Return how revocations ended, as told."""
        return [
            details["result"] for name, _, details in self.events.told if name == "revocation_ended"
        ]

    async def run_until_idle(self, task: asyncio.Task[None] | None = None) -> None:
        """Let the worker do what is due now."""
        running = task or asyncio.create_task(self.revoking.run())
        await self.clock.settle()
        if task is None:
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running


@pytest.fixture
def stage() -> Stage:
    """Return a stage with one connection's tokens in the queue."""
    stage = Stage()
    stage.queue.put()
    return stage


async def test_the_refresh_token_goes_first(stage: Stage) -> None:
    """R1: refresh token, then access token; then nothing is queued, and it is told once."""
    assert await stage.revoking.revoke_now("con_1") is RevocationResult.REVOKED
    assert stage.endpoint.tokens == [RT, AT]
    assert stage.queue.rows == {}
    assert stage.results == [RevocationResult.REVOKED]


@pytest.mark.parametrize(
    ("answers", "result", "sent", "left"),
    [
        ([REVOKED, UNSUPPORTED], RevocationResult.REVOKED, 2, 0),
        ([UNSUPPORTED, REVOKED], RevocationResult.REVOKED, 2, 0),
        ([UNSUPPORTED, UNSUPPORTED], RevocationResult.UNSUPPORTED, 2, 0),
        ([LATER, REVOKED], RevocationResult.QUEUED, 2, 1),
        ([REVOKED, LATER], RevocationResult.QUEUED, 2, 1),
        ([LATER, LATER], RevocationResult.QUEUED, 2, 2),
        ([AWAY], RevocationResult.QUEUED, 1, 2),
        ([OURS], RevocationResult.QUEUED, 1, 2),
        ([REVOKED, AWAY], RevocationResult.QUEUED, 2, 1),
    ],
)
async def test_what_each_answer_does(
    *, stage: Stage, answers: list[Answer], result: RevocationResult, sent: int, left: int
) -> None:
    """A token leaves the queue only with the provider's word; what holds for all ends the try."""
    stage.endpoint.answers = list(answers)
    assert await stage.revoking.revoke_now("con_1") is result
    assert (len(stage.endpoint.sent), len(stage.queue.rows)) == (sent, left)
    assert stage.results == ([] if result is RevocationResult.QUEUED else [result])


async def test_other_connections_are_left_alone(stage: Stage) -> None:
    """Who waits for one disconnect does not wait for others."""
    stage.queue.put("con_2")
    await stage.revoking.revoke_now("con_1")
    assert stage.endpoint.tokens == [RT, AT]
    assert await stage.queue.count("con_2") == 2


async def test_nothing_queued_is_revoked(stage: Stage) -> None:
    """A connection without rows has nothing left to revoke."""
    assert await stage.revoking.revoke_now("con_9") is RevocationResult.REVOKED
    assert stage.results == []


async def test_what_somebody_else_holds_is_queued(stage: Stage) -> None:
    """Rows that another replica works on are still queued, as far as is known here."""
    await stage.queue.claim(now=stage.clock.now(), hold=timedelta(seconds=60), limit=9)
    assert await stage.revoking.revoke_now("con_1") is RevocationResult.QUEUED
    assert stage.endpoint.sent == []


async def test_a_provider_without_an_endpoint(stage: Stage) -> None:
    """Nobody can be told: the tokens are removed, and that is the answer."""
    stage.providers["acme"] = Provider(name="acme", client_id="client")
    assert await stage.revoking.revoke_now("con_1") is RevocationResult.UNSUPPORTED
    assert stage.queue.rows == {}
    assert stage.results == [RevocationResult.UNSUPPORTED]


async def test_the_endpoint_is_discovered_for_the_connections_tenant(stage: Stage) -> None:
    """The connection's fields choose the issuer whose metadata are asked."""
    stage.providers["acme"] = Provider(name="acme", client_id="client", issuer="https://a.example")
    stage.places.is_away = True
    assert await stage.revoking.revoke_now("con_1") is RevocationResult.QUEUED
    stage.places.is_away, stage.places.discovered = False, "https://acme.example/r"
    stage.clock.advance(60)
    assert await stage.revoking.revoke_now("con_1") is RevocationResult.REVOKED
    assert {url for _, url, _ in stage.endpoint.sent} == {"https://acme.example/r"}


async def test_a_field_without_a_value_is_waited_for(stage: Stage) -> None:
    """An endpoint that cannot be made leaves the tokens queued, and says why."""
    stage.providers["acme"] = replace(
        ACME, endpoints=Endpoints(revocation="https://{region}.acme.example/r")
    )
    assert await stage.revoking.revoke_now("con_1") is RevocationResult.QUEUED
    assert "region" in str(stage.queue.rows[1][2])
    assert min(stage.queue.waits) >= 600


async def test_a_provider_that_was_taken_out_may_come_back(stage: Stage) -> None:
    """Tokens of a provider that is not configured wait an hour at a time."""
    stage.providers.clear()
    await stage.run_until_idle()
    assert stage.queue.waits == [3600.0, 3600.0]
    stage.providers["acme"] = ACME
    stage.clock.advance(3600)
    await stage.run_until_idle()
    assert stage.queue.rows == {}


async def test_only_what_the_provider_wants_is_sent(stage: Stage) -> None:
    """A provider whose configuration names one type of token gets only that."""
    request = RevocationRequest(tokens=("refresh_token",))
    stage.providers["acme"] = replace(ACME, revocation_request=request)
    assert await stage.revoking.revoke_now("con_1") is RevocationResult.REVOKED
    assert stage.endpoint.tokens == [RT]
    assert stage.queue.rows == {}


async def test_the_configured_order_counts(stage: Stage) -> None:
    """A provider may want the access token first."""
    request = RevocationRequest(tokens=("access_token", "refresh_token"))
    stage.providers["acme"] = replace(ACME, revocation_request=request)
    await stage.revoking.revoke_now("con_1")
    assert stage.endpoint.tokens == [AT, RT]


async def test_one_answer_speaks_for_a_host(stage: Stage) -> None:
    """R3: after a 503 with Retry-After nothing is sent to that host before its time."""
    for number in range(2, 6):
        stage.queue.put(f"con_{number}")
    stage.endpoint.answers = [replace(AWAY, retry_after=120.0)]
    await stage.run_until_idle()
    assert stage.endpoint.tokens == [RT]
    assert min(stage.queue.waits) >= 120
    assert await stage.revoking.revoke_now("con_2") is RevocationResult.QUEUED
    stage.clock.advance(121)
    await stage.run_until_idle()
    assert len(stage.endpoint.sent) == 1 + 10
    assert stage.queue.rows == {}


async def test_one_request_at_a_time_at_each_provider() -> None:
    """Many disconnects are no burst at a provider, and providers do not wait for each other."""
    stage = Stage(providers={name: _named(name) for name in ("a", "b", "c", "d", "e", "f")})
    for name in stage.providers:
        for number in range(3):
            stage.queue.put(f"con_{name}{number}", name)
    stage.endpoint.gate.clear()
    task = asyncio.create_task(stage.revoking.run())
    await stage.clock.settle()
    assert stage.endpoint.most_in_flight == 4
    stage.endpoint.gate.set()
    await stage.clock.settle()
    await stage.clock.settle()
    assert stage.queue.rows == {}
    task.cancel()


def _named(name: str) -> Provider:
    return replace(ACME, name=name, endpoints=Endpoints(revocation=f"https://{name}.example/r"))


async def test_time_is_limited_for_somebody_who_waits(stage: Stage) -> None:
    """A slow provider gets what is left of the time; what was not sent stays queued."""
    stage.endpoint.takes = 6.0
    assert await stage.revoking.revoke_now("con_1", within=5.0) is RevocationResult.QUEUED
    assert [(token, timeout) for token, _, timeout in stage.endpoint.sent] == [(RT, 5.0)]
    assert len(stage.queue.rows) == 1


async def test_the_worker_wakes_up_for_what_is_due(stage: Stage) -> None:
    """What failed is tried again at its time, without anybody's doing."""
    stage.endpoint.answers = [LATER, LATER]
    task = asyncio.create_task(stage.revoking.run())
    await stage.clock.settle()
    assert stage.queue.waits == [5.0, 5.0]
    stage.clock.advance(5)
    await stage.clock.settle()
    assert stage.endpoint.tokens == [RT, AT, RT, AT]
    assert stage.queue.rows == {}
    stage.queue.put("con_2")
    stage.revoking.wake()
    await stage.clock.settle()
    assert stage.queue.rows == {}
    task.cancel()


async def test_what_another_replica_queued_is_found(stage: Stage) -> None:
    """Nobody has to wake the worker: it looks every half minute."""
    stage.queue.rows.clear()
    task = asyncio.create_task(stage.revoking.run())
    await stage.clock.settle()
    stage.queue.put()
    stage.clock.advance(30)
    await stage.clock.settle()
    assert stage.queue.rows == {}
    task.cancel()


async def test_the_database_may_be_away(stage: Stage) -> None:
    """The worker waits for it; somebody who waits is told."""
    stage.queue.is_away = True
    task = asyncio.create_task(stage.revoking.run())
    await stage.clock.settle()
    with pytest.raises(DatabaseUnavailableError):
        await stage.revoking.revoke_now("con_1")
    stage.queue.is_away = False
    stage.clock.advance(2)
    await stage.clock.settle()
    assert stage.queue.rows == {}
    task.cancel()


async def test_a_result_that_was_not_stored_is_sent_again(stage: Stage) -> None:
    """Revoking twice is a success: a database that goes away in between loses nothing."""
    stage.endpoint.gate.clear()
    task = asyncio.create_task(stage.revoking.run())
    await stage.clock.settle()
    stage.queue.is_away = True
    stage.endpoint.gate.set()
    await stage.clock.settle()
    stage.queue.is_away = False
    stage.clock.advance(30)
    await stage.clock.settle()
    stage.clock.advance(30)
    await stage.clock.settle()
    assert stage.endpoint.tokens == [RT, RT, AT]
    assert stage.queue.rows == {}
    task.cancel()


async def test_a_cancelled_worker_leaves_its_rows(stage: Stage) -> None:
    """What was in flight at shutdown is due again when its hold is over."""
    stage.endpoint.gate.clear()
    await stage.run_until_idle()
    assert stage.queue.waits == [60.0, 60.0]
    assert stage.endpoint.in_flight == 0
    stage.endpoint.gate.set()
    stage.clock.advance(60)
    await stage.run_until_idle()
    assert stage.queue.rows == {}


async def test_seven_days_are_enough(stage: Stage) -> None:
    """R4: tried until the end of the seventh day, then given up, and told."""
    stage.endpoint.otherwise, stage.chance = LATER, 0.5
    for _ in range(100):
        if not stage.queue.rows:
            break
        await stage.run_until_idle()
        stage.clock.advance(max([0.0, *stage.queue.waits]))
    assert stage.queue.rows == {}
    assert stage.events.names == ["revocation_abandoned", "revocation_abandoned"]
    assert stage.clock.elapsed == GIVE_UP_AFTER.total_seconds()
    assert len(stage.endpoint.sent) > 50


@given(
    attempts=st.integers(0, 10_000),
    chance=st.floats(0, 1, exclude_max=True),
    wanted=st.none() | st.floats(1, 3600),
    is_ours=st.booleans(),
)
def test_delays(*, attempts: int, chance: float, wanted: float | None, is_ours: bool) -> None:
    """Between 5 s (ten minutes where somebody must act) and 6 h, never less than asked for."""
    answer = Answer(kind=AnswerKind.LATER, retry_after=wanted, is_ours=is_ours)
    delay = retry_delay(attempts, chance, answer)
    assert max(600.0 if is_ours else 5.0, wanted or 0.0) <= delay <= 6 * 3600
    assert retry_delay(attempts + 1, chance, answer) >= delay


@given(age=st.floats(0, 14 * 86_400), delay=st.floats(0, 21_600))
def test_the_last_try_is_at_the_end(age: float, delay: float) -> None:
    """The next try is never after the seven days; after them there is none."""
    clock = FakeClock()
    queue = MemoryRevocations(clock)
    queue.put(hints=("refresh_token",))
    revocation = queue.rows[1][0]
    now = revocation.created_at + timedelta(seconds=age)
    at = next_try(revocation, now, delay)
    if now >= revocation.created_at + GIVE_UP_AFTER:
        assert at is None
    else:
        assert at is not None
        assert now <= at <= revocation.created_at + GIVE_UP_AFTER


def test_old_and_new_tokens_of_one_connection() -> None:
    """Several tokens of a type go in the order in which they were queued."""
    queue = MemoryRevocations(FakeClock())
    queue.put()
    queue.put()
    rows = [row for row, _, _ in reversed(list(queue.rows.values()))]
    assert [one.id for one in to_send(rows, ("refresh_token", "access_token"))] == [1, 3, 2, 4]
    assert to_send(rows, ()) == ()
