"""Group commit of settlements."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime

import pytest

from daemon.domain.claim import ClaimState, Settled, Settlement
from daemon.domain.connection import Status
from daemon.domain.errors import DatabaseUnavailableError, StorageError
from daemon.refresh.settling import Settling
from tests.support.clock import FakeClock
from tests.support.memory_refreshes import MemoryRefreshes


class GatedStore(MemoryRefreshes):
    """A store whose writes wait for a gate; ``bad`` connections fail whatever is with them."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.gate = asyncio.Event()
        self.groups: list[list[str]] = []
        self.bad: set[str] = set()

    async def settle(self, settlements: Sequence[Settlement], *, now: datetime) -> list[Settled]:
        """Answer by the name: ``gone…`` was disconnected."""
        del now
        names = [settlement.connection_id for settlement in settlements]
        self.groups.append(names)
        await self.gate.wait()
        self._called("settle")
        if self.bad & set(names):
            raise StorageError("a row is not as it should be")
        return [
            Settled.DISCONNECTED if name.startswith("gone") else Settled.STORED for name in names
        ]


def settlement(name: str) -> Settlement:
    """Return a settlement without tokens."""
    return Settlement(
        connection_id=name,
        attempt=f"attempt of {name}",
        generation=1,
        state=ClaimState.IDLE,
        due_at=None,
        status=Status.ACTIVE,
        failures=0,
        last_error=None,
        touches_connection=False,
    )


def prepared() -> tuple[GatedStore, Settling]:
    """Return a store and what settles into it."""
    clock = FakeClock()
    store = GatedStore(clock)
    return store, Settling(store, clock)


async def test_what_comes_meanwhile_goes_together() -> None:
    """Settlements that come while one is written are written together, each with its answer."""
    store, settling = prepared()
    first = asyncio.create_task(settling.settle(settlement("first")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    names = ["a", "gone", "b"]
    rest = [asyncio.create_task(settling.settle(settlement(name))) for name in names]
    await asyncio.sleep(0)
    store.gate.set()
    assert await first is Settled.STORED
    assert await asyncio.gather(*rest) == [Settled.STORED, Settled.DISCONNECTED, Settled.STORED]
    assert store.groups == [["first"], names]


async def test_a_group_is_bounded() -> None:
    """However many wait, one statement takes at most 256 of them."""
    store, settling = prepared()
    store.gate.set()
    names = [str(number) for number in range(600)]
    answers = await asyncio.gather(*(settling.settle(settlement(name)) for name in names))
    assert set(answers) == {Settled.STORED}
    assert [len(group) for group in store.groups] == [256, 256, 88]


async def test_all_of_a_group_hear_that_the_database_is_away() -> None:
    """A failed statement is everybody's failure; settling again works when it is back."""
    store, settling = prepared()
    store.gate.set()
    store.is_away = True
    answers = await asyncio.gather(
        *(settling.settle(settlement(name)) for name in "abc"), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [DatabaseUnavailableError] * 3
    store.is_away = False
    assert await settling.settle(settlement("a")) is Settled.STORED


async def test_one_bad_row_fails_alone() -> None:
    """Where a group fails for another reason each member is tried by itself."""
    store, settling = prepared()
    store.gate.set()
    store.bad = {"b"}
    a, b, c = await asyncio.gather(
        *(settling.settle(settlement(name)) for name in "abc"), return_exceptions=True
    )
    assert (a, c) == (Settled.STORED, Settled.STORED)
    assert isinstance(b, StorageError)
    assert store.groups == [["a", "b", "c"], ["a"], ["b"], ["c"]]


async def test_nobody_waits_any_more() -> None:
    """A settlement whose waiter is gone is written all the same, and hurts nobody."""
    store, settling = prepared()
    gone = asyncio.create_task(settling.settle(settlement("a")))
    other = asyncio.create_task(settling.settle(settlement("b")))
    await asyncio.sleep(0)
    gone.cancel()
    store.gate.set()
    assert await other is Settled.STORED
    assert store.groups[0] == ["a", "b"]
    with pytest.raises(asyncio.CancelledError):
        await gone
