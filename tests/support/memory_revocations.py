"""A revocation queue in memory, and a provider that says what a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from daemon.domain.errors import DatabaseUnavailableError, DiscoveryError
from daemon.domain.provider import Endpoints, Provider
from daemon.domain.revocation import Initiator, QueuedRevocation
from daemon.oauth.revocation import Answer, AnswerKind
from tests.support.clock import FakeClock

REVOKE_URL = "https://auth.acme.example/revoke"
ACME = Provider(name="acme", client_id="client", endpoints=Endpoints(revocation=REVOKE_URL))
REVOKED = Answer(kind=AnswerKind.REVOKED)
UNSUPPORTED = Answer(kind=AnswerKind.UNSUPPORTED)
LATER = Answer(kind=AnswerKind.LATER, error="Not now.")
AWAY = Answer(kind=AnswerKind.LATER, error="Away.", is_general=True)
HINTS = ("refresh_token", "access_token")


@dataclass
class MemoryRevocations:
    """Port: RevocationQueue. Rows by id: the revocation, when it is due, its last error."""

    clock: FakeClock
    is_away: bool = False
    rows: dict[int, tuple[QueuedRevocation, datetime, str | None]] = field(default_factory=dict)

    def put(
        self, connection: str = "con_1", provider: str = "acme", *, hints: Sequence[str] = HINTS
    ) -> None:
        """Queue a connection's tokens."""
        for hint in hints:
            number = len(self.rows) + 1
            row = QueuedRevocation(
                id=number,
                connection_id=connection,
                provider=provider,
                token=f"{hint}-of-{connection}",
                token_type_hint=hint,
                fields={},
                initiator=Initiator.CALLER,
                attempts=0,
                created_at=self.clock.now(),
            )
            self.rows[number] = (row, self.clock.now(), None)

    @property
    def waits(self) -> list[float]:
        """Return in how many seconds each row is due."""
        return [(at - self.clock.now()).total_seconds() for _, at, _ in self.rows.values()]

    async def claim(
        self, *, now: datetime, hold: timedelta, limit: int, connection_id: str | None = None
    ) -> Sequence[QueuedRevocation]:
        """Return what is due and hold it."""
        self._check()
        due = [
            row
            for row, at, _ in self.rows.values()
            if at <= now and connection_id in {None, row.connection_id}
        ][:limit]
        for row in due:
            self.rows[row.id] = (row, now + hold, self.rows[row.id][2])
        return due

    async def done(self, revocation_id: int) -> None:
        """Remove a row."""
        self._check()
        del self.rows[revocation_id]

    async def later(self, revocation_id: int, *, at: datetime, error: str) -> None:
        """Put a row off."""
        self._check()
        row, _, _ = self.rows[revocation_id]
        self.rows[revocation_id] = (replace(row, attempts=row.attempts + 1), at, error)

    async def count(self, connection_id: str) -> int:
        """Return how many rows a connection has."""
        self._check()
        return sum(row.connection_id == connection_id for row, _, _ in self.rows.values())

    async def next_at(self) -> datetime | None:
        """Return when the next row is due."""
        self._check()
        return min((at for _, at, _ in self.rows.values()), default=None)

    def _check(self) -> None:
        if self.is_away:
            raise DatabaseUnavailableError("away")


@dataclass
class ScriptedRevocations:
    """Port: Revokes. Answers by token, else in order, else ``otherwise``; ``gate`` holds them."""

    clock: FakeClock
    otherwise: Answer = REVOKED
    answers: list[Answer] = field(default_factory=list)
    by_token: dict[str, Answer] = field(default_factory=dict)
    takes: float = 0.0
    sent: list[tuple[str, str, float]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    in_flight: int = 0
    most_in_flight: int = 0

    def __post_init__(self) -> None:
        """Answer at once until told otherwise."""
        self.gate.set()

    @property
    def tokens(self) -> list[str]:
        """Return what was sent, in order."""
        return [token for token, _, _ in self.sent]

    async def revoke(
        self, provider: Provider, url: str, token: str, token_type_hint: str, *, hard_timeout: float
    ) -> Answer:
        """Record the request and answer."""
        assert provider.name in url
        assert token.startswith(token_type_hint)
        self.sent.append((token, url, hard_timeout))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await self.gate.wait()
        finally:
            self.in_flight -= 1
        self.clock.advance(self.takes)
        if token in self.by_token:
            return self.by_token[token]
        return self.answers.pop(0) if self.answers else self.otherwise


class ConfiguredPlaces:
    """Port: RevocationPlaces. What is configured; an issuer's metadata name ``discovered``."""

    def __init__(self) -> None:
        self.discovered: str | None = None
        self.is_away = False

    async def revocation_endpoint(self, provider: Provider) -> str | None:
        """Return the URL."""
        if provider.endpoints.revocation is not None or provider.issuer is None:
            return provider.endpoints.revocation
        if self.is_away:
            raise DiscoveryError("The metadata cannot be read.")
        return self.discovered
