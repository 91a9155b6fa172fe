"""What every other part stands on: time and chance, the database, telemetry."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from daemon import __version__
from daemon.domain.clock import Clock, Entropy
from daemon.domain.errors import DatabaseUnavailableError
from daemon.domain.role import Role
from daemon.domain.tracing import NO_TRACER, Tracer
from daemon.persistence import migrations
from daemon.persistence.agreement import KeyAgreement
from daemon.persistence.authorizations import PostgresAuthorizations
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.connections import PostgresConnections
from daemon.persistence.deliveries import PostgresDeliveries
from daemon.persistence.history import EventRecorder, PostgresHistory
from daemon.persistence.incarnations import Incarnations
from daemon.persistence.keyring import Keyring
from daemon.persistence.owner_name import OwnerName
from daemon.persistence.postgres import Database, DatabaseConnection
from daemon.persistence.refreshes import PostgresRefreshes
from daemon.persistence.retention import Retention
from daemon.persistence.revocations import PostgresRevocations
from daemon.telemetry.events import TelemetryEvents
from daemon.telemetry.metrics import Metrics
from daemon.telemetry.sinks import SinkTelemetry
from daemon.telemetry.token_reads import TokenReads
from daemon.wiring.configuration import Configuration

# Connections that one process may use at once, beside those that listen and notify. A thousand
# processes that serve share one server, and ask it for little.
_POOL = 10
_SERVING_POOL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What the daemon receives from outside: time and chance."""

    clock: Clock
    entropy: Entropy

    def chance(self) -> float:
        """Return a number in [0, 1)."""
        return int.from_bytes(self.entropy(6), "big") / 2**48


class Storage:
    """The database with everything that reads and writes it."""

    def __init__(
        self,
        url: SecretStr,
        keyring: Keyring,
        configuration: Configuration,
        *,
        cipher: TokenCipher,
        owner: str,
        world: World,
        metrics: Metrics,
        role: Role = Role.ALL,
        journal_keys: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        """``journal_keys`` is asked for the keys that the journal's records need."""
        self.cipher = cipher
        self._role = role
        # A process without a journal has no name of its own, and keys all the same.
        self.agreement = KeyAgreement(
            keyring,
            cipher,
            owner=owner or f"{role.value}-{world.entropy(9).hex()}",
            journal_keys=journal_keys,
            clock=world.clock,
            entropy=world.entropy,
        )
        self._clock = world.clock
        self.database = Database(
            url,
            clock=world.clock,
            entropy=world.entropy,
            on_state=lambda up: metrics.set_database_up(is_up=up),
            prepare=self._prepare,
            size=_POOL if role.refreshes else _SERVING_POOL,
        )
        recorder = EventRecorder(delivers=lambda: configuration.webhook() is not None)
        self.history = PostgresHistory(self.database, recorder)
        self.deliveries = PostgresDeliveries(self.database)
        self.retention = Retention(self.database, world.clock)
        self.revocations = PostgresRevocations(self.database, self.cipher)
        self.connections = PostgresConnections(self.database, self.cipher, recorder)
        self.incarnations = Incarnations(self.database, owner=owner)
        self.owner_name = OwnerName(self.database, owner, clock=world.clock)
        self.refreshes = PostgresRefreshes(
            self.database, self.cipher, recorder=recorder, incarnations=self.incarnations
        )
        self.authorizations = PostgresAuthorizations(
            self.database, self.cipher, self.connections, world.clock, recorder=recorder
        )

    async def _prepare(self, connection: DatabaseConnection) -> None:
        """Bring a database that was just reached to this version, and check the keys."""
        await self._bring_forward(connection)
        await self.agreement.rejoin(connection)
        # Before anything can be claimed: the next look at the keys may be half a minute away.
        self.incarnations.refuse(self.agreement.trouble)

    async def _bring_forward(self, connection: DatabaseConnection) -> None:
        """Apply what is pending; a process that only serves waits for who may."""
        if self._role.refreshes:
            await migrations.migrate(connection, migrations.bundled(), clock=self._clock)
        elif await migrations.pending(connection, migrations.bundled()):
            raise DatabaseUnavailableError(
                "the database's schema is older than this version: start a process of this version "
                "that refreshes, or run 'tokenward migrate'"
            )


class Telemetry:
    """Metrics and events on one registry, and where spans are told."""

    def __init__(
        self,
        configuration: Configuration,
        world: World,
        *,
        role: Role = Role.ALL,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self.tracer = tracer
        self.registry = CollectorRegistry()
        names = list(configuration.settings.providers)
        self.metrics = Metrics(
            self.registry, providers=names, clock=world.clock, version=__version__
        )
        self.metrics.set_role(role)
        self.reads = TokenReads(self.registry, providers=names)
        self.events = TelemetryEvents(self.metrics)
        self.sinks = SinkTelemetry(self.registry)
