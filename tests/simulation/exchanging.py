"""A person connects again: one code, its reply kept before it is read, and stored.

Written after ``daemon.oauth.redirection`` and ``completing``, whose pages and tests of accounts
are left out.
"""

from __future__ import annotations

from collections.abc import Callable

from daemon.domain.authorization import Completion, NotStored, StoredAuthorization
from daemon.domain.connection import Connection
from daemon.domain.errors import DatabaseUnavailableError, JournalError
from daemon.domain.journal import JournaledReply, Purpose, ReplyJournal
from daemon.domain.provider import Provider
from daemon.domain.reply import RawReply
from daemon.domain.tokens import TokenSet, lifetime_of, tokens_of
from daemon.oauth.token_reply import read_reply
from daemon.refresh import policy
from tests.simulation.journal_model import access_token_in
from tests.simulation.machines import Machine
from tests.simulation.store_model import StoreOverWay
from tests.simulation.world import World

# completing.py
_STORE_PATIENCE = 30.0


class Exchanging:
    """One exchange."""

    def __init__(
        self,
        world: World,
        machine: Machine,
        store: StoreOverWay,
        journal: ReplyJournal,
        *,
        store_later: Callable[[JournaledReply], None],
    ) -> None:
        self._world = world
        self._store_later = store_later
        self._clock = machine.clock
        self._store = store
        self._journal = journal

    async def run(
        self, name: str, grant: Callable[[], RawReply]
    ) -> tuple[Connection, TokenSet] | None:
        """Run it; ``None`` where nothing is stored, or nobody knows yet."""
        row = self._world.books.rows.get(name)
        if row is None:
            return None
        provider = self._world.providers[row.provider]
        try:
            begun = await self._store.begin(name)
            if begun is None:
                return None
            generation, epoch = begun
            async with self._journal.reserved():
                entry = await self._exchanged(
                    name, provider, generation=generation, epoch=epoch, grant=grant
                )
        except (DatabaseUnavailableError, JournalError):
            return None
        tokens = self._tokens(entry, provider)
        if tokens is None:
            return None
        completion = Completion(
            connection_id=name,
            provider=provider.name,
            tokens=tokens,
            due_at=policy.due_at(tokens, name, self._world.settings),
            epoch=epoch,
            revokes_replaced=provider.revocation_request.on_reconnect,
        )
        try:
            stored = await self._store_patiently(completion)
        except DatabaseUnavailableError:
            self._store_later(entry)
            return None
        is_refused = isinstance(stored, NotStored)
        await self._journal.settled(entry.attempt, stored=not is_refused)
        return None if isinstance(stored, NotStored) else (stored.connection, tokens)

    async def _exchanged(
        self,
        name: str,
        provider: Provider,
        *,
        generation: int,
        epoch: int,
        grant: Callable[[], RawReply],
    ) -> JournaledReply:
        sent_at, error = self._clock.now(), self._clock.error
        await self._clock.sleep(self._world.chance.uniform(0.01, 0.5))
        raw = grant()
        entry = JournaledReply(
            attempt=f"exchange-{self._world.chance.randbytes(8).hex()}",
            purpose=Purpose.EXCHANGE,
            connection_id=name,
            provider=provider.name,
            generation=generation,
            scopes=(),
            sent_at=sent_at,
            reply=raw,
            epoch=epoch,
        )
        self._world.books.provider.by_access[access_token_in(raw.body) or ""].sent_error = error
        await self._journal.keep(entry)
        return entry

    def _tokens(self, entry: JournaledReply, provider: Provider) -> TokenSet | None:
        outcome = read_reply(
            status=entry.reply.status,
            headers=entry.reply.headers,
            body=entry.reply.body,
            provider=provider,
            now=self._clock.now(),
        )
        if outcome.granted is None:
            return None
        return tokens_of(
            outcome.granted,
            before=None,
            requested=(),
            sent_at=entry.sent_at,
            default_lifetime=lifetime_of(provider, self._world.settings.default_lifetime),
        )

    async def _store_patiently(self, completion: Completion) -> StoredAuthorization | NotStored:
        give_up_at = self._clock.boottime() + _STORE_PATIENCE
        while True:
            try:
                return await self._store.complete(completion)
            except DatabaseUnavailableError:
                if self._clock.boottime() >= give_up_at:
                    raise
            await self._clock.sleep(1.0)
