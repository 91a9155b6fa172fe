"""A history and its deliveries in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from daemon.domain.errors import DatabaseUnavailableError
from daemon.domain.history import Event, EventType, NewEvent
from daemon.persistence.deliveries import Delivered, Delivery, DeliveryState
from tests.support.clock import START


def event(number: int, connection: str = "con_1") -> Event:
    """Return an event."""
    return Event(
        id=number,
        type=EventType.REFRESHED,
        connection=connection,
        provider="acme",
        at=START,
        detail={"generation": number},
    )


class MemoryHistory:
    """Port: History, with ids that a test chooses."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.is_away = False
        self.reads = 0

    def add(self, *events: Event) -> None:
        """Let events become visible."""
        self.events = sorted([*self.events, *events], key=lambda one: one.id)

    async def record(self, events: Sequence[NewEvent]) -> None:
        """Store events."""
        raise NotImplementedError

    async def of_connection(
        self, connection_id: str, *, limit: int, before: int | None
    ) -> list[Event]:
        """Return events of a connection, newest first."""
        found = await self.newest(limit=len(self.events), before=before)
        return [one for one in found if one.connection == connection_id][:limit]

    async def newest(self, *, limit: int, before: int | None) -> list[Event]:
        """Return events, newest first."""
        self._check()
        found = [one for one in reversed(self.events) if before is None or one.id < before]
        return found[:limit]

    async def after(self, event_id: int, *, limit: int) -> list[Event]:
        """Return events, oldest first."""
        self._check()
        return [one for one in self.events if one.id > event_id][:limit]

    async def newest_id(self) -> int:
        """Return the highest id."""
        self._check()
        return max((one.id for one in self.events), default=0)

    def _check(self) -> None:
        self.reads += 1
        if self.is_away:
            raise DatabaseUnavailableError("away")


@dataclass
class MemoryDeliveries:
    """Port: Deliveries. By event id: the delivery, its state, when it is due, how it ended."""

    is_away: bool = False
    pending: dict[int, tuple[Delivery, datetime]] = field(default_factory=dict)
    ended: dict[int, Delivered] = field(default_factory=dict)

    def put(self, *events: Event) -> None:
        """Queue events."""
        for one in events:
            self.pending[one.id] = (Delivery(event=one, attempts=0), START)

    async def claim(self, *, now: datetime, hold: timedelta, limit: int) -> list[Delivery]:
        """Return what is due and hold it."""
        self._check()
        due = [one for one, at in self.pending.values() if at <= now][:limit]
        for one in due:
            self.pending[one.event.id] = (one, now + hold)
        return due

    async def settle(self, ends: Sequence[Delivered], *, now: datetime) -> None:
        """Store how tries ended."""
        self._check()
        for end in ends:
            delivery, _ = self.pending.pop(end.event_id)
            if end.state is DeliveryState.PENDING:
                assert end.next_at is not None
                assert end.next_at > now
                again = replace(delivery, attempts=delivery.attempts + 1)
                self.pending[end.event_id] = (again, end.next_at)
            else:
                self.ended[end.event_id] = end

    async def next_at(self) -> datetime | None:
        """Return when the next one is due."""
        self._check()
        return min((at for _, at in self.pending.values()), default=None)

    def _check(self) -> None:
        if self.is_away:
            raise DatabaseUnavailableError("away")
