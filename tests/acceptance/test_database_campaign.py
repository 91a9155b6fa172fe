"""Short runs of the database campaign; ``make database-test`` runs the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaigns.failover import FailoverCampaign, How
from tests.campaigns.outage import Away, OutageCampaign
from tests.campaigns.points import Flow
from tests.campaigns.sweep import Sweep
from tests.support.postgres import Cluster


@pytest.mark.parametrize(
    ("flows", "step"),
    [
        ((Flow.CONNECT, Flow.REFRESH, Flow.DISCONNECT), 31),
        ((Flow.START, Flow.FIRST_START), 97),
    ],
    ids=["requests", "starts"],
)
async def test_no_request_to_the_database_is_one_too_many_to_lose(
    tmp_path: Path, postgres_cluster: Cluster, flows: tuple[Flow, ...], step: int
) -> None:
    """Whichever request fails, and however, the daemon is well again by itself."""
    sweep = Sweep(tmp_path, postgres_cluster, flows=flows, step=step, revoked_within=0.0)
    report = await sweep.run()

    assert report.wrong == []
    assert report.met.total() > 0


@pytest.mark.parametrize("how", list(How))
async def test_a_failover_costs_no_token_and_no_read(tmp_path: Path, how: How) -> None:
    """With the standby promoted refreshes go on soon, and good tokens were served throughout."""
    report = await FailoverCampaign(tmp_path, how).run()

    assert report.failed_reads == []
    assert report.books.faults == []
    assert report.writes_after <= 15


async def test_an_outage_of_the_database_costs_no_read(tmp_path: Path, database_url: str) -> None:
    """Warm tokens are served throughout; a process that starts meanwhile waits, and then starts."""
    report = await OutageCampaign(tmp_path, database_url, Away.CUT, seconds=8).run()

    assert report.failed == []
    assert report.unready == report.sent_meanwhile == 0
    assert report.books.faults == []
    assert max(report.refreshed_after, report.started_after) <= 10
