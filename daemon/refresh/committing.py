"""[refresh] The end of an attempt gets into the database, whatever that says meanwhile.

Its hard idea: a reply in hand may be the only one with a good refresh token. So nothing the
database answers ends the attempt before the reply is stored, kept as an orphan, or known to be
nobody's; meanwhile memory serves it and the journal has it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from math import inf

import structlog

from daemon.domain.claim import Claim, Orphan, RefusalReason, Settled, Settlement
from daemon.domain.clock import Clock
from daemon.domain.connection import Status
from daemon.domain.errors import DatabaseUnavailableError, StorageError
from daemon.domain.events import Events
from daemon.domain.journal import ReplyJournal
from daemon.domain.tokens import CurrentToken, TokenSet, current_of
from daemon.domain.tracing import NO_TRACER, Tracer
from daemon.refresh.cache import TokenCache
from daemon.refresh.ports import (
    CurrentTokens,
    LateReplies,
    Providers,
    Publisher,
    RefreshSender,
    RefreshStore,
)
from daemon.refresh.settling import Settling

log = structlog.get_logger()

# While the database is away a reply is held in memory and its commit tried again this often.
_RETRY = (0.2, 5.0)
# Another attempt at the same connection ends within its hard timeout; looking often costs nothing.
_ANOTHERS_END = 2.0
# How often it is told that replies cannot be stored: one broken database concerns all of them.
_TELL_AGAIN = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What the refresher works with.

    ``on_disowned`` is called where tokens came too late for a connection and were queued for
    revocation. Without ``late`` a reply whose claim is gone is given up.
    """

    store: RefreshStore
    tokens: CurrentTokens
    providers: Providers
    sender: RefreshSender
    journal: ReplyJournal
    publisher: Publisher
    events: Events
    clock: Clock
    chance: Callable[[], float]
    on_disowned: Callable[[], None] = lambda: None
    late: LateReplies | None = None
    tracer: Tracer = NO_TRACER


class Committing:
    """Writes settlements until they are written."""

    def __init__(self, ports: Ports, *, cache: TokenCache, owner: str) -> None:
        self._ports = ports
        self._cache = cache
        self._owner = owner
        self._settling = Settling(ports.store, ports.clock)
        self._open: dict[str, asyncio.Lock] = {}
        self._tells_again_at = -inf

    @contextmanager
    def open(self, attempt: str) -> Iterator[None]:
        """Hold an attempt as one whose end is not stored yet."""
        self._open[attempt] = asyncio.Lock()
        try:
            yield
        finally:
            self._open.pop(attempt, None)

    async def while_open(self, attempt: str, work: Callable[[], Awaitable[object]]) -> None:
        """Do something about an open attempt, between two tries to store its end.

        A claim that is taken again when that end is stored would be nobody's.
        """
        lock = self._open.get(attempt)
        if lock is None:
            return
        async with lock:
            if attempt in self._open:
                await work()

    async def commit(self, claim: Claim, settlement: Settlement) -> Settled:
        """Store until it is stored. Meanwhile the new token is served from memory."""
        with self._ports.tracer.span("commit") as span:
            settled = await self._commit(claim, settlement)
            span.set("tokenward.outcome", settled.name.lower())
            return settled

    async def _commit(self, claim: Claim, settlement: Settlement) -> Settled:
        wait, longest = _RETRY
        while True:
            try:
                return await self._settle(settlement)
            except StorageError as error:
                self._serve(claim, settlement)
                await self._wait(claim, error, wait)
                wait = min(wait * 2, longest)

    async def recall(
        self, claim: Claim, settlement: Settlement, *, sent_at: datetime, hold: timedelta
    ) -> Claim | None:
        """Take a claim again that the database has forgotten; ``None`` where that is not wanted.

        Another attempt that is on its way is waited for: at its end this reply may be the only one.
        """
        while self._ports.late is not None:
            self._serve(claim, settlement)
            try:
                answer = await self._ports.late.recall(
                    claim.connection_id,
                    attempt=claim.attempt,
                    generation=claim.tokens.generation,
                    sent_at=sent_at,
                    epoch=claim.epoch,
                    owner=self._owner,
                    hold=hold,
                )
            except StorageError as error:
                await self._wait(claim, error, _ANOTHERS_END)
                continue
            if isinstance(answer, Claim):
                # What the database has may be older than what was sent.
                return replace(answer, tokens=claim.tokens)
            if answer is None or answer.reason is not RefusalReason.SENDING:
                return None
            await self._ports.clock.sleep(_ANOTHERS_END)
        return None

    async def newest_orphan(self, claim: Claim) -> Orphan | None:
        """Return a refresh token of the claim's grant that no request has ever had."""
        while self._ports.late is not None:
            try:
                return await self._ports.late.newest_orphan(claim.connection_id)
            except StorageError as error:
                await self._wait(claim, error, _RETRY[-1])
        return None

    async def _settle(self, settlement: Settlement) -> Settled:
        lock = self._open.get(settlement.attempt)
        if lock is None:
            return await self._settling.settle(settlement)
        async with lock:
            answer = await self._settling.settle(settlement)
            if answer is not Settled.UNCLAIMED:
                self._open.pop(settlement.attempt, None)
            return answer

    def _serve(self, claim: Claim, settlement: Settlement) -> None:
        """Let memory answer with new tokens that are not stored yet."""
        if settlement.tokens is not None and not self._is_disconnected(claim):
            self._cache.put(current_token(claim, settlement, settlement.tokens))

    def _is_disconnected(self, claim: Claim) -> bool:
        """Tell whether memory knows already that the claim's grant has ended."""
        known = self._cache.get(claim.connection_id)
        if known is None or known.status is not Status.DISCONNECTED:
            return False
        return known.generation >= claim.tokens.generation

    async def _wait(self, claim: Claim, error: StorageError, seconds: float) -> None:
        """Wait before the database is asked again; say why, once a minute for all attempts.

        That it is away is told elsewhere.
        """
        clock = self._ports.clock
        is_refusal = not isinstance(error, DatabaseUnavailableError)
        if is_refusal and clock.boottime() >= self._tells_again_at:
            self._tells_again_at = clock.boottime() + _TELL_AGAIN
            log.error("refresh_reply_not_stored", connection=claim.connection_id, error=str(error))
        await clock.sleep(seconds)


def current_token(claim: Claim, settlement: Settlement, tokens: TokenSet) -> CurrentToken:
    """Return what serving needs of a settlement's tokens."""
    error = settlement.last_error
    return current_of(
        tokens,
        connection=claim.connection_id,
        provider=claim.provider,
        status=settlement.status,
        failure=error.description if error else None,
        failure_code=error.code if error else None,
        retry_at=settlement.due_at if error else None,
    )
