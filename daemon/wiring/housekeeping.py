"""What runs every so often, woken up by APScheduler.

Nothing here may be a refresh: APScheduler's ``shutdown`` cancels what runs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, timedelta
from functools import partial
from math import inf

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from daemon.catalog.discovery import Discovery
from daemon.domain.clock import Clock
from daemon.domain.connection import Status
from daemon.domain.errors import DatabaseUnavailableError, JournalError
from daemon.persistence.connections import PostgresConnections
from daemon.persistence.incarnations import Incarnations
from daemon.persistence.journal import Journal
from daemon.persistence.refreshes import PostgresRefreshes
from daemon.persistence.retention import Retention
from daemon.refresh.cache import TokenCache
from daemon.telemetry.metrics import Metrics
from daemon.upkeep.testing import ConnectionTests

log = structlog.get_logger()

# Gauges are as old as this at a scrape; Prometheus' own default interval is a minute.
_GAUGES = 5
# Counting a million connections takes seconds: at most this share of the time is spent on it.
_GAUGES_SHARE = 0.05
# last_used_at is for people, who do not need it to the second; one statement for all connections.
_USED = 30
_PRUNE = 600
# Replicas are awaited after a restore that were seen in the last five minutes before it.
_BEAT = 60
# The shortest interval between two tests of a connection is a minute.
_TESTS = 15
_METADATA = 3600
_CLEAN = 3600


class Housekeeping:
    """The periodic jobs of one process."""

    def __init__(
        self,
        *,
        connections: PostgresConnections,
        refreshes: PostgresRefreshes,
        retention: Retention,
        incarnations: Incarnations,
        tests: ConnectionTests,
        keep_events: Callable[[], timedelta],
        discovery: Discovery,
        cache: TokenCache,
        journal: Journal,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._connections = connections
        self._refreshes = refreshes
        self._retention = retention
        self._incarnations = incarnations
        self._tests = tests
        self._keep_events = keep_events
        self._discovery = discovery
        self._cache = cache
        self._journal = journal
        self._metrics = metrics
        self._clock = clock
        self._scheduler = AsyncIOScheduler(timezone=UTC)
        self._counts_again_at = -inf

    def start(self, *, only_use: bool = False) -> None:
        """Begin; ``only_use``: in a process that only serves, others do the rest."""
        jobs: dict[Callable[[], Awaitable[None]], int] = {
            self.set_gauges: _GAUGES,
            self.remember_use: _USED,
            self.prune: _PRUNE,
            self.beat: _BEAT,
            self.test_connections: _TESTS,
            self.refresh_metadata: _METADATA,
            self.clean_journal: _CLEAN,
        }
        if only_use:
            jobs = {self.remember_use: _USED}
        for job, seconds in jobs.items():
            # A job that was late (a suspended machine) runs once, not as often as it was missed.
            self._scheduler.add_job(
                partial(_quietly, job),
                "interval",
                seconds=seconds,
                misfire_grace_time=None,
                coalesce=True,
                max_instances=1,
            )
        self._scheduler.start()

    def stop(self) -> None:
        """Start no more jobs."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)

    async def set_gauges(self) -> None:
        """Count connections and what is due, unless the last count was too dear to be so soon."""
        now, began = self._clock.now(), self._clock.boottime()
        if began < self._counts_again_at:
            return
        census = await self._connections.census(now=now)
        self._metrics.set_connections(
            {(name, Status(status)): count for (name, status), count in census.connections.items()}
        )
        self._metrics.set_expired_connections(census.expired)
        self._metrics.set_soonest_expiry(
            {name: moment for name, moment in census.soonest.items() if moment is not None}
        )
        self._metrics.set_refreshes_due(await self._refreshes.count_due(now=now))
        took = self._clock.boottime() - began
        self._counts_again_at = began + took / _GAUGES_SHARE

    async def remember_use(self) -> None:
        """Write down which connections were used."""
        used = self._cache.take_used()
        if used:
            now = self._clock.now()
            await self._connections.mark_used(dict.fromkeys(used, now))

    async def prune(self) -> None:
        """Remove old rows, unless another replica is at it."""
        began = self._clock.boottime()
        removed = await self._retention.prune(events=self._keep_events())
        if removed is not None and removed.rows:
            log.info(
                "old_rows_removed",
                rows=sum(removed.rows.values()),
                tables=" ".join(f"{table}:{rows}" for table, rows in removed.rows.items()),
                complete=removed.complete,
                seconds=round(self._clock.boottime() - began, 3),
            )

    async def beat(self) -> None:
        """Say that this replica lives, and look whether the database is still the same."""
        await self._incarnations.beat()

    async def test_connections(self) -> None:
        """Test the connections whose turn it is."""
        await self._tests.run_due()

    async def refresh_metadata(self) -> None:
        """Fetch providers' metadata again; what is known stays in force where that fails."""
        for issuer, error in (await self._discovery.refresh()).items():
            log.warning("metadata_not_refreshed", issuer=issuer, error=str(error))

    async def clean_journal(self) -> None:
        """Remove the journal's files that nobody will need."""
        await self._journal.clean()


async def _quietly(job: Callable[[], Awaitable[None]]) -> None:
    """Run a job that may be missed while the database is away."""
    try:
        await job()
    except (DatabaseUnavailableError, JournalError):
        return
