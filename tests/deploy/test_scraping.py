"""A real Prometheus scrapes a real daemon: no rule has an error, every panel has an answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.deploy.dashboards import Panel, filled, panels
from tests.deploy.prometheus import MISSING, Prometheus, find, rules
from tests.support.polling import eventually
from tests.support.token_server import TokenServer
from tests.support.tokenward import Tokenward

PROMETHEUS = find("prometheus")
pytestmark = pytest.mark.skipif(PROMETHEUS is None, reason=MISSING)
# Shows something only once it has happened, or once an alert fires.
MAYBE_EMPTY = {
    "Alerts",
    "Proxied requests",
    "Failures by provider and reason",
    "Expired connections",
    "Grants that ended",
}


@pytest.fixture
async def prometheus(
    tmp_path: Path, postgres_cluster: object, database_url: str
) -> AsyncIterator[Prometheus]:
    """A Prometheus that has seen a daemon refresh a connection and serve its token."""
    del postgres_cluster
    assert PROMETHEUS is not None
    daemon = Tokenward(tmp_path, {"database": {"url": database_url}})
    async with TokenServer(expires_in=4) as server:
        daemon.settings["providers"] = {"acme": server.provider(rotation="overlap")}
        target = daemon.ops_url.removeprefix("http://")
        async with daemon, Prometheus(PROMETHEUS, tmp_path / "prometheus", [target]) as running:
            await daemon.create("acme", id="acme-1", tokens={"refresh_token": "first"})

            async def is_seen() -> bool:
                await daemon.token("acme-1")
                rate = 'rate(tokenward_refreshes_total{outcome="success"}[1m])'
                return bool(await running.value(rate))

            await eventually(is_seen, within=60, what="a refresh in Prometheus")
            yield running


async def test_prometheus_understands_everything(prometheus: Prometheus) -> None:
    """The target is up, no rule has an error, and every panel that can have data has some."""
    groups = (await prometheus.ask("rules"))["groups"]
    health = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
    assert set(health) == {rule.name for rule in rules()}
    assert set(health.values()) <= {"ok", "unknown"}
    assert await prometheus.value("up") == 1
    assert await prometheus.query('ALERTS{severity="critical"}') == []
    empty = [str(panel) for panel in panels() if not await _has_data(prometheus, panel)]
    assert empty == []


async def _has_data(prometheus: Prometheus, panel: Panel) -> bool:
    """Ask for every expression of a panel, which fails where one is wrong."""
    found = [await prometheus.query(filled(expr, provider="acme")) for expr, _ in panel.targets]
    return any(found) or panel.title in MAYBE_EMPTY
