"""[refresh] What becomes of one reply that the journal kept.

Its hard idea: whoever has the reply now does not know what happened since. So the database says,
by generation and attempt, whether the reply is still the next thing to store; and of a new grant
it is found out first whose it is, as at the callback.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

import structlog

from daemon.config.settings import Refresh
from daemon.domain.authorization import NotStored, NotStoredReason, StoredAuthorization
from daemon.domain.claim import Claim, Refusal, RefusalReason, Settled
from daemon.domain.clock import Clock
from daemon.domain.connection import Connection
from daemon.domain.errors import DecryptionError
from daemon.domain.journal import JournaledReply, JournalHistory, Purpose, ReplyJournal
from daemon.domain.outcome import Outcome
from daemon.domain.provider import Provider
from daemon.domain.tokens import TokenSet
from daemon.refresh.attempts import Sent
from daemon.refresh.ports import (
    Exchanged,
    Identities,
    Incarnations,
    LateReplies,
    Providers,
    RefreshStore,
)
from daemon.refresh.refresher import Refresher
from daemon.refresh.replies import (
    brings_tokens,
    completion_of,
    is_last_word,
    is_of_later_grant,
    outcome_of,
    settlement_of,
    tokens_in,
)

log = structlog.get_logger()


class Fate(Enum):
    """What became of a journalled reply."""

    STORED = auto()
    NOT_NEEDED = auto()
    """The database has it already."""
    SUPERSEDED = auto()
    """It has something newer, or another grant: tokens of the same grant are kept as an orphan."""
    DISOWNED = auto()
    """Its connection was disconnected or is gone, or it is somebody else's: its tokens are queued
    for revocation."""
    LATER = auto()
    """Another replica is refreshing the connection: its end decides."""
    KEPT = auto()
    """It takes another configuration to store it: it stays in the journal."""

    @property
    def is_stored(self) -> bool:
        """Tell whether the database has what the reply brought."""
        return self in {Fate.STORED, Fate.NOT_NEEDED}


_TOLD = {
    Fate.STORED: "journalled_reply_recovered",
    Fate.NOT_NEEDED: "journalled_reply_not_needed",
    Fate.SUPERSEDED: "journalled_reply_superseded",
    Fate.DISOWNED: "journalled_reply_disowned",
    Fate.LATER: "journalled_reply_waits_for_another_replica",
}


async def _nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What recovery works with.

    ``on_authorized`` tells the cache of a recovered exchange, ``on_gone`` of an id that gave way
    to another, ``on_disowned`` the revocation worker that tokens were queued for it. ``named``
    returns when this process alone has its owner's name. Without ``incarnations``, ``history`` and
    ``late`` a database that has forgotten is not noticed, without ``identities`` nobody is asked
    whose account an exchange was for. ``all_providers`` are those that may have to wait for other
    replicas.
    """

    journal: ReplyJournal
    store: RefreshStore
    exchanged: Exchanged
    providers: Providers
    on_authorized: Callable[[Connection, TokenSet], None]
    clock: Clock
    chance: Callable[[], float]
    on_disowned: Callable[[], None] = lambda: None
    on_gone: Callable[[str], None] = lambda _: None
    late: LateReplies | None = None
    history: JournalHistory | None = None
    incarnations: Incarnations | None = None
    identities: Identities | None = None
    all_providers: Callable[[], Sequence[Provider]] = tuple
    named: Callable[[], Awaitable[None]] = _nothing


class Replaying:
    """Stores kept replies, one at a time. Methods raise StorageError."""

    def __init__(
        self, ports: Stored, *, refresher: Refresher, settings: Callable[[], Refresh], owner: str
    ) -> None:
        self._ports = ports
        self._refresher = refresher
        self._settings = settings
        self._owner = owner

    async def replay(self, entry: JournaledReply) -> Fate:
        """Store a reply if it is still wanted, and tell what became of it."""
        provider = self._ports.providers.get(entry.provider)
        if provider is None:
            log.warning(
                "journalled_reply_without_provider",
                connection=entry.connection_id,
                provider=entry.provider,
            )
            return Fate.KEPT
        outcome = outcome_of(entry, provider)
        try:
            if entry.purpose is Purpose.EXCHANGE:
                fate = await self._exchange(entry, provider, outcome)
            else:
                fate = await self._refresh(entry, provider, outcome)
        except DecryptionError as error:
            log.warning(
                "journalled_reply_not_stored", connection=entry.connection_id, error=str(error)
            )
            return Fate.KEPT
        log.info(
            _TOLD[fate],
            connection=entry.connection_id,
            provider=entry.provider,
            generation=entry.generation,
        )
        return fate

    async def _refresh(self, entry: JournaledReply, provider: Provider, outcome: Outcome) -> Fate:
        if not is_last_word(outcome):
            return Fate.NOT_NEEDED
        claim = await self._claim(entry)
        if claim is None:
            return await self._too_late(entry, provider, outcome)
        if isinstance(claim, Refusal):
            if claim.reason is RefusalReason.SENDING:
                return Fate.LATER
            return await self._disown(entry, provider, outcome)
        claim = replace(claim, was_in_doubt=entry.was_in_doubt)
        settled = await self._refresher.attempts.conclude(
            claim, provider, outcome, sent=Sent(at=entry.sent_at, duration=0.0)
        )
        return Fate.STORED if settled is Settled.STORED else Fate.SUPERSEDED

    async def _claim(self, entry: JournaledReply) -> Claim | Refusal | None:
        """Claim for a kept reply, also in a database that has forgotten."""
        if self._ports.late is None:
            return await self._ports.store.reclaim(
                entry.connection_id,
                attempt=entry.attempt,
                generation=entry.generation,
                owner=self._owner,
                hold=self._refresher.hold,
            )
        return await self._ports.late.recall(
            entry.connection_id,
            attempt=entry.attempt,
            generation=entry.generation,
            sent_at=entry.sent_at,
            epoch=entry.epoch,
            owner=self._owner,
            hold=self._refresher.hold,
        )

    async def _too_late(self, entry: JournaledReply, provider: Provider, outcome: Outcome) -> Fate:
        """Have the store say whether it has a reply already, and keep its tokens if it has not."""
        if not brings_tokens(outcome):
            return Fate.NOT_NEEDED
        tokens = tokens_in(outcome, entry, provider, self._settings())
        (answer,) = await self._ports.store.settle(
            [settlement_of(entry, tokens)], now=self._ports.clock.now()
        )
        match answer:
            case Settled.STORED:
                return Fate.NOT_NEEDED
            case Settled.DISCONNECTED:
                self._ports.on_disowned()
                return Fate.DISOWNED
            case Settled.SUPERSEDED | Settled.UNCLAIMED:
                return Fate.SUPERSEDED

    async def _disown(self, entry: JournaledReply, provider: Provider, outcome: Outcome) -> Fate:
        """Have the tokens revoked of a refresh that a disconnect has overtaken."""
        await self._ports.store.disown(
            entry.connection_id,
            tokens_in(outcome, entry, provider, self._settings()),
            provider=entry.provider,
            fields=entry.fields,
            now=self._ports.clock.now(),
        )
        self._ports.on_disowned()
        return Fate.DISOWNED

    async def _exchange(self, entry: JournaledReply, provider: Provider, outcome: Outcome) -> Fate:
        if outcome.granted is None:
            return Fate.NOT_NEEDED
        tokens = tokens_in(outcome, entry, provider, self._settings())
        answer = await self._complete(entry, provider, outcome, tokens)
        if isinstance(answer, NotStored):
            if answer.reason is NotStoredReason.SUPERSEDED:
                return Fate.NOT_NEEDED
            self._ports.on_disowned()
            return Fate.DISOWNED
        stored = answer.connection
        if answer.merged is not None:
            self._ports.on_gone(answer.merged)
        # What it has replaced is to be revoked.
        self._ports.on_disowned()
        self._ports.on_authorized(stored, replace(tokens, generation=stored.generation))
        return Fate.STORED

    async def _complete(
        self, entry: JournaledReply, provider: Provider, outcome: Outcome, tokens: TokenSet
    ) -> StoredAuthorization | NotStored:
        """Store an exchange if the connection's grant is still the one that it follows.

        A refresh of the old grant may have ended after the code was spent: it supersedes nothing.
        """
        ports, identity = self._ports, None
        if ports.identities is not None and outcome.granted is not None:
            identity = await ports.identities.identify(entry, provider, outcome.granted, tokens)
        completion = completion_of(
            entry, tokens, provider, self._settings(), now=ports.clock.now(), identity=identity
        )
        answer = await ports.exchanged.complete(completion)
        while isinstance(answer, NotStored) and answer.reason is NotStoredReason.SUPERSEDED:
            generation = await self._moved_to(entry)
            if generation is None or generation == completion.only_after:
                break
            completion = replace(completion, only_after=generation)
            answer = await ports.exchanged.complete(completion)
        return answer

    async def _moved_to(self, entry: JournaledReply) -> int | None:
        """Return the generation of a grant that is older than the one just exchanged."""
        if self._ports.incarnations is None:
            return None
        standings = await self._ports.incarnations.standing([entry.connection_id])
        standing = standings.get(entry.connection_id)
        if standing is None or is_of_later_grant(entry, standing):
            return None
        return standing.generation
