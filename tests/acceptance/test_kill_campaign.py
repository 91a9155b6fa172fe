"""A short run of the kill campaign; ``make kill-test`` runs a long one."""

from __future__ import annotations

from pathlib import Path

from tests.campaigns.kill import KillCampaign

KILLS = 15


async def test_no_received_token_is_lost_and_none_is_sent_twice(
    tmp_path: Path, database_url: str
) -> None:
    """Killed at random moments, the daemon has every token that reached its disk."""
    report = await KillCampaign(tmp_path, database_url, seed=20261121).run(KILLS)

    assert report.kills == KILLS
    assert report.sends > KILLS
    assert report.lost == set()
    assert report.reused == set()
