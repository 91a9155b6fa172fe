"""The metrics of the daemon, by the names that operators build alerts on.

No label ever holds anything but a configured provider's name, ``unknown``, or a word of a closed
set. Every counter exists at 0 from the start, so that the first failure already is an increase.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
)
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from daemon.domain.clock import Clock
from daemon.domain.connection import Status
from daemon.domain.outcome import FailureReason
from daemon.telemetry.token_reads import UNKNOWN_PROVIDER

# One request to a token endpoint: next door 10 ms, far away 1 s, and never more than the hard
# limit of 60 s.
_DURATION_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
# How late a refresh was stored: seconds while all is well, the length of an outage after one.
_LAG_BUCKETS: Final = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600, 1800, 3600)


class RefreshResult(StrEnum):
    """The ``outcome`` label of ``tokenward_refreshes_total``."""

    SUCCESS = "success"
    """New tokens are stored."""
    FAILED = "failed"
    """No tokens, and the grant may still be good: it will be tried again."""
    REJECTED = "rejected"
    """The provider said that the grant is dead."""
    SUPERSEDED = "superseded"
    """The connection had moved on: a newer generation, or disconnected."""


class AuthorizationResult(StrEnum):
    """The ``outcome`` label of ``tokenward_authorizations_total``."""

    COMPLETED = "completed"
    """Tokens are stored."""
    DENIED = "denied"
    """The person, or the provider on its own, said no: ``access_denied``."""
    FAILED = "failed"
    """Anything else."""


class Metrics:
    """All metrics but those of token reads, on an injected registry.

    Gauges say what they were last told, except ``soonest_expiry_seconds``, which is computed at
    the scrape and so goes on falling when the database is away. Call it from one thread.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        providers: Iterable[str],
        clock: Clock,
        version: str,
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._providers: dict[str, None] = {}
        self._soonest: Mapping[str, datetime] = {}
        self._define_connections()
        self._define_refreshes()
        self._define_surroundings()
        Info("tokenward_build", "What is running.", registry=registry).info({"version": version})
        ProcessCollector(registry=registry)
        self.add_providers(providers)

    def add_providers(self, providers: Iterable[str]) -> None:
        """Have series for ``providers``, too (start, SIGHUP); those there are stay."""
        for provider in providers:
            if provider not in self._providers:
                self._providers[provider] = None
                self._create_series(provider)

    def set_connections(self, counts: Mapping[tuple[str, Status], int]) -> None:
        """Replace the number of connections by provider and status; what is absent is 0."""
        totals = {(p, s): 0 for p in self._providers for s in Status}
        for (provider, status), count in counts.items():
            key = (self._provider(provider), status)
            totals[key] = totals.get(key, 0) + count
        self._connections.clear()
        for (provider, status), total in totals.items():
            self._connections.labels(provider, status.value).set(total)

    def set_expired_connections(self, counts: Mapping[str, int]) -> None:
        """Replace the number of active and failing connections whose token is past its expiry."""
        totals = dict.fromkeys(self._providers, 0)
        for provider, count in counts.items():
            name = self._provider(provider)
            totals[name] = totals.get(name, 0) + count
        self._expired_connections.clear()
        for provider, total in totals.items():
            self._expired_connections.labels(provider).set(total)

    def set_soonest_expiry(self, expiries: Mapping[str, datetime]) -> None:
        """Replace when the next token of each provider expires.

        Only connections that are refreshed (active, failing) should be asked: a dead grant
        would hide the others for ever.
        """
        self._soonest = dict(expiries)

    def set_refreshes_due(self, count: int) -> None:
        """Tell how many refreshes are due and not begun."""
        self._refreshes_due.set(count)

    def set_database_up(self, *, is_up: bool) -> None:
        """Tell whether the database answers."""
        self._database_up.set(is_up)

    def set_notification_listener_up(self, *, is_up: bool) -> None:
        """Tell whether notifications arrive; while they do not, generations are polled."""
        self._notification_listener_up.set(is_up)

    def refresh_in_flight(self, provider: str) -> AbstractContextManager[None]:
        """Count a refresh as in flight inside the ``with`` block, however that is left."""
        return _counted(self._refreshes_in_flight.labels(self._provider(provider)))

    def count_refresh(self, provider: str, result: RefreshResult) -> None:
        """Count the end of one refresh."""
        self._refreshes.labels(self._provider(provider), result.value).inc()

    def count_refresh_failure(self, provider: str, reason: FailureReason) -> None:
        """Count why one refresh brought no token."""
        self._refresh_failures.labels(self._provider(provider), reason.value).inc()

    def observe_refresh_duration(self, provider: str, seconds: float) -> None:
        """Record how long one refresh took, from its claim to its end."""
        self._refresh_duration.labels(self._provider(provider)).observe(seconds)

    def observe_refresh_lag(self, seconds: float) -> None:
        """Record how long after its planned time a refresh was stored; early counts as on time."""
        self._refresh_lag.observe(max(0.0, seconds))

    def count_authorization(self, provider: str | None, result: AuthorizationResult) -> None:
        """Count the end of one authorization; ``None`` where its state was not known."""
        self._authorizations.labels(self._provider(provider or ""), result.value).inc()

    def watch_log(self, dropped: Callable[[], int]) -> None:
        """Show how many log lines were dropped, asked at each scrape."""
        self._registry.register(_DroppedLines(dropped))

    def watch_journal(self, entries: Callable[[], int]) -> None:
        """Show how many journalled replies are not in the database yet, asked at each scrape."""
        self._journal_entries.set_function(entries)

    def _define_connections(self) -> None:
        self._connections = Gauge(
            "tokenward_connections",
            "Connections, by where they stand.",
            ("provider", "status"),
            registry=self._registry,
        )
        self._expired_connections = Gauge(
            "tokenward_expired_connections",
            "Active and failing connections whose access token is past its expiry.",
            ("provider",),
            registry=self._registry,
        )
        self._soonest_expiry = Gauge(
            "tokenward_soonest_expiry_seconds",
            "Seconds until the next access token expires: negative once it has, +Inf for none.",
            ("provider",),
            registry=self._registry,
        )
        self._authorizations = Counter(
            "tokenward_authorizations_total",
            "Authorizations, by how they ended.",
            ("provider", "outcome"),
            registry=self._registry,
        )

    def _define_refreshes(self) -> None:
        self._refreshes = Counter(
            "tokenward_refreshes_total",
            "Refreshes, by how they ended.",
            ("provider", "outcome"),
            registry=self._registry,
        )
        self._refresh_failures = Counter(
            "tokenward_refresh_failures_total",
            "Refreshes that brought no token, by reason.",
            ("provider", "reason"),
            registry=self._registry,
        )
        self._refresh_duration = Histogram(
            "tokenward_refresh_duration_seconds",
            "Time that a refresh took, from its claim to its end.",
            ("provider",),
            buckets=_DURATION_BUCKETS,
            registry=self._registry,
        )
        self._refresh_lag = Histogram(
            "tokenward_refresh_lag_seconds",
            "Time from when a refresh was planned to when it was stored.",
            buckets=_LAG_BUCKETS,
            registry=self._registry,
        )
        self._refreshes_in_flight = Gauge(
            "tokenward_refreshes_in_flight",
            "Refreshes in flight in this process.",
            ("provider",),
            registry=self._registry,
        )
        self._refreshes_due = Gauge(
            "tokenward_refreshes_due",
            "Refreshes that are due and not begun.",
            registry=self._registry,
        )

    def _define_surroundings(self) -> None:
        self._database_up = Gauge(
            "tokenward_database_up",
            "1 while the database answers.",
            registry=self._registry,
        )
        self._journal_entries = Gauge(
            "tokenward_journal_entries",
            "Token replies that are on this machine's disk and not in the database yet.",
            registry=self._registry,
        )
        self._notification_listener_up = Gauge(
            "tokenward_notification_listener_up",
            "1 while notifications arrive; else generations are polled.",
            registry=self._registry,
        )

    def _create_series(self, provider: str) -> None:
        for status in Status:
            self._connections.labels(provider, status.value)
        for result in RefreshResult:
            self._refreshes.labels(provider, result.value)
        for reason in FailureReason:
            self._refresh_failures.labels(provider, reason.value)
        for ending in AuthorizationResult:
            self._authorizations.labels(provider, ending.value)
        self._expired_connections.labels(provider)
        self._refresh_duration.labels(provider)
        self._refreshes_in_flight.labels(provider)
        seconds = partial(self._seconds_to_expiry, provider)
        self._soonest_expiry.labels(provider).set_function(seconds)

    def _seconds_to_expiry(self, provider: str) -> float:
        expiry = self._soonest.get(provider)
        return float("inf") if expiry is None else (expiry - self._clock.now()).total_seconds()

    def _provider(self, name: str) -> str:
        return name if name in self._providers else UNKNOWN_PROVIDER


class _DroppedLines(Collector):
    def __init__(self, dropped: Callable[[], int]) -> None:
        self._dropped = dropped

    def collect(self) -> Iterable[Metric]:
        """Ask and render."""
        return (
            CounterMetricFamily(
                "tokenward_log_lines_dropped_total",
                "Log lines lost because nobody took them.",
                value=self._dropped(),
            ),
        )


@contextmanager
def _counted(gauge: Gauge) -> Iterator[None]:
    gauge.inc()
    try:
        yield
    finally:
        gauge.dec()
