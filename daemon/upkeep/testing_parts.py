"""What testing connections needs of the world: narrow ports, each satisfied elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from daemon.domain.account import Account
from daemon.domain.clock import Clock
from daemon.domain.connection import Connection, Failure
from daemon.domain.events import Events
from daemon.domain.provider import Provider
from daemon.oauth.authorization import ProviderResolver
from daemon.oauth.identifying import TokenExaminer
from daemon.refresh.cache import Entry
from daemon.refresh.reading import Reading


class TokenReads(Protocol):
    """Where tokens are read. ``daemon.refresh.reading.TokenReader`` is the one."""

    async def entry(self, connection_id: str) -> Entry | None:
        """Return the connection's entry. Raises Problem."""

    async def read(
        self, connection_id: str, *, min_ttl: float = 0, newer_than: int | None = None
    ) -> Reading | None:
        """Return a token, refreshed where needed; ``None``: no such one. Raises Problem."""


class Recorded(Protocol):
    """A connection after its test; ``conflict`` is another one that has its account."""

    @property
    def connection(self) -> Connection:
        """Return it."""

    @property
    def conflict(self) -> str | None:
        """Return the other one's id."""


class ResultStore(Protocol):
    """Where results are kept. Every method may raise DatabaseUnavailableError."""

    async def get(self, connection_id: str) -> Connection | None:
        """Return a connection."""

    async def record_test(
        self,
        connection_id: str,
        account: Account,
        *,
        now: datetime,
        next_test_at: datetime | None,
    ) -> Recorded | None:
        """Store how a test went and what it told; ``None`` where the connection is gone."""

    async def mark_dead(
        self, connection_id: str, *, generation: int, failure: Failure, now: datetime
    ) -> bool:
        """Say that the grant has ended; ``False`` where that is not true any more."""

    async def claim_tests(self, *, now: datetime, limit: int) -> Sequence[str]:
        """Return ids whose test is due, hidden from other replicas for a while."""


class Providers(Protocol):
    """The providers as configured now."""

    def get(self, name: str) -> Provider | None:
        """Return one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TestingParts:
    """What testing works with. ``chance`` returns a number in [0, 1).

    ``on_dead`` is told the id of a connection whose grant has turned out to have ended. When it
    returns, the cache here has read it again. It must not raise.
    """

    __test__ = False  # not a test of ours

    reader: TokenReads
    store: ResultStore
    examiner: TokenExaminer
    resolver: ProviderResolver
    providers: Providers
    events: Events
    clock: Clock
    chance: Callable[[], float]
    on_dead: Callable[[str], Awaitable[None]]
