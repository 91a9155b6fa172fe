"""The authorization store in memory, with a switch that takes the database away."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from daemon.domain.authorization import (
    Completion,
    NotStored,
    NotStoredReason,
    PendingAuthorization,
    StoredAuthorization,
    Ticket,
)
from daemon.domain.completion import (
    Held,
    Kept,
    Refused,
    Repeated,
    authorized_detail,
    decide,
    is_same_reply,
)
from daemon.domain.connection import Connection, Status
from daemon.domain.errors import DatabaseUnavailableError
from daemon.domain.history import DetailValue, EventType
from daemon.domain.tokens import TokenSet


class MemoryAuthorizations:
    """Port: AuthorizationStore. While ``is_away`` every method raises.

    ``errors`` are raised first, one by each next call. ``interruptions`` makes the next so many
    calls of ``complete`` raise after they have stored, as a connection does that is cut between
    commit and answer. ``revoked`` has what was queued for revocation, with its connection, and
    ``recorded`` the events: (connection, type, detail).
    """

    def __init__(self, *connections: Connection) -> None:
        self.connections = {connection.id: connection for connection in connections}
        self.tickets: dict[bytes, Ticket] = {}
        self.pending: dict[bytes, PendingAuthorization] = {}
        self.tokens: dict[str, TokenSet] = {}
        self.due: dict[str, datetime | None] = {}
        self.tests_due: dict[str, datetime | None] = {}
        self.epochs: dict[str, int] = {}
        self.account_scopes: dict[str, str] = {}
        self.labels_set: set[str] = set()
        self.merged: dict[str, str] = {}
        self.refused: list[tuple[str, TokenSet, NotStored]] = []
        self.revoked: list[tuple[str, TokenSet]] = []
        self.recorded: list[tuple[str, EventType, dict[str, DetailValue]]] = []
        self.is_away = False
        self.errors: list[Exception] = []
        self.interruptions = 0
        self.calls: list[str] = []

    async def add_ticket(self, ticket: Ticket) -> bool:
        """Store a ticket; ``False`` where its connection is gone."""
        self._called("add_ticket")
        if ticket.connection_id not in self.connections:
            return False
        self.tickets[ticket.ticket_hash] = ticket
        return True

    async def ticket(
        self, ticket_hash: bytes, *, now: datetime
    ) -> tuple[Ticket, Connection] | None:
        """Return a live ticket with its connection."""
        self._called("ticket")
        found = self.tickets.get(ticket_hash)
        if found is None or found.expires_at <= now:
            return None
        connection = self.connections.get(found.connection_id)
        return None if connection is None else (found, connection)

    async def begin(self, authorization: PendingAuthorization, *, ticket_hash: bytes) -> bool:
        """Store a transaction; ``False`` where its ticket is gone."""
        self._called("begin")
        ticket = self.tickets.get(ticket_hash)
        if ticket is None or ticket.connection_id != authorization.connection_id:
            return False
        self.pending[authorization.state_hash] = authorization
        return True

    async def consume(self, state_hash: bytes) -> PendingAuthorization | None:
        """Remove and return a transaction, expired or not."""
        self._called("consume")
        found = self.pending.pop(state_hash, None)
        connection = None if found is None else self.connections.get(found.connection_id)
        if found is None or connection is None:
            return found
        return replace(
            found, generation=connection.generation, epoch=self.epochs.get(connection.id, 0)
        )

    async def complete(self, completion: Completion) -> StoredAuthorization | NotStored:
        """Store the tokens one generation above the stored ones."""
        self._called("complete")
        answer = self._complete(completion)
        if self.interruptions > 0:
            self.interruptions -= 1
            raise DatabaseUnavailableError("the connection was cut after the commit")
        return answer

    def disconnect(self, connection_id: str) -> None:
        """Erase a connection's tokens, as a disconnect does that comes in between."""
        before = self.connections[connection_id]
        self.connections[connection_id] = replace(
            before, status=Status.DISCONNECTED, scopes=(), expires_at=None, has_refresh_token=False
        )
        self.epochs[connection_id] = self.epochs.get(connection_id, 0) + 1
        self.tokens.pop(connection_id, None)
        self._forget(connection_id)

    def _complete(self, completion: Completion) -> StoredAuthorization | NotStored:
        name = completion.connection_id
        for refused, tokens, answer in self.refused:
            if refused == name and is_same_reply(tokens, completion.tokens):
                return NotStored(reason=answer.reason)
        target = self._held(self.merged.get(name, name))
        if target is None:
            gone = NotStored(reason=NotStoredReason.GONE)
            if completion.provider is not None:
                self.revoked.append((name, completion.tokens))
                self.refused.append((name, completion.tokens, gone))
            return gone
        is_followed = target.connection.id != name
        holder = self._holder(completion, target.connection)
        match decided := decide(completion, target, holder, is_followed=is_followed):
            case Kept():
                return self._store(completion, decided)
            case Repeated():
                merged = name if is_followed else None
                return StoredAuthorization(connection=target.connection, merged=merged)
            case Refused():
                if decided.answer.reason is not NotStoredReason.SUPERSEDED:
                    self.refused.append((name, completion.tokens, decided.answer))
                return self._refuse(decided, target.connection)

    def _store(self, completion: Completion, kept: Kept) -> StoredAuthorization:
        name = kept.connection_id
        self.revoked += [(one.connection.id, one.tokens) for one in kept.replaced]
        if kept.merged is not None:
            del self.connections[kept.merged]
            self.tokens.pop(kept.merged, None)
            self._forget(kept.merged)
            self.merged = {
                one: name if survivor == kept.merged else survivor
                for one, survivor in self.merged.items()
            }
            self.merged[kept.merged] = name
        test = None if completion.account is None else completion.account.test
        before = self.connections[name]
        after = replace(
            before,
            status=Status.ACTIVE,
            generation=kept.tokens.generation,
            label=kept.label,
            account_id=kept.account_id,
            fields=kept.fields,
            scopes=kept.tokens.scopes,
            requested_scopes=kept.requested_scopes,
            metadata=kept.metadata,
            expires_at=kept.tokens.expires_at,
            refresh_at=kept.due_at if kept.tokens.refresh_token else None,
            has_refresh_token=kept.tokens.refresh_token is not None,
            last_error=None,
            reply_values=kept.reply_values,
            last_test=test or before.last_test,
            last_tested_at=test.checked_at if test else before.last_tested_at,
        )
        self.connections[name] = after
        self.account_scopes[name] = kept.account_scope
        if kept.label_is_set:
            self.labels_set.add(name)
        self.tokens[name] = kept.tokens
        self.due[name] = kept.due_at
        self.tests_due[name] = completion.next_test_at
        for ticket in [ticket for ticket in self.tickets.values() if ticket.connection_id == name]:
            del self.tickets[ticket.ticket_hash]
        detail = authorized_detail(
            kept.tokens,
            kept.requested_scopes,
            account_known=kept.account_id is not None,
            merged=kept.merged,
        )
        self.recorded.append((name, EventType.AUTHORIZED, detail))
        return StoredAuthorization(connection=after, merged=kept.merged)

    def _refuse(self, refused: Refused, connection: Connection) -> NotStored:
        if refused.tokens is not None:
            self.revoked.append((connection.id, refused.tokens))
        if refused.answer.reason is not NotStoredReason.SUPERSEDED:
            detail: dict[str, DetailValue] = {"code": refused.answer.reason.value}
            self.recorded.append((connection.id, EventType.AUTHORIZATION_FAILED, detail))
        return refused.answer

    def _held(self, name: str) -> Held | None:
        connection = self.connections.get(name)
        if connection is None:
            return None
        return Held(
            connection=connection,
            account_scope=self.account_scopes.get(name, ""),
            label_is_set=name in self.labels_set,
            epoch=self.epochs.get(name, 0),
            tokens=self.tokens.get(name),
        )

    def _holder(self, completion: Completion, target: Connection) -> Held | None:
        account = completion.account
        if account is None or account.account_id is None:
            return None
        wanted = (target.provider, account.scope, account.account_id)
        for one in self.connections.values():
            scope = self.account_scopes.get(one.id, "")
            if one.id != target.id and (one.provider, scope, one.account_id) == wanted:
                return self._held(one.id)
        return None

    def _forget(self, connection_id: str) -> None:
        for ticket in [one for one in self.tickets.values() if one.connection_id == connection_id]:
            del self.tickets[ticket.ticket_hash]
        for begun in [one for one in self.pending.values() if one.connection_id == connection_id]:
            del self.pending[begun.state_hash]

    def _called(self, method: str) -> None:
        self.calls.append(method)
        if self.errors:
            raise self.errors.pop(0)
        if self.is_away:
            raise DatabaseUnavailableError("the database is away")
