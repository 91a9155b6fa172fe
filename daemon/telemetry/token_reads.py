"""Counts token reads on the hot path, in plain integers that only a scrape turns into metrics.

A prometheus_client counter takes a lock and a label look-up, 1 to 2 µs; a read has 28. All calls
come from the event loop's thread, as does the scrape, so no lock is needed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

OUTCOMES: Final = (
    "served",
    "refreshed",
    "warned",
    "unavailable",
    "reauthorization_required",
    "denied",
)
"""The ``outcome`` label: at once, after waiting for a refresh, with a warning, and three noes."""

UNKNOWN_PROVIDER: Final = "unknown"
"""The ``provider`` label of what concerns no provider that is configured."""

# From a look-up in memory (10 µs and up) over a row read from the database (1 ms and up) to a
# read that waits for a refresh: refresh.request_timeout ends that, 30 s by default.
_BUCKETS: Final = (
    *(1e-05, 2.5e-05, 5e-05),
    *(0.0001, 0.00025, 0.0005),
    *(0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5),
    *(1.0, 5.0, 30.0),
)
_BUCKET_NAMES: Final = (*map(repr, _BUCKETS), "+Inf")


class TokenReads(Collector):
    """``tokenward_token_requests_total`` and ``tokenward_token_request_duration_seconds``."""

    def __init__(self, registry: CollectorRegistry, *, providers: Iterable[str]) -> None:
        self._counts: dict[str, dict[str, int]] = {}
        self._buckets = [0] * len(_BUCKET_NAMES)
        self._seconds = 0.0
        self.add_providers((*providers, UNKNOWN_PROVIDER))
        registry.register(self)

    def add_providers(self, providers: Iterable[str]) -> None:
        """Count for ``providers``, too; those there are stay."""
        for provider in providers:
            self._counts.setdefault(provider, dict.fromkeys(OUTCOMES, 0))

    def count(self, provider: str, outcome: str) -> None:
        """Count one answer; ``outcome`` is one of ``OUTCOMES``, else ``KeyError``.

        A provider that is not configured, and ``""`` where none is known, count as ``unknown``.
        """
        try:
            self._counts[provider][outcome] += 1
        except KeyError:
            self._counts[UNKNOWN_PROVIDER][outcome] += 1

    def observe(self, seconds: float) -> None:
        """Record how long one answer took."""
        self._buckets[bisect_left(_BUCKETS, seconds)] += 1
        self._seconds += seconds

    def describe(self) -> Iterable[Metric]:
        """Name the metrics, so that the registry refuses a second collector of them."""
        return (self._requests(), self._durations())

    def collect(self) -> Iterable[Metric]:
        """Render the counts of this moment."""
        requests, durations = self._requests(), self._durations()
        for provider, counts in self._counts.items():
            for outcome, count in counts.items():
                requests.add_metric((provider, outcome), count)
        total = 0
        cumulated: list[tuple[str, float]] = []
        for name, count in zip(_BUCKET_NAMES, self._buckets, strict=True):
            total += count
            cumulated.append((name, total))
        durations.add_metric((), cumulated, self._seconds)
        return (requests, durations)

    def _requests(self) -> CounterMetricFamily:
        return CounterMetricFamily(
            "tokenward_token_requests_total",
            "Token requests of callers, by how they were answered.",
            labels=("provider", "outcome"),
        )

    def _durations(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(
            "tokenward_token_request_duration_seconds",
            "Time from a caller's token request to its answer.",
            labels=(),
        )
