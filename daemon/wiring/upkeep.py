"""Joins what is done for connections beside refreshing them: test, revoke, disconnect, tell."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

from daemon.domain.connection import Connection
from daemon.domain.errors import DatabaseUnavailableError, Problem
from daemon.domain.history import NewEvent
from daemon.oauth.api_session import ApiSession
from daemon.oauth.examiner import Examiner
from daemon.oauth.outbound import Outbound
from daemon.oauth.revocation import RevocationEndpoint
from daemon.upkeep.disconnecting import Disconnecting, DisconnectingParts
from daemon.upkeep.feed import Feed
from daemon.upkeep.revoking import Revoking, RevokingParts
from daemon.upkeep.testing import ConnectionTests
from daemon.upkeep.testing_parts import TestingParts
from daemon.upkeep.webhooks import WebhookParts, Webhooks
from daemon.wiring.configuration import Configuration
from daemon.wiring.parts import Storage, Telemetry, World
from daemon.wiring.refreshing import Refreshing
from daemon.wiring.tasks import Uncut


class Upkeep:
    """The parts beside refreshing, which use it."""

    def __init__(
        self,
        configuration: Configuration,
        *,
        storage: Storage,
        refreshing: Refreshing,
        outbound: Outbound,
        apis: ApiSession,
        telemetry: Telemetry,
        world: World,
        uncut: Uncut,
    ) -> None:
        self._refreshing = refreshing
        self._history = storage.history
        self._uncut = uncut
        clock, chance, events = world.clock, world.chance, telemetry.events
        self.revoking = Revoking(
            RevokingParts(
                queue=storage.revocations,
                endpoint=RevocationEndpoint(session=outbound, clock=clock),
                places=refreshing.discovery,
                providers=configuration,
                events=events,
                clock=clock,
                chance=chance,
            )
        )
        self.disconnecting = Disconnecting(
            DisconnectingParts(
                store=storage.connections,
                revoking=self.revoking,
                providers=configuration,
                cache=refreshing.cache,
                publish=refreshing.publish,
                spawn=uncut,
                events=events,
                clock=clock,
            )
        )
        self.examiner = Examiner(api=apis, session=outbound, clock=clock)
        self.tests = ConnectionTests(
            TestingParts(
                reader=refreshing.reader,
                store=storage.connections,
                examiner=self.examiner,
                resolver=refreshing.discovery,
                providers=configuration,
                events=events,
                clock=clock,
                chance=chance,
                on_dead=self._dead,
            )
        )
        self.feed = Feed(history=storage.history, clock=clock)
        self.webhooks = Webhooks(
            WebhookParts(
                deliveries=storage.deliveries,
                session=apis,
                webhook=configuration.webhook,
                events=events,
                clock=clock,
                chance=chance,
            )
        )
        self._tasks: set[asyncio.Task[None]] = set()

    def changed(self, connection_id: str) -> None:
        """Read a connection anew here, and let the other replicas do so."""
        self._refreshing.publish(connection_id)
        self._refreshing.follower.hear(connection_id)
        self.told()

    async def _dead(self, connection_id: str) -> None:
        await self._refreshing.refresher.memory.reload_quietly(connection_id)
        self.changed(connection_id)

    def told(self) -> None:
        """Look at the history soon: something was recorded in it."""
        self.feed.wake()
        self.webhooks.wake()

    def record(self, event: NewEvent) -> None:
        """Put an event into the history soon; while the database is away, only the log has it."""
        self._spawn(self._record(event), name="record")

    def examine(self, connection: Connection) -> None:
        """Test an imported connection in the background, to learn whose account it is."""
        self._spawn(self._examine(connection), name="examine")

    def _spawn(self, work: Coroutine[None, None, None], *, name: str) -> None:
        task = asyncio.create_task(self._uncut(work), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _record(self, event: NewEvent) -> None:
        try:
            await self._history.record([event])
        except DatabaseUnavailableError:
            return
        self.told()

    async def _examine(self, connection: Connection) -> None:
        try:
            await self.tests.test(connection)
        except (Problem, DatabaseUnavailableError):
            # Nothing to ask with, or not yet: the periodic test or a person comes back to it.
            return
