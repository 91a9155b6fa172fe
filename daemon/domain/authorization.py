"""An authorization on its way: the ticket that starts one and the transaction that ends one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from daemon.domain.connection import Connection
from daemon.domain.tokens import TokenSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """The right to start one authorization, carried in a connect URL.

    Only the SHA-256 of the URL's secret part is kept. ``caller`` is who asked for it and is shown
    to the person; ``return_url`` was checked against ``return_urls`` when the ticket was made.
    """

    ticket_hash: bytes = field(repr=False)
    connection_id: str
    caller: str
    return_url: str | None
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingAuthorization:
    """One authorization transaction between the redirect to the provider and its callback.

    ``issuer`` and ``token_endpoint`` are pinned when it starts, so a code can only ever go where
    this transaction was aimed at (RFC 9700 4.4). ``browser_hash`` is the SHA-256 of the binding
    cookie. ``redirect_uri`` is repeated byte for byte in the token request (RFC 6749 4.1.3).
    ``generation`` is the connection's at the moment the transaction was consumed.
    """

    state_hash: bytes = field(repr=False)
    connection_id: str
    provider: str
    issuer: str | None
    token_endpoint: str
    redirect_uri: str
    code_verifier: str | None = field(repr=False)
    browser_hash: bytes = field(repr=False)
    scopes: tuple[str, ...]
    return_url: str | None
    expires_at: datetime
    generation: int = 0


class AuthorizationStore(Protocol):
    """Where tickets and transactions live. Every method may raise DatabaseUnavailableError."""

    async def add_ticket(self, ticket: Ticket) -> None:
        """Store a ticket."""

    async def ticket(
        self, ticket_hash: bytes, *, now: datetime
    ) -> tuple[Ticket, Connection] | None:
        """Return a live ticket with its connection; ``None`` where unknown, used or expired."""

    async def begin(self, authorization: PendingAuthorization) -> None:
        """Store a transaction."""

    async def consume(self, state_hash: bytes) -> PendingAuthorization | None:
        """Remove and return a transaction, expired or not: of many who ask, one receives it."""

    async def complete(
        self,
        connection_id: str,
        tokens: TokenSet,
        *,
        due_at: datetime | None,
        only_after: int | None = None,
    ) -> Connection | None:
        """Store the tokens of a completed authorization in one transaction.

        Sets the connection ``active`` with the generation above its stored one (that of
        ``tokens`` is ignored), clears its last error, schedules its refresh and removes its
        tickets. Returns the connection, or ``None`` where it is gone, or where ``only_after`` is
        given and is not its generation.
        """

    async def prune(self, *, now: datetime) -> Sequence[str]:
        """Remove expired tickets and transactions; return the ids of connections concerned."""
