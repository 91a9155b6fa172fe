"""Claims whose commit was never acknowledged: found, and no other one."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from datetime import timedelta

import pytest

from daemon.domain.claim import Abandoned
from daemon.domain.errors import DatabaseUnavailableError
from daemon.refresh.lost_claims import LostClaims
from tests.support.clock import START


class Store:
    """Has open claims."""

    def __init__(self, *attempts: str) -> None:
        self.open = list(attempts)
        self.asked = 0
        self.is_away = False

    async def abandoned_by(self, owner: str) -> list[Abandoned]:
        """Return them."""
        assert owner == "us"
        self.asked += 1
        if self.is_away:
            raise DatabaseUnavailableError("the database is away")
        return [
            Abandoned(
                connection_id=f"of {attempt}",
                provider="acme",
                attempt=attempt,
                generation=1,
                failures=0,
                issued_at=START,
                expires_at=None,
                overdue=timedelta(seconds=-60),
            )
            for attempt in self.open
        ]


def fail(claims: LostClaims) -> None:
    """Take a claim, and hear nothing of it."""
    with suppress(DatabaseUnavailableError), claims.claiming():
        raise DatabaseUnavailableError("the connection was cut")


async def found(claims: LostClaims, store: Store, *in_flight: str) -> list[str]:
    """Return the attempts that are lost, and forget them."""
    lost = [claim.attempt for claim in await claims.find(store, "us", set(in_flight))]
    if lost:
        claims.forget()
    return lost


async def test_nothing_is_asked_while_all_goes_well() -> None:
    """The store would have to look at every connection."""
    claims, store = LostClaims(), Store("taken")
    with claims.claiming():
        pass
    assert await found(claims, store, "taken") == []
    assert store.asked == 0


async def test_a_claim_that_nobody_works_at() -> None:
    """It is found once, and what is in flight is not."""
    claims, store = LostClaims(), Store("lost", "taken")
    fail(claims)
    assert await found(claims, store, "taken") == ["lost"]
    assert await found(claims, store, "taken") == []
    assert store.asked == 1


async def test_a_claim_that_is_just_being_taken() -> None:
    """Its commit is seen before its answer has come: nobody knows yet whose it is."""
    claims, store = LostClaims(), Store("lost", "just taken")
    fail(claims)
    with ExitStack() as call:
        call.enter_context(claims.claiming())
        assert await found(claims, store) == []
        with claims.claiming():
            pass
        assert await found(claims, store) == []
    with claims.claiming():
        # A later call could not have taken what was seen before it.
        assert await found(claims, store, "just taken") == ["lost"]
    assert store.asked == 1


async def test_a_call_that_fails_meanwhile_is_looked_at_as_well() -> None:
    """One look does not answer for a failure after it."""
    claims, store = LostClaims(), Store("lost")
    fail(claims)
    with ExitStack() as call:
        call.enter_context(claims.claiming())
        assert await found(claims, store) == []
        fail(claims)
        store.open.append("lost later")
    assert await found(claims, store) == ["lost"]
    store.open.remove("lost")
    assert await found(claims, store) == ["lost later"]


async def test_what_could_not_be_settled_is_found_again() -> None:
    """The database may be away once more before anything was done about it."""
    claims, store = LostClaims(), Store("lost")
    fail(claims)
    assert len(await claims.find(store, "us", set())) == 1
    assert len(await claims.find(store, "us", set())) == 1
    claims.forget()
    assert await found(claims, store) == []


async def test_a_database_that_is_still_away_is_asked_again() -> None:
    """A failed look has found out nothing."""
    claims, store = LostClaims(), Store("lost")
    fail(claims)
    store.is_away = True
    with pytest.raises(DatabaseUnavailableError):
        await found(claims, store)
    store.is_away = False
    assert await found(claims, store) == ["lost"]
