"""[callback] What follows a granted exchange: whose account it is, and one connection that has it.

The one hard idea: the tokens are in the journal by now, so nothing here may throw them away. A
test that fails, even with a 401, costs the label and the identity at most: some APIs need minutes
to know a token that was just issued.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from daemon.domain.account import Account
from daemon.domain.authorization import (
    AuthorizationStore,
    Completion,
    NotStored,
    NotStoredReason,
    PendingAuthorization,
    StoredAuthorization,
)
from daemon.domain.clock import Clock
from daemon.domain.connection import Connection
from daemon.domain.errors import DatabaseUnavailableError
from daemon.domain.events import Events
from daemon.domain.outcome import Granted
from daemon.domain.provider import Provider
from daemon.domain.tokens import TokenSet, lifetime_of, tokens_of
from daemon.oauth.account import mask
from daemon.oauth.authorization_errors import Fault
from daemon.oauth.identifying import Identifying, Identity, NewGrant

STORE_PATIENCE = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_FAULTS = {
    NotStoredReason.GONE: "connection_gone",
    NotStoredReason.DISCONNECTED: "disconnected",
    NotStoredReason.SUPERSEDED: "not_stored",
    NotStoredReason.OTHER_ACCOUNT: "other_account",
    NotStoredReason.ACCOUNT_UNKNOWN: "account_unknown",
    NotStoredReason.CONNECTED_ELSEWHERE: "connected_elsewhere",
}
# The store writes these into the history, in the transaction that queues the refused tokens.
_RECORDED = frozenset(NotStoredReason) - {NotStoredReason.GONE, NotStoredReason.SUPERSEDED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """An authorization whose tokens are stored. ``return_url`` is as the ticket was given it.

    ``merged`` is the id that was authorized, where ``connection`` is another that had the account.
    """

    connection: Connection
    return_url: str | None
    merged: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """What follows a stored token set. None of it may block or raise.

    ``plan`` says when its first refresh is due (pure); ``authorized`` tells the cache of a
    connection, ``gone`` of an id that gave way to another; ``revoke`` wakes up who revokes what was
    replaced or refused; ``default_lifetime`` holds where reply and provider say nothing.
    """

    plan: Callable[[TokenSet, Provider, str], datetime | None]
    authorized: Callable[[Connection, TokenSet], None] = field(default=lambda _, __: None)
    gone: Callable[[str], None] = field(default=lambda _: None)
    revoke: Callable[[], None] = field(default=lambda: None)
    default_lifetime: Callable[[], timedelta]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """An exchange that brought tokens.

    ``provider`` is the connection's, with its metadata; ``configured`` is the same one before the
    fields were put in. ``callback`` are the redirect's other parameters. ``connection`` is as it
    was before the exchange, ``None`` where the database could not say.
    """

    authorization: PendingAuthorization
    configured: Provider
    provider: Provider
    granted: Granted = field(repr=False)
    callback: Mapping[str, str] = field(repr=False)
    sent_at: datetime
    connection: Connection | None


class Completing:
    """Keeps what an exchange brought."""

    def __init__(
        self,
        *,
        store: AuthorizationStore,
        identifying: Identifying,
        learning: Learning,
        events: Events,
        clock: Clock,
    ) -> None:
        self._store = store
        self._identifying = identifying
        self._learning = learning
        self._events = events
        self._clock = clock

    async def keep(self, grant: Grant) -> Completed | Fault:
        """Test the token, store it, tell everybody; or say why it was not wanted.

        Waits up to 30 s for a database that is away.

        Raises:
            StorageError: the tokens are in the journal only, and must be stored later.
        """
        tokens = tokens_of(
            grant.granted,
            before=None,
            requested=grant.authorization.scopes,
            sent_at=grant.sent_at,
            default_lifetime=lifetime_of(grant.provider, self._learning.default_lifetime()),
        )
        identity = await self._identifying.identify(_new(grant), tokens)
        stored = await self._store_patiently(self._completion(grant, tokens, identity))
        self._learning.revoke()
        if isinstance(stored, NotStored):
            return refusal(stored, grant.provider)
        self._tell(grant, tokens, identity.account, stored)
        return Completed(
            connection=stored.connection,
            return_url=grant.authorization.return_url,
            merged=stored.merged,
        )

    def _completion(self, grant: Grant, tokens: TokenSet, identity: Identity) -> Completion:
        authorization, provider = grant.authorization, grant.provider
        return Completion(
            connection_id=authorization.connection_id,
            provider=provider.name,
            tokens=tokens,
            due_at=self._learning.plan(tokens, provider, authorization.connection_id),
            next_test_at=identity.next_test_at,
            revokes_replaced=provider.revocation_request.on_reconnect,
            fields=authorization.fields,
            account=identity.account,
            epoch=authorization.epoch,
            may_merge=identity.may_merge,
        )

    async def _store_patiently(self, completion: Completion) -> StoredAuthorization | NotStored:
        """Store, and again while the database is away: the store knows a reply that it has."""
        give_up_at = self._clock.boottime() + STORE_PATIENCE
        pause = _FIRST_PAUSE
        while True:
            try:
                return await self._store.complete(completion)
            except DatabaseUnavailableError:
                if self._clock.boottime() + pause > give_up_at:
                    raise
            await self._clock.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _tell(
        self, grant: Grant, tokens: TokenSet, account: Account, stored: StoredAuthorization
    ) -> None:
        connection, provider = stored.connection, grant.provider.name
        self._events.connection_authorized(
            connection.id, provider, has_refresh_token=connection.has_refresh_token
        )
        if stored.merged is not None:
            self._events.connection_merged(connection.id, provider, merged=stored.merged)
            self._learning.gone(stored.merged)
        test = account.test
        if test is not None:
            code = None if test.error is None else test.error.code
            self._events.connection_tested(
                connection.id, provider, ok=test.ok, status=test.status, code=code
            )
        self._learning.authorized(connection, replace(tokens, generation=connection.generation))


def refusal(stored: NotStored, provider: Provider) -> Fault:
    """Return why a grant was not wanted; it is being revoked. Pure."""
    detail = ""
    if stored.reason is NotStoredReason.OTHER_ACCOUNT and stored.expected:
        expected = mask(stored.expected) if provider.label_mask else stored.expected
        detail = f"This connection is for the account {expected}."
    is_recorded = stored.reason in _RECORDED
    return Fault(_FAULTS[stored.reason], detail=detail, is_recorded=is_recorded)


def _new(grant: Grant) -> NewGrant:
    return NewGrant(
        configured=grant.configured,
        provider=grant.provider,
        fields=grant.authorization.fields,
        caller=grant.authorization.caller,
        granted=grant.granted,
        callback=grant.callback,
        connection=grant.connection,
    )
