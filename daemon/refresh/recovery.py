"""[refresh] What the journal kept is stored before anything else happens.

At a start that is what was under way at the last stop, and in a database that has forgotten
whatever it lacks (``reconciling``). Idempotent, and may itself be cut anywhere: a reply is settled
in the journal only after the database has it, and the database takes each only on top of the
generation it belongs to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

import structlog

from daemon.config.settings import Refresh
from daemon.domain.errors import DatabaseUnavailableError, StorageError
from daemon.domain.journal import JournaledReply
from daemon.domain.provider import Provider, RotationKind
from daemon.refresh import policy, recording
from daemon.refresh.reconciling import Compared, Reconciliation
from daemon.refresh.refresher import Refresher
from daemon.refresh.replaying import Fate, Replaying, Stored

log = structlog.get_logger()

_DATABASE_AWAY = 1.0
# Another replica's attempt ends within its hard timeout; looking this often costs nothing.
_LOOK_AGAIN = 2.0
# How long to leave a database alone that refuses what it is given.
_REFUSED = 30.0


class Recovery:
    """Stores journalled replies, then puts this owner's other open claims in doubt.

    ``run`` once, then ``watch`` for ever.
    """

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
        self._kept: list[JournaledReply] = []
        self._is_done = False
        self._one_at_a_time = asyncio.Lock()
        self._woken = asyncio.Event()
        self._is_new = False
        self._incarnation: str | None = None
        # The incarnation in which other replicas may still have newer replies than the database.
        self._waits_in: str | None = None
        self._replaying = Replaying(ports, refresher=refresher, settings=settings, owner=owner)
        self._reconciliation = self._reconciling()

    async def run(self) -> None:
        """Recover, waiting for the database as long as it takes; then let refreshes begin.

        Once done, a further call does nothing: this process has claims of its own by then.
        """
        async with self._one_at_a_time:
            while not self._is_done:
                await self._ports.named()
                try:
                    await self._compare(at_start=True)
                    await self._go_through()
                    await self._doubt_open_claims()
                    await self._trust()
                except StorageError as error:
                    await self._wait(error)
                else:
                    self._is_done = True
                    self._refresher.begin()

    async def watch(self) -> None:
        """After ``run``, until cancelled: what waits, and a database that changes."""
        await self.run()
        while True:
            await self._something()
            try:
                if self._is_new:
                    await self._compare(at_start=False)
                    await self._trust()
                if self._woken.is_set():
                    self._woken.clear()
                    self._later, self._kept = self._later + self._kept, []
                await self._let_go()
                await self._try_later()
            except StorageError as error:
                await self._wait(error)

    def wake(self) -> None:
        """Look again at replies that could not be stored as things were configured."""
        self._woken.set()

    def store_later(self, entry: JournaledReply) -> None:
        """Store a reply whose own way to the database has given up, as soon as that is back."""
        self._put_off(entry)
        self._woken.set()

    async def _try_later(self) -> None:
        if not self._later:
            return
        self._pending, self._later = self._later, []
        try:
            await self._go_through()
        except StorageError as error:
            # Nothing else holds these replies ready: whatever the reason, they stay.
            self._later += self._pending
            self._pending = []
            if not isinstance(error, DatabaseUnavailableError):
                raise

    async def _wait(self, error: StorageError) -> None:
        """Leave the database alone for a while; what is no absence is told."""
        if isinstance(error, DatabaseUnavailableError):
            await self._ports.clock.sleep(_DATABASE_AWAY)
            return
        log.error("journalled_replies_not_stored", error=str(error))
        await self._ports.clock.sleep(_REFUSED)

    async def _compare(self, *, at_start: bool) -> None:
        """Store what the database has forgotten, in an incarnation that is new to this replica."""
        incarnations = self._ports.incarnations
        if self._reconciliation is None or incarnations is None:
            return
        self._incarnation = await incarnations.current()
        if at_start and await incarnations.is_known(self._incarnation):
            return
        if not at_start:
            # The database may have forgotten how attempts of this process have ended: those would
            # be waited for until their time has passed.
            await self._doubt_open_claims()
        await self._reconciliation.run()
        if not at_start:
            await self._reconciliation.claim_again()
        for entry in self._reconciliation.take_later():
            self._put_off(entry)

    async def _trust(self) -> None:
        """Let claims be taken, but where a newer reply of another replica may be missing still.

        That matters where a spent refresh token ends the grant.
        """
        incarnations = self._ports.incarnations
        if incarnations is None or self._incarnation is None:
            return
        strict = [one.name for one in self._ports.all_providers() if _punishes_reuse(one)]
        incarnations.hold_back(strict)
        await incarnations.trust(self._incarnation)
        self._waits_in = self._incarnation
        await self._let_go()
        if self._waits_in is not None:
            log.warning("refreshes_wait_for_other_replicas", providers=sorted(strict))

    async def _let_go(self) -> None:
        """Hold nothing back any more, once all known replicas have stored what they had."""
        incarnations = self._ports.incarnations
        if incarnations is None or self._waits_in is None:
            return
        if await incarnations.all_replayed(self._waits_in):
            incarnations.hold_back(())
            self._waits_in = None

    async def _something(self) -> None:
        """Wait for what ``watch`` is there for."""
        incarnations = self._ports.incarnations
        tasks = {"woken": asyncio.ensure_future(self._woken.wait())}
        if incarnations is not None:
            tasks["new"] = asyncio.ensure_future(_true_after(incarnations.changed()))
        if self._later or self._waits_in is not None:
            sleep = self._ports.clock.sleep(_LOOK_AGAIN)
            tasks["later"] = asyncio.ensure_future(_true_after(sleep))
        try:
            await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
            self._is_new = "new" in tasks and tasks["new"].done()
        finally:
            for task in tasks.values():
                task.cancel()

    def _reconciling(self) -> Reconciliation | None:
        ports = self._ports
        if ports.incarnations is None or ports.history is None or ports.late is None:
            return None
        return Reconciliation(
            Compared(
                history=ports.history,
                incarnations=ports.incarnations,
                late=ports.late,
                exchanged=ports.exchanged,
                providers=ports.providers,
                on_authorized=ports.on_authorized,
                on_gone=ports.on_gone,
                clock=ports.clock,
                identities=ports.identities,
            ),
            refresher=self._refresher,
            settings=self._settings,
            owner=self._owner,
        )

    async def _go_through(self) -> None:
        while self._pending:
            entry = self._pending[0]
            fate = await self._replaying.replay(entry)
            match fate:
                case Fate.LATER:
                    self._put_off(entry)
                case Fate.KEPT:
                    self._kept.append(entry)
                case _:
                    await self._ports.journal.settled(entry.attempt, stored=fate.is_stored)
                    self._refresher.attempts.waiting.pop(entry.attempt, None)
            self._pending.pop(0)

    def _put_off(self, entry: JournaledReply) -> None:
        """Try a reply again later; meanwhile this process must not send what it answers."""
        self._later.append(entry)
        self._refresher.attempts.waiting[entry.attempt] = entry.connection_id

    async def _doubt_open_claims(self) -> None:
        """Settle this owner's claims that nobody works at, and of which no reply was kept."""
        now, in_flight = self._ports.clock.now(), self._refresher.attempts.in_flight
        found = await self._ports.store.abandoned_by(self._owner)
        abandoned = [claim for claim in found if claim.attempt not in in_flight]
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


async def _true_after(wait: Awaitable[None]) -> Literal[True]:
    await wait
    return True


def _punishes_reuse(provider: Provider) -> bool:
    """Tell whether a provider may end a grant whose spent refresh token it sees."""
    return provider.rotation.kind not in {RotationKind.STATIC, RotationKind.OVERLAP}
