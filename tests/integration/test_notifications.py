"""LISTEN and NOTIFY on a real PostgreSQL: what is heard, and what survives a lost connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from daemon.domain.clock import system_entropy
from daemon.persistence.dialing import Limits
from daemon.persistence.notifications import Notifications, Notifier
from daemon.persistence.postgres import Database
from tests.support.clocks import HastyClock
from tests.support.waiting import until
from tests.support.wire import Wire

CLOCK = HastyClock(0.05)


def database(url: str) -> Database:
    """Return a database that is only used to open connections: it is never started."""
    limits = Limits(connect=1.0, probe=0.3, probe_every=0.05)
    return Database(url, clock=CLOCK, entropy=system_entropy, limits=limits)


class Listener:
    """Notifications with all they tell remembered."""

    def __init__(self, url: str) -> None:
        self.items: list[str] = []
        self.states: list[bool] = []
        self.begun = 0
        self.notifications = Notifications(
            database(url),
            clock=CLOCK,
            entropy=system_entropy,
            on_state=self.states.append,
            on_listening=self._begin,
        )
        self.unsubscribe = self.notifications.subscribe(self.items.append)

    def _begin(self) -> None:
        self.begun += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Listener]:
        """Listen until left."""
        await self.notifications.start()
        try:
            yield self
        finally:
            await self.notifications.close()


@asynccontextmanager
async def notifying(url: str) -> AsyncIterator[Notifier]:
    """Run a notifier until left."""
    notifier = Notifier(database(url), clock=CLOCK, entropy=system_entropy)
    await notifier.start()
    try:
        yield notifier
    finally:
        await notifier.close()


async def test_every_listener_hears_every_item(database_url: str) -> None:
    """Items published by one replica reach all, in order; who unsubscribed hears no more."""
    one, two = Listener(database_url), Listener(database_url)
    async with one.running(), two.running(), notifying(database_url) as notifier:
        assert one.notifications.up
        notifier.publish("con_1 7")
        notifier.publish("con_2 3")
        await until(lambda: one.items == two.items == ["con_1 7", "con_2 3"])
        one.unsubscribe()
        notifier.publish("con_3 1")
        await until(lambda: len(two.items) == 3)
        assert len(one.items) == 2
    assert one.states == two.states == [True, False]
    assert one.begun == two.begun == 1


async def test_items_are_gathered(database_url: str) -> None:
    """A thousand items become a few notifications, an item that waits twice is sent once."""
    payloads: list[str] = []
    plain: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(database_url)
    await plain.add_listener("tokenward", lambda *heard: payloads.append(str(heard[3])))
    async with notifying(database_url) as notifier:
        for number in range(1000):
            notifier.publish(f"con_{number:022} {number}")
            notifier.publish("same")
    await until(lambda: sum(payload.count("\n") + 1 for payload in payloads) >= 1001)
    await plain.close()
    items = [item for payload in payloads for item in payload.split("\n")]
    assert len(items) == len(set(items)) == 1001
    assert len(payloads) <= 5


async def test_closing_sends_what_waits(database_url: str) -> None:
    """An item published just before the end is still sent."""
    listener = Listener(database_url)
    async with listener.running():
        async with notifying(database_url) as notifier:
            notifier.publish("last")
        await until(lambda: listener.items == ["last"])


@pytest.mark.parametrize("how", ["cut", "stall"])
async def test_a_lost_listener_comes_back(database_url: str, how: str) -> None:
    """Cut off or silently dead, it says so, listens again and asks for what was missed."""
    async with Wire(database_url) as wire:
        listener = Listener(wire.url)
        async with listener.running(), notifying(database_url) as notifier:
            if how == "cut":
                await wire.cut()
            else:
                wire.stall()
            await until(lambda: not listener.notifications.up)
            await wire.mend()
            await until(lambda: listener.begun >= 2)
            notifier.publish("after")
            await until(lambda: "after" in listener.items)
        assert listener.states[:3] == [True, False, True]


async def test_a_database_away_at_start_is_listened_to_later(database_url: str) -> None:
    """Away at start it is down, not an error; it listens once the database is there."""
    async with Wire(database_url) as wire:
        await wire.cut()
        listener = Listener(wire.url)
        async with listener.running():
            assert listener.states == [False]
            assert listener.begun == 0
            await wire.mend()
            await until(lambda: listener.begun == 1)


async def test_publishing_never_fails(database_url: str) -> None:
    """While the database is away items wait, the oldest beyond 10,000 are forgotten.

    An item may come twice: a batch whose answer was cut is sent again.
    """
    async with Wire(database_url) as wire:
        listener = Listener(database_url)
        async with listener.running(), notifying(wire.url) as notifier:
            notifier.publish("before")
            await until(lambda: listener.items == ["before"])
            await wire.cut()
            for number in range(10_001):
                notifier.publish(str(number))
            await wire.mend()
            await until(lambda: len(set(listener.items)) == 10_001)
        heard = list(dict.fromkeys(listener.items))
        assert heard[1:] == [str(number) for number in range(1, 10_001)]


async def test_closing_without_a_database_does_not_hang(database_url: str) -> None:
    """With nobody to send to, closing gives up what waits."""
    async with Wire(database_url) as wire:
        wire.stall()
        notifier = Notifier(database(wire.url), clock=CLOCK, entropy=system_entropy)
        await notifier.start()
        notifier.publish("lost")
        async with asyncio.timeout(4):
            await notifier.close()
            await notifier.wait_closed()


async def test_a_broken_callback_ends_the_daemon_not_silently(database_url: str) -> None:
    """An error in ``on_listening`` is raised to whoever owns the background."""

    def fail() -> None:
        if notifications.up and verdicts.pop():
            raise LookupError

    verdicts = [True, False]
    async with Wire(database_url) as wire:
        notifications = Notifications(
            database(wire.url), clock=CLOCK, entropy=system_entropy, on_listening=fail
        )
        await notifications.start()
        await wire.cut()
        await wire.mend()
        async with asyncio.timeout(5):
            with pytest.raises(LookupError):
                await notifications.wait_closed()
        await notifications.close()
