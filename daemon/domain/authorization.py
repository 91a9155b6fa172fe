"""An authorization on its way: the ticket that starts one and the transaction that ends one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from daemon.domain.account import Account
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
    ``fields`` are the connection's from now on, should it succeed. ``caller`` is the ticket's.
    ``generation`` and ``epoch`` are the connection's at the moment the transaction was consumed.
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
    fields: Mapping[str, str] = field(default_factory=dict)
    caller: str = ""
    generation: int = 0
    epoch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What a completed authorization is to store.

    ``account`` is ``None`` where nothing was learned of it (a replay after a restart, a provider
    without ``account_id``, ``label`` and ``test``). ``epoch`` is the connection's when the code
    was spent: a disconnect since then wins. ``only_after`` makes it conditional on the
    connection's generation. ``may_merge`` tells of a connection id whether the caller on whose
    behalf this happens may see it: another caller's connection is never merged into.
    ``next_test_at`` is when the connection is tested next (``None``: not by itself).
    ``provider`` is where to revoke the tokens should the connection be gone.
    ``revokes_replaced`` is ``Provider.revocation_request.on_reconnect``. ``least_generation`` is
    for a database that has forgotten generations: the new one is not below it.
    """

    connection_id: str
    provider: str | None = None
    tokens: TokenSet = field(repr=False)
    due_at: datetime | None
    next_test_at: datetime | None = None
    revokes_replaced: bool = False
    fields: Mapping[str, str] | None = None
    account: Account | None = None
    epoch: int | None = None
    only_after: int | None = None
    least_generation: int = 0
    may_merge: Callable[[str], bool] = field(default=lambda _: True, repr=False)


class NotStoredReason(StrEnum):
    """Why a completed authorization was not stored."""

    GONE = "gone"
    """There is no such connection any more."""
    DISCONNECTED = "disconnected"
    """It was disconnected while the person authorized it."""
    SUPERSEDED = "superseded"
    """``only_after`` is not its generation."""
    OTHER_ACCOUNT = "other_account"
    """A reconnect came back as somebody else."""
    ACCOUNT_UNKNOWN = "account_unknown"
    """A reconnect came back as nobody knows whom: the provider was asked and did not say."""
    CONNECTED_ELSEWHERE = "connected_elsewhere"
    """The account belongs to a connection that this caller may not see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotStored:
    """A completion that was refused; its tokens are queued for revocation, but when SUPERSEDED.

    ``expected`` is the label or account id that was expected, for ``OTHER_ACCOUNT``.
    """

    reason: NotStoredReason
    expected: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAuthorization:
    """A completion that was stored. ``merged`` is the id that gave way to ``connection``."""

    connection: Connection
    merged: str | None = None


class AuthorizationStore(Protocol):
    """Where tickets and transactions live. Every method may raise DatabaseUnavailableError."""

    async def add_ticket(self, ticket: Ticket) -> bool:
        """Store a ticket; ``False`` where its connection is gone."""

    async def ticket(
        self, ticket_hash: bytes, *, now: datetime
    ) -> tuple[Ticket, Connection] | None:
        """Return a live ticket with its connection; ``None`` where unknown, used or expired."""

    async def begin(self, authorization: PendingAuthorization, *, ticket_hash: bytes) -> bool:
        """Store a transaction; ``False`` where its ticket is gone, as after a disconnect."""

    async def consume(self, state_hash: bytes) -> PendingAuthorization | None:
        """Remove and return a transaction, expired or not: of many who ask, one receives it."""

    async def complete(self, completion: Completion) -> StoredAuthorization | NotStored:
        """Store the tokens of a completed authorization in one transaction.

        Sets the connection ``active`` with the generation above its stored one (that of
        ``tokens`` is ignored), clears its last error, keeps what was learned of its account,
        schedules refresh and test, removes its tickets and records ``connection.authorized``.
        Where another connection of the provider has the account already, that one receives all
        of it and this one gives way. What is replaced or refused is queued for revocation.
        """
