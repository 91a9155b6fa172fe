"""Known-bad variants of the protocol: each must be caught, or the simulation proves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from daemon.domain.claim import Claim, ClaimState, DueClaims, Orphan, Refusal, Settled, Settlement
from daemon.domain.claimable import Wanted
from daemon.domain.connection import Status
from daemon.domain.journal import JournaledReply
from daemon.domain.provider import Rotation, RotationKind
from daemon.domain.reply import NoReply, RawReply
from daemon.oauth.outbound import MaySend
from daemon.persistence.cipher import TokenCipher
from daemon.refresh import policy
from daemon.refresh.reading import Reading, TokenReader
from daemon.refresh.scheduler import Scheduler
from tests.simulation.database_model import Rows
from tests.simulation.journal_model import SimulatedJournal
from tests.simulation.network import ProcessSession
from tests.simulation.node import Node
from tests.simulation.run import Mutant


class ParsesFirstJournal(SimulatedJournal):
    """Says that it has kept a reply before it has."""

    async def keep(self, entry: JournaledReply) -> bool:
        """Begin to keep it."""
        keeping = asyncio.ensure_future(super().keep(entry))
        keeping.add_done_callback(lambda done: done.cancelled() or done.exception())
        return True


class ParsesFirst(Node):
    """Reads a reply, and stores it, while the journal may not have it."""

    def open_journal(self, cipher: TokenCipher) -> SimulatedJournal:
        """Return the journal."""
        return ParsesFirstJournal(
            self.machine,
            cipher,
            entropy=self.world.chance.randbytes,
            books=self.world.books,
            life=self.life,
        )


class ForgetfulJournal(SimulatedJournal):
    """Does not say what it has."""

    def open(self) -> list[JournaledReply]:
        """Open, and return nothing."""
        super().open()
        return []


class NeverReplays(Node):
    """Starts without looking into the journal."""

    def open_journal(self, cipher: TokenCipher) -> SimulatedJournal:
        """Return the journal."""
        return ForgetfulJournal(
            self.machine,
            cipher,
            entropy=self.world.chance.randbytes,
            books=self.world.books,
            life=self.life,
        )


class FreeingScheduler(Scheduler):
    """Takes the end of a claim's time for the end of its attempt."""

    async def _take_over(self) -> None:
        store, clock = self._sweep.store, self._sweep.clock
        providers = {provider.name: provider for provider in self._providers()}
        abandoned = await store.abandoned(list(providers), now=clock.now())
        settlements = [
            replace(
                policy.abandoned(
                    claim,
                    providers[claim.provider].rotation,
                    clock.now(),
                    0.5,
                    hold=self._refresher.hold,
                ),
                state=ClaimState.IDLE,
                due_at=clock.now(),
            )
            for claim in abandoned
        ]
        if settlements:
            await store.settle(settlements, now=clock.now())


class FreesExpiredClaims(Node):
    """A claim whose time has passed is free."""

    def make_scheduler(self) -> Scheduler:
        """Return the sweep."""
        made = super().make_scheduler()
        return FreeingScheduler(
            made._sweep,
            refresher=self.refresher,
            slots=self.slots,
            providers=made._providers,
        )


class CarelessReader(TokenReader):
    """Serves whatever it has."""

    async def read(
        self, connection_id: str, *, min_ttl: float = 0, newer_than: int | None = None
    ) -> Reading | None:
        """Read."""
        entry = self._cache.get(connection_id)
        if entry is not None and entry.status in {Status.ACTIVE, Status.FAILING}:
            return Reading(entry=entry, outcome="served")
        return await super().read(connection_id, min_ttl=min_ttl, newer_than=newer_than)


class ServesExpired(Node):
    """Does not look at the expiry."""

    def make_reader(self) -> TokenReader:
        """Return what answers callers."""
        return CarelessReader(
            self.cache,
            self.refresher,
            self.world.providers,
            clock=self.machine.clock,
            settings=lambda: self.world.settings,
        )


class LateSession(ProcessSession):
    """Sends whatever the time."""

    async def post(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        hard_timeout: float,
        may_send: MaySend | None = None,
    ) -> RawReply | NoReply:
        """Send."""
        del may_send
        return await super().post(url, headers, body, hard_timeout=hard_timeout)


class SendsLate(Node):
    """Does not look at the clock before it sends."""

    def session(self) -> ProcessSession:
        """Return what sends."""
        return LateSession(self.world.network, self.machine, self.life, self.journal.owner)


class Unfenced(Rows):
    """A settlement is written whatever the row says meanwhile."""

    def _settle(self, settlement: Settlement) -> Settled:
        row = self.rows.get(settlement.connection_id)
        if row is not None and row.status is not Status.DISCONNECTED:
            row.attempt, row.state = settlement.attempt, ClaimState.SENDING
            row.tokens = replace(row.tokens, generation=settlement.generation)
        return super()._settle(settlement)


class DisconnectsWithoutFence(Rows):
    """A settlement is written into a connection that was disconnected."""

    def _settle(self, settlement: Settlement) -> Settled:
        row = self.rows.get(settlement.connection_id)
        if row is not None and row.status is Status.DISCONNECTED:
            row.status, row.state, row.attempt = Status.ACTIVE, ClaimState.SENDING, None
            row.attempt = settlement.attempt
        return super()._settle(settlement)


class ClaimsOpenAttempts(Rows):
    """A claim is given for a connection whose request is on its way."""

    async def claim_due(
        self, *, room: Mapping[str, tuple[int, float]], owner: str, hold: timedelta, now: datetime
    ) -> DueClaims:
        """Claim."""
        self._free([row.id for row in self.rows.values() if row.provider in room])
        return await super().claim_due(room=room, owner=owner, hold=hold, now=now)

    async def claim(
        self, wanted: Wanted, *, owner: str, hold: timedelta, now: datetime
    ) -> Claim | Refusal:
        """Claim."""
        self._free([wanted.connection_id])
        return await super().claim(wanted, owner=owner, hold=hold, now=now)

    def _free(self, names: Sequence[str]) -> None:
        for name in names:
            row = self.rows.get(name)
            if row is not None and row.state is ClaimState.SENDING:
                row.state = ClaimState.IN_DOUBT


class ForgetsOrphans(Rows):
    """Gives a grant up without a look at what came late."""

    async def newest_orphan(self, connection_id: str) -> Orphan | None:
        """Return nothing."""
        del connection_id
        return None


MUTANTS = (
    Mutant(name="parse before journal", node=ParsesFirst),
    Mutant(name="no replay of the journal", node=NeverReplays),
    Mutant(name="lease expiry means free", node=FreesExpiredClaims),
    Mutant(name="commit without a fence", rows=Unfenced),
    Mutant(
        name="retry at once at a strict provider",
        rotation=lambda _: Rotation(RotationKind.STATIC),
    ),
    Mutant(name="no fdatasync", skips_sync=True),
    Mutant(name="claim over an open attempt", rows=ClaimsOpenAttempts),
    Mutant(name="serve without a look at the expiry", node=ServesExpired),
    Mutant(name="disconnect does not fence", rows=DisconnectsWithoutFence),
    Mutant(name="send after the deadline", node=SendsLate),
    Mutant(name="orphans are forgotten", rows=ForgetsOrphans),
)
