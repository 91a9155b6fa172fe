"""[callback] Whose account a new grant is: asked right after its exchange, or at the replay of it.

The one hard idea: a process may die between a reply and its storing, and what is found in the
journal then is judged as at the callback. Else a crash would let a reconnect through that came
back as somebody else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

from daemon.domain.account import Account
from daemon.domain.clock import Clock
from daemon.domain.connection import Connection, TestResult
from daemon.domain.errors import DiscoveryError, FieldError
from daemon.domain.journal import JournaledReply
from daemon.domain.outcome import Granted
from daemon.domain.provider import Provider, account_scope
from daemon.domain.tokens import TokenSet
from daemon.oauth.account import evaluate, names_me
from daemon.oauth.authorization import ProviderResolver, tenant_of
from daemon.oauth.examination import Examined
from daemon.oauth.testing import next_test_at

# When it is asked again whose token replaced a known account's, where the API could not say.
_ASK_AGAIN = timedelta(minutes=2)
# No answer to the question: the API does not know the token yet, has too much to do, is broken.
_NO_ANSWERS = frozenset({401, 408, 425, 429, *range(500, 600)})


class TokenExaminer(Protocol):
    """Asks what a token is good for. ``daemon.oauth.examiner.Examiner`` is the one that does."""

    async def examine(
        self,
        provider: Provider,
        access_token: str,
        *,
        fields: Mapping[str, str],
        reply_values: Mapping[str, str],
    ) -> Examined | None:
        """Ask once, within 10 s; ``None`` where nothing can be asked. Never raises."""


class Connections(Protocol):
    """Where connections are read."""

    async def get(self, connection_id: str) -> Connection | None:
        """Return a connection. Raises DatabaseUnavailableError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewGrant:
    """What an exchange brought, before anybody knows whose it is.

    ``provider`` is the connection's, with its metadata; ``configured`` is the same one before the
    fields were put in. ``callback`` are the redirect's other parameters, ``None``
    where nobody knows them any more; ``caller`` is who made the connect URL (empty: not known).
    ``connection`` is as it was before the exchange, ``None`` where the database could not say.
    """

    configured: Provider
    provider: Provider
    fields: Mapping[str, str]
    caller: str
    granted: Granted = field(repr=False)
    callback: Mapping[str, str] | None = field(repr=False)
    connection: Connection | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What is known of a new grant. ``may_merge`` tells into which connections it may go."""

    account: Account
    next_test_at: datetime | None
    may_merge: Callable[[str], bool] = field(repr=False)


class Identifying:
    """Finds out whose account a grant is, and what follows from that."""

    def __init__(
        self,
        *,
        examiner: TokenExaminer,
        may_merge: Callable[[str, str], bool],
        clock: Clock,
        chance: Callable[[], float],
    ) -> None:
        """``may_merge`` tells of (caller, connection id) whether the caller may see it."""
        self._examiner = examiner
        self._may_merge = may_merge
        self._clock = clock
        self._chance = chance

    async def identify(self, grant: NewGrant, tokens: TokenSet) -> Identity:
        """Ask whose tokens these are, where there is anything to ask; takes at most 10 s."""
        return self._identity(grant, tokens, await self._account(grant))

    def identity(self, grant: NewGrant, tokens: TokenSet) -> Identity:
        """Return what the replies themselves tell, without a request to anybody."""
        return self._identity(grant, tokens, _said(grant))

    def _identity(self, grant: NewGrant, tokens: TokenSet, account: Account) -> Identity:
        return Identity(
            account=account,
            next_test_at=self._next_test_at(grant, tokens, account),
            may_merge=self._merging(grant),
        )

    async def _account(self, grant: NewGrant) -> Account:
        """Return what the replies tell; the test request, where there is one, is among them."""
        known = _said(grant)
        if not _is_examined(grant.provider):
            is_asked = grant.callback is not None
            return replace(known, is_withheld=is_asked and _is_nameless(known, grant.provider))
        examined = await self._examiner.examine(
            grant.provider,
            grant.granted.access_token,
            fields=grant.fields,
            reply_values={**_kept(grant), **known.reply_values},
        )
        if examined is None:
            return known
        account = _said(grant, {"me": examined.me} if examined.has_me else {})
        is_withheld = _is_nameless(account, grant.provider) and _is_answer(examined.result)
        return replace(account, test=examined.result, is_withheld=is_withheld)

    def _next_test_at(self, grant: NewGrant, tokens: TokenSet, account: Account) -> datetime | None:
        provider, before, now = grant.provider, grant.connection, self._clock.now()
        was_known = before is not None and before.account_id is not None
        if was_known and provider.test is not None and _is_nameless(account, provider):
            return now + _ASK_AGAIN
        return next_test_at(
            provider.test, expires_at=tokens.expires_at, now=now, chance=self._chance()
        )

    def _merging(self, grant: NewGrant) -> Callable[[str], bool]:
        """Return into which connections this one may go.

        Who made the connect URL decides, or a caller could write into another one's connection;
        and who made the connection, or a connection of theirs would go where they do not see it.
        """
        connection = grant.connection
        if connection is None or not grant.caller:
            # Nobody knows for whom this happens, so no other connection is theirs.
            return lambda _: False
        concerned = {connection.created_by, grant.caller}
        return lambda other: all(self._may_merge(caller, other) for caller in concerned)


class KeptGrants:
    """Identifies grants that the journal has kept (port: ``daemon.refresh.ports.Identities``)."""

    def __init__(
        self,
        identifying: Identifying,
        *,
        connections: Connections,
        resolver: ProviderResolver,
        clock: Clock,
    ) -> None:
        self._identifying = identifying
        self._connections = connections
        self._resolver = resolver
        self._clock = clock

    async def identify(
        self, entry: JournaledReply, provider: Provider, granted: Granted, tokens: TokenSet
    ) -> Identity:
        """Find out what the callback would have; see the port."""
        return await self._identifying.identify(await self._grant(entry, provider, granted), tokens)

    async def identity(
        self, entry: JournaledReply, provider: Provider, granted: Granted, tokens: TokenSet
    ) -> Identity:
        """Return what the reply itself tells of a grant that was judged before; see the port."""
        grant = await self._grant(entry, provider, granted)
        is_tested = provider.test is not None
        return replace(
            self._identifying.identity(grant, tokens),
            next_test_at=self._clock.now() if is_tested else None,
            may_merge=lambda _: True,
        )

    async def _grant(self, entry: JournaledReply, provider: Provider, granted: Granted) -> NewGrant:
        return NewGrant(
            configured=provider,
            provider=await self._tenant(provider, entry.fields),
            fields=entry.fields,
            caller=entry.caller,
            granted=granted,
            callback=entry.callback,
            connection=await self._connections.get(entry.connection_id),
        )

    async def _tenant(self, provider: Provider, fields: Mapping[str, str]) -> Provider:
        """Return the connection's provider, as much of it as can be had now."""
        tenant = provider
        try:
            tenant = tenant_of(provider, fields)
            return await self._resolver.resolve(tenant)
        except (FieldError, DiscoveryError):
            # Only introspection may need what is missing; then nobody is asked.
            return tenant


def _said(grant: NewGrant, more: Mapping[str, object] | None = None) -> Account:
    """Return what the replies at hand tell."""
    documents = {"fields": grant.fields, "token": grant.granted.members, **(more or {})}
    if grant.callback is not None:
        documents["callback"] = grant.callback
    scope = account_scope(grant.configured, grant.fields)
    return evaluate(grant.provider, documents, scope=scope, kept=_kept(grant))


def _kept(grant: NewGrant) -> Mapping[str, str]:
    return {} if grant.connection is None else grant.connection.reply_values


def _is_examined(provider: Provider) -> bool:
    """Tell whether to ask: a test always; introspection only where it is to name somebody."""
    return provider.test is not None or names_me(provider)


def _is_nameless(account: Account, provider: Provider) -> bool:
    """Tell whether an account has no id at a provider whose accounts have one."""
    return provider.account_id is not None and account.account_id is None


def _is_answer(result: TestResult) -> bool:
    return result.status is not None and result.status not in _NO_ANSWERS
