"""Callers who wait go before a backlog, and ask for nothing that cannot be."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from tests.support.refreshing import ACME, Replica, tokens


async def test_callers_go_before_a_backlog() -> None:
    """With 500 due at two a second, a caller of one that is far behind waits seconds at most."""
    here = Replica(providers={"acme": replace(ACME, rate=2.0)})
    for number in range(500):
        here.add(f"c{number}", due_in=number - 1000, stored=tokens(100, age=200))
    sweeping = asyncio.create_task(here.scheduler.run())
    await here.clock.run(30)
    outcomes = []
    for number in range(400, 410):
        asking = asyncio.create_task(here.reader.read(f"c{number}"))
        await here.clock.run(3.3)
        reading = await asking
        outcomes.append(reading and reading.outcome)
    sweeping.cancel()
    assert outcomes == ["refreshed"] * 10


async def test_a_generation_that_was_never_issued_counts_as_the_newest() -> None:
    """A caller who names a generation from the future gets one refresh, not an endless no."""
    here = Replica()
    here.add("c", stored=tokens(3600))
    asking = asyncio.create_task(here.reader.read("c", newer_than=99))
    await here.clock.run(1)
    reading = await asking
    assert reading is not None
    assert reading.outcome == "refreshed"
    assert reading.entry.generation == 2


async def test_a_generation_known_elsewhere_is_looked_up_first() -> None:
    """A caller who had a 401 with a newer generation than memory knows is not served that one."""
    here = Replica()
    row = here.add("c", stored=tokens(3600))
    assert await here.reader.entry("c") is not None
    row.tokens = replace(row.tokens, generation=5)
    asking = asyncio.create_task(here.reader.read("c", newer_than=5))
    await here.clock.run(1)
    reading = await asking
    assert reading is not None
    assert reading.entry.generation == 6
