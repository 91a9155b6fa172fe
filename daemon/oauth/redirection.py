"""[callback] A person comes back with a code: checks, one exchange, a connection (RFC 6749 4.1.2).

A code is sent once, ever. Whatever its fate, the transaction is over; whatever the fate of the
browser or the handler, an exchange that has begun runs on until its tokens are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar

from daemon.domain.authorization import AuthorizationStore, PendingAuthorization
from daemon.domain.clock import Clock
from daemon.domain.connection import Connection
from daemon.domain.errors import (
    DatabaseUnavailableError,
    DiscoveryError,
    JournalError,
    StorageError,
)
from daemon.domain.events import Events
from daemon.domain.journal import JournaledReply, Purpose, ReplyJournal
from daemon.domain.outcome import Outcome, OutcomeKind
from daemon.domain.provider import Provider
from daemon.domain.reply import RawReply
from daemon.domain.tokens import TokenSet, tokens_of
from daemon.oauth.authorization import ProviderResolver, fingerprint
from daemon.oauth.authorization_errors import AuthorizationFailures, Failed, Fault
from daemon.oauth.authorization_response import (
    AcceptedCode,
    CallbackParams,
    CallbackRejection,
    judge_response,
    transaction_fault,
)
from daemon.oauth.token_endpoint import Received
from daemon.oauth.token_request import Exchange

# A person is waiting, and so is the ingress between us; most give up after a minute.
EXCHANGE_TIMEOUT = 30.0
STORE_PATIENCE = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0

_T = TypeVar("_T")


class CodeExchange(Protocol):
    """The door to a token endpoint. Never raises for what a provider does."""

    async def request(
        self,
        provider: Provider,
        url: str,
        message: Exchange,
        *,
        hard_timeout: float,
        received: Received,
    ) -> Outcome:
        """Send ``message`` once to ``url`` and classify what comes back within the timeout (s).

        ``received`` is awaited with the raw reply before it is read.
        """


class Spawn(Protocol):
    """Runs work that neither a browser's disconnect nor SIGTERM cuts short; its owner waits."""

    async def __call__(self, work: Coroutine[Any, Any, _T], /) -> _T:
        """Run ``work`` as a task of the owner; cancelling this call leaves the task alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """An authorization whose tokens are stored. ``return_url`` is as the ticket was given it."""

    connection: Connection
    return_url: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """What follows a stored token set.

    ``plan`` says when its first refresh is due (pure); ``authorized`` tells the cache, and
    must neither block nor raise; ``default_lifetime`` holds where reply and provider say nothing.
    """

    plan: Callable[[TokenSet, Provider, str], datetime | None]
    authorized: Callable[[Connection, TokenSet], None] = field(default=lambda _, __: None)
    default_lifetime: Callable[[], timedelta]


class Redirection:
    """Ends transactions."""

    def __init__(
        self,
        *,
        store: AuthorizationStore,
        providers: Callable[[str], Provider | None],
        resolver: ProviderResolver,
        token_endpoint: CodeExchange,
        learning: Learning,
        journal: ReplyJournal,
        failures: AuthorizationFailures,
        events: Events,
        clock: Clock,
        spawn: Spawn,
    ) -> None:
        self._store = store
        self._providers = providers
        self._resolver = resolver
        self._token_endpoint = token_endpoint
        self._learning = learning
        self._journal = journal
        self._failures = failures
        self._events = events
        self._clock = clock
        self._spawn = spawn

    async def complete(
        self, params: CallbackParams | CallbackRejection, browser_binding: str | None
    ) -> Completed | Failed:
        """End the transaction that ``params`` answer, with stored tokens or a reported failure.

        Every call for one state but the first fails (RFC 9700 4.2.4). Where the database cannot
        be asked, nothing was sent and the transaction, most likely, still stands. Cancellation
        ends the wait, not an exchange that has begun.
        """
        if params.state is None:
            return self._failures.report(Fault("invalid_callback"))
        try:
            authorization = await self._store.consume(fingerprint(params.state))
        except DatabaseUnavailableError:
            return self._failures.report(Fault("database_unavailable"))
        if authorization is None:
            return self._failures.report(Fault("unknown_state"))
        if isinstance(params, CallbackRejection):
            return self._fail(authorization, Fault("invalid_callback"))
        return await self._judge(authorization, params, browser_binding)

    async def _judge(
        self,
        authorization: PendingAuthorization,
        params: CallbackParams,
        browser_binding: str | None,
    ) -> Completed | Failed:
        fault = transaction_fault(authorization, browser_binding, self._clock.now())
        if fault is not None:
            return self._fail(authorization, fault)
        provider = self._providers(authorization.provider)
        try:
            resolved = provider and await self._resolver.resolve(provider)
        except DiscoveryError as error:
            # Whether this provider must send ``iss`` is unknown: its answer cannot be judged.
            return self._fail(authorization, Fault("provider_unavailable", detail=str(error)))
        accepted = judge_response(authorization, params, resolved)
        if isinstance(accepted, Fault):
            return self._fail(authorization, accepted)
        return await self._spawn(self._exchange(authorization, accepted))

    async def _exchange(
        self, authorization: PendingAuthorization, accepted: AcceptedCode
    ) -> Completed | Failed:
        sent_at = self._clock.now()
        try:
            async with self._journal.reserved():
                outcome = await self._send(authorization, accepted, sent_at)
        except JournalError as error:
            return self._fail(authorization, Fault("journal_unavailable", detail=str(error)))
        ended = await self._end(authorization, accepted, outcome, sent_at)
        if isinstance(ended, Completed) or outcome.granted is None:
            await self._journal.settled(_attempt(authorization))
        return ended

    async def _send(
        self, authorization: PendingAuthorization, accepted: AcceptedCode, sent_at: datetime
    ) -> Outcome:
        async def received(reply: RawReply) -> None:
            await self._journal.keep(
                JournaledReply(
                    attempt=_attempt(authorization),
                    purpose=Purpose.EXCHANGE,
                    connection_id=authorization.connection_id,
                    provider=authorization.provider,
                    generation=authorization.generation,
                    scopes=authorization.scopes,
                    sent_at=sent_at,
                    reply=reply,
                )
            )

        return await self._token_endpoint.request(
            accepted.provider,
            authorization.token_endpoint,
            Exchange(
                code=accepted.code,
                redirect_uri=authorization.redirect_uri,
                code_verifier=authorization.code_verifier,
            ),
            hard_timeout=EXCHANGE_TIMEOUT,
            received=received,
        )

    async def _end(
        self,
        authorization: PendingAuthorization,
        accepted: AcceptedCode,
        outcome: Outcome,
        sent_at: datetime,
    ) -> Completed | Failed:
        if outcome.granted is None:
            return self._fail(authorization, exchange_fault(outcome))
        tokens = tokens_of(
            outcome.granted,
            before=None,
            requested=authorization.scopes,
            sent_at=sent_at,
            default_lifetime=accepted.provider.default_lifetime
            or self._learning.default_lifetime(),
        )
        return await self._keep(authorization, accepted.provider, tokens)

    async def _keep(
        self, authorization: PendingAuthorization, provider: Provider, tokens: TokenSet
    ) -> Completed | Failed:
        due_at = self._learning.plan(tokens, provider, authorization.connection_id)
        try:
            connection = await self._store_patiently(authorization, tokens, due_at)
        except StorageError:
            return self._fail(authorization, Fault("not_stored"))
        if connection is None:
            return self._fail(authorization, Fault("connection_gone"))
        self._events.connection_authorized(
            connection.id, provider.name, has_refresh_token=tokens.refresh_token is not None
        )
        self._learning.authorized(connection, replace(tokens, generation=connection.generation))
        return Completed(connection=connection, return_url=authorization.return_url)

    async def _store_patiently(
        self, authorization: PendingAuthorization, tokens: TokenSet, due_at: datetime | None
    ) -> Connection | None:
        """Store, and again while the database is away: storing twice only skips a generation."""
        give_up_at = self._clock.boottime() + STORE_PATIENCE
        pause = _FIRST_PAUSE
        while True:
            try:
                return await self._store.complete(
                    authorization.connection_id, tokens, due_at=due_at
                )
            except DatabaseUnavailableError:
                if self._clock.boottime() + pause > give_up_at:
                    raise
            await self._clock.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _fail(self, authorization: PendingAuthorization, fault: Fault) -> Failed:
        return self._failures.report(
            fault, connection=authorization.connection_id, provider=authorization.provider
        )


def _attempt(authorization: PendingAuthorization) -> str:
    """Return what names the one exchange of a transaction in the journal."""
    return f"exchange-{authorization.state_hash.hex()}"


def exchange_fault(outcome: Outcome) -> Fault:
    """Return why an exchange without tokens ended the authorization.

    Descriptions that were written for refreshes and promise another try are not repeated: a code
    gets none.
    """
    recorded = f"The token request ended as: {outcome.reason}."
    if outcome.kind is OutcomeKind.IN_DOUBT:
        return Fault("exchange_in_doubt", detail=recorded)
    if outcome.kind is OutcomeKind.NOT_SENT:
        return Fault("exchange_not_sent", detail=outcome.description)
    code, from_provider = outcome.error or "exchange_refused", outcome.error is not None
    is_ours_to_mend = outcome.kind is OutcomeKind.MISCONFIGURED
    detail = outcome.description if is_ours_to_mend else recorded
    return Fault(code, from_provider=from_provider, detail=detail)
