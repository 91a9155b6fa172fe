"""[refresh] A database that has forgotten: what the journal has and it lacks is stored again.

After a failover or from a backup the database has refresh tokens that are spent long since. Its
hard idea: the newest reply that this process has ever received for a connection is compared with
what is stored, and stored under the generation that it had. So nothing spent is sent, and no
generation falls. Cut anywhere and begun again it comes to the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import structlog

from daemon.config.settings import Refresh
from daemon.domain.authorization import NotStored
from daemon.domain.claim import Claim, Refusal, RefusalReason, Standing
from daemon.domain.clock import Clock
from daemon.domain.connection import Connection, Status
from daemon.domain.errors import DecryptionError
from daemon.domain.journal import JournaledReply, JournalHistory
from daemon.domain.provider import Provider
from daemon.domain.tokens import TokenSet
from daemon.refresh.attempts import Sent
from daemon.refresh.ports import Exchanged, Incarnations, LateReplies, Providers
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

T = TypeVar("T")

log = structlog.get_logger()

# Connections looked up in one statement.
_BATCH = 1000
# Whose replies are held in memory at once: about 60 MB. The journal is read once for each part.
_PART = 20_000
_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What is compared with what, and where the difference goes."""

    history: JournalHistory
    incarnations: Incarnations
    late: LateReplies
    exchanged: Exchanged
    providers: Providers
    on_authorized: Callable[[Connection, TokenSet], None]
    clock: Clock


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

    async def run(self) -> None:
        """Compare and store. Raises DatabaseUnavailableError and JournalError."""
        behind = await self._behind(await self._newest())
        for part in _parts(list(behind), _PART):
            replies = await self._replies_of({name: behind[name] for name in part})
            for names in _parts(list(replies), _AT_ONCE):
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
        for claim in list(self._refresher.attempts.in_flight.values()):
            await self._recalled(claim.connection_id, claim.attempt, claim.tokens.generation)

    def take_later(self) -> list[JournaledReply]:
        """Return what waits for the end of another replica's attempt, once."""
        later, self._later = self._later, []
        return later

    async def _newest(self) -> dict[str, int]:
        """Return the newest generation that a reply belongs to, by connection."""
        newest: dict[str, int] = {}
        async for entry in self._ports.history.replies():
            known = newest.get(entry.connection_id, -1)
            newest[entry.connection_id] = max(known, entry.generation)
        return newest

    async def _behind(self, newest: Mapping[str, int]) -> dict[str, Standing]:
        """Return the connections that may have forgotten something: a few that fail, too."""
        behind: dict[str, Standing] = {}
        for names in _parts(list(newest), _BATCH):
            for name, standing in (await self._ports.incarnations.standing(names)).items():
                is_ended = standing.status is Status.DISCONNECTED
                if standing.generation <= newest[name] and not is_ended:
                    behind[name] = standing
        return behind

    async def _replies_of(self, behind: Mapping[str, Standing]) -> dict[str, list[KeptReply]]:
        """Return what these connections may lack, oldest first, without what is in flight."""
        found: dict[str, list[KeptReply]] = {}
        in_flight = self._refresher.attempts.in_flight
        async for entry in self._ports.history.replies():
            standing = behind.get(entry.connection_id)
            if standing is None or entry.attempt in in_flight:
                continue
            provider = self._ports.providers.get(entry.provider)
            if provider is None or not is_forgotten(entry, standing):
                continue
            outcome = outcome_of(entry, provider)
            if brings_tokens(outcome):
                kept = KeptReply(entry=entry, outcome=outcome)
                found.setdefault(entry.connection_id, []).insert(0, kept)
        return found

    async def _replay(self, standing: Standing, replies: Sequence[KeptReply]) -> None:
        entry = replies[-1].entry
        provider = self._ports.providers.get(entry.provider)
        if provider is None:
            return
        try:
            exchange, refreshes = since_exchange(replies)
            if exchange is not None and not await self._authorize(standing, exchange, provider):
                return
            if refreshes:
                await self._refresh(folded(refreshes), provider)
        except DecryptionError as error:
            log.warning(
                "forgotten_reply_not_stored", connection=entry.connection_id, error=str(error)
            )

    async def _authorize(self, standing: Standing, kept: KeptReply, provider: Provider) -> bool:
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
            )
        )
        if isinstance(answer, NotStored):
            return False
        stored = answer.connection
        self._ports.on_authorized(stored, tokens)
        _told(entry, standing.generation)
        return True

    async def _refresh(self, kept: KeptReply, provider: Provider) -> None:
        entry = kept.entry
        claim = await self._recalled(entry.connection_id, entry.attempt, entry.generation, entry)
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
        generation: int,
        entry: JournaledReply | None = None,
    ) -> Claim | Refusal | None:
        return await self._ports.late.recall(
            connection_id,
            attempt=attempt,
            generation=generation,
            sent_at=self._ports.clock.now() if entry is None else entry.sent_at,
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
