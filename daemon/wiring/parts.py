"""What every other part stands on: time and chance, the database, telemetry."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from daemon import __version__
from daemon.domain.clock import Clock, Entropy
from daemon.persistence import keyring as keyrings
from daemon.persistence import migrations
from daemon.persistence.authorizations import PostgresAuthorizations
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.connections import PostgresConnections
from daemon.persistence.deliveries import PostgresDeliveries
from daemon.persistence.history import EventRecorder, PostgresHistory
from daemon.persistence.incarnations import Incarnations
from daemon.persistence.orphans import PostgresOrphans
from daemon.persistence.owner_name import OwnerName
from daemon.persistence.postgres import Database, DatabaseConnection
from daemon.persistence.refreshes import PostgresRefreshes
from daemon.persistence.revocations import PostgresRevocations
from daemon.telemetry.events import TelemetryEvents
from daemon.telemetry.metrics import Metrics
from daemon.telemetry.token_reads import TokenReads
from daemon.wiring.configuration import Configuration


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
        keyring: keyrings.Keyring,
        configuration: Configuration,
        *,
        cipher: TokenCipher,
        owner: str,
        world: World,
        metrics: Metrics,
    ) -> None:
        self.cipher = cipher
        self._keyring = keyring
        self._clock = world.clock
        self.database = Database(
            url,
            clock=world.clock,
            entropy=world.entropy,
            on_state=lambda up: metrics.set_database_up(is_up=up),
            prepare=self._prepare,
        )
        recorder = EventRecorder(delivers=lambda: configuration.webhook() is not None)
        self.history = PostgresHistory(self.database, recorder)
        self.deliveries = PostgresDeliveries(self.database)
        self.revocations = PostgresRevocations(self.database, self.cipher)
        self.connections = PostgresConnections(self.database, self.cipher, recorder)
        self.incarnations = Incarnations(self.database, owner=owner)
        self.owner_name = OwnerName(self.database, owner, clock=world.clock)
        self.orphans = PostgresOrphans(self.database, self.cipher)
        self.refreshes = PostgresRefreshes(
            self.database, self.cipher, recorder=recorder, incarnations=self.incarnations
        )
        self.authorizations = PostgresAuthorizations(
            self.database, self.cipher, self.connections, world.clock, recorder=recorder
        )

    async def _prepare(self, connection: DatabaseConnection) -> None:
        """Bring a database that was just reached to this version, and check the keys."""
        await migrations.migrate(connection, migrations.bundled(), clock=self._clock)
        await keyrings.verify(connection, self._keyring, self.cipher)


class Telemetry:
    """Metrics and events on one registry."""

    def __init__(self, configuration: Configuration, world: World) -> None:
        self.registry = CollectorRegistry()
        names = list(configuration.settings.providers)
        self.metrics = Metrics(
            self.registry, providers=names, clock=world.clock, version=__version__
        )
        self.reads = TokenReads(self.registry, providers=names)
        self.events = TelemetryEvents(self.metrics)
