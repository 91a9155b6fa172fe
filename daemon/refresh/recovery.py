"""[refresh] After a restart: what the journal kept is stored before anything else happens.

Idempotent, and may itself be cut anywhere: a reply is settled in the journal only after the
database has it, and the database takes each only on top of the generation it belongs to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

import structlog

from daemon.config.settings import Refresh
from daemon.domain.authorization import Completion, NotStored, NotStoredReason
from daemon.domain.claim import Refusal, RefusalReason
from daemon.domain.clock import Clock
from daemon.domain.connection import Connection
from daemon.domain.errors import DatabaseUnavailableError, DecryptionError
from daemon.domain.journal import JournaledReply, Purpose, ReplyJournal
from daemon.domain.outcome import Granted, Outcome, OutcomeKind
from daemon.domain.provider import Provider
from daemon.domain.tokens import TokenSet, lifetime_of, tokens_of
from daemon.oauth.token_reply import read_reply
from daemon.refresh import policy, recording
from daemon.refresh.attempts import Sent
from daemon.refresh.ports import Exchanged, Providers, RefreshStore
from daemon.refresh.refresher import Refresher

log = structlog.get_logger()

_DATABASE_AWAY = 1.0
# Another replica's attempt ends within its hard timeout; looking this often costs nothing.
_LOOK_AGAIN = 2.0


class Fate(Enum):
    """What became of a journalled reply at this start."""

    STORED = auto()
    NOT_NEEDED = auto()
    """The database has it already, or has something newer."""
    DISOWNED = auto()
    """Its connection was disconnected or is gone: its tokens are queued for revocation."""
    LATER = auto()
    """Another replica is refreshing the connection: its end decides."""
    KEPT = auto()
    """It takes another configuration to store it: it stays in the journal."""


_TOLD = {
    Fate.STORED: "journalled_reply_recovered",
    Fate.NOT_NEEDED: "journalled_reply_not_needed",
    Fate.DISOWNED: "journalled_reply_disowned",
    Fate.LATER: "journalled_reply_waits_for_another_replica",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What recovery works with.

    ``on_authorized`` tells the cache of a recovered exchange, ``on_disowned`` the revocation
    worker that tokens were queued for it.
    """

    journal: ReplyJournal
    store: RefreshStore
    exchanged: Exchanged
    providers: Providers
    on_authorized: Callable[[Connection, TokenSet], None]
    clock: Clock
    chance: Callable[[], float]
    on_disowned: Callable[[], None] = lambda: None


class Recovery:
    """Stores journalled replies, then puts this owner's other open claims in doubt."""

    def __init__(
        self,
        ports: Stored,
        *,
        pending: Sequence[JournaledReply],
        refresher: Refresher,
        settings: Callable[[], Refresh],
        owner: str,
    ) -> None:
        self._ports = ports
        self._pending = list(pending)
        self._refresher = refresher
        self._settings = settings
        self._owner = owner
        self._later: list[JournaledReply] = []
        self._is_done = False
        self._one_at_a_time = asyncio.Lock()

    async def run(self) -> None:
        """Recover, waiting for the database as long as it takes; then let refreshes begin.

        Once done, a further call does nothing: this process has claims of its own by then.
        """
        async with self._one_at_a_time:
            while not self._is_done:
                try:
                    await self._go_through()
                    await self._doubt_open_claims()
                except DatabaseUnavailableError:
                    await self._ports.clock.sleep(_DATABASE_AWAY)
                else:
                    self._is_done = True
                    self._refresher.begin()

    async def finish(self) -> None:
        """After ``run``: store the replies whose connections another replica was refreshing."""
        while self._later:
            await self._ports.clock.sleep(_LOOK_AGAIN)
            self._pending, self._later = self._later, []
            try:
                await self._go_through()
            except DatabaseUnavailableError:
                self._later += self._pending

    async def _go_through(self) -> None:
        while self._pending:
            entry = self._pending[0]
            match await self._recover(entry):
                case Fate.STORED | Fate.NOT_NEEDED | Fate.DISOWNED:
                    await self._ports.journal.settled(entry.attempt)
                case Fate.LATER:
                    self._later.append(entry)
                case Fate.KEPT:
                    pass
            self._pending.pop(0)

    async def _recover(self, entry: JournaledReply) -> Fate:
        provider = self._ports.providers.get(entry.provider)
        if provider is None:
            log.warning(
                "journalled_reply_without_provider",
                connection=entry.connection_id,
                provider=entry.provider,
            )
            return Fate.KEPT
        try:
            if entry.purpose is Purpose.EXCHANGE:
                fate = await self._recover_exchange(entry, provider)
            else:
                fate = await self._recover_refresh(entry, provider)
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

    async def _recover_refresh(self, entry: JournaledReply, provider: Provider) -> Fate:
        outcome = _outcome(entry, provider)
        if not _is_last_word(outcome):
            return Fate.NOT_NEEDED
        claim = await self._ports.store.reclaim(
            entry.connection_id,
            attempt=entry.attempt,
            generation=entry.generation,
            owner=self._owner,
            hold=self._refresher.hold,
        )
        if claim is None:
            return Fate.NOT_NEEDED
        if isinstance(claim, Refusal):
            if claim.reason is RefusalReason.SENDING:
                return Fate.LATER
            return await self._disown(entry, provider, outcome)
        await self._refresher.attempts.conclude(
            claim, provider, outcome, sent=Sent(at=entry.sent_at, duration=0.0)
        )
        return Fate.STORED

    async def _disown(self, entry: JournaledReply, provider: Provider, outcome: Outcome) -> Fate:
        """Have the tokens revoked of a refresh that a disconnect has overtaken."""
        granted = outcome.granted or Granted(
            access_token="", refresh_token=outcome.salvaged_refresh_token
        )
        await self._ports.store.disown(
            entry.connection_id,
            self._tokens(granted, entry, provider),
            provider=entry.provider,
            fields=entry.fields,
            now=self._ports.clock.now(),
        )
        self._ports.on_disowned()
        return Fate.DISOWNED

    async def _recover_exchange(self, entry: JournaledReply, provider: Provider) -> Fate:
        """Store an exchange's tokens. Whose account it is the first test will tell."""
        granted = _outcome(entry, provider).granted
        if granted is None:
            return Fate.NOT_NEEDED
        tokens = self._tokens(granted, entry, provider)
        is_tested = provider.test is not None and provider.test.interval is not None
        answer = await self._ports.exchanged.complete(
            Completion(
                connection_id=entry.connection_id,
                provider=entry.provider,
                tokens=tokens,
                due_at=policy.due_at(tokens, entry.connection_id, self._settings()),
                next_test_at=self._ports.clock.now() if is_tested else None,
                revokes_replaced=provider.revocation_request.on_reconnect,
                fields=entry.fields or None,
                epoch=entry.epoch,
                only_after=entry.generation,
            )
        )
        if isinstance(answer, NotStored):
            if answer.reason is NotStoredReason.SUPERSEDED:
                return Fate.NOT_NEEDED
            self._ports.on_disowned()
            return Fate.DISOWNED
        stored = answer.connection
        self._ports.on_authorized(stored, replace(tokens, generation=stored.generation))
        return Fate.STORED

    def _tokens(self, granted: Granted, entry: JournaledReply, provider: Provider) -> TokenSet:
        return tokens_of(
            granted,
            before=None,
            requested=entry.scopes,
            sent_at=entry.sent_at,
            default_lifetime=lifetime_of(provider, self._settings().default_lifetime),
        )

    async def _doubt_open_claims(self) -> None:
        """Settle what this owner had sent when it died, and of which it kept no reply."""
        now = self._ports.clock.now()
        abandoned = await self._ports.store.abandoned_by(self._owner)
        settlements = [
            recording.of_abandoned(
                claim,
                policy.abandoned(
                    claim, provider.rotation, now, self._ports.chance(), hold=self._refresher.hold
                ),
            )
            for claim in abandoned
            if (provider := self._ports.providers.get(claim.provider)) is not None
        ]
        if settlements:
            await self._ports.store.settle(settlements, now=now)
            log.warning("interrupted_refreshes_in_doubt", count=len(settlements))


def _is_last_word(outcome: Outcome) -> bool:
    """Tell whether nothing that happened after a reply can have made it wrong.

    A refusal may have been followed by another request: with the next client secret, or by whoever
    took the claim over. It frees nothing: the claim stays in doubt.
    """
    brings_token = outcome.granted is not None or outcome.salvaged_refresh_token is not None
    return brings_token or outcome.kind is OutcomeKind.REAUTHORIZE


def _outcome(entry: JournaledReply, provider: Provider) -> Outcome:
    return read_reply(
        status=entry.reply.status,
        headers=entry.reply.headers,
        body=entry.reply.body,
        provider=provider,
        now=entry.sent_at,
    )
