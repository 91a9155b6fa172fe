"""What one that refreshes does when a process that only serves asks for a connection."""

from __future__ import annotations

from dataclasses import replace

from tests.support.refreshing import Replica, tokens


async def test_it_refreshes_as_for_a_caller() -> None:
    """At once and once, however often it is asked, although the row is not due for an hour."""
    here = Replica()
    here.add()
    for _ in range(5):
        here.refresher.asked(here.wanted())
    await here.clock.run(1)
    assert len(here.sender.sent) == 1
    assert here.row().tokens.generation == 2
    assert here.published == ["acme-1"]


async def test_of_two_that_hear_it_one_sends() -> None:
    """Both are told by one notification."""
    here = Replica()
    there = Replica(clock=here.clock, shared_store=here.store, owner="two")
    here.add()
    for replica in (here, there):
        replica.refresher.asked(replica.wanted())
    await here.clock.run(2)
    assert len(here.sender.sent) + len(there.sender.sent) == 1
    assert here.row().tokens.generation == 2


async def test_an_old_ask_sends_nothing() -> None:
    """It names the generation that the asker knew, and a newer one is stored."""
    here = Replica()
    here.add(stored=replace(tokens(), generation=3))
    here.refresher.asked(here.wanted(generation=2))
    await here.clock.run(1)
    assert here.sender.sent == []


async def test_after_the_end_began_nothing_is_begun() -> None:
    """A process that stops takes no ask up."""
    here = Replica()
    here.add()
    await here.refresher.drain()
    here.refresher.asked(here.wanted())
    await here.clock.run(1)
    assert here.sender.sent == []


async def test_while_the_database_is_away_nothing_happens() -> None:
    """Nobody here waits for it, so nobody hears of the error."""
    here = Replica()
    here.add()
    here.store.is_away = True
    here.refresher.asked(here.wanted())
    await here.clock.run(1)
    assert here.sender.sent == []
    here.store.is_away = False
    here.refresher.asked(here.wanted())
    await here.clock.run(1)
    assert len(here.sender.sent) == 1
