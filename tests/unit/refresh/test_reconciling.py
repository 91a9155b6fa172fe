"""How far back a journal is compared with the database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from daemon.config.settings import Refresh
from daemon.domain.authorization import Completion, StoredAuthorization
from daemon.domain.claim import Claim, Standing
from daemon.domain.connection import Connection, Status
from daemon.domain.journal import JournaledReply, Purpose
from daemon.domain.provider import Provider
from daemon.domain.reply import RawReply
from daemon.domain.tokens import TokenSet
from daemon.refresh.reconciling import Compared, Reconciliation
from tests.support.clock import START, FakeClock
from tests.support.refreshing import tokens

GRANTED = RawReply(
    status=200, headers={}, body=b'{"access_token": "a", "refresh_token": "r", "expires_in": 60}'
)
REFUSED = RawReply(status=400, headers={}, body=b'{"error": "temporarily_unavailable"}')
ALL = 20_000


class Site:
    """A journal of one reply for each connection, newest first, and what the database has."""

    def __init__(self, *, seconds_apart: float, stored: int = 8) -> None:
        self._apart = seconds_apart
        self._stored = stored
        self.refused: set[int] = set()
        self.forgotten: set[int] = set()
        self.read = 0
        self.recalled: list[str] = []
        self.recalled_as_of: list[object] = []
        self.told: list[tuple[str, TokenSet]] = []

    async def replies(self) -> AsyncIterator[JournaledReply]:
        """Port: JournalHistory."""
        for number in range(ALL):
            self.read += 1
            yield JournaledReply(
                attempt=f"attempt-{number}",
                purpose=Purpose.REFRESH,
                connection_id=str(number),
                provider="acme",
                generation=7,
                scopes=(),
                sent_at=START - timedelta(seconds=number * self._apart),
                reply=REFUSED if number in self.refused else GRANTED,
            )

    def is_settled(self, attempt: str) -> bool:
        """Port: JournalHistory."""
        return bool(attempt)

    async def standing(self, ids: Sequence[str]) -> Mapping[str, Standing]:
        """Port: Incarnations."""
        behind = self.refused | self.forgotten
        return {
            name: Standing(
                status=Status.ACTIVE,
                generation=7 if int(name) in behind else self._stored,
                epoch=0,
                granted_at=None,
            )
            for name in ids
        }

    async def recall(self, connection_id: str, *, sent_at: datetime, **_: object) -> None:
        """Port: LateReplies; what is claimed here is not wanted any more."""
        self.recalled.append(connection_id)
        self.recalled_as_of.append(sent_at)

    async def complete(self, completion: Completion) -> StoredAuthorization:
        """Port: Exchanged; the account is connected already, and further on."""
        connection = Connection(
            id="another",
            provider=completion.provider or "",
            grant="authorization_code",
            status=Status.ACTIVE,
            generation=40,
            created_at=START,
            updated_at=START,
        )
        return StoredAuthorization(connection=connection, merged=completion.connection_id)

    async def compare(self) -> None:
        """Compare all that is needed."""
        await self.reconciliation(SimpleNamespace(in_flight={})).run()

    def reconciliation(self, attempts: Any) -> Reconciliation:
        """Return what compares, beside these attempts."""
        ports: Any = SimpleNamespace(get=lambda name: Provider(name=name, client_id="us"))
        this: Any = self
        refresher: Any = SimpleNamespace(attempts=attempts, hold=timedelta(minutes=2))
        return Reconciliation(
            Compared(
                history=this,
                incarnations=this,
                late=this,
                exchanged=this,
                providers=ports,
                on_authorized=lambda stored, tokens: self.told.append((stored.id, tokens)),
                on_gone=lambda _: None,
                clock=FakeClock(),
                identities=None,
            ),
            refresher=refresher,
            settings=Refresh,
            owner="us",
        )


@pytest.mark.parametrize(
    ("seconds_apart", "read"),
    [
        (1.0, 5_000),  # so many at least
        (0.01, 13_000),  # and for so long
        (0.0001, ALL),
    ],
)
async def test_a_database_that_has_all_is_not_compared_with_everything(
    seconds_apart: float, read: int
) -> None:
    """A stretch of replies that are stored shows that all before them are."""
    site = Site(seconds_apart=seconds_apart)
    await site.compare()
    assert site.read == read


@pytest.mark.parametrize(
    ("forgotten", "read"),
    [(range(100), 6_000), (range(5_500), 11_000), ([4_999], 10_000), (range(ALL), ALL)],
)
async def test_what_was_forgotten_is_looked_for_until_a_stretch_has_none(
    forgotten: Iterable[int], read: int
) -> None:
    """All of it is found, and each is read once more to be stored."""
    site = Site(seconds_apart=1.0)
    site.forgotten = set(forgotten)
    await site.compare()
    assert set(map(int, site.recalled)) == site.forgotten
    assert site.read == 2 * read


async def test_what_brought_no_tokens_says_nothing() -> None:
    """A connection whose refreshes fail looks as if its last reply were forgotten."""
    site = Site(seconds_apart=1.0)
    site.refused = set(range(0, ALL, 10))
    await site.compare()
    assert site.read == 2 * 5_000
    assert site.recalled == []


async def test_the_oldest_is_stored_first() -> None:
    """A comparison that is cut leaves out what the next one looks at first."""
    site = Site(seconds_apart=1.0)
    site.forgotten = set(range(40))
    await site.compare()
    assert set(map(int, site.recalled[:16])) == set(range(24, 40))


class LongAgo(Site):
    """The journal of a replica that has refreshed nothing for a quarter of an hour."""

    async def replies(self) -> AsyncIterator[JournaledReply]:
        """Port: JournalHistory."""
        async for entry in super().replies():
            yield replace(entry, sent_at=entry.sent_at - timedelta(minutes=15))


async def test_a_replica_that_did_nothing_for_a_while_compares_everything() -> None:
    """That its newest replies are superseded says nothing: others may have stored theirs again."""
    site = LongAgo(seconds_apart=1.0, stored=9)
    site.forgotten = {ALL - 1}
    await site.compare()
    assert site.recalled == [str(ALL - 1)]


class Connected(Site):
    """A journal that begins with the exchange of a code, which was forgotten."""

    async def replies(self) -> AsyncIterator[JournaledReply]:
        """Port: JournalHistory."""
        async for entry in super().replies():
            yield replace(entry, purpose=Purpose.EXCHANGE)
            return


async def test_memory_hears_of_the_generation_that_was_stored() -> None:
    """A merge lifts the tokens above what was known: told lower, memory would not take them."""
    site = Connected(seconds_apart=1.0)
    site.forgotten = {0}
    await site.compare()
    ((connection, tokens),) = site.told
    assert (connection, tokens.generation, tokens.access_token) == ("another", 40, "a")


class Attempts:
    """One attempt under way, begun a minute ago."""

    begun_at = START - timedelta(minutes=1)

    async def each_open(self, work: Callable[[Claim, datetime], Awaitable[object]]) -> None:
        """Hand it out."""
        claim = Claim(
            connection_id="a",
            provider="acme",
            attempt="attempt 1",
            status=Status.ACTIVE,
            tokens=tokens(),
            requested_scopes=(),
            was_in_doubt=False,
            failures=0,
            planned_at=None,
            delay=0.0,
        )
        await work(claim, self.begun_at)


async def test_a_claim_is_taken_again_as_of_its_beginning() -> None:
    """As of now it would be claimed over what a person has granted since the request left."""
    site = Site(seconds_apart=1.0)
    await site.reconciliation(Attempts()).claim_again()
    assert (site.recalled, site.recalled_as_of) == (["a"], [Attempts.begun_at])
