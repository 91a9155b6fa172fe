"""[serve] A token read: what the cache has, if it will do; else one refresh, joined by all.

The rules in order: a token that satisfies the caller is answered at once; one that does not is
refreshed, once for everybody; if that brings nothing, a token that is still good goes out with a
warning; an expired one never does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from math import ceil, inf
from typing import Protocol

from daemon.config.settings import Refresh
from daemon.domain.claim import Refusal, RefusalReason
from daemon.domain.claimable import Wanted
from daemon.domain.clock import Clock
from daemon.domain.connection import Status
from daemon.domain.errors import DatabaseUnavailableError, Problem
from daemon.refresh.cache import Entry, TokenCache
from daemon.refresh.memory import Memory
from daemon.refresh.ports import Providers

# A caller who asks for nearly a whole lifetime would cause a refresh with every read: a token
# younger than this fraction of its lifetime (at most so many seconds) is new enough for anybody.
_YOUNG_FRACTION = 0.05
_YOUNG_AT_MOST = 30.0
# Retry-After where nothing better is known.
_RETRY_SOON = 1.0


class Refreshes(Protocol):
    """Who has a token refreshed: ``Refresher``, or ``Asking`` where others do it."""

    memory: Memory

    async def refresh(self, wanted: Wanted) -> Refusal | None:
        """Return when it is done, or why it was not; may raise DatabaseUnavailableError."""


class Need(Enum):
    """What a read needs."""

    NOTHING = auto()
    LONGER_THAN_GIVEN = auto()
    """More life than this provider gives: the newest token, with a warning."""
    REFRESH = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A token to serve. ``warning`` replaces the entry's own; ``outcome`` is the metric's."""

    entry: Entry
    outcome: str
    warning: str | None = None


def need(entry: Entry, *, min_ttl: float, newer_than: int | None, now: float) -> Need:
    """Decide what a read of ``entry`` needs at ``now``. Pure."""
    if newer_than is not None and entry.generation <= newer_than:
        return Need.REFRESH
    if not entry.is_good(now):
        return Need.REFRESH
    life = entry.life(now)
    if life >= min_ttl:
        return Need.NOTHING
    lifetime = entry.expires_at - entry.issued_at
    young = min(lifetime * _YOUNG_FRACTION, _YOUNG_AT_MOST)
    if min_ttl >= lifetime or now - entry.issued_at < young:
        return Need.LONGER_THAN_GIVEN
    return Need.REFRESH


class TokenReader:
    """Answers token reads."""

    def __init__(
        self,
        cache: TokenCache,
        refresher: Refreshes,
        providers: Providers,
        *,
        clock: Clock,
        settings: Callable[[], Refresh],
    ) -> None:
        self._cache = cache
        self._refresher = refresher
        self._providers = providers
        self._clock = clock
        self._settings = settings

    async def entry(self, connection_id: str) -> Entry | None:
        """Return the connection's entry, from memory or the database; ``None``: no such one.

        Raises:
            Problem: 503 where the database cannot say.
        """
        entry = self._cache.get(connection_id)
        if entry is None:
            try:
                await self._refresher.memory.reload([connection_id])
            except DatabaseUnavailableError as error:
                raise _unavailable(
                    connection_id, "The database is away and this token is not in memory.", 2.0
                ) from error
            entry = self._cache.get(connection_id)
        return entry

    async def read(
        self, connection_id: str, *, min_ttl: float = 0, newer_than: int | None = None
    ) -> Reading | None:
        """Return a token that satisfies the caller, or the best there is; ``None``: no such one.

        Waits at most ``refresh.request_timeout``. Cancelling never cancels a refresh.

        Raises:
            Problem: 409 or 503 of the contract's section 4.
        """
        entry = await self.entry(connection_id)
        if entry is None:
            return None
        if newer_than is not None and newer_than > entry.generation:
            entry = await self._read_again(entry)
            # A generation that was never issued (or was lost with a restored database) would
            # ask for a refresh with every read and never be content.
            newer_than = min(newer_than, entry.generation)
        now = self._clock.now().timestamp()
        wants = need(entry, min_ttl=min_ttl, newer_than=newer_than, now=now)
        if wants is Need.NOTHING:
            return _served(entry)
        if wants is Need.LONGER_THAN_GIVEN:
            return Reading(entry=entry, outcome="warned", warning=_clamped(entry, min_ttl))
        self._refuse_hopeless(entry, newer_than)
        if entry.status is Status.REAUTHORIZATION_REQUIRED or not entry.refreshable:
            return Reading(entry=entry, outcome="warned", warning=_best_there_is(entry))
        generation = entry.generation
        refusal = await self._refresh_entry(entry)
        after = await self.entry(connection_id)
        if after is None:
            return None
        return self._after(
            after, refusal, min_ttl=min_ttl, newer_than=newer_than, before=generation
        )

    async def _read_again(self, entry: Entry) -> Entry:
        """Return what the database has: another replica may have told the caller more."""
        try:
            await self._refresher.memory.reload([entry.connection])
        except DatabaseUnavailableError:
            return entry
        return self._cache.get(entry.connection) or entry

    async def refresh_now(self, wanted: Wanted) -> None:
        """Refresh because a person says so; returns when a newer generation is stored.

        Raises:
            Problem: 409 where a person must act first, 503 where it did not succeed.
        """
        refusal = await self._refresh(wanted)
        entry = await self.entry(wanted.connection_id)
        if entry is None or entry.generation > wanted.generation:
            return
        self._refuse_hopeless(entry, wanted.generation)
        raise _unavailable(
            entry.connection,
            entry.failure or "The refresh has not succeeded yet.",
            self._retry_after(refusal.retry_at if refusal else entry.retry_at),
            provider_error=entry.provider_error,
        )

    def _after(
        self,
        entry: Entry,
        refusal: Refusal | None,
        *,
        min_ttl: float,
        newer_than: int | None,
        before: int,
    ) -> Reading:
        now = self._clock.now().timestamp()
        wants = need(entry, min_ttl=min_ttl, newer_than=newer_than, now=now)
        if wants is not Need.REFRESH:
            warning = _clamped(entry, min_ttl) if wants is Need.LONGER_THAN_GIVEN else None
            outcome = "refreshed" if entry.generation > before else _served(entry).outcome
            return Reading(entry=entry, outcome=outcome, warning=warning)
        stale = newer_than is not None and entry.generation <= newer_than
        if entry.is_good(now) and not stale:
            return Reading(entry=entry, outcome="warned", warning=_best_there_is(entry, refusal))
        self._refuse_hopeless(entry, newer_than)
        raise _unavailable(
            entry.connection,
            entry.failure
            or _not_taken_up(refusal)
            or "Refreshing the token has not succeeded yet.",
            self._retry_after(refusal.retry_at if refusal else entry.retry_at),
            provider_error=entry.provider_error,
        )

    async def _refresh_entry(self, entry: Entry) -> Refusal | None:
        provider = self._providers.get(entry.provider)
        if provider is None:
            return None
        return await self._refresh(
            Wanted(
                connection_id=entry.connection,
                provider=entry.provider,
                generation=entry.generation,
                rate=provider.rate,
            )
        )

    async def _refresh(self, wanted: Wanted) -> Refusal | None:
        patience = self._settings().request_timeout.total_seconds()
        try:
            async with asyncio.timeout(patience):
                return await self._refresher.refresh(wanted)
        except (TimeoutError, DatabaseUnavailableError):
            return None

    def _refuse_hopeless(self, entry: Entry, newer_than: int | None) -> None:
        """Raise where no refresh can help: a person must act first."""
        now = self._clock.now().timestamp()
        if entry.is_good(now) and (newer_than is None or entry.generation > newer_than):
            return
        match entry.status:
            case Status.PENDING:
                raise Problem(
                    409,
                    "not_authorized_yet",
                    "Nobody has authorized this connection yet. Open its connect_url, or get a "
                    f"fresh one with POST /v1/connections/{entry.connection}/authorize.",
                    connection=entry.connection,
                )
            case Status.DISCONNECTED:
                raise Problem(
                    409,
                    "disconnected",
                    "This connection was disconnected and its tokens are erased. Connect again "
                    f"with POST /v1/connections/{entry.connection}/authorize.",
                    connection=entry.connection,
                )
            case Status.REAUTHORIZATION_REQUIRED:
                raise _reauthorize(entry)
            case _ if not entry.refreshable:
                raise _reauthorize(entry)
            case _:
                return

    def _retry_after(self, at: datetime | None) -> float:
        if at is None:
            return _RETRY_SOON
        return max(_RETRY_SOON, (at - self._clock.now()).total_seconds())


def _served(entry: Entry) -> Reading:
    return Reading(entry=entry, outcome="served" if entry.status is Status.ACTIVE else "warned")


def _clamped(entry: Entry, min_ttl: float) -> str:
    lifetime = entry.expires_at - entry.issued_at
    given = "unlimited" if lifetime == inf else f"{int(lifetime)} s"
    return (
        f"min_ttl={min_ttl:.0f} asks for more than is left of the newest token; this provider's "
        f"tokens live for {given}."
    )


def _not_taken_up(refusal: Refusal | None) -> str | None:
    if refusal is None or refusal.reason is not RefusalReason.NOT_TAKEN_UP:
        return None
    return (
        "No process that refreshes has begun to refresh this token: none runs, or the provider's "
        "pause or rate is in the way."
    )


def _best_there_is(entry: Entry, refusal: Refusal | None = None) -> str:
    why = entry.failure or _not_taken_up(refusal)
    if why is None:
        why = (
            "the refresh has not finished in time."
            if entry.refreshable
            else "the provider gave no refresh token."
        )
    return (
        f"This token has less life left than min_ttl asks for, and no newer one could be had: {why}"
    )


def _reauthorize(entry: Entry) -> Problem:
    # A connection that works, but not for longer than its token, has no failure to show.
    why = "The grant has ended." if entry.refreshable else "The provider gave no refresh token."
    return Problem(
        409,
        "reauthorization_required",
        f"{entry.failure or why} A person must connect again: "
        f"POST /v1/connections/{entry.connection}/authorize gives the URL to open.",
        connection=entry.connection,
        provider_error=entry.provider_error,
    )


def _unavailable(
    connection: str, why: str, retry_after: float, *, provider_error: str | None = None
) -> Problem:
    return Problem(
        503,
        "token_unavailable",
        f"{why} Try again after the time in Retry-After.",
        connection=connection,
        retry_after=ceil(retry_after),
        provider_error=provider_error,
    )
