"""The metrics of contract 6: their names, labels, zeros, and what moves them."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from daemon.domain.connection import Status
from daemon.domain.outcome import FailureReason
from daemon.domain.revocation import Initiator, RevocationResult
from daemon.telemetry.metrics import (
    AuthorizationResult,
    DeliveryResult,
    Metrics,
    RefreshResult,
    TestOutcome,
)
from daemon.telemetry.token_reads import TokenReads
from tests.support.telemetry import NOW, StoppedClock

Labels = dict[str, str]
# Name, type, labels: contract 6.
CONTRACT = [
    ("tokenward_connections", "gauge", {"provider", "status"}),
    ("tokenward_expired_connections", "gauge", {"provider"}),
    ("tokenward_soonest_expiry_seconds", "gauge", {"provider"}),
    ("tokenward_refreshes_total", "counter", {"provider", "outcome"}),
    ("tokenward_refresh_failures_total", "counter", {"provider", "reason"}),
    ("tokenward_refresh_duration_seconds", "histogram", {"provider"}),
    ("tokenward_refresh_lag_seconds", "histogram", set()),
    ("tokenward_refreshes_in_flight", "gauge", {"provider"}),
    ("tokenward_refreshes_due", "gauge", set()),
    ("tokenward_token_requests_total", "counter", {"provider", "outcome"}),
    ("tokenward_token_request_duration_seconds", "histogram", set()),
    ("tokenward_authorizations_total", "counter", {"provider", "outcome"}),
    ("tokenward_revocations_total", "counter", {"provider", "initiator", "result"}),
    ("tokenward_connection_tests_total", "counter", {"provider", "outcome"}),
    ("tokenward_proxy_requests_total", "counter", {"provider", "code"}),
    ("tokenward_webhook_deliveries_total", "counter", {"outcome"}),
    ("tokenward_database_up", "gauge", set()),
    ("tokenward_journal_entries", "gauge", set()),
    ("tokenward_notification_listener_up", "gauge", set()),
    ("tokenward_build_info", "gauge", {"version"}),
]


@pytest.fixture
def clock() -> StoppedClock:
    """Return a clock that stands."""
    return StoppedClock()


@pytest.fixture
def registry() -> CollectorRegistry:
    """Return an empty registry."""
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry, clock: StoppedClock) -> Metrics:
    """Return the metrics of one provider."""
    return Metrics(registry, providers=["acme"], clock=clock, version="1.2.3")


@pytest.mark.usefixtures("metrics")
@pytest.mark.parametrize(("name", "kind", "labels"), CONTRACT)
def test_every_metric_of_the_contract_is_there_from_the_start(
    *, registry: CollectorRegistry, name: str, kind: str, labels: set[str]
) -> None:
    """Each metric has its promised name, type and labels before anything has happened."""
    TokenReads(registry, providers=["acme"])
    lines = generate_latest(registry).decode().splitlines()
    assert f"# TYPE {name} {kind}" in lines
    sampled = f"{name}_count" if kind == "histogram" else name
    samples = [s for m in registry.collect() for s in m.samples if s.name == sampled]
    assert samples
    assert {frozenset(s.labels) for s in samples} == {frozenset(labels)}


def test_nothing_else_is_shown_under_our_prefix(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    """A metric that the contract does not name is an oversight, but for the few named here."""
    TokenReads(registry, providers=["acme"])
    metrics.watch_log(lambda: 3)
    lines = generate_latest(registry).decode().splitlines()
    names = {line.split()[2] for line in lines if line.startswith("# TYPE tokenward_")}
    ours = {name for name in names if not name.endswith("_created")}
    assert ours == {name for name, _, _ in CONTRACT} | {
        "tokenward_encryption_keys_missing",
        "tokenward_log_lines_dropped_total",
        "tokenward_role",
    }
    assert "tokenward_log_lines_dropped_total 3.0" in lines
    assert any(line.startswith("process_open_fds") for line in lines)


def _acme(**labels: str) -> Labels:
    return {"provider": "acme", **labels}


CHANGES: list[tuple[Callable[[Metrics], None], str, Labels, float]] = [
    (
        lambda m: m.set_refreshes_due(7),
        "tokenward_refreshes_due",
        {},
        7,
    ),
    (lambda m: m.set_database_up(is_up=True), "tokenward_database_up", {}, 1),
    (
        lambda m: m.set_notification_listener_up(is_up=True),
        "tokenward_notification_listener_up",
        {},
        1,
    ),
    (
        lambda m: m.set_expired_connections({"acme": 2}),
        "tokenward_expired_connections",
        _acme(),
        2,
    ),
    (
        lambda m: m.set_soonest_expiry({"acme": NOW + timedelta(seconds=90)}),
        "tokenward_soonest_expiry_seconds",
        _acme(),
        90,
    ),
    (
        lambda m: m.set_soonest_expiry({"acme": NOW - timedelta(seconds=5)}),
        "tokenward_soonest_expiry_seconds",
        _acme(),
        -5,
    ),
    (
        lambda m: m.observe_refresh_duration("acme", 0.2),
        "tokenward_refresh_duration_seconds_sum",
        _acme(),
        0.2,
    ),
    (lambda m: m.observe_refresh_lag(4), "tokenward_refresh_lag_seconds_sum", {}, 4),
    (lambda m: m.observe_refresh_lag(-4), "tokenward_refresh_lag_seconds_sum", {}, 0),
    (
        lambda m: m.count_authorization(None, AuthorizationResult.FAILED),
        "tokenward_authorizations_total",
        {"provider": "unknown", "outcome": "failed"},
        1,
    ),
    (
        lambda m: m.count_revocation("acme", Initiator.CALLER, RevocationResult.REVOKED),
        "tokenward_revocations_total",
        _acme(initiator="caller", result="revoked"),
        1,
    ),
    (
        lambda m: m.count_revocation("gone", Initiator.PROVIDER, RevocationResult.DETECTED),
        "tokenward_revocations_total",
        {"provider": "unknown", "initiator": "provider", "result": "detected"},
        1,
    ),
    (
        lambda m: m.count_connection_test("acme", TestOutcome.UNAUTHORIZED),
        "tokenward_connection_tests_total",
        _acme(outcome="unauthorized"),
        1,
    ),
    (
        lambda m: m.count_webhook_delivery(DeliveryResult.DEAD),
        "tokenward_webhook_deliveries_total",
        {"outcome": "dead"},
        1,
    ),
    *(
        (
            partial(Metrics.count_proxy_request, provider="acme", status=status),
            "tokenward_proxy_requests_total",
            _acme(code=code),
            1,
        )
        for status, code in (
            (200, "200"),
            (418, "418"),
            (299, "2xx"),
            (599, "5xx"),
            (700, "other"),
            (0, "other"),
        )
    ),
]


@pytest.mark.parametrize(("change", "name", "labels", "value"), CHANGES)
def test_each_change_moves_its_metric(
    *,
    metrics: Metrics,
    registry: CollectorRegistry,
    change: Callable[[Metrics], None],
    name: str,
    labels: Labels,
    value: float,
) -> None:
    """What the daemon tells is what a scrape reads."""
    change(metrics)
    assert registry.get_sample_value(name, labels) == value


@pytest.mark.parametrize("result", list(RefreshResult))
def test_refreshes_are_counted_by_result(
    metrics: Metrics, registry: CollectorRegistry, result: RefreshResult
) -> None:
    """Each end of a refresh has a count that starts at 0."""
    labels = _acme(outcome=result.value)
    assert registry.get_sample_value("tokenward_refreshes_total", labels) == 0
    metrics.count_refresh("acme", result)
    assert registry.get_sample_value("tokenward_refreshes_total", labels) == 1


@pytest.mark.parametrize("reason", list(FailureReason))
def test_failures_are_counted_by_reason(
    metrics: Metrics, registry: CollectorRegistry, reason: FailureReason
) -> None:
    """Each reason of the contract has a count that starts at 0."""
    labels = _acme(reason=reason.value)
    assert registry.get_sample_value("tokenward_refresh_failures_total", labels) == 0
    metrics.count_refresh_failure("acme", reason)
    assert registry.get_sample_value("tokenward_refresh_failures_total", labels) == 1


def test_connections_are_replaced_not_added(metrics: Metrics, registry: CollectorRegistry) -> None:
    """Each look at the database replaces the last: what is gone becomes 0 or disappears."""

    def shown(provider: str, status: str) -> float | None:
        return registry.get_sample_value(
            "tokenward_connections", {"provider": provider, "status": status}
        )

    assert shown("acme", "pending") == 0
    metrics.set_connections(
        {
            ("acme", Status.ACTIVE): 5,
            ("acme", Status.FAILING): 1,
            ("gone", Status.ACTIVE): 2,
            ("lost", Status.ACTIVE): 3,
        }
    )
    assert (shown("acme", "active"), shown("acme", "failing")) == (5, 1)
    assert (shown("gone", "active"), shown("unknown", "active")) == (None, 5)
    metrics.set_connections({("acme", Status.ACTIVE): 6})
    assert (shown("acme", "active"), shown("acme", "failing")) == (6, 0)
    assert shown("unknown", "active") is None


def test_soonest_expiry_falls_without_being_told(
    metrics: Metrics, registry: CollectorRegistry, clock: StoppedClock
) -> None:
    """The gauge goes on falling while the database is away; nothing that expires is +Inf."""
    name = "tokenward_soonest_expiry_seconds"
    assert registry.get_sample_value(name, _acme()) == math.inf
    metrics.set_soonest_expiry({"acme": NOW + timedelta(seconds=90)})
    clock.moment += timedelta(seconds=100)
    assert registry.get_sample_value(name, _acme()) == -10


def test_in_flight_ends_however_the_refresh_ends(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    """A refresh that raises does not stay in flight for ever."""
    name = "tokenward_refreshes_in_flight"

    def refresh() -> None:
        with metrics.refresh_in_flight("acme"), metrics.refresh_in_flight("acme"):
            assert registry.get_sample_value(name, _acme()) == 2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        refresh()
    assert registry.get_sample_value(name, _acme()) == 0


def test_providers_may_come_later_but_labels_stay_a_closed_set(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    """A reloaded configuration adds series; a name that is not configured never does."""
    metrics.count_refresh("github", RefreshResult.SUCCESS)
    assert "github" not in generate_latest(registry).decode()
    metrics.add_providers(["acme", "github"])
    metrics.count_refresh("github", RefreshResult.SUCCESS)
    labels = {"provider": "github", "outcome": "success"}
    assert registry.get_sample_value("tokenward_refreshes_total", labels) == 1


@pytest.mark.usefixtures("metrics")
def test_the_running_version_is_shown(registry: CollectorRegistry) -> None:
    """An operator sees what is running."""
    assert registry.get_sample_value("tokenward_build_info", {"version": "1.2.3"}) == 1
