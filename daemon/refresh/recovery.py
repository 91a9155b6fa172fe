"""[refresh] After a restart: what the journal kept is stored before anything else happens.

Idempotent, and may itself be cut anywhere: a reply is settled in the journal only after the
database has it, and the database takes each only on top of the generation it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from daemon.config.settings import Refresh
from daemon.domain.clock import Clock
from daemon.domain.connection import Connection
from daemon.domain.errors import DatabaseUnavailableError, DecryptionError
from daemon.domain.journal import JournaledReply, Purpose, ReplyJournal
from daemon.domain.outcome import Outcome, OutcomeKind
from daemon.domain.provider import Provider
from daemon.domain.tokens import TokenSet, tokens_of
from daemon.oauth.token_reply import read_reply
from daemon.refresh import policy
from daemon.refresh.ports import Exchanged, Providers, RefreshStore
from daemon.refresh.refresher import Refresher, Sent

log = structlog.get_logger()

_DATABASE_AWAY = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What recovery works with. ``on_authorized`` tells the cache of a recovered exchange."""

    journal: ReplyJournal
    store: RefreshStore
    exchanged: Exchanged
    providers: Providers
    on_authorized: Callable[[Connection, TokenSet], None]
    clock: Clock
    chance: Callable[[], float]


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
        self._is_done = False

    async def run(self) -> None:
        """Recover, waiting for the database as long as it takes; then let refreshes begin.

        Once done, a further call does nothing: this process has claims of its own by then.
        """
        while not self._is_done:
            try:
                while self._pending:
                    entry = self._pending[0]
                    if await self._recover(entry):
                        await self._ports.journal.settled(entry.attempt)
                    self._pending.pop(0)
                await self._doubt_open_claims()
            except DatabaseUnavailableError:
                await self._ports.clock.sleep(_DATABASE_AWAY)
            else:
                self._is_done = True
                self._refresher.begin()

    async def _recover(self, entry: JournaledReply) -> bool:
        """Store a reply; ``False`` where that takes another configuration: it stays kept."""
        provider = self._ports.providers.get(entry.provider)
        if provider is None:
            log.warning(
                "journalled_reply_without_provider",
                connection=entry.connection_id,
                provider=entry.provider,
            )
            return False
        try:
            if entry.purpose is Purpose.EXCHANGE:
                stored = await self._recover_exchange(entry, provider)
            else:
                stored = await self._recover_refresh(entry, provider)
        except DecryptionError as error:
            log.warning(
                "journalled_reply_not_stored", connection=entry.connection_id, error=str(error)
            )
            return False
        log.info(
            "journalled_reply_recovered" if stored else "journalled_reply_not_needed",
            connection=entry.connection_id,
            provider=entry.provider,
            generation=entry.generation,
        )
        return True

    async def _recover_refresh(self, entry: JournaledReply, provider: Provider) -> bool:
        outcome = _outcome(entry, provider)
        if not _is_last_word(outcome):
            return False
        claim = await self._ports.store.reclaim(
            entry.connection_id,
            attempt=entry.attempt,
            generation=entry.generation,
            owner=self._owner,
            hold=self._refresher.hold,
        )
        if claim is None:
            return False
        await self._refresher.conclude(
            claim, provider, outcome, sent=Sent(at=entry.sent_at, duration=0.0)
        )
        return True

    async def _recover_exchange(self, entry: JournaledReply, provider: Provider) -> bool:
        granted = _outcome(entry, provider).granted
        if granted is None:
            return False
        settings = self._settings()
        tokens = tokens_of(
            granted,
            before=None,
            requested=entry.scopes,
            sent_at=entry.sent_at,
            default_lifetime=provider.default_lifetime or settings.default_lifetime,
        )
        connection = await self._ports.exchanged.complete(
            entry.connection_id,
            tokens,
            due_at=self._due(tokens, entry.connection_id),
            only_after=entry.generation,
        )
        if connection is None:
            return False
        self._ports.on_authorized(connection, replace(tokens, generation=connection.generation))
        return True

    def _due(self, tokens: TokenSet, connection_id: str) -> datetime | None:
        return policy.due_at(tokens, connection_id, self._settings())

    async def _doubt_open_claims(self) -> None:
        """Settle what this owner had sent when it died, and of which it kept no reply."""
        now = self._ports.clock.now()
        abandoned = await self._ports.store.abandoned_by(self._owner)
        settlements = [
            policy.abandoned(
                claim, provider.rotation, now, self._ports.chance(), hold=self._refresher.hold
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
