"""The order of a disconnect: gone here, gone everywhere, told to the provider, whoever waits."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar

import pytest

from daemon.domain.connection import Connection, Status
from daemon.domain.errors import DatabaseUnavailableError, Problem
from daemon.domain.provider import Endpoints, Provider
from daemon.domain.revocation import Initiator, RevocationResult
from daemon.domain.tokens import CurrentToken
from daemon.persistence.life import Disconnected
from daemon.refresh.cache import TokenCache
from daemon.upkeep.disconnecting import Disconnecting, DisconnectingParts, may_be_revoked
from daemon.upkeep.revoking import Revoking, RevokingParts
from tests.support.clock import FakeClock
from tests.support.memory_revocations import (
    ACME,
    AWAY,
    HINTS,
    UNSUPPORTED,
    ConfiguredPlaces,
    MemoryRevocations,
    ScriptedRevocations,
)
from tests.support.refreshing import RecordedEvents

T = TypeVar("T")
START = FakeClock().now()
CONNECTION = Connection(
    id="con_1",
    provider="acme",
    grant="authorization_code",
    status=Status.ACTIVE,
    generation=4,
    created_at=START,
    updated_at=START,
)


@dataclass
class MemoryStore:
    """Port: Disconnects. Queues as the real one does; ``hints`` are the tokens there are."""

    queue: MemoryRevocations
    order: list[str]
    hints: tuple[str, ...] = HINTS
    is_gone: bool = False
    asked: list[tuple[bool, bool]] = field(default_factory=list)

    async def disconnect(
        self,
        connection_id: str,
        *,
        initiator: Initiator,
        now: datetime,
        revoke: bool,
        purge: bool,
    ) -> Disconnected | None:
        """Queue the tokens."""
        if self.queue.is_away:
            raise DatabaseUnavailableError("away")
        assert initiator is Initiator.OPERATOR
        self.asked.append((revoke, purge))
        self.order.append("stored")
        if self.is_gone:
            return None
        if revoke:
            self.queue.put(connection_id, hints=self.hints)
        after = replace(CONNECTION, status=Status.DISCONNECTED, updated_at=now)
        return Disconnected(connection=after, queued=await self.queue.count(connection_id))


class Uncut:
    """Port: Spawn."""

    def __init__(self) -> None:
        self.task: asyncio.Task[Any] | None = None

    async def __call__(self, work: Coroutine[Any, Any, T], /) -> T:
        """Run ``work`` in a task of its own."""
        task = asyncio.create_task(work)
        self.task = task
        return await asyncio.shield(task)


class Stage:
    """Everything around one disconnect."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.providers: dict[str, Provider] = {"acme": ACME}
        self.queue = MemoryRevocations(self.clock)
        self.endpoint = ScriptedRevocations(self.clock)
        self.places = ConfiguredPlaces()
        self.events = RecordedEvents()
        self.cache = TokenCache()
        self.order: list[str] = []
        self.store = MemoryStore(self.queue, self.order)
        self.spawn = Uncut()
        self.cache.put(token())
        revoking = Revoking(
            RevokingParts(
                queue=self.queue,
                endpoint=self.endpoint,
                places=self.places,
                providers=self.providers,
                events=self.events,
                clock=self.clock,
                chance=lambda: 0.5,
            )
        )
        self.disconnecting = Disconnecting(
            DisconnectingParts(
                store=self.store,
                revoking=revoking,
                providers=self.providers,
                cache=self.cache,
                publish=lambda name: self.order.append(f"published {name}"),
                spawn=self.spawn,
                events=self.events,
                clock=self.clock,
            )
        )

    async def disconnect(
        self, connection: Connection = CONNECTION, *, purge: bool = False
    ) -> RevocationResult:
        """Disconnect; return what became of the revocation."""
        after, result = await self.disconnecting.disconnect(
            connection, initiator=Initiator.OPERATOR, purge=purge
        )
        assert after.status is Status.DISCONNECTED
        return result

    @property
    def told(self) -> list[tuple[str, object]]:
        """Return the events with their results."""
        return [(name, details.get("result")) for name, _, details in self.events.told]


def token(generation: int = 4) -> CurrentToken:
    """Return a token that memory serves."""
    return CurrentToken(
        connection="con_1",
        provider="acme",
        status=Status.ACTIVE,
        generation=generation,
        access_token="at-1",
        token_type="Bearer",
        scopes=(),
        issued_at=START,
        expires_at=None,
        refreshable=True,
    )


@pytest.fixture
def stage() -> Stage:
    """Return a stage whose connection is active and in memory."""
    return Stage()


async def test_gone_here_before_anybody_is_asked(stage: Stage) -> None:
    """R4: database, memory and other replicas first; the provider may be slow."""
    stage.endpoint.gate.clear()
    task = asyncio.create_task(stage.disconnect())
    await stage.clock.settle()
    assert stage.order == ["stored", "published con_1"]
    entry = stage.cache.get("con_1")
    assert entry is not None
    assert entry.status is Status.DISCONNECTED
    assert not entry.is_good(stage.clock.now().timestamp())
    stage.endpoint.gate.set()
    assert await task is RevocationResult.REVOKED
    assert stage.queue.rows == {}
    assert stage.told == [
        ("connection_disconnected", None),
        ("revocation_ended", RevocationResult.REVOKED),
    ]


@pytest.mark.parametrize("generation", [4, 5])
async def test_an_older_answer_does_not_bring_the_token_back(stage: Stage, generation: int) -> None:
    """What a reader still has in hand, or a refresh had served from memory, stays out."""
    stage.cache.put(token(generation))
    await stage.disconnect()
    stage.cache.put(token(generation))
    entry = stage.cache.get("con_1")
    assert entry is not None
    assert entry.status is Status.DISCONNECTED


async def test_a_provider_that_is_away_is_told_later(stage: Stage) -> None:
    """The answer is 'queued', and the tokens wait."""
    stage.endpoint.otherwise = AWAY
    assert await stage.disconnect() is RevocationResult.QUEUED
    assert len(stage.queue.rows) == 2
    assert stage.told[-1] == ("revocation_ended", RevocationResult.QUEUED)


async def test_a_provider_that_takes_no_revocations(stage: Stage) -> None:
    """Nothing is queued where there is certainly nowhere to send it."""
    stage.providers["acme"] = Provider(name="acme", client_id="client")
    assert await stage.disconnect() is RevocationResult.UNSUPPORTED
    assert stage.store.asked == [(False, False)]
    assert stage.told[-1] == ("revocation_ended", RevocationResult.UNSUPPORTED)


async def test_metadata_without_an_endpoint(stage: Stage) -> None:
    """Whether there is an endpoint is found out when the tokens are already gone here."""
    stage.providers["acme"] = Provider(name="acme", client_id="client", issuer="https://a.example")
    assert await stage.disconnect() is RevocationResult.UNSUPPORTED
    assert stage.queue.rows == {}
    assert [name for name, _ in stage.told].count("revocation_ended") == 1


async def test_metadata_that_are_away(stage: Stage) -> None:
    """A provider that cannot be asked is taken to support revocation."""
    stage.providers["acme"] = Provider(name="acme", client_id="client", issuer="https://a.example")
    stage.places.is_away = True
    assert await stage.disconnect() is RevocationResult.QUEUED


async def test_a_provider_that_is_not_configured_any_more(stage: Stage) -> None:
    """It may come back: queued."""
    stage.providers.clear()
    assert await stage.disconnect() is RevocationResult.QUEUED
    assert stage.store.asked == [(True, False)]


async def test_unsupported_types_are_told_once(stage: Stage) -> None:
    """What the provider itself refuses is counted where it was heard."""
    stage.endpoint.otherwise = UNSUPPORTED
    assert await stage.disconnect() is RevocationResult.UNSUPPORTED
    assert stage.told == [
        ("connection_disconnected", None),
        ("revocation_ended", RevocationResult.UNSUPPORTED),
    ]


async def test_a_purge_leaves_nothing_in_memory(stage: Stage) -> None:
    """After a purge the connection is unknown, not disconnected."""
    assert await stage.disconnect(purge=True) is RevocationResult.REVOKED
    assert stage.store.asked == [(True, True)]
    assert stage.cache.get("con_1") is None


@pytest.mark.parametrize("status", [Status.PENDING, Status.DISCONNECTED])
async def test_nothing_to_revoke(stage: Stage, status: Status) -> None:
    """Without tokens there is nothing left to revoke, and no revocation is counted."""
    stage.store.hints = ()
    assert await stage.disconnect(replace(CONNECTION, status=status)) is RevocationResult.REVOKED
    assert stage.endpoint.sent == []
    expected = [] if status is Status.DISCONNECTED else ["connection_disconnected"]
    assert stage.events.names == expected


async def test_disconnecting_again_tells_how_it_stands(stage: Stage) -> None:
    """A second DELETE answers 'queued' while the provider has not been told, and counts nothing."""
    stage.endpoint.otherwise = AWAY
    await stage.disconnect()
    stage.store.hints = ()
    before = len(stage.told)
    again = replace(CONNECTION, status=Status.DISCONNECTED)
    assert await stage.disconnect(again) is RevocationResult.QUEUED
    assert len(stage.told) == before


async def test_tokens_that_cannot_be_read_cannot_be_revoked(stage: Stage) -> None:
    """They are erased, and nobody says that the provider knows."""
    stage.store.hints = ()
    assert await stage.disconnect() is RevocationResult.UNSUPPORTED


async def test_a_caller_that_goes_away_stops_nothing(stage: Stage) -> None:
    """The disconnect runs to its end without its caller."""
    stage.endpoint.gate.clear()
    task = asyncio.create_task(stage.disconnect())
    await stage.clock.settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    stage.endpoint.gate.set()
    assert stage.spawn.task is not None
    _, result = await stage.spawn.task
    assert result is RevocationResult.REVOKED


async def test_the_database_goes_away_in_between(stage: Stage) -> None:
    """Once the tokens are erased here, the answer is 'queued', not an error."""
    stage.endpoint.gate.clear()
    task = asyncio.create_task(stage.disconnect())
    await stage.clock.settle()
    stage.queue.is_away = True
    stage.endpoint.gate.set()
    assert await task is RevocationResult.QUEUED


async def test_the_database_is_away(stage: Stage) -> None:
    """Nothing is pretended: memory stays as it is, and the caller asks again."""
    stage.queue.is_away = True
    with pytest.raises(DatabaseUnavailableError):
        await stage.disconnect()
    entry = stage.cache.get("con_1")
    assert entry is not None
    assert entry.status is Status.ACTIVE


async def test_a_connection_that_was_purged_meanwhile(stage: Stage) -> None:
    """It is unknown by now."""
    stage.store.is_gone = True
    with pytest.raises(Problem) as problem:
        await stage.disconnect()
    assert (problem.value.status, problem.value.code) == (404, "unknown_connection")


@pytest.mark.parametrize(
    ("provider", "expected"),
    [
        (None, True),
        (ACME, True),
        (Provider(name="acme", client_id="c"), False),
        (Provider(name="acme", client_id="c", issuer="https://a.example"), True),
        (Provider(name="acme", client_id="c", endpoints=Endpoints(token="https://a/t")), False),
    ],
)
def test_what_may_be_revoked(*, provider: Provider | None, expected: bool) -> None:
    """Only a provider that certainly has no endpoint is left out."""
    assert may_be_revoked(provider) is expected
