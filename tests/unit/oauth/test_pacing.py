"""The moment of sending."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.admission import BURST, burst
from daemon.oauth.pacing import Pacing, next_free
from tests.support.clock import FakeClock


class Senders:
    """Requests that ask for their turn, and when each left."""

    def __init__(self, rate: float) -> None:
        self.clock = FakeClock()
        self.left: list[float] = []
        self.names: list[str] = []
        self._rate = rate
        self._pacing = Pacing(self.clock)
        self._tasks: list[asyncio.Task[None]] = []

    def ask(self, after: float = 0.0, *, provider: str = "acme") -> asyncio.Task[None]:
        """Ask for a turn in so many seconds."""
        task = asyncio.create_task(self._send(provider, after))
        self._tasks.append(task)
        return task

    async def _send(self, provider: str, after: float) -> None:
        await self.clock.sleep(after)
        await self._pacing.turn(provider, rate=self._rate)
        self.left.append(self.clock.elapsed)
        self.names.append(provider)


async def test_who_comes_in_time_does_not_wait() -> None:
    """Nobody is in the way."""
    senders = Senders(rate=10)
    for after in (0.0, 0.1, 0.2):
        senders.ask(after)
    await senders.clock.run(0.3)
    assert senders.left == pytest.approx([0.0, 0.1, 0.2])


async def test_a_process_that_stood_still_makes_up_for_a_few_only() -> None:
    """All its slots are past; the rate holds from there on, in order of arrival."""
    senders = Senders(rate=200)
    for slot in range(100):
        senders.ask(0.1 + slot / 200)
    await senders.clock.settle()
    senders.clock.advance(10)
    await senders.clock.run(0.001)
    assert len(senders.left) == burst(200) == 5
    await senders.clock.run(1)
    assert len(senders.left) == 100
    assert max(senders.left) == pytest.approx(10 + 95 / 200, abs=0.003)


async def test_providers_have_lines_of_their_own() -> None:
    """Nobody waits for the rate of another."""
    senders = Senders(rate=0.1)
    for provider in ["acme"] * 12 + ["other"]:
        senders.ask(provider=provider)
    await senders.clock.run(1)
    assert senders.names == ["acme"] * BURST + ["other"]


async def test_who_gives_up_takes_no_slot() -> None:
    """The next in line goes in its place."""
    senders = Senders(rate=1)
    for _ in range(BURST):
        senders.ask()
    first, second = senders.ask(), senders.ask()
    await senders.clock.run(0.5)
    first.cancel()
    await senders.clock.run(0.6)
    assert first.cancelled()
    assert second.done()


async def test_a_rate_above_what_timers_resolve_is_reached() -> None:
    """At 100,000 a second nobody waits for each ten microseconds."""
    senders = Senders(rate=100_000)
    for _ in range(200):
        senders.ask()
    await senders.clock.run(0)
    assert len(senders.left) == 200


@given(
    rate=st.sampled_from([1.0, 10.0, 100.0, 200.0, 390.0]),
    gaps=st.lists(st.floats(0, 0.2), min_size=1, max_size=200),
)
def test_any_second_holds_the_rate(rate: float, gaps: list[float]) -> None:
    """However requests come together, no second sees more than the rate and ten."""
    now, free_at = 1000.0, -inf
    left: list[float] = []
    for gap in gaps:
        now += gap
        free_at = next_free(free_at, rate=rate, now=now)
        now = max(now, free_at)
        left.append(now)
    for number, at in enumerate(left):
        assert bisect_left(left, at + 1.0) - number <= rate + BURST


@pytest.mark.parametrize("rate", [1e-300, 1e-9, 1e9, 1e300])
def test_absurd_rates(rate: float) -> None:
    """A rate that nobody means still gives a moment."""
    assert 0 < next_free(-inf, rate=rate, now=1e6) <= 1e6


async def test_who_would_be_too_late_takes_no_slot() -> None:
    """A request that may not leave any more does not delay those behind it."""
    clock = FakeClock()
    pacing = Pacing(clock)
    while await pacing.turn("acme", rate=0.1, by=clock.boottime()):
        pass
    late = asyncio.create_task(pacing.turn("acme", rate=0.1, by=clock.boottime() + 5))
    patient = asyncio.create_task(pacing.turn("acme", rate=0.1, by=clock.boottime() + 30))
    await clock.settle()
    assert late.done()
    assert late.result() is False
    await clock.run(10)
    assert patient.done()
    assert patient.result() is True
