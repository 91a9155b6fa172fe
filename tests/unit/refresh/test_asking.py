"""Asking others to refresh: once for all who wait, until it came, was refused, or nobody began."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from daemon.config.settings import Refresh
from daemon.domain.claim import Refusal, RefusalReason
from daemon.domain.claimable import Wanted
from daemon.domain.connection import Status
from daemon.domain.errors import DatabaseUnavailableError
from daemon.domain.tokens import CurrentToken, Version
from daemon.refresh.asking import Asking, AskingPorts
from daemon.refresh.cache import TokenCache
from daemon.refresh.memory import Memory
from tests.support.clock import START, FakeClock

_WANTED = Wanted(connection_id="acme-1", provider="acme", generation=3, rate=10)
_TOKEN = CurrentToken(
    connection="acme-1",
    provider="acme",
    status=Status.ACTIVE,
    generation=3,
    access_token="a",
    token_type="Bearer",
    scopes=(),
    issued_at=START,
    expires_at=START + timedelta(hours=1),
    refreshable=True,
)


class Others:
    """The database and those that refresh, as far as asking sees them."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.cache = TokenCache()
        self.cache.put(_TOKEN)
        self.stored = _TOKEN
        self.answer: RefusalReason | None = None
        self.asked: list[Wanted] = []
        self.told: list[Wanted] = []
        self.is_away = False
        self.asking = Asking(
            AskingPorts(
                store=self,
                tell=self.told.append,
                clock=self.clock,
                settings=lambda: Refresh(request_timeout=timedelta(seconds=30)),
            ),
            cache=self.cache,
            memory=Memory(self.cache, self),
        )

    async def ask(self, wanted: Wanted, *, now: datetime) -> Refusal | None:
        """Answer as told."""
        del now
        if self.is_away:
            raise DatabaseUnavailableError("away")
        self.asked.append(wanted)
        if self.answer is None:
            return None
        return Refusal(connection_id=wanted.connection_id, reason=self.answer)

    async def current(self, ids: Sequence[str]) -> list[CurrentToken]:
        """Return what is stored."""
        return [self.stored] if "acme-1" in ids else []

    async def versions(self, ids: Sequence[str]) -> dict[str, Version]:
        """Return its generation."""
        return dict.fromkeys(ids, Version(self.stored.generation, self.stored.status))

    def refreshed(self) -> None:
        """Let a new generation be heard of."""
        self.stored = replace(_TOKEN, generation=4)
        self.cache.put(self.stored)

    async def waiting(self, wanted: Wanted = _WANTED) -> asyncio.Task[Refusal | None]:
        """Begin to ask."""
        task = asyncio.create_task(self.asking.refresh(wanted))
        await self.clock.settle()
        return task

    async def after(self, seconds: float) -> None:
        """Let time pass in steps in which everything gets its turn."""
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)
            await self.clock.settle()


@pytest.fixture
async def others() -> Others:
    """A serving process that knows generation 3."""
    return Others()


async def test_all_who_wait_share_one_ask(others: Others) -> None:
    """Ten callers ask once, and go on together with the new generation."""
    tasks = [await others.waiting() for _ in range(10)]
    assert others.asked == others.told == [_WANTED]

    others.refreshed()
    await others.clock.settle()
    assert [task.result() for task in tasks] == [None] * 10


async def test_an_ask_is_repeated_until_it_is_taken_up(others: Others) -> None:
    """A notification that was lost is told again; one that is under way is not."""
    task = await others.waiting()
    await others.after(1.1)
    assert len(others.told) == 3
    others.answer = RefusalReason.SENDING
    await others.after(10)
    assert len(others.told) == 3
    others.refreshed()
    await others.clock.settle()
    assert task.result() is None


async def test_where_nobody_refreshes_the_caller_is_told(others: Others) -> None:
    """After 5 s, with when to come again."""
    task = await others.waiting()
    await others.after(4.5)
    assert not task.done()
    await others.after(1)
    refusal = task.result()
    assert refusal is not None
    assert refusal.reason is RefusalReason.NOT_TAKEN_UP
    assert refusal.retry_at is not None


async def test_a_request_under_way_is_not_awaited_for_ever(others: Others) -> None:
    """As long as a request may take."""
    others.answer = RefusalReason.SENDING
    task = await others.waiting()
    await others.after(29)
    assert not task.done()
    await others.after(2)
    refusal = task.result()
    assert refusal is not None
    assert refusal.reason is RefusalReason.SENDING


@pytest.mark.parametrize("reason", [RefusalReason.BACKING_OFF, RefusalReason.NOT_REFRESHABLE])
async def test_a_refusal_is_passed_on(others: Others, reason: RefusalReason) -> None:
    """At once, with what the database says of the connection in memory; nobody is told."""
    others.answer = reason
    others.stored = replace(_TOKEN, failure="The provider is away.", status=Status.FAILING)
    task = await others.waiting()
    refusal = task.result()
    assert refusal is not None
    assert refusal.reason is reason
    assert others.told == []
    entry = others.cache.get("acme-1")
    assert entry is not None
    assert entry.failure == "The provider is away."


async def test_what_is_stored_already_is_read(others: Others) -> None:
    """A newer generation that no notification has told of."""
    others.answer = RefusalReason.SUPERSEDED
    others.stored = replace(_TOKEN, generation=4)
    task = await others.waiting()
    assert task.result() is None
    entry = others.cache.get("acme-1")
    assert entry is not None
    assert entry.generation == 4


async def test_without_the_database_nobody_can_be_asked(others: Others) -> None:
    """The error is the caller's, and the next ask is a new one."""
    others.is_away = True
    task = await others.waiting()
    with pytest.raises(DatabaseUnavailableError):
        task.result()
    others.is_away = False
    again = await others.waiting()
    others.refreshed()
    await others.clock.settle()
    assert again.result() is None


async def test_whoever_wants_a_later_generation_asks_again(others: Others) -> None:
    """An ask that set out from an older generation does not answer for a newer one."""
    first = await others.waiting()
    later = await others.waiting(replace(_WANTED, generation=4))
    others.refreshed()
    await others.clock.settle()
    assert first.result() is None
    assert not later.done()
    assert others.asked[-1].generation == 4
    others.stored = replace(_TOKEN, generation=5)
    others.cache.put(others.stored)
    await others.clock.settle()
    assert later.result() is None


async def test_at_the_end_nobody_waits(others: Others) -> None:
    """Who waits is let go soon, and nothing more is asked."""
    task = await others.waiting()
    drained = asyncio.create_task(others.asking.drain())
    await others.after(0.6)
    assert drained.done()
    refusal = task.result()
    assert refusal is not None
    assert refusal.reason is RefusalReason.NOT_TAKEN_UP
    late = await others.waiting()
    assert late.done()
    assert len(others.asked) == 1
