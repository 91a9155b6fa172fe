"""A short rolling update; ``make rolling-test`` runs a long one."""

from __future__ import annotations

from pathlib import Path

from tests.campaigns.rolling import How, Plan, RollingCampaign


async def test_no_read_fails_while_replicas_are_replaced(tmp_path: Path, database_url: str) -> None:
    """Three replicas are replaced under load: every read is answered, no token is sent twice."""
    plan = Plan(connections=20, callers=4, pause=0.05)
    report = await RollingCampaign(tmp_path, database_url, plan).run()

    assert report.failed == report.books.faults == []
    assert report.replaced == {How.DEPLOYMENT: 2, How.STATEFUL_SET: 1}
    assert report.reads > 50
    assert report.books.rotations > 20
