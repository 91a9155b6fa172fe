"""The ops listener over a real socket: probes, metrics, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web_urldispatcher import SystemRoute
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families as plain_families
from prometheus_client.registry import Collector

from daemon.sidecar.ops import create_ops_app
from daemon.telemetry.metrics import Metrics
from daemon.telemetry.token_reads import TokenReads
from tests.support.circles import circles_of
from tests.support.telemetry import CANARY, StoppedClock, captured_log

Client = TestClient[web.Request, web.Application]


@dataclass
class ToldHealth:
    """Health as a test tells it."""

    started: bool = False
    why_not_ready: list[str] = field(default_factory=list)
    why_not_alive: list[str] = field(default_factory=list)

    def ready(self) -> Sequence[str]:
        """Return what was told."""
        return self.why_not_ready

    def alive(self) -> Sequence[str]:
        """Return what was told."""
        return self.why_not_alive


class BrokenCollector(Collector):
    """A collector that raises, with a secret in its error."""

    def collect(self) -> Iterable[Metric]:
        """Raise."""
        raise RuntimeError(f"code={CANARY}")


@pytest.fixture
def health() -> ToldHealth:
    """Return health that a test may change."""
    return ToldHealth()


@pytest.fixture
def registry() -> CollectorRegistry:
    """Return a registry with the daemon's metrics."""
    registry = CollectorRegistry()
    Metrics(registry, providers=["acme"], clock=StoppedClock(), version="1.2.3")
    TokenReads(registry, providers=["acme"]).count("acme", "served")
    return registry


@pytest.fixture
async def client(health: ToldHealth, registry: CollectorRegistry) -> AsyncIterator[Client]:
    """Return a client of a running ops listener."""
    app = create_ops_app(registry=registry, health=health, entropy=bytes)
    async with TestClient(TestServer(app)) as client:
        yield client


async def test_startup_turns_once_the_start_is_complete(client: Client, health: ToldHealth) -> None:
    """Startup is 503, with the reasons known so far, until started, then 200 for good."""
    health.why_not_ready = ["the database does not answer"]
    response = await client.get("/startup")
    assert response.status == 503
    assert await response.json() == {
        "status": "unavailable",
        "reasons": ["start is not complete", "the database does not answer"],
    }
    health.started = True
    response = await client.get("/startup")
    assert (response.status, await response.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("path", "reasons", "status"),
    [
        ("/readiness", [], 200),
        ("/readiness", ["shutting down", "no key"], 503),
        ("/liveness", [], 200),
        ("/liveness", ["a background task has ended"], 503),
    ],
)
async def test_probes_answer_with_their_reasons(
    *, client: Client, health: ToldHealth, path: str, reasons: list[str], status: int
) -> None:
    """A probe is 200, or 503 with every reason in words, and is never stored by a cache."""
    health.why_not_ready = health.why_not_alive = reasons
    response = await client.get(path)
    body = await response.json()
    assert response.status == status
    assert body.get("reasons", []) == reasons
    assert response.headers["Cache-Control"] == "no-store"


async def test_liveness_does_not_depend_on_readiness(client: Client, health: ToldHealth) -> None:
    """A daemon that is not ready, or not started, is alive: a restart would not help."""
    health.why_not_ready = ["the database does not answer"]
    assert (await client.get("/liveness")).status == 200


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain;version=1.0.0", "text/plain; version=1.0.0; charset=utf-8"),
        (
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
    ],
)
async def test_metrics_come_in_the_format_asked_for(
    client: Client, accept: str | None, content_type: str
) -> None:
    """Prometheus gets OpenMetrics, everybody else the plain format; both parse."""
    response = await client.get("/metrics", headers={"Accept": accept} if accept else {})
    text = await response.text()
    assert response.status == 200
    assert response.headers["Content-Type"].startswith(content_type)
    assert response.headers["Cache-Control"] == "no-store"
    is_openmetrics = "openmetrics" in content_type
    families = list((openmetrics_families if is_openmetrics else plain_families)(text))
    values = {(s.name, *s.labels.values()): s.value for f in families for s in f.samples}
    assert values["tokenward_build_info", "1.2.3"] == 1
    assert 'tokenward_token_requests_total{outcome="served",provider="acme"} 1.0' in text
    assert "_created" not in text


@pytest.mark.parametrize("path", ["/metrics", "/startup", "/readiness", "/liveness"])
async def test_only_get_and_head_are_taken(client: Client, health: ToldHealth, path: str) -> None:
    """HEAD answers as GET without a body; anything that could change something is refused."""
    health.started = True
    head = await client.head(path)
    assert (head.status, await head.read()) == (200, b"")
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        response = await client.request(method, path)
        problem = await response.json(content_type="application/problem+json")
        assert (response.status, problem["code"]) == (405, "method_not_allowed")
        assert response.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/metrics/", "/metrics/x", "/connect/abc", "/callback", "/openapi.json"),
        *("/v1/connections", "/v1/connections/con_1/token", "/v1/providers"),
    ],
)
async def test_no_route_of_another_listener_is_here(client: Client, path: str) -> None:
    """Anything but the four routes is a 404 problem that says what is here."""
    response = await client.get(path)
    problem = await response.json(content_type="application/problem+json")
    assert response.status == 404
    assert problem["type"] == "urn:tokenward:problem:not_found"
    assert "/readiness" in problem["detail"]
    assert response.headers["Cache-Control"] == "no-store"


async def test_a_failing_scrape_says_no_more_than_a_reference(health: ToldHealth) -> None:
    """An unforeseen error is a 500 problem; its text is neither in the answer nor in the log."""
    app = create_ops_app(registry=BrokenCollector(), health=health, entropy=bytes)
    with captured_log() as captured:
        async with TestClient(TestServer(app)) as client:
            response = await client.get("/metrics")
            text = await response.text()
        log = captured.text()
    assert response.status == 500
    assert response.content_type == "application/problem+json"
    assert "request_failed" in log
    assert CANARY not in text + log


@pytest.mark.parametrize(("method", "path"), [("GET", "/nothing"), ("POST", "/metrics")])
async def test_strangers_leave_no_circles(client: Client, method: str, path: str) -> None:
    """Some thousand wrong requests would else stop everybody for the garbage collector."""
    with circles_of(web.Request, web.HTTPException, SystemRoute) as left:
        for _ in range(10):
            async with client.request(method, path) as response:
                assert response.status in {404, 405}
    assert left == []
