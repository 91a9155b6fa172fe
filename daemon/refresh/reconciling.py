"""[refresh] A database that has forgotten: what the journal has and it lacks is stored again.

After a failover or from a backup the database has refresh tokens that are spent long since. Its
hard idea: the newest reply that this process has ever received for a connection is compared with
what is stored, and stored under the generation that it had. So nothing spent is sent, and no
generation falls. Cut anywhere and begun again it comes to the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

import structlog

from daemon.config.settings import Refresh
from daemon.domain.authorization import NotStored
from daemon.domain.claim import Claim, Refusal, RefusalReason, Standing
from daemon.domain.clock import Clock
from daemon.domain.connection import Connection, Status
from daemon.domain.errors import DecryptionError
from daemon.domain.journal import JournaledReply, JournalHistory
from daemon.domain.outcome import Outcome
from daemon.domain.provider import Provider
from daemon.domain.tokens import TokenSet
from daemon.oauth.identifying import Identity
from daemon.refresh.attempts import Sent
from daemon.refresh.ports import (
    Exchanged,
    Identities,
    Incarnations,
    LateReplies,
    Providers,
)
from daemon.refresh.refresher import Refresher
from daemon.refresh.replies import (
    KeptReply,
    brings_tokens,
    completion_of,
    folded,
    is_forgotten,
    outcome_of,
    since_exchange,
    tokens_in,
)
from daemon.refresh.stretch import Stretch

T = TypeVar("T")

log = structlog.get_logger()

# Connections looked up in one statement.
_BATCH = 1000
# Whose replies are held in memory at once: about 60 MB. The journal is read once for each part.
_PART = 20_000
_AT_ONCE = 16
# Before this no other replica has refreshed again what this one refreshed last.
_RECENT = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What is compared with what, and where the difference goes."""

    history: JournalHistory
    incarnations: Incarnations
    late: LateReplies
    exchanged: Exchanged
    providers: Providers
    on_authorized: Callable[[Connection, TokenSet], None]
    on_gone: Callable[[str], None]
    clock: Clock
    identities: Identities | None


class Reconciliation:
    """Stores what the database has forgotten."""

    def __init__(
        self,
        ports: Compared,
        *,
        refresher: Refresher,
        settings: Callable[[], Refresh],
        owner: str,
    ) -> None:
        self._ports = ports
        self._refresher = refresher
        self._settings = settings
        self._owner = owner
        self._later: list[JournaledReply] = []
        # What is older was not compared: the database has it.
        self._last_looked_at: str | None = None

    async def run(self) -> None:
        """Compare and store. Raises DatabaseUnavailableError and JournalError."""
        behind = await self._find_behind()
        # The oldest first: should this be cut, what is missing then is what is looked at first.
        for part in _parts([*reversed(behind)], _PART):
            replies = await self._replies_of({name: behind[name] for name in part})
            for names in _parts([*reversed(replies)], _AT_ONCE):
                # None is cut: it may be about to store a token.
                ends = await asyncio.gather(
                    *(self._replay(behind[name], replies[name]) for name in names),
                    return_exceptions=True,
                )
                for end in ends:
                    if end is not None:
                        raise end

    async def claim_again(self) -> None:
        """Let the database know of the requests that are on their way from here.

        It may have forgotten the claims, and another replica would send the same tokens.
        """
        await self._refresher.attempts.each_open(self._claim_again)

    async def _claim_again(self, claim: Claim, begun_at: datetime) -> None:
        # As of its beginning: what a person has granted since then is not to be claimed for it.
        await self._recalled(
            claim.connection_id,
            claim.attempt,
            generation=claim.tokens.generation,
            sent_at=begun_at,
            epoch=claim.epoch,
        )

    def take_later(self) -> list[JournaledReply]:
        """Return what waits for the end of another replica's attempt, once."""
        later, self._later = self._later, []
        return later

    async def _find_behind(self) -> dict[str, Standing]:
        """Return the connections that may have forgotten something, a few that fail among them.

        What a database forgets are its last commits. So from the newest reply on nothing older is
        looked at than a stretch of which it has everything: a day's replies may be millions. But
        what a replica was sent that then did nothing for a while, others have replaced since: they
        may have stored theirs again, and that tells nothing of what only this journal has.
        """
        behind: dict[str, Standing] = {}
        self._last_looked_at = None
        stretch = Stretch()
        batch: list[JournaledReply] = []
        is_recent: bool | None = None
        async for entry in self._ports.history.replies():
            if is_recent is None:
                is_recent = entry.sent_at > self._ports.clock.now() - _RECENT
            batch.append(entry)
            stretch.add(entry.sent_at)
            if len(batch) < _BATCH:
                continue
            found = await self._behind(batch)
            behind |= found
            if any(self._is_lacking(one, found) for one in batch):
                stretch = Stretch()
            elif is_recent and stretch.is_enough():
                self._last_looked_at = entry.attempt
                return behind
            batch = []
        return behind | await self._behind(batch)

    async def _behind(self, entries: Sequence[JournaledReply]) -> dict[str, Standing]:
        """Return the connections of which a reply is not below what is stored."""
        newest: dict[str, int] = {}
        for entry in entries:
            known = newest.get(entry.connection_id, -1)
            newest[entry.connection_id] = max(known, entry.generation)
        found = await self._ports.incarnations.standing(list(newest))
        return {
            name: standing
            for name, standing in found.items()
            if standing.generation <= newest[name] and standing.status is not Status.DISCONNECTED
        }

    def _is_lacking(self, entry: JournaledReply, behind: Mapping[str, Standing]) -> bool:
        standing = behind.get(entry.connection_id)
        return standing is not None and self._forgotten_outcome(entry, standing) is not None

    def _forgotten_outcome(self, entry: JournaledReply, standing: Standing) -> Outcome | None:
        """Return the outcome of a reply with tokens that the database has forgotten, if it has."""
        provider = self._ports.providers.get(entry.provider)
        if provider is None or not is_forgotten(entry, standing):
            return None
        outcome = outcome_of(entry, provider)
        return outcome if brings_tokens(outcome) else None

    async def _replies_of(self, behind: Mapping[str, Standing]) -> dict[str, list[KeptReply]]:
        """Return what these connections may lack, oldest first, without what is in flight."""
        found: dict[str, list[KeptReply]] = {}
        in_flight = self._refresher.attempts.in_flight
        async for entry in self._ports.history.replies():
            standing = behind.get(entry.connection_id)
            outcome = None if standing is None else self._forgotten_outcome(entry, standing)
            if outcome is not None and entry.attempt not in in_flight:
                kept = KeptReply(entry=entry, outcome=outcome)
                found.setdefault(entry.connection_id, []).insert(0, kept)
            if entry.attempt == self._last_looked_at:
                break
        return found

    async def _replay(self, standing: Standing, replies: Sequence[KeptReply]) -> None:
        entry = replies[-1].entry
        provider = self._ports.providers.get(entry.provider)
        if provider is None:
            return
        try:
            exchange, refreshes = since_exchange(replies)
            if exchange is not None:
                # A refresh that came after it says as well that it was stored once.
                is_judged = bool(refreshes) or self._is_settled(exchange)
                identity = await self._identity(exchange, provider, is_judged=is_judged)
                if not await self._authorize(standing, exchange, provider, identity):
                    return
            if refreshes:
                await self._refresh(folded(refreshes), provider)
        except DecryptionError as error:
            log.warning(
                "forgotten_reply_not_stored", connection=entry.connection_id, error=str(error)
            )

    def _is_settled(self, kept: KeptReply) -> bool:
        return self._ports.history.is_settled(kept.entry.attempt)

    async def _identity(
        self, kept: KeptReply, provider: Provider, *, is_judged: bool
    ) -> Identity | None:
        """Find out whose account an exchange was for; nobody is asked where that was done once."""
        entry, granted, identities = kept.entry, kept.outcome.granted, self._ports.identities
        if identities is None or granted is None:
            return None
        tokens = tokens_in(kept.outcome, entry, provider, self._settings())
        find = identities.identity if is_judged else identities.identify
        return await find(entry, provider, granted, tokens)

    async def _authorize(
        self,
        standing: Standing,
        kept: KeptReply,
        provider: Provider,
        identity: Identity | None,
    ) -> bool:
        """Store a forgotten exchange; tell whether it is the connection's grant now."""
        entry, settings = kept.entry, self._settings()
        tokens = tokens_in(kept.outcome, entry, provider, settings)
        answer = await self._ports.exchanged.complete(
            completion_of(
                entry,
                tokens,
                provider,
                settings,
                now=self._ports.clock.now(),
                stored_generation=standing.generation,
                identity=identity,
            )
        )
        if isinstance(answer, NotStored):
            return False
        stored = answer.connection
        if answer.merged is not None:
            self._ports.on_gone(answer.merged)
        # It may have been merged into another connection, or lifted above what was known of it.
        self._ports.on_authorized(stored, replace(tokens, generation=stored.generation))
        _told(entry, standing.generation)
        return True

    async def _refresh(self, kept: KeptReply, provider: Provider) -> None:
        entry = kept.entry
        claim = await self._recalled(
            entry.connection_id,
            entry.attempt,
            generation=entry.generation,
            sent_at=entry.sent_at,
            epoch=entry.epoch,
        )
        if isinstance(claim, Refusal) and claim.reason is RefusalReason.SENDING:
            self._later.append(entry)
        if isinstance(claim, Claim):
            await self._refresher.attempts.conclude(
                claim, provider, kept.outcome, sent=Sent(at=entry.sent_at, duration=0.0)
            )
            _told(entry, claim.fence)

    async def _recalled(
        self,
        connection_id: str,
        attempt: str,
        *,
        generation: int,
        sent_at: datetime,
        epoch: int,
    ) -> Claim | Refusal | None:
        return await self._ports.late.recall(
            connection_id,
            attempt=attempt,
            generation=generation,
            sent_at=sent_at,
            epoch=epoch,
            owner=self._owner,
            hold=self._refresher.hold,
        )


def _told(entry: JournaledReply, stored: int) -> None:
    log.warning(
        "forgotten_reply_stored_again",
        connection=entry.connection_id,
        provider=entry.provider,
        generation=entry.generation + 1,
        stored_generation=stored,
    )


def _parts(names: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(names), size):
        yield names[start : start + size]
