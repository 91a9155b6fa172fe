"""The metrics' names, help texts and labels; ``daemon.telemetry.metrics`` gives them values."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# One request to a token endpoint: next door 10 ms, far away 1 s, and never more than the hard
# limit of 60 s.
_DURATION_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
# How late a refresh was stored: seconds while all is well, the length of an outage after one.
_LAG_BUCKETS: Final = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600, 1800, 3600)


class Series:
    """Every metric but those of token reads, registered."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._define_connections(registry)
        self._define_refreshes(registry)
        self._define_grants(registry)
        self._define_requests(registry)
        self._define_surroundings(registry)

    def _define_connections(self, registry: CollectorRegistry) -> None:
        self.connections = Gauge(
            "tokenward_connections",
            "Connections, by where they stand.",
            ("provider", "status"),
            registry=registry,
        )
        self.expired_connections = Gauge(
            "tokenward_expired_connections",
            "Active and failing connections whose access token is past its expiry.",
            ("provider",),
            registry=registry,
        )
        self.soonest_expiry = Gauge(
            "tokenward_soonest_expiry_seconds",
            "Seconds until the next access token expires: negative once it has, +Inf for none.",
            ("provider",),
            registry=registry,
        )

    def _define_refreshes(self, registry: CollectorRegistry) -> None:
        self.refreshes = Counter(
            "tokenward_refreshes_total",
            "Refreshes, by how they ended.",
            ("provider", "outcome"),
            registry=registry,
        )
        self.refresh_failures = Counter(
            "tokenward_refresh_failures_total",
            "Refreshes that brought no token, by reason.",
            ("provider", "reason"),
            registry=registry,
        )
        self.refresh_duration = Histogram(
            "tokenward_refresh_duration_seconds",
            "Time that a refresh took, from its claim to its end.",
            ("provider",),
            buckets=_DURATION_BUCKETS,
            registry=registry,
        )
        self.refresh_lag = Histogram(
            "tokenward_refresh_lag_seconds",
            "Time from when a refresh was planned to when it was stored.",
            buckets=_LAG_BUCKETS,
            registry=registry,
        )
        self.refreshes_in_flight = Gauge(
            "tokenward_refreshes_in_flight",
            "Refreshes in flight in this process.",
            ("provider",),
            registry=registry,
        )
        self.refreshes_due = Gauge(
            "tokenward_refreshes_due",
            "Refreshes that are due and not begun.",
            registry=registry,
        )

    def _define_grants(self, registry: CollectorRegistry) -> None:
        self.authorizations = Counter(
            "tokenward_authorizations_total",
            "Authorizations, by how they ended.",
            ("provider", "outcome"),
            registry=registry,
        )
        self.revocations = Counter(
            "tokenward_revocations_total",
            "Grants that were to end, by who wanted it and what became of them.",
            ("provider", "initiator", "result"),
            registry=registry,
        )
        self.connection_tests = Counter(
            "tokenward_connection_tests_total",
            "Test requests, by how they ended.",
            ("provider", "outcome"),
            registry=registry,
        )

    def _define_requests(self, registry: CollectorRegistry) -> None:
        self.proxy_requests = Counter(
            "tokenward_proxy_requests_total",
            "Proxied requests, by the status code of the answer.",
            ("provider", "code"),
            registry=registry,
        )
        self.webhook_deliveries = Counter(
            "tokenward_webhook_deliveries_total",
            "Requests to the webhook, by how they ended.",
            ("outcome",),
            registry=registry,
        )

    def _define_surroundings(self, registry: CollectorRegistry) -> None:
        self.database_up = Gauge(
            "tokenward_database_up",
            "1 while the database answers.",
            registry=registry,
        )
        self.journal_entries = Gauge(
            "tokenward_journal_entries",
            "Token replies that are on this machine's disk and not in the database yet.",
            registry=registry,
        )
        self.notification_listener_up = Gauge(
            "tokenward_notification_listener_up",
            "1 while notifications arrive; else generations are polled.",
            registry=registry,
        )
