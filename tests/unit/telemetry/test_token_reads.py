"""Token reads are counted without loss and shown as Prometheus expects."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import DuplicateTimeseries

from daemon.telemetry.token_reads import OUTCOMES, TokenReads

REQUESTS = "tokenward_token_requests_total"
DURATION = "tokenward_token_request_duration_seconds"


def test_every_series_is_there_before_the_first_read() -> None:
    """Each provider, and what belongs to none, starts at 0 for each outcome of the contract."""
    registry = CollectorRegistry()
    TokenReads(registry, providers=["acme", "github"])
    for provider in ("acme", "github", "unknown"):
        for outcome in (
            *("served", "refreshed", "warned", "unavailable"),
            *("reauthorization_required", "denied"),
        ):
            labels = {"provider": provider, "outcome": outcome}
            assert registry.get_sample_value(REQUESTS, labels) == 0
    assert registry.get_sample_value(f"{DURATION}_count") == 0


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_read_is_counted_once(outcome: str) -> None:
    """A read moves its own count by one and no other."""
    registry = CollectorRegistry()
    reads = TokenReads(registry, providers=["acme"])
    reads.count("acme", outcome)
    text = generate_latest(registry).decode()
    counted = [
        line for line in text.splitlines() if line.startswith(REQUESTS) and "} 0" not in line
    ]
    assert counted == [f'{REQUESTS}{{outcome="{outcome}",provider="acme"}} 1.0']


def test_an_unknown_provider_makes_no_series() -> None:
    """What a caller asks for never becomes a label; a provider added later does."""
    registry = CollectorRegistry()
    reads = TokenReads(registry, providers=["acme"])
    reads.count("no-such", "denied")
    reads.count("", "denied")
    assert registry.get_sample_value(REQUESTS, {"provider": "unknown", "outcome": "denied"}) == 2
    assert "no-such" not in generate_latest(registry).decode()
    reads.add_providers(["no-such", "acme"])
    reads.count("no-such", "denied")
    assert registry.get_sample_value(REQUESTS, {"provider": "no-such", "outcome": "denied"}) == 1


def test_an_outcome_outside_the_closed_set_is_refused() -> None:
    """A misspelled outcome fails in tests instead of making a series."""
    with pytest.raises(KeyError):
        TokenReads(CollectorRegistry(), providers=["acme"]).count("acme", "severed")


@pytest.mark.parametrize(
    ("seconds", "bound"),
    [
        *((0.0, "1e-05"), (1e-05, "1e-05"), (1.1e-05, "2.5e-05")),
        *((0.0001, "0.0001"), (0.003, "0.005"), (1.0, "1.0"), (29.0, "30.0"), (31.0, "+Inf")),
    ],
)
def test_a_duration_falls_into_its_bucket(seconds: float, bound: str) -> None:
    """A bucket holds durations up to and with its bound."""
    registry = CollectorRegistry()
    TokenReads(registry, providers=[]).observe(seconds)
    (durations,) = (m for m in registry.collect() if m.name == DURATION)
    buckets = [(s.labels["le"], s.value) for s in durations.samples if "le" in s.labels]
    assert next(name for name, count in buckets if count == 1) == bound
    assert buckets[-1] == ("+Inf", 1)


@given(st.lists(st.floats(min_value=0, max_value=100)))
def test_the_exposition_is_a_valid_histogram(seconds: list[float]) -> None:
    """Buckets grow, the last one is the count, and the sum is the sum."""
    registry = CollectorRegistry()
    reads = TokenReads(registry, providers=["acme"])
    for value in seconds:
        reads.observe(value)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    (family,) = (found for found in families if found.name == DURATION)
    buckets = [s.value for s in family.samples if s.name.endswith("_bucket")]
    values = {s.name: s.value for s in family.samples if not s.name.endswith("_bucket")}
    assert buckets == sorted(buckets)
    assert buckets[-1] == values[f"{DURATION}_count"] == len(seconds)
    assert math.isclose(values[f"{DURATION}_sum"], math.fsum(seconds), abs_tol=1e-9)


def test_a_registry_takes_it_once() -> None:
    """A second collector of the same names is refused."""
    registry = CollectorRegistry()
    TokenReads(registry, providers=[])
    with pytest.raises(DuplicateTimeseries):
        TokenReads(registry, providers=[])
