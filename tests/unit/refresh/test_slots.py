"""Limits of refreshes in flight."""

from __future__ import annotations

import asyncio

from daemon.refresh.slots import Slots


class Limits:
    """Limits that a test can change."""

    def __init__(self, total: int = 4, at_provider: int = 2) -> None:
        self.total = total
        self.at_provider = at_provider

    def slots(self) -> Slots:
        """Return slots that follow these limits."""
        return Slots(total=lambda: self.total, at_provider=lambda _: self.at_provider)


async def waiting(slots: Slots, provider: str) -> asyncio.Task[None]:
    """Start to wait for a place."""
    task = asyncio.create_task(slots.take(provider))
    await asyncio.sleep(0)
    return task


def test_free_places() -> None:
    """As many are free as both limits leave."""
    slots = Limits(total=3, at_provider=2).slots()
    assert slots.free("acme") == 2
    slots.take_now("acme", 2)
    assert (slots.free("acme"), slots.free("other")) == (0, 1)
    slots.take_now("other", 1)
    assert (slots.free("other"), slots.in_flight("acme")) == (0, 2)
    slots.give("acme", 2)
    assert (slots.free("acme"), slots.free("other")) == (2, 1)


async def test_who_waits_is_served_in_order() -> None:
    """Places go to those who wait, in order of arrival, before anybody else."""
    slots = Limits(at_provider=1).slots()
    await slots.take("acme")
    first, second = await waiting(slots, "acme"), await waiting(slots, "acme")
    slots.give("acme")
    assert slots.free("acme") == 0
    await first
    assert not second.done()
    slots.give("acme")
    await second
    slots.give("acme")
    assert slots.free("acme") == 1


async def test_a_full_provider_does_not_hold_up_another() -> None:
    """Who waits at one provider leaves the places of the others alone."""
    slots = Limits(total=4, at_provider=1).slots()
    await slots.take("slow")
    stuck = await waiting(slots, "slow")
    await slots.take("acme")
    assert not stuck.done()
    slots.give("slow")
    await stuck


async def test_a_place_goes_to_the_first_who_may_use_it() -> None:
    """Where the first in line still may not start, a later one at another provider does."""
    slots = Limits(total=2, at_provider=1).slots()
    await slots.take("slow")
    await slots.take("acme")
    stuck, other = await waiting(slots, "slow"), await waiting(slots, "other")
    slots.give("acme")
    await other
    assert not stuck.done()
    slots.give("slow")
    await stuck


async def test_giving_up_the_wait() -> None:
    """A wait that is cancelled takes no place and delays nobody."""
    slots = Limits(at_provider=1).slots()
    await slots.take("acme")
    gone, next_one = await waiting(slots, "acme"), await waiting(slots, "acme")
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    slots.give("acme")
    await next_one
    slots.give("acme")
    assert (slots.free("acme"), slots.in_flight("acme")) == (1, 0)


async def test_giving_up_in_the_moment_of_receiving() -> None:
    """A place that was given to somebody who is cancelled before it runs is given back."""
    slots = Limits(at_provider=1).slots()
    await slots.take("acme")
    gone, next_one = await waiting(slots, "acme"), await waiting(slots, "acme")
    slots.give("acme")
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    await next_one
    slots.give("acme")
    assert slots.in_flight("acme") == 0


async def test_limits_may_change() -> None:
    """A lower limit holds from then on, a higher one at the next place that is given back."""
    limits = Limits(total=4, at_provider=2)
    slots = limits.slots()
    slots.take_now("acme", 2)
    limits.at_provider = 1
    assert slots.free("acme") == 0
    waits = [await waiting(slots, "acme") for _ in range(2)]
    slots.give("acme")
    await asyncio.sleep(0)
    assert [task.done() for task in waits] == [False, False]
    limits.at_provider = 3
    slots.give("acme")
    await asyncio.gather(*waits)
    assert slots.in_flight("acme") == 2


async def test_many_wait() -> None:
    """Ten thousand who wait at one provider are all served, each in its turn."""
    slots = Limits(total=64, at_provider=8).slots()
    served: list[int] = []

    async def one(number: int) -> None:
        await slots.take("acme")
        served.append(number)
        slots.give("acme")

    slots.take_now("acme", 8)
    tasks = [asyncio.create_task(one(number)) for number in range(10_000)]
    await asyncio.sleep(0)
    slots.give("acme", 8)
    await asyncio.gather(*tasks)
    assert served == sorted(served)
    assert len(served) == 10_000


def test_one_provider_cannot_take_every_place() -> None:
    """A place stays for each provider with nothing in flight, of half of the places at most."""
    slots = Slots(total=lambda: 8, at_provider=lambda _: 8, providers=lambda: 3)
    assert slots.free("slow") == 6
    slots.take_now("slow", 6)
    assert slots.free("slow") == 0
    assert slots.free("fast") == 1
    slots.take_now("fast", 1)
    assert (slots.free("slow"), slots.free("fast"), slots.free("third")) == (0, 0, 1)
    slots.take_now("third", 1)
    slots.give("fast")
    assert (slots.free("slow"), slots.free("fast")) == (0, 1)
    many = Slots(total=lambda: 4, at_provider=lambda _: 8, providers=lambda: 100)
    assert many.free("any") == 2
