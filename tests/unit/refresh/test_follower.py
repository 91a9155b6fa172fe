"""The cache follows what other replicas do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

import pytest

from daemon.domain.connection import Status
from daemon.domain.tokens import Version
from tests.support.clock import FakeClock
from tests.support.memory_refreshes import MemoryRefreshes
from tests.support.refreshing import Replica, tokens


class TalkativeStore(MemoryRefreshes):
    """A store where something happens between an answer and its arrival, once."""

    afterwards: Callable[[], None] = staticmethod(lambda: None)

    async def versions(self, ids: Sequence[str]) -> dict[str, Version]:
        """Answer with what was true before."""
        answer = await super().versions(ids)
        happens, self.afterwards = self.afterwards, lambda: None
        happens()
        return answer


@pytest.fixture
async def here() -> AsyncIterator[Replica]:
    """A replica that follows, with three connections in memory."""
    here = Replica()
    for name in ("a", "b", "c"):
        here.add(name)
    await here.refresher.memory.reload(["a", "b", "c"])
    here.store.calls.clear()
    running = asyncio.create_task(here.follower.run())
    await here.clock.settle()
    yield here
    running.cancel()


def generation(here: Replica, name: str) -> int | None:
    """Return the generation in memory."""
    entry = here.cache.get(name)
    return None if entry is None else entry.generation


async def test_a_notification_is_followed_at_once(here: Replica) -> None:
    """What changed is read, without waiting for anything, and nothing else is."""
    here.row("a").tokens = tokens(generation=2)
    here.row("b").tokens = tokens(generation=2)
    here.follower.hear("a")
    await here.clock.settle()
    assert (generation(here, "a"), generation(here, "b")) == (2, 1)
    assert here.store.calls == ["versions", "current"]


async def test_what_nobody_here_asked_for_is_ignored(here: Replica) -> None:
    """A notification about a stranger costs nothing."""
    here.add("stranger")
    here.follower.hear("stranger")
    await here.clock.settle()
    assert here.store.calls == []


async def test_a_notification_that_is_no_news_reads_no_token(here: Replica) -> None:
    """Where generation and state are known already only those are compared."""
    here.follower.hear("a")
    await here.clock.settle()
    assert here.store.calls == ["versions"]


async def test_a_change_of_state_is_news(here: Replica) -> None:
    """The same generation in another state is read again; what is gone is dropped."""
    here.row("a").status = Status.DISCONNECTED
    del here.store.rows["b"]
    here.follower.hear("a")
    here.follower.hear("b")
    await here.clock.settle()
    entry = here.cache.get("a")
    assert entry is not None
    assert entry.status is Status.DISCONNECTED
    assert here.cache.get("b") is None


async def test_a_token_that_ends_before_its_time_is_news(here: Replica) -> None:
    """The API of a dead grant refuses its last token, too: nothing else changes with that."""
    row = here.row("a")
    row.status = Status.REAUTHORIZATION_REQUIRED
    here.follower.hear("a")
    await here.clock.settle()
    entry = here.cache.get("a")
    assert entry is not None
    assert entry.is_good(here.clock.now().timestamp())
    row.tokens = replace(row.tokens, expires_at=here.clock.now())
    here.follower.hear("a")
    await here.clock.settle()
    entry = here.cache.get("a")
    assert entry is not None
    assert not entry.is_good(here.clock.now().timestamp())
    here.store.calls.clear()
    here.follower.hear("a")
    await here.clock.settle()
    assert here.store.calls == ["versions"]


async def test_missed_notifications_are_found_by_polling(here: Replica) -> None:
    """While the listener is up everything is compared each quarter of a minute."""
    here.row("a").tokens = tokens(generation=2)
    await here.clock.run(14)
    assert generation(here, "a") == 1
    await here.clock.run(2)
    assert generation(here, "a") == 2


async def test_polling_goes_on_while_there_is_much_to_hear(here: Replica) -> None:
    """Notifications that keep coming do not keep what was missed from being found."""
    here.row("a").tokens = tokens(generation=2)
    for _ in range(40):
        here.follower.hear("b")
        await here.clock.run(0.4)
    assert generation(here, "a") == 2


async def test_without_a_listener_polling_is_quick(here: Replica) -> None:
    """Another replica's disconnect is seen within a second, also from the moment of the loss."""
    await here.clock.run(2)
    here.listening = False
    here.row("a").status = Status.DISCONNECTED
    await here.clock.run(1)
    entry = here.cache.get("a")
    assert entry is not None
    assert entry.status is Status.DISCONNECTED


async def test_a_new_listener_doubts_everything(here: Replica) -> None:
    """After a reconnect all entries are compared at once."""
    here.row("c").tokens = tokens(generation=2)
    here.follower.doubt_everything()
    await here.clock.settle()
    assert generation(here, "c") == 2


async def test_an_outage_loses_no_notification(here: Replica) -> None:
    """What could not be read is read when the database is back, without another notification."""
    here.row("a").tokens = tokens(generation=2)
    here.store.is_away = True
    here.follower.hear("a")
    await here.clock.run(5)
    assert generation(here, "a") == 1
    here.store.is_away = False
    await here.clock.run(1)
    assert generation(here, "a") == 2


async def test_what_is_heard_while_the_database_answers_is_not_lost() -> None:
    """A change announced after it was looked for, before the answer, is looked for again."""
    clock = FakeClock()
    store = TalkativeStore(clock)
    here = Replica(clock=clock, shared_store=store)
    here.add("a")
    await here.refresher.memory.reload(["a"])

    def change() -> None:
        here.row("a").tokens = tokens(generation=2)
        here.follower.hear("a")

    store.afterwards = change
    running = asyncio.create_task(here.follower.run())
    here.follower.hear("a")
    await clock.run(1)
    assert generation(here, "a") == 2
    running.cancel()


async def test_memory_ahead_of_the_database_stays(here: Replica) -> None:
    """A token that memory serves before it is stored is not replaced by the older one."""
    await here.refresher.memory.reload(["a"])
    here.row("a").tokens = tokens(generation=2)
    await here.refresher.memory.reload(["a"])
    here.row("a").tokens = tokens(generation=1)
    here.follower.hear("a")
    await here.clock.run(20)
    assert generation(here, "a") == 2


async def test_many_are_compared_in_batches(here: Replica) -> None:
    """No statement names more than a thousand connections, and none is forgotten."""
    names = [f"c{number}" for number in range(2500)]
    for name in names:
        here.add(name)
    await here.refresher.memory.reload(names)
    here.store.calls.clear()
    for name in names:
        here.row(name).tokens = tokens(generation=2)
    here.follower.doubt_everything()
    await here.clock.settle()
    assert {generation(here, name) for name in names} == {2}
    assert here.store.calls.count("versions") == 3
