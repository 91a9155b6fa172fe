"""Contract 6 on a daemon that has lived: names, types, labels, buckets, and nothing unbounded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from daemon import __version__
from tests.support.acme_service import AcmeService, walk
from tests.support.tokenward import Tokenward

STATUSES = {"pending", "active", "failing", "reauthorization_required", "disconnected"}
REASONS = {
    *("network", "timeout", "rate_limited", "server_error", "malformed_response"),
    *("invalid_grant", "invalid_client", "invalid_scope", "unauthorized_client", "other"),
}
READS = {"served", "refreshed", "warned", "unavailable", "reauthorization_required", "denied"}
PROVIDERS = {"acme", "idle", "unknown"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What the contract says of one metric; ``None`` as a label's values: any number of digits."""

    kind: str
    labels: Mapping[str, set[str] | None]


def of_provider(kind: str, **labels: set[str] | None) -> Promise:
    """Return a metric that is told by provider."""
    return Promise(kind=kind, labels={"provider": PROVIDERS, **labels})


ALONE: Mapping[str, set[str] | None] = {}
PROMISED = {
    "connections": of_provider("gauge", status=STATUSES),
    "expired_connections": of_provider("gauge"),
    "soonest_expiry_seconds": of_provider("gauge"),
    "refreshes": of_provider("counter", outcome={"success", "failed", "rejected", "superseded"}),
    "refresh_failures": of_provider("counter", reason=REASONS),
    "refresh_duration_seconds": of_provider("histogram"),
    "refresh_lag_seconds": Promise(kind="histogram", labels=ALONE),
    "refreshes_in_flight": of_provider("gauge"),
    "refreshes_due": Promise(kind="gauge", labels=ALONE),
    "revocations": of_provider(
        "counter",
        initiator={"provider", "caller", "operator"},
        result={"revoked", "queued", "unsupported", "detected"},
    ),
    "token_requests": of_provider("counter", outcome=READS),
    "token_request_duration_seconds": Promise(kind="histogram", labels=ALONE),
    "authorizations": of_provider("counter", outcome={"completed", "denied", "failed"}),
    "connection_tests": of_provider(
        "counter", outcome={"ok", "unauthorized", "failed", "unreachable"}
    ),
    "proxy_requests": of_provider("counter", code=None),
    "webhook_deliveries": Promise(
        kind="counter", labels={"outcome": {"delivered", "failed", "dead"}}
    ),
    "journal_entries": Promise(kind="gauge", labels=ALONE),
    "database_up": Promise(kind="gauge", labels=ALONE),
    "notification_listener_up": Promise(kind="gauge", labels=ALONE),
    "build_info": Promise(kind="gauge", labels={"version": {__version__}}),
}
# Upper ends in seconds. A read from memory takes 10 µs and more, one that waits for a refresh up to
# refresh.request_timeout (30 s); a refresh 10 ms next door and never more than 60 s; its lag is
# seconds while all is well, and the length of the outage after one.
BUCKETS = {
    "token_request_duration_seconds": (1e-05, 30.0, 18),
    "refresh_duration_seconds": (0.01, 60.0, 12),
    "refresh_lag_seconds": (0.1, 3600.0, 12),
}
# What a caller or a stranger could choose. None of it may become a label.
PLANTED = "pl4nted"
_OPENMETRICS = "application/openmetrics-text;version=1.0.0"


async def scraped(daemon: Tokenward, accept: str) -> tuple[str, str]:
    """Return the content type and the text of a scrape."""
    headers = {"Accept": accept}
    async with daemon.session.get(f"{daemon.ops_url}/metrics", headers=headers) as answer:
        assert answer.status == 200
        return answer.headers["Content-Type"], await answer.text()


def ours(families: Iterable[Metric]) -> dict[str, Metric]:
    """Return our metrics by their names without prefix and without the suffix of counters."""
    return {
        family.name.removeprefix("tokenward_").removesuffix("_total"): family
        for family in families
        if family.name.startswith("tokenward_")
    }


@pytest.fixture
async def lived(daemon: Tokenward) -> AsyncIterator[Tokenward]:
    """A daemon that has authorized, served, refused, proxied, failed and ended connections."""
    async with AcmeService() as acme:
        daemon.settings["providers"] = {
            "acme": acme.provider(),
            "idle": acme.provider(),
        }
        async with daemon:
            created = await daemon.create("acme", id=f"{PLANTED}-1", metadata={PLANTED: PLANTED})
            assert (await walk(created["connect_url"])).status == 303
            path = f"/v1/connections/{PLANTED}-1"
            for method, rest in (
                ("GET", "/token"),
                ("GET", "/token?min_ttl=999999"),
                ("POST", "/refresh"),
                ("POST", "/test"),
                ("GET", f"/proxy/{PLANTED}"),
                ("GET", f"/{PLANTED}"),
            ):
                await daemon.request(method, path + rest)
            await daemon.request("GET", f"/v1/connections/{PLANTED}-2/token")
            await daemon.request("POST", "/v1/connections", json={"provider": PLANTED})
            assert (await daemon.request("GET", f"{path}/token", key=PLANTED)).status == 401
            where = f"{daemon.public_url}/callback?state={PLANTED}&error={PLANTED}"
            async with daemon.session.get(where) as refused:
                assert refused.status == 400
            acme.end_grant("1")
            await daemon.request("GET", f"/v1/connections/{PLANTED}-1/proxy/me")
            await daemon.request("POST", f"{path}/refresh")
            await daemon.request("DELETE", path)
            yield daemon


async def test_each_metric_is_there_as_promised(lived: Tokenward) -> None:
    """Names, types, label names and label values, in both formats; the buckets, too."""
    kind, text = await scraped(lived, "*/*")
    assert kind.startswith("text/plain; version=0.0.4")
    found = ours(plain(text))
    # Counters are named with their suffix here, gauges and histograms as they are.
    assert PROMISED.keys() - found.keys() == set()
    for name, promise in PROMISED.items():
        assert found[name].type == promise.kind, name
        assert found[name].documentation, name
        _check_labels(name, promise, found[name])
    for name, (first, last, number) in BUCKETS.items():
        edges = _edges(found[name])
        assert (edges[0], edges[-2], len(edges) - 1) == (first, last, number), name
        assert edges == sorted(set(edges))
    kind, text = await scraped(lived, _OPENMETRICS)
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert text.endswith("# EOF\n")
    # A counter of the one is a counter of the other; build_info is of type info here.
    families = openmetrics(text)  # type: ignore[no-untyped-call] # the library's parser has none
    assert ours(families).keys() | {"build_info"} >= PROMISED.keys()


async def test_no_label_is_chosen_by_a_stranger(lived: Tokenward) -> None:
    """Nothing that was sent is in a scrape; no metric of any kind tells a connection or caller."""
    for accept in ("*/*", _OPENMETRICS):
        assert PLANTED not in (await scraped(lived, accept))[1]
    names = {
        label
        for family in ours(plain((await scraped(lived, "*/*"))[1])).values()
        for sample in family.samples
        for label in sample.labels
    }
    assert names & {"connection", "caller", "id", "path", "url", "host", "account_id"} == set()


async def test_what_has_happened_is_counted(lived: Tokenward) -> None:
    """The life that the daemon has had is in its counters, each under the right words."""
    values = await lived.metrics()

    def value(name: str, **labels: str) -> float:
        wanted = ",".join(f'{key}="{labels[key]}"' for key in sorted(labels))
        return values[f"tokenward_{name}{{{wanted}}}"]

    assert value("authorizations_total", provider="acme", outcome="completed") == 1
    assert value("authorizations_total", provider="unknown", outcome="failed") >= 1
    assert value("refreshes_total", provider="acme", outcome="success") >= 1
    assert value("refreshes_total", provider="acme", outcome="rejected") == 1
    assert value("refresh_failures_total", provider="acme", reason="invalid_grant") == 1
    assert value("token_requests_total", provider="unknown", outcome="denied") >= 1
    assert value("proxy_requests_total", provider="acme", code="200") >= 1
    assert value("connection_tests_total", provider="acme", outcome="ok") >= 1
    assert value("refreshes_total", provider="idle", outcome="failed") == 0
    assert values["tokenward_token_request_duration_seconds_count"] >= 3
    assert values["tokenward_database_up"] == 1


def _check_labels(name: str, promise: Promise, family: Metric) -> None:
    """Check each series of a metric."""
    assert family.samples, name
    for sample in family.samples:
        shown = {label: text for label, text in sample.labels.items() if label != "le"}
        assert shown.keys() == promise.labels.keys(), sample
        for label, text in shown.items():
            allowed = promise.labels[label]
            if allowed is None:
                assert text in {"other", "1xx", "2xx", "3xx", "4xx", "5xx"} or (
                    len(text) == 3 and text.isdecimal()
                ), sample
            else:
                assert text in allowed, sample


def _edges(family: Metric) -> list[float]:
    """Return the upper ends of a histogram's buckets, those of its first series."""
    first = next(iter(family.samples)).labels.get("provider")
    return [
        float(sample.labels["le"])
        for sample in family.samples
        if sample.name.endswith("_bucket") and sample.labels.get("provider") == first
    ]
