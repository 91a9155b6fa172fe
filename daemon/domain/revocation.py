"""Revocation (RFC 7009): tokens that are still to be revoked at their provider.

A disconnect is local at once; telling the provider may take days. What is queued here is the only
place where a token outlives its connection, encrypted, until the provider has said yes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

# How long a token is worth telling the provider about (reliability R4).
GIVE_UP_AFTER = timedelta(days=7)


class Initiator(StrEnum):
    """Who wanted a grant to end: the label of ``tokenward_revocations_total``."""

    PROVIDER = "provider"
    CALLER = "caller"
    OPERATOR = "operator"


class RevocationResult(StrEnum):
    """What became of it: the label of ``tokenward_revocations_total``, and DELETE's answer."""

    REVOKED = "revoked"
    QUEUED = "queued"
    UNSUPPORTED = "unsupported"
    DETECTED = "detected"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedRevocation:
    """One token to revoke, claimed by its worker until ``next_at`` of its row.

    ``token_type_hint`` is ``refresh_token`` or ``access_token``. ``fields`` are the connection's,
    for templated endpoints: the connection itself may be gone.
    """

    id: int
    connection_id: str
    provider: str
    token: str = field(repr=False)
    token_type_hint: str
    fields: Mapping[str, str]
    initiator: Initiator
    attempts: int
    created_at: datetime


class RevocationQueue(Protocol):
    """The durable queue. Every method may raise DatabaseUnavailableError."""

    async def claim(
        self, *, now: datetime, hold: timedelta, limit: int, connection_id: str | None = None
    ) -> Sequence[QueuedRevocation]:
        """Return what is due, each hidden from others for ``hold``; only one connection's if given.

        A row whose token does not decrypt is not returned and stays.
        """

    async def done(self, revocation_id: int) -> None:
        """Remove a row: the provider has said yes, or cannot be told at all."""

    async def later(self, revocation_id: int, *, at: datetime, error: str) -> None:
        """Try again at ``at``; ``error`` is a sentence safe to show."""

    async def count(self, connection_id: str) -> int:
        """Return how many tokens of a connection are still to be revoked."""

    async def next_at(self) -> datetime | None:
        """Return when the next row is due; ``None`` where the queue is empty."""
