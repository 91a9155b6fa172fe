"""Who hears what: from now on, from where they left off, and not what is not theirs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import pytest

from daemon.domain.errors import DatabaseUnavailableError
from daemon.upkeep.feed import Feed, FeedClosedError, Message, Subscription, message_of
from tests.support.clock import FakeClock
from tests.support.memory_history import MemoryHistory, event


class Stage:
    """A feed that runs, and the history that it follows."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.history = MemoryHistory()
        self.feed = Feed(history=self.history, clock=self.clock, largest_audience=3)
        self.task: asyncio.Task[None] = asyncio.create_task(self.feed.run())

    async def listen(
        self, may_see: Callable[[str], bool] = lambda _: True, *, after: int | None = None
    ) -> Subscription:
        """Subscribe and join."""
        subscription = await self.feed.subscribe(may_see)
        assert self.feed.join(subscription, after=after)
        return subscription

    async def pass_time(self, seconds: float = 0.5) -> None:
        """Let the feed look once more."""
        await self.clock.settle()
        self.clock.advance(seconds)
        await self.clock.settle()

    async def heard(self, subscription: Subscription) -> list[int]:
        """Return the ids of what has come."""
        return [message.number for message in await subscription.wait(self.clock, 0)]


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """Return a feed that runs; the history has the events 1 to 3."""
    stage = Stage()
    stage.history.add(event(1), event(2), event(3))
    yield stage
    stage.task.cancel()
    await asyncio.gather(stage.task, return_exceptions=True)


def test_a_message() -> None:
    """HTML 9.2.6: id, event, data and an empty line; the data is the event's body."""
    lines = message_of(event(7)).data.decode().split("\n")
    assert lines[:2] == ["id: evt_7", "event: token.refreshed"]
    assert json.loads(lines[2].removeprefix("data: "))["id"] == "evt_7"
    assert lines[3:] == ["", ""]


async def test_from_now_on(stage: Stage) -> None:
    """What was before is not told, what comes is, once and in order."""
    subscription = await stage.listen()
    await stage.pass_time()
    stage.history.add(event(4), event(5))
    await stage.pass_time()
    stage.history.add(event(6))
    await stage.pass_time()
    assert await stage.heard(subscription) == [4, 5, 6]
    assert await stage.heard(subscription) == []


async def test_a_wake_up_is_quicker_than_the_poll(stage: Stage) -> None:
    """A notification is a hint to look at once."""
    subscription = await stage.listen()
    await stage.pass_time()
    stage.history.add(event(4))
    stage.feed.wake()
    await stage.clock.settle()
    assert await stage.heard(subscription) == [4]


async def test_only_ones_own(stage: Stage) -> None:
    """Nobody hears of a connection that is not theirs."""
    mine = await stage.listen(lambda name: name == "mine")
    everything = await stage.listen()
    stage.history.add(event(4, "mine"), event(5, "other"), event(6, "mine"))
    await stage.pass_time()
    assert await stage.heard(mine) == [4, 6]
    assert await stage.heard(everything) == [4, 5, 6]


async def test_whoever_is_behind_catches_up_first(stage: Stage) -> None:
    """Joining fails while there is something to read, and then leaves no gap."""
    live = await stage.listen()
    stage.history.add(event(4), event(5))
    await stage.pass_time()
    late = await stage.feed.subscribe(lambda _: True)
    tail = stage.feed.catch_up(2)
    missed: list[int] = []
    while not stage.feed.join(late, after=tail.position):
        missed += [one.id for one in await tail.next_batch()]
    assert missed == [3, 4, 5]
    stage.history.add(event(6))
    await stage.pass_time()
    assert await stage.heard(late) == [6]
    assert await stage.heard(live) == [4, 5, 6]


async def test_whoever_is_ahead_hears_nothing_twice(stage: Stage) -> None:
    """A stream that comes from a replica which was quicker does not hear it again."""
    subscription = await stage.feed.subscribe(lambda _: True)
    assert stage.feed.join(subscription, after=5)
    stage.history.add(event(4), event(5), event(6))
    await stage.pass_time()
    assert await stage.heard(subscription) == [6]


async def test_before_joining_nothing_is_heard(stage: Stage) -> None:
    """A stream that still reads the past does not get the present in between."""
    subscription = await stage.feed.subscribe(lambda _: True)
    stage.history.add(event(4))
    await stage.pass_time()
    assert await stage.heard(subscription) == []


async def test_nobody_listens_nobody_reads(stage: Stage) -> None:
    """Without an audience the database is left alone; the next one begins at its own now."""
    subscription = await stage.listen()
    await stage.pass_time()
    stage.feed.leave(subscription)
    await stage.pass_time()
    reads = stage.history.reads
    stage.history.add(event(4))
    await stage.pass_time(60)
    assert stage.history.reads == reads
    again = await stage.listen()
    stage.history.add(event(5))
    await stage.pass_time()
    assert await stage.heard(again) == [5]


async def test_a_slow_reader_is_cut(stage: Stage) -> None:
    """Who takes nothing for a thousand messages is let go, and the others are not disturbed."""
    slow, quick = await stage.listen(), await stage.listen()
    heard = 0
    for start in range(4, 1604, 400):
        stage.history.add(*(event(number) for number in range(start, start + 400)))
        await stage.pass_time()
        heard += len(await stage.heard(quick))
    assert heard == 1600
    assert slow.is_over
    assert not quick.is_over
    assert stage.feed.audience == 1
    assert len(await stage.heard(slow)) == 1000
    assert await stage.heard(slow) == []


async def test_the_audience_is_bounded(stage: Stage) -> None:
    """A place is given back, and there are no more than so many."""
    places = [await stage.listen() for _ in range(3)]
    with pytest.raises(FeedClosedError):
        await stage.feed.subscribe(lambda _: True)
    stage.feed.leave(places[0])
    await stage.listen()


async def test_two_at_once_begin_one_tail(stage: Stage) -> None:
    """Streams that open together share the tail."""
    first, second = await asyncio.gather(stage.listen(), stage.listen())
    stage.history.add(event(4))
    await stage.pass_time()
    assert await stage.heard(first) == await stage.heard(second) == [4]


async def test_the_database_may_be_away(stage: Stage) -> None:
    """A new stream is refused, one that is open goes on when it is back."""
    subscription = await stage.listen()
    stage.history.is_away = True
    await stage.pass_time()
    await stage.pass_time()
    stage.history.is_away = False
    stage.history.add(event(4))
    await stage.pass_time(2)
    assert await stage.heard(subscription) == [4]
    stage.feed.leave(subscription)
    await stage.pass_time()
    stage.history.is_away = True
    with pytest.raises(DatabaseUnavailableError):
        await stage.feed.subscribe(lambda _: True)
    assert stage.feed.audience == 0


async def test_closing_ends_every_stream(stage: Stage) -> None:
    """At shutdown all streams end, and no new one begins."""
    subscription = await stage.listen()
    waiting = asyncio.create_task(subscription.wait(stage.clock, 15))
    await stage.clock.settle()
    stage.feed.close()
    assert await waiting == []
    assert subscription.is_over
    with pytest.raises(FeedClosedError):
        await stage.feed.subscribe(lambda _: True)


async def test_ending_all_lets_them_come_back(stage: Stage) -> None:
    """After the callers have changed: what was there is over, what comes anew is heard."""
    before = await stage.listen()
    stage.feed.end_all()
    assert before.is_over
    assert stage.feed.audience == 0
    after = await stage.listen()
    await stage.pass_time()
    stage.history.add(event(4))
    await stage.pass_time()
    assert await stage.heard(after) == [4]
    assert await stage.heard(before) == []


async def test_a_cancelled_feed_ends_every_stream(stage: Stage) -> None:
    """A feed that does not run any more leaves nobody waiting."""
    subscription = await stage.listen()
    stage.task.cancel()
    await stage.clock.settle()
    assert subscription.is_over


async def test_a_stream_that_was_cut_while_it_read_the_past(stage: Stage) -> None:
    """It does not come back to life by joining."""
    subscription = await stage.feed.subscribe(lambda _: True)
    stage.feed.close()
    assert stage.feed.join(subscription, after=9)
    assert stage.feed.audience == 0


async def test_waiting_is_bounded(stage: Stage) -> None:
    """Nothing for so many seconds is an empty answer: time for a heartbeat."""
    subscription = await stage.listen()
    waiting: asyncio.Task[list[Message]] = asyncio.create_task(subscription.wait(stage.clock, 15))
    await stage.pass_time(15)
    assert await waiting == []
    assert not subscription.is_over
