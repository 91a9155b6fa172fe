"""The history of a connection: what happened to it, kept in the database and told to others.

The contract's event types and nothing else. An event is stored in the transaction that makes it
true, so that neither exists without the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol


class EventType(StrEnum):
    """What may happen to a connection."""

    CREATED = "connection.created"
    AUTHORIZED = "connection.authorized"
    AUTHORIZATION_FAILED = "connection.authorization_failed"
    REFRESHED = "token.refreshed"
    REFRESH_FAILED = "token.refresh_failed"
    REAUTHORIZATION_REQUIRED = "connection.reauthorization_required"
    RECOVERED = "connection.recovered"
    TESTED = "connection.tested"
    DISCONNECTED = "connection.disconnected"
    REVOKED_AT_PROVIDER = "connection.revoked_at_provider"


DetailValue = str | int | float | bool | None | Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """Something that is about to be true. ``detail`` holds no secret and no provider's prose."""

    type: EventType
    connection: str
    provider: str
    at: datetime
    detail: Mapping[str, DetailValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A stored event. ``id`` rises over all connections; see :func:`passable` for followers."""

    id: int
    type: EventType
    connection: str
    provider: str
    at: datetime
    detail: Mapping[str, DetailValue]


class History(Protocol):
    """Where events are kept. Every method may raise DatabaseUnavailableError."""

    async def record(self, events: Sequence[NewEvent]) -> None:
        """Store events that belong to no other transaction."""

    async def of_connection(
        self, connection_id: str, *, limit: int, before: int | None
    ) -> list[Event]:
        """Return up to ``limit`` events of a connection, newest first, older than ``before``."""

    async def after(self, event_id: int, *, limit: int) -> list[Event]:
        """Return up to ``limit`` events of all connections above ``event_id``, oldest first.

        What is on its way to be committed is not among them, even where a higher id is:
        whoever follows takes ``daemon.persistence.history.EventTail``.
        """

    async def newest_id(self) -> int:
        """Return the highest id there is; 0 where there is none."""


def passable(ids: Sequence[int], *, position: int, settled: int) -> int:
    """Return how many of ``ids`` a follower that stands at ``position`` may take now. Pure.

    Ids are given out before their transactions commit, so 7 may be there before 6 is. Whoever then
    moved to 7 would never see 6. ``ids`` are those found above ``position``, rising; ``settled`` is
    an id that was given out so long ago that every lower one that is still missing never comes.
    """
    taken = 0
    for number in ids:
        if number > settled + 1 and number > position + 1:
            break
        position = number
        taken += 1
    return taken
