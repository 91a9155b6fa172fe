"""The metrics of the daemon, by the names that operators build alerts on.

No label ever holds anything but a configured provider's name, ``unknown``, or a word of a closed
set. Every counter exists at 0 from the start, so that the first failure already is an increase.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from enum import StrEnum
from functools import partial
from http import HTTPStatus
from itertools import product
from typing import Any, Final, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Info, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from daemon.domain.clock import Clock
from daemon.domain.connection import Status
from daemon.domain.outcome import FailureReason
from daemon.domain.revocation import Initiator, RevocationResult
from daemon.domain.role import Role
from daemon.telemetry.series import Series
from daemon.telemetry.token_reads import UNKNOWN_PROVIDER

# The status codes that RFC 9110 and its relatives define have series of their own, others one per
# class: an upstream must not be able to make a thousand series.
_STATUS_CODES: Final = frozenset(status.value for status in HTTPStatus)
_CLASSES: Final = range(1, 6)
# What anybody alerts on is there from the start.
_FIRST_CODES: Final = (200, 401, 403, 429, 500, 502, 503, 504)

_Family = TypeVar("_Family", bound=MetricWrapperBase)


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


class TestOutcome(StrEnum):
    """The ``outcome`` label of ``tokenward_connection_tests_total``."""

    __test__ = False  # not a test of ours

    OK = "ok"
    """The provider answered as expected."""
    UNAUTHORIZED = "unauthorized"
    """It refused the token, also after a refresh: 401."""
    FAILED = "failed"
    """It answered anything else."""
    UNREACHABLE = "unreachable"
    """There was no answer, or nothing could be sent."""


class DeliveryResult(StrEnum):
    """The ``outcome`` label of ``tokenward_webhook_deliveries_total``."""

    DELIVERED = "delivered"
    """The webhook took the event."""
    FAILED = "failed"
    """One request failed; the event is sent again later."""
    DEAD = "dead"
    """The event is not sent again."""


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
        self._series = Series(registry)
        self._known: dict[tuple[object, ...], Any] = {}
        self._proxied: dict[tuple[str, int], Counter] = {}
        for result in DeliveryResult:
            self._series.webhook_deliveries.labels(result.value)
        Info("tokenward_build", "What is running.", registry=registry).info({"version": version})
        self._role = Gauge(
            "tokenward_role",
            "What this process is for: 1 at its role.",
            ["role"],
            registry=registry,
        )
        self._keys_missing = Gauge(
            "tokenward_encryption_keys_missing",
            "Encryption keys that are in use (now) or to be used (soon) and not at hand here.",
            ["needed"],
            registry=registry,
        )
        self.set_encryption_keys_missing(now=0, soon=0)
        self.set_role(Role.ALL)
        ProcessCollector(registry=registry)
        self.add_providers(providers)

    def set_role(self, role: Role) -> None:
        """Say what this process is for; the other roles are at 0."""
        for each in Role:
            self._role.labels(each.value).set(each is role)

    def set_encryption_keys_missing(self, *, now: int, soon: int) -> None:
        """Say how many encryption keys are in use, or are to be, and not at hand here."""
        self._keys_missing.labels("now").set(now)
        self._keys_missing.labels("soon").set(soon)

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
        self._series.connections.clear()
        for (provider, status), total in totals.items():
            self._series.connections.labels(provider, status.value).set(total)

    def set_expired_connections(self, counts: Mapping[str, int]) -> None:
        """Replace the number of active and failing connections whose token is past its expiry."""
        totals = dict.fromkeys(self._providers, 0)
        for provider, count in counts.items():
            name = self._provider(provider)
            totals[name] = totals.get(name, 0) + count
        self._series.expired_connections.clear()
        for provider, total in totals.items():
            self._series.expired_connections.labels(provider).set(total)

    def set_soonest_expiry(self, expiries: Mapping[str, datetime]) -> None:
        """Replace when the next token of each provider expires.

        Only connections that are refreshed (active, failing) should be asked: a dead grant
        would hide the others for ever.
        """
        self._soonest = dict(expiries)

    def set_refreshes_due(self, count: int) -> None:
        """Tell how many refreshes are due and not begun."""
        self._series.refreshes_due.set(count)

    def set_database_up(self, *, is_up: bool) -> None:
        """Tell whether the database answers."""
        self._series.database_up.set(is_up)

    def set_notification_listener_up(self, *, is_up: bool) -> None:
        """Tell whether notifications arrive; while they do not, generations are polled."""
        self._series.notification_listener_up.set(is_up)

    def refresh_in_flight(self, provider: str) -> AbstractContextManager[None]:
        """Count a refresh as in flight inside the ``with`` block, however that is left."""
        return self._one(self._series.refreshes_in_flight, provider).track_inprogress()

    def count_refresh(self, provider: str, result: RefreshResult) -> None:
        """Count the end of one refresh."""
        self._one(self._series.refreshes, provider, result.value).inc()

    def count_refresh_failure(self, provider: str, reason: FailureReason) -> None:
        """Count why one refresh brought no token."""
        self._series.refresh_failures.labels(self._provider(provider), reason.value).inc()

    def observe_refresh_duration(self, provider: str, seconds: float) -> None:
        """Record how long one refresh took, from its claim to its end."""
        self._one(self._series.refresh_duration, provider).observe(seconds)

    def observe_refresh_lag(self, seconds: float) -> None:
        """Record how long after its planned time a refresh was stored; early counts as on time."""
        self._series.refresh_lag.observe(max(0.0, seconds))

    def count_authorization(self, provider: str | None, result: AuthorizationResult) -> None:
        """Count the end of one authorization; ``None`` where its state was not known."""
        self._series.authorizations.labels(self._provider(provider or ""), result.value).inc()

    def count_revocation(
        self, provider: str, initiator: Initiator, result: RevocationResult
    ) -> None:
        """Count what became of one grant that was to end."""
        self._series.revocations.labels(
            self._provider(provider), initiator.value, result.value
        ).inc()

    def count_connection_test(self, provider: str, outcome: TestOutcome) -> None:
        """Count the end of one test request."""
        self._series.connection_tests.labels(self._provider(provider), outcome.value).inc()

    def count_proxy_request(self, provider: str, status: int) -> None:
        """Count the answer to one proxied request, ours or the upstream's."""
        counter = self._proxied.get((provider, status))
        if counter is None:
            counter = self._series.proxy_requests.labels(self._provider(provider), _code(status))
            if provider in self._providers:
                # The look-up of a label costs a tenth of a proxied request.
                self._proxied[(provider, status)] = counter
        counter.inc()

    def count_webhook_delivery(self, result: DeliveryResult) -> None:
        """Count one try to deliver an event; the last one in vain counts as dead."""
        self._series.webhook_deliveries.labels(result.value).inc()

    def watch_log(self, dropped: Callable[[], int]) -> None:
        """Show how many log lines were dropped, asked at each scrape."""
        self._registry.register(_DroppedLines(dropped))

    def watch_journal(self, entries: Callable[[], int]) -> None:
        """Show how many journalled replies are not in the database yet, asked at each scrape."""
        self._series.journal_entries.set_function(entries)

    def _create_series(self, provider: str) -> None:
        for status in Status:
            self._series.connections.labels(provider, status.value)
        for result in RefreshResult:
            self._series.refreshes.labels(provider, result.value)
        for reason in FailureReason:
            self._series.refresh_failures.labels(provider, reason.value)
        for ending in AuthorizationResult:
            self._series.authorizations.labels(provider, ending.value)
        for initiator, revoked in product(Initiator, RevocationResult):
            self._series.revocations.labels(provider, initiator.value, revoked.value)
        for outcome in TestOutcome:
            self._series.connection_tests.labels(provider, outcome.value)
        for code in _FIRST_CODES:
            self._series.proxy_requests.labels(provider, _code(code))
        self._series.expired_connections.labels(provider)
        self._series.refresh_duration.labels(provider)
        self._series.refreshes_in_flight.labels(provider)
        seconds = partial(self._seconds_to_expiry, provider)
        self._series.soonest_expiry.labels(provider).set_function(seconds)

    def _seconds_to_expiry(self, provider: str) -> float:
        expiry = self._soonest.get(provider)
        return float("inf") if expiry is None else (expiry - self._clock.now()).total_seconds()

    def _one(self, family: _Family, provider: str, *labels: str) -> _Family:
        """Return one of a provider's series; looking it up costs more than counting."""
        key = (id(family), provider, *labels)
        found: _Family | None = self._known.get(key)
        if found is None:
            found = family.labels(self._provider(provider), *labels)
            if provider in self._providers:
                self._known[key] = found
        return found

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


def _code(status: int) -> str:
    if status in _STATUS_CODES:
        return str(status)
    return f"{status // 100}xx" if status // 100 in _CLASSES else "other"
