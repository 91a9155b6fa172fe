"""[revoke] Tells providers about ended grants, for as long as it takes (RFC 7009).

The one hard idea: a row of the queue leaves it only with the provider's word, or after seven days.
Everything in between may happen twice: revoking what is revoked is a success.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import groupby
from typing import Protocol
from urllib.parse import urlsplit

from daemon.domain.clock import Clock
from daemon.domain.errors import DatabaseUnavailableError, DiscoveryError
from daemon.domain.events import Events
from daemon.domain.provider import Provider, provider_for
from daemon.domain.revocation import (
    GIVE_UP_AFTER,
    QueuedRevocation,
    RevocationQueue,
    RevocationResult,
)
from daemon.domain.templates import TemplateError
from daemon.oauth.revocation import Answer, AnswerKind
from daemon.persistence.background import pause

# Rows claimed at once, and providers told at the same time.
_BATCH = 40
_CONCURRENCY = 4
# How long a claimed row is hidden from other replicas: more than its requests may take.
_HOLD = timedelta(seconds=60)
_REQUEST_TIMEOUT = 15.0
# The most that a row of another replica, or a stepped clock, waits for its turn.
_LONGEST_SLEEP = 30.0
_DATABASE_AWAY = 2.0
_NOT_CONFIGURED = timedelta(hours=1)
# How long all tokens wait for a host that did not answer one, where it names no time itself.
_QUIET_FOR = 5.0
_QUIET = Answer(
    kind=AnswerKind.LATER,
    error="The provider is left alone for now, as it asked or because it did not answer.",
)
# Ten seconds of patience for a person who waits for DELETE (contract 4).
PATIENCE = 10.0

_SHORTEST_DELAY, _LONGEST_DELAY = 5.0, 6 * 3600.0
# What somebody must correct first is not corrected within seconds.
_SHORTEST_DELAY_OURS = 600.0


class Revokes(Protocol):
    """The door to revocation endpoints: ``daemon.oauth.revocation.RevocationEndpoint``."""

    async def revoke(
        self, provider: Provider, url: str, token: str, token_type_hint: str, *, hard_timeout: float
    ) -> Answer:
        """Ask the provider to revoke a token. Never raises for what it does."""


class RevocationPlaces(Protocol):
    """Where tokens are revoked: ``daemon.catalog.discovery.Discovery``."""

    async def revocation_endpoint(self, provider: Provider) -> str | None:
        """Return the URL; ``None`` where the provider has none. Raises DiscoveryError."""


class Providers(Protocol):
    """The providers as configured now."""

    def get(self, name: str) -> Provider | None:
        """Return one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokingParts:
    """What revoking works with. ``chance`` returns a number in [0, 1)."""

    queue: RevocationQueue
    endpoint: Revokes
    places: RevocationPlaces
    providers: Providers
    events: Events
    clock: Clock
    chance: Callable[[], float]


def retry_delay(attempts: int, chance: float, answer: Answer) -> float:
    """Return the seconds until a token is tried again after ``attempts`` earlier tries. Pure.

    Anything between the shortest delay and one that doubles up to six hours, so that what was
    ended together does not come back together; never less than the provider asked for.
    """
    shortest = _SHORTEST_DELAY_OURS if answer.is_ours else _SHORTEST_DELAY
    ceiling = min(_LONGEST_DELAY, 2.0 * shortest * 2.0 ** min(attempts, 30))
    return max(shortest + chance * (ceiling - shortest), answer.retry_after or 0.0)


def next_try(revocation: QueuedRevocation, now: datetime, delay: float) -> datetime | None:
    """Return when a token is tried again; ``None`` where it has been tried for long enough. Pure.

    The last try is at the very end of the seven days.
    """
    ends_at = revocation.created_at + GIVE_UP_AFTER
    return None if now >= ends_at else min(now + timedelta(seconds=delay), ends_at)


def to_send(
    revocations: Sequence[QueuedRevocation], types: Sequence[str]
) -> tuple[QueuedRevocation, ...]:
    """Return what a provider wants revoked of a connection's tokens, in its order. Pure.

    ``types`` are the ``token_type_hint`` values of its configuration; RFC 7009 2.1: the refresh
    token first.
    """
    wanted = [one for one in revocations if one.token_type_hint in types]
    return tuple(sorted(wanted, key=lambda one: (types.index(one.token_type_hint), one.id)))


class Revoking:
    """Works the queue off, in the background and for people who wait."""

    def __init__(self, parts: RevokingParts) -> None:
        self._parts = parts
        self._woken = asyncio.Event()
        self._slots = asyncio.Semaphore(_CONCURRENCY)
        self._turns: dict[str, asyncio.Lock] = {}
        self._quiet_until: dict[str, float] = {}

    def wake(self) -> None:
        """Look at the queue soon: something was put into it."""
        self._woken.set()

    async def run(self) -> None:
        """Work until cancelled, which loses nothing: what was claimed is due again in a minute."""
        while True:
            try:
                wait = await self._once()
            except DatabaseUnavailableError:
                wait = _DATABASE_AWAY
            await pause(self._parts.clock, wait, self._woken)
            self._woken.clear()

    async def revoke_now(self, connection_id: str, *, within: float = PATIENCE) -> RevocationResult:
        """Try a connection's tokens at once, for about ``within`` seconds, and say how it stands.

        ``QUEUED`` where any is left for later. Raises DatabaseUnavailableError.
        """
        parts = self._parts
        ends_at = parts.clock.boottime() + within
        claimed = await parts.queue.claim(
            now=parts.clock.now(), hold=_HOLD, limit=_BATCH, connection_id=connection_id
        )
        ended = await self._of_connection(claimed, ends_at) if claimed else None
        if ended is None and await parts.queue.count(connection_id):
            return RevocationResult.QUEUED
        return ended or RevocationResult.REVOKED

    async def _once(self) -> float:
        """Work one batch off; return the seconds until the next look."""
        parts = self._parts
        ends_at = parts.clock.boottime() + _HOLD.total_seconds() - _REQUEST_TIMEOUT
        now = parts.clock.now()
        claimed = await parts.queue.claim(now=now, hold=_HOLD, limit=_BATCH)
        if not claimed:
            due = await parts.queue.next_at()
            wait = _LONGEST_SLEEP if due is None else (due - now).total_seconds()
            return min(max(wait, 0.0), _LONGEST_SLEEP)
        by_connection = sorted(claimed, key=lambda one: one.connection_id)
        groups = [tuple(g) for _, g in groupby(by_connection, key=lambda one: one.connection_id)]
        groups.sort(key=lambda group: group[0].id)
        async with asyncio.TaskGroup() as tasks:
            ends = [tasks.create_task(self._in_turn(group, ends_at)) for group in groups]
        return 0.0 if all(end.result() for end in ends) else _DATABASE_AWAY

    async def _in_turn(self, group: Sequence[QueuedRevocation], ends_at: float) -> bool:
        """Work off one connection's rows; tell whether the database took the results.

        One request at a time at each provider: a thousand disconnects are no burst there.
        """
        known = self._parts.providers.get(group[0].provider) is not None
        turn = self._turns.setdefault(group[0].provider, asyncio.Lock()) if known else nullcontext()
        async with turn, self._slots:
            try:
                await self._of_connection(group, ends_at)
            except DatabaseUnavailableError:
                return False
        return True

    async def _of_connection(
        self, group: Sequence[QueuedRevocation], ends_at: float
    ) -> RevocationResult | None:
        """Work off one connection's rows; return what became of it, ``None`` where some are left.

        With the time over, the rest stays claimed, and is due again when the hold is.
        """
        first = group[0]
        provider = self._parts.providers.get(first.provider)
        if provider is None:
            problem = f"Provider {first.provider} is not configured. Configure it again."
            await self._postpone(group, _NOT_CONFIGURED.total_seconds(), problem)
            return None
        place = await self._place(provider, first, group)
        if place is None:
            return None
        provider, url = place
        wanted = to_send(group, provider.revocation_request.tokens) if url else ()
        for one in group:
            if one not in wanted:
                await self._parts.queue.done(one.id)
        kinds = await self._send(provider, url or "", wanted, ends_at)
        if kinds is None or await self._parts.queue.count(first.connection_id):
            return None
        is_revoked = AnswerKind.REVOKED in kinds
        result = RevocationResult.REVOKED if is_revoked else RevocationResult.UNSUPPORTED
        self._parts.events.revocation_ended(
            first.connection_id, first.provider, initiator=first.initiator, result=result
        )
        return result

    async def _place(
        self, provider: Provider, first: QueuedRevocation, group: Sequence[QueuedRevocation]
    ) -> tuple[Provider, str | None] | None:
        """Return the connection's provider and its endpoint; ``None`` where it is not known now."""
        try:
            provider = provider_for(provider, first.fields)
            return provider, await self._parts.places.revocation_endpoint(provider)
        except DiscoveryError as error:
            answer = Answer(kind=AnswerKind.LATER, error=str(error))
        except TemplateError as error:
            problem = f"The revocation endpoint cannot be made: {error}."
            answer = Answer(kind=AnswerKind.LATER, error=problem, is_ours=True)
        await self._later(group, answer)
        return None

    async def _send(
        self, provider: Provider, url: str, wanted: Sequence[QueuedRevocation], ends_at: float
    ) -> set[AnswerKind] | None:
        """Send what is wanted, one after another; return the answers, ``None`` if not all came."""
        host, clock = urlsplit(url).netloc, self._parts.clock
        kinds: set[AnswerKind] = set()
        for place, one in enumerate(wanted):
            quiet = self._quiet_until.get(host, 0.0) - clock.boottime()
            if quiet > 0:
                await self._later(wanted[place:], replace(_QUIET, retry_after=quiet))
                return None
            left = min(_REQUEST_TIMEOUT, ends_at - clock.boottime())
            if left <= 0:
                return None
            answer = await self._parts.endpoint.revoke(
                provider, url, one.token, one.token_type_hint, hard_timeout=left
            )
            kinds.add(answer.kind)
            if answer.kind is not AnswerKind.LATER:
                await self._parts.queue.done(one.id)
            elif answer.is_general:
                await self._later(wanted[place:], answer)
                self._hush(host, answer.retry_after or _QUIET_FOR)
                return None
            else:
                await self._later([one], answer)
        return None if AnswerKind.LATER in kinds else kinds

    def _hush(self, host: str, seconds: float) -> None:
        """Leave a host alone for a while: what one token was told holds for all."""
        now = self._parts.clock.boottime()
        self._quiet_until = {name: at for name, at in self._quiet_until.items() if at > now}
        self._quiet_until[host] = now + seconds

    async def _later(self, group: Sequence[QueuedRevocation], answer: Answer) -> None:
        """Put rows off, all to the same time, so that they stay together."""
        attempts = max(one.attempts for one in group)
        delay = retry_delay(attempts, self._parts.chance(), answer)
        await self._postpone(group, delay, answer.error)

    async def _postpone(self, group: Sequence[QueuedRevocation], delay: float, error: str) -> None:
        now = self._parts.clock.now()
        for one in group:
            at = next_try(one, now, delay)
            if at is not None:
                await self._parts.queue.later(one.id, at=at, error=error)
                continue
            await self._parts.queue.done(one.id)
            self._parts.events.revocation_abandoned(
                one.connection_id, one.provider, initiator=one.initiator, error=error
            )
