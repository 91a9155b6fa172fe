"""A disconnect wins: over a refresh in flight, and over whatever memory is told too late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime

import pytest

from daemon.domain.claim import Refusal, Settled, Settlement
from daemon.domain.connection import Status
from daemon.domain.tokens import CurrentToken
from daemon.refresh.memory import Memory
from tests.support.clock import FakeClock
from tests.support.memory_refreshes import MemoryRefreshes
from tests.support.refreshing import Replica


class TalkativeStore(MemoryRefreshes):
    """A store where something happens between an answer and its arrival, once."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.afterwards: Callable[[], None] | None = None

    async def settle(self, settlements: Sequence[Settlement], *, now: datetime) -> list[Settled]:
        """Answer with what was true before."""
        answers = await super().settle(settlements, now=now)
        self._happens()
        return answers

    async def current(self, ids: Sequence[str]) -> list[CurrentToken]:
        """Answer with what was true before."""
        answers = await super().current(ids)
        self._happens()
        return answers

    def _happens(self) -> None:
        happens, self.afterwards = self.afterwards, None
        if happens is not None:
            happens()


@pytest.fixture
def here() -> Replica:
    """A replica whose store can be made to answer late."""
    clock = FakeClock()
    return Replica(clock=clock, shared_store=TalkativeStore(clock))


def later(here: Replica, happens: Callable[[], None]) -> None:
    """Let something happen between the store's next answer and its arrival."""
    assert isinstance(here.store, TalkativeStore)
    here.store.afterwards = happens


async def in_flight(here: Replica) -> asyncio.Task[Refusal | None]:
    """Return a refresh whose request is on its way."""
    here.sender.gate.clear()
    flight = asyncio.create_task(here.refresher.refresh(here.wanted()))
    await here.clock.run(1)
    return flight


def is_served(here: Replica) -> bool:
    """Tell whether memory would serve a token."""
    entry = here.cache.get("acme-1")
    return entry is not None and entry.is_good(here.clock.now().timestamp())


@pytest.mark.parametrize("purge", ["", "purge"])
async def test_a_disconnect_during_a_refresh(here: Replica, purge: str) -> None:
    """The reply brings nothing back, its tokens are to be revoked, and the worker is woken."""
    row = here.add(fields={"region": "us"})
    await here.refresher.memory.reload(["acme-1"])
    flight = await in_flight(here)
    row.disconnect()
    if purge:
        del here.store.rows["acme-1"]
    here.sender.gate.set()
    await here.clock.run(1)
    await flight
    assert (here.cache.get("acme-1") is None) == bool(purge)
    assert not is_served(here)
    ((name, provider, late),) = here.store.disowned
    assert (name, provider, late.refresh_token) == ("acme-1", "acme", "new refresh 1")
    assert (here.disowned, here.store.events) == (1, [])
    assert here.events.names == ["refresh_superseded"]
    assert (here.journal.kept, here.published) == ({}, [])
    # Should the database forget the disconnect, its refresh token is spent: this follows it.
    assert len(here.journal.history) == 1
    assert here.sender.fields == {"region": "us"}


async def test_what_is_known_to_be_disconnected_is_not_served(here: Replica) -> None:
    """Also while the commit of a late reply cannot be done, and after it was."""
    row = here.add()
    flight = await in_flight(here)
    row.disconnect()
    await here.refresher.memory.reload(["acme-1"])
    here.store.is_away = True
    here.sender.gate.set()
    for _ in range(4):
        await here.clock.run(1)
        assert not is_served(here)
    here.store.is_away = False
    await here.clock.run(6)
    await flight
    assert here.disowned == 1
    assert not is_served(here)


async def test_a_disconnect_that_is_heard_before_the_refresh_is_told(here: Replica) -> None:
    """Stored, then disconnected elsewhere: what memory is told of the refresh comes too late."""
    row = here.add()

    def disconnect() -> None:
        row.disconnect()
        later(here, lambda: None)
        here.cache.put(disconnected(here))

    later(here, disconnect)
    flight = asyncio.create_task(here.refresher.refresh(here.wanted()))
    await here.clock.run(1)
    await flight
    entry = here.cache.get("acme-1")
    assert entry is not None
    assert (entry.generation, entry.status) == (2, Status.DISCONNECTED)
    assert not is_served(here)


def disconnected(here: Replica) -> CurrentToken:
    """Return what the database would answer now."""
    tokens = here.row().tokens
    return CurrentToken(
        connection="acme-1",
        provider="acme",
        status=Status.DISCONNECTED,
        generation=tokens.generation,
        access_token="",
        token_type="Bearer",
        scopes=(),
        issued_at=tokens.issued_at,
        expires_at=None,
        refreshable=False,
    )


async def test_an_answer_from_before_a_purge_does_not_come_back(here: Replica) -> None:
    """What left memory while the database answered is asked for again."""
    here.add()

    def purge() -> None:
        del here.store.rows["acme-1"]
        here.cache.drop("acme-1")

    later(here, purge)
    await here.refresher.memory.reload(["acme-1"])
    assert here.cache.get("acme-1") is None
    assert here.store.calls == ["current", "current"]


async def test_an_answer_from_before_a_disconnect_does_not_come_back(here: Replica) -> None:
    """Neither does a reload bring it, nor the forgetting of a reply that was not stored."""
    row = here.add()
    memory = Memory(here.cache, here.store)

    def disconnect() -> None:
        row.disconnect()
        here.cache.put(disconnected(here))

    later(here, disconnect)
    await memory.forget("acme-1")
    assert not is_served(here)
    here.add("other")
    later(here, lambda: here.cache.drop("acme-1"))
    await memory.reload(["acme-1", "other"])
    assert not is_served(here)
    assert here.cache.get("other") is not None


async def test_memory_stays_while_the_database_is_away(here: Replica) -> None:
    """What cannot be read anew is left as it is."""
    here.add()
    memory = Memory(here.cache, here.store)
    await memory.reload(["acme-1"])
    here.store.is_away = True
    await memory.reload_quietly("acme-1")
    await memory.forget("acme-1")
    assert is_served(here)


async def test_many_who_ask_for_what_is_unknown_ask_once_each(here: Replica) -> None:
    """That nothing is there is an answer, whoever hears it first."""
    memory = Memory(here.cache, here.store)
    await asyncio.gather(*(memory.reload(["nobody"]) for _ in range(20)))
    assert len(here.store.calls) == 20
