"""A process's view of the database: the ports of the refresh protocol over its way there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta

from daemon.domain.admission import ProviderState
from daemon.domain.authorization import Completion, NotStored, StoredAuthorization
from daemon.domain.claim import (
    Abandoned,
    Claim,
    DueClaims,
    Orphan,
    Refusal,
    RefusalReason,
    Settled,
    Settlement,
    Standing,
)
from daemon.domain.claimable import Wanted
from daemon.domain.errors import DatabaseUnavailableError
from daemon.domain.outcome import Outcome
from daemon.domain.tokens import CurrentToken, TokenSet, Version
from tests.simulation.books import Books
from tests.simulation.database_model import Replica, Rows, Way
from tests.support.memory_refreshes import MemoryRow

# incarnations.py
_SEEN_TOGETHER = 300.0
_WAITED_LONG_ENOUGH = 600.0


class ProcessIncarnations:
    """Port: ``Incarnations``; after ``daemon.persistence.incarnations``, whose SQL it is."""

    def __init__(self, way: Way, owner: str) -> None:
        self._way = way
        self._owner = owner
        self._trusted: str | None = None
        self._changed = asyncio.Event()
        self.held_back: frozenset[str] = frozenset()

    def check(self) -> None:
        """Refuse a claim in an incarnation that is not trusted; at the moment it takes effect."""
        if self._trusted is None or self._way.database.incarnation == self._trusted:
            return
        # The process learns of it with the answer.
        self._way.loop.call_soon(self._changed.set, context=self._way.life.context())
        raise DatabaseUnavailableError("the database was restarted")

    async def current(self) -> str:
        """Return the incarnation in use."""

        async def work(_: Rows) -> str:
            return self._way.database.incarnation

        return await self._way.call("incarnation", work)

    async def is_known(self, incarnation: str) -> bool:
        """Tell whether this replica has trusted it before."""

        async def work(_: Rows) -> bool:
            replica = self._way.database.replicas.get(self._owner)
            return replica is not None and replica.incarnation == incarnation

        return await self._way.call("is_known", work)

    async def changed(self) -> None:
        """Return when a claim was refused for it."""
        await self._changed.wait()

    async def trust(self, incarnation: str) -> None:
        """Let claims be taken."""

        async def work(_: Rows) -> None:
            now, replicas = self._way.loop.time(), self._way.database.replicas
            before = replicas.get(self._owner)
            is_same = before is not None and before.incarnation == incarnation
            since = before.since if is_same and before is not None else now
            replicas[self._owner] = Replica(incarnation, since, now)

        await self._way.call("trust", work)
        self._trusted = incarnation
        self._changed.clear()

    def hold_back(self, providers: Collection[str]) -> None:
        """Let nothing be claimed at these."""
        if providers:
            self._way.trace.count("branch: claims held back for other replicas")
        self.held_back = frozenset(providers)

    async def all_replayed(self, incarnation: str) -> bool:
        """Tell whether every known replica has compared."""

        async def work(_: Rows) -> bool:
            now, replicas = self._way.loop.time(), self._way.database.replicas.values()
            others = [one.seen_at for one in replicas if one.incarnation != incarnation]
            known = [at for at in others if at >= max(others) - _SEEN_TOGETHER]
            since = [one.since for one in replicas if one.incarnation == incarnation]
            return not known or (bool(since) and min(since) <= now - _WAITED_LONG_ENOUGH)

        return await self._way.call("all_replayed", work)

    async def standing(self, ids: Sequence[str]) -> Mapping[str, Standing]:
        """Return where connections stand."""
        return await self._way.call("standing", lambda rows: rows.standing(ids))

    async def beat(self) -> None:
        """Say that this replica lives, and look whether the database is the same."""

        async def work(_: Rows) -> None:
            now, replicas = self._way.loop.time(), self._way.database.replicas
            before = replicas.get(self._owner)
            if before is not None:
                replicas[self._owner] = Replica(before.incarnation, before.since, now)
            self.check()

        await self._way.call("beat", work)

    async def leave(self) -> None:
        """Let nobody wait for this replica."""

        async def work(_: Rows) -> None:
            self._way.database.replicas.pop(self._owner, None)

        await self._way.call("leave", work)


class StoreOverWay:
    """Ports: RefreshStore, LateReplies, Exchanged, CurrentTokens, of one process."""

    def __init__(self, way: Way, books: Books, incarnations: ProcessIncarnations) -> None:
        self._way = way
        self._books = books
        self._incarnations = incarnations

    async def claim_due(
        self, *, room: Mapping[str, tuple[int, float]], owner: str, hold: timedelta, now: datetime
    ) -> DueClaims:
        """Claim what is due."""
        held_back = self._incarnations.held_back
        room = {name: places for name, places in room.items() if name not in held_back}

        async def work(rows: Rows) -> DueClaims:
            self._incarnations.check()
            held_back = self._incarnations.held_back
            left = {name: places for name, places in room.items() if name not in held_back}
            due = await rows.claim_due(room=left, owner=owner, hold=hold, now=now)
            for claim in due.claims:
                self._committed(claim, owner, hold, now)
            return due

        return await self._way.call("claim_due", work)

    async def claim(
        self, wanted: Wanted, *, owner: str, hold: timedelta, now: datetime
    ) -> Claim | Refusal:
        """Claim one connection."""
        held_back = Refusal(
            connection_id=wanted.connection_id, reason=RefusalReason.PROVIDER_PAUSED
        )
        if wanted.provider in self._incarnations.held_back:
            return held_back

        async def work(rows: Rows) -> Claim | Refusal:
            self._incarnations.check()
            if wanted.provider in self._incarnations.held_back:
                return held_back
            answer = await rows.claim(wanted, owner=owner, hold=hold, now=now)
            if isinstance(answer, Claim):
                self._committed(answer, owner, hold, now, is_forced=wanted.forced)
            return answer

        return await self._way.call("claim", work)

    async def reclaim(
        self, connection_id: str, *, attempt: str, generation: int, owner: str, hold: timedelta
    ) -> Claim | Refusal | None:
        """Claim again for a reply that the journal kept."""
        return await self._way.call(
            "reclaim",
            lambda rows: rows.reclaim(
                connection_id, attempt=attempt, generation=generation, owner=owner, hold=hold
            ),
        )

    async def recall(
        self,
        connection_id: str,
        *,
        attempt: str,
        generation: int,
        sent_at: datetime,
        epoch: int,
        owner: str,
        hold: timedelta,
    ) -> Claim | Refusal | None:
        """Claim again, also where generations are forgotten."""
        self._way.trace.count("branch: recalled")
        return await self._way.call(
            "recall",
            lambda rows: rows.recall(
                connection_id,
                attempt=attempt,
                generation=generation,
                sent_at=sent_at,
                epoch=epoch,
                owner=owner,
                hold=hold,
            ),
        )

    async def newest_orphan(self, connection_id: str) -> Orphan | None:
        """Return the newest orphan."""
        found = await self._way.call(
            "newest_orphan", lambda rows: rows.newest_orphan(connection_id)
        )
        if found is not None:
            self._way.trace.count("branch: an orphan is tried")
        return found

    async def disown(
        self,
        connection_id: str,
        tokens: TokenSet,
        *,
        provider: str,
        fields: Mapping[str, str],
        now: datetime,
    ) -> None:
        """Queue tokens for revocation."""
        await self._way.call(
            "disown",
            lambda rows: rows.disown(
                connection_id, tokens, provider=provider, fields=fields, now=now
            ),
        )

    async def abandoned_by(self, owner: str) -> list[Abandoned]:
        """Return the open claims of an owner."""
        return await self._way.call("abandoned_by", lambda rows: rows.abandoned_by(owner))

    async def settle(self, settlements: Sequence[Settlement], *, now: datetime) -> list[Settled]:
        """Write how attempts ended."""
        self._books.settling(settlements)
        return await self._way.call("settle", lambda rows: rows.settle(settlements, now=now))

    async def abandoned(self, providers: Sequence[str], *, now: datetime) -> list[Abandoned]:
        """Return claims whose take-over time has passed."""
        return await self._way.call("abandoned", lambda rows: rows.abandoned(providers, now=now))

    async def next_due(self, providers: Sequence[str], *, after: datetime) -> datetime | None:
        """Return the soonest due time."""
        return await self._way.call("next_due", lambda rows: rows.next_due(providers, after=after))

    async def learn(self, provider: str, outcome: Outcome) -> tuple[ProviderState, ProviderState]:
        """Let the fleet know."""
        return await self._way.call("learn", lambda rows: rows.learn(provider, outcome))

    async def complete(self, completion: Completion) -> StoredAuthorization | NotStored:
        """Store the tokens of an authorization."""
        return await self._way.call("complete", lambda rows: rows.complete(completion))

    async def disconnect(self, name: str) -> CurrentToken | None:
        """Disconnect."""
        return await self._way.call("disconnect", lambda rows: rows.disconnect(name))

    async def purge(self, name: str) -> None:
        """Disconnect and remove."""
        await self._way.call("purge", lambda rows: rows.purge(name))

    async def create(self, name: str, make: Callable[[], MemoryRow]) -> bool:
        """Import; ``make`` is called where there is no such connection."""
        return await self._way.call("create", lambda rows: rows.create(name, make))

    async def begin(self, name: str) -> tuple[int, int] | None:
        """Return generation and epoch, as the transaction of an authorization is consumed."""

        async def work(rows: Rows) -> tuple[int, int] | None:
            row = rows.rows.get(name)
            return None if row is None else (row.tokens.generation, row.epoch)

        return await self._way.call("consume", work)

    async def current(self, ids: Sequence[str]) -> list[CurrentToken]:
        """Return what serving needs."""

        async def work(rows: Rows) -> tuple[list[CurrentToken], list[str]]:
            return await rows.current(ids), self._books.ended_of(ids)

        found, ended = await self._way.call("current", work)
        self._books.known_ended.update((self._way.life, name) for name in ended)
        return found

    async def versions(self, ids: Sequence[str]) -> dict[str, Version]:
        """Return what tells whether memory is stale."""
        return await self._way.call("versions", lambda rows: rows.versions(ids))

    def _committed(
        self,
        claim: Claim,
        owner: str,
        hold: timedelta,
        wall: datetime,
        *,
        is_forced: bool = False,
    ) -> None:
        take_over_at = self._way.loop.time() + hold.total_seconds()
        self._books.claimed(claim, owner, take_over_at=take_over_at, wall=wall, is_forced=is_forced)
        self._way.trace.tell(
            owner[:6],
            f"claimed {claim.connection_id} generation {claim.tokens.generation} "
            f"{claim.attempt}{' in doubt' if claim.was_in_doubt else ''}",
        )
