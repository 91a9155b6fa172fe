"""[callback] A person comes back with a code: checks, one exchange, a connection (RFC 6749 4.1.2).

A code is sent once, ever. Whatever its fate, the transaction is over; whatever the fate of the
browser or the handler, an exchange that has begun runs on until its tokens are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any, Protocol, TypeVar

from daemon.domain.authorization import AuthorizationStore, PendingAuthorization
from daemon.domain.clock import Clock
from daemon.domain.connection import Connection
from daemon.domain.errors import (
    DatabaseUnavailableError,
    DiscoveryError,
    FieldError,
    JournalError,
    StorageError,
)
from daemon.domain.journal import JournaledReply, Purpose, ReplyJournal
from daemon.domain.outcome import Outcome, OutcomeKind
from daemon.domain.provider import Provider
from daemon.domain.reply import RawReply
from daemon.domain.tracing import NO_TRACER, Tracer
from daemon.oauth.authorization import ProviderResolver, fingerprint, tenant_of
from daemon.oauth.authorization_errors import AuthorizationFailures, Failed, Fault
from daemon.oauth.authorization_response import (
    AcceptedCode,
    CallbackParams,
    CallbackRejection,
    judge_response,
    transaction_fault,
)
from daemon.oauth.completing import Completed, Completing, Grant
from daemon.oauth.token_endpoint import Received
from daemon.oauth.token_request import Exchange

# A person is waiting, and so is the ingress between us; most give up after a minute.
EXCHANGE_TIMEOUT = 30.0

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


class Connections(Protocol):
    """Where connections are read."""

    async def get(self, connection_id: str) -> Connection | None:
        """Return a connection. Raises DatabaseUnavailableError."""


class Redirection:
    """Ends transactions."""

    def __init__(
        self,
        *,
        store: AuthorizationStore,
        connections: Connections,
        providers: Callable[[str], Provider | None],
        resolver: ProviderResolver,
        token_endpoint: CodeExchange,
        completing: Completing,
        journal: ReplyJournal,
        failures: AuthorizationFailures,
        clock: Clock,
        spawn: Spawn,
        tracer: Tracer = NO_TRACER,
        store_later: Callable[[JournaledReply], None] = lambda _: None,
    ) -> None:
        """``store_later`` takes a reply whose tokens could not be stored in time."""
        self._store = store
        self._connections = connections
        self._providers = providers
        self._resolver = resolver
        self._token_endpoint = token_endpoint
        self._completing = completing
        self._journal = journal
        self._failures = failures
        self._clock = clock
        self._spawn = spawn
        self._tracer = tracer
        self._store_later = store_later

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
            tenant = provider and tenant_of(provider, authorization.fields)
            resolved = tenant and await self._resolver.resolve(tenant)
        except FieldError as error:
            return self._fail(authorization, Fault("fields_unusable", detail=str(error)))
        except DiscoveryError as error:
            # Whether this provider must send ``iss`` is unknown: its answer cannot be judged.
            return self._fail(authorization, Fault("provider_unavailable", detail=str(error)))
        accepted = judge_response(authorization, params, resolved)
        if isinstance(accepted, Fault):
            return self._fail(authorization, accepted)
        return await self._spawn(self._traced(authorization, accepted, provider))

    async def _traced(
        self,
        authorization: PendingAuthorization,
        accepted: AcceptedCode,
        configured: Provider | None,
    ) -> Completed | Failed:
        told = {
            "tokenward.provider": authorization.provider,
            "tokenward.connection": authorization.connection_id,
        }
        withheld = authorization.fields.values()
        with self._tracer.span("exchange", told, withheld=withheld) as span:
            ended = await self._exchange(authorization, accepted, configured)
            is_done = isinstance(ended, Completed)
            span.set("tokenward.outcome", "completed" if is_done else "failed")
            if not is_done:
                span.fail("failed")
            return ended

    async def _exchange(
        self,
        authorization: PendingAuthorization,
        accepted: AcceptedCode,
        configured: Provider | None,
    ) -> Completed | Failed:
        try:
            connection = await self._connections.get(authorization.connection_id)
        except DatabaseUnavailableError:
            # The state is used up, so this is the person's only chance: go on without.
            connection = None
        else:
            if connection is None:
                return self._fail(authorization, Fault("connection_gone"))
        sent_at = self._clock.now()
        kept: list[JournaledReply] = []
        try:
            async with self._journal.reserved():
                outcome = await self._send(authorization, accepted, sent_at, kept)
        except JournalError as error:
            return self._fail(authorization, Fault("journal_unavailable", detail=str(error)))
        if outcome.granted is None:
            return await self._settle(authorization, exchange_fault(outcome))
        grant = Grant(
            authorization=authorization,
            configured=configured or accepted.provider,
            provider=accepted.provider,
            granted=outcome.granted,
            callback=accepted.callback,
            sent_at=sent_at,
            connection=connection,
        )
        try:
            return await self._settle(authorization, await self._completing.keep(grant))
        except StorageError:
            # Who waited is told so; the tokens are stored as soon as the database is back.
            for entry in kept:
                self._store_later(entry)
            return self._fail(authorization, Fault("not_stored"))

    async def _settle(
        self, authorization: PendingAuthorization, ended: Completed | Fault
    ) -> Completed | Failed:
        """Let the journal forget what is stored; what was refused must never be stored later."""
        await self._journal.settled(_attempt(authorization), stored=isinstance(ended, Completed))
        return self._fail(authorization, ended) if isinstance(ended, Fault) else ended

    async def _send(
        self,
        authorization: PendingAuthorization,
        accepted: AcceptedCode,
        sent_at: datetime,
        kept: list[JournaledReply],
    ) -> Outcome:
        """Send the code; what comes back is in the journal, and in ``kept``, before it is read."""

        async def received(reply: RawReply) -> None:
            entry = JournaledReply(
                attempt=_attempt(authorization),
                purpose=Purpose.EXCHANGE,
                connection_id=authorization.connection_id,
                provider=authorization.provider,
                generation=authorization.generation,
                scopes=authorization.scopes,
                sent_at=sent_at,
                reply=reply,
                epoch=authorization.epoch,
                fields=authorization.fields,
                caller=authorization.caller,
                callback=accepted.callback,
            )
            kept.append(entry)
            await self._journal.keep(entry)

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
