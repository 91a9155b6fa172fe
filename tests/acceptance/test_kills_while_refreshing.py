"""SIGKILL before and after each step of a refresh; ``make kill-test`` runs the long campaign."""

from __future__ import annotations

from pathlib import Path

from tests.campaigns.doomed import Doing, dooms
from tests.campaigns.named_kills import NamedKills


async def test_killed_at_any_step_of_a_refresh_nothing_on_the_disk_is_lost_or_sent_twice(
    tmp_path: Path, database_url: str
) -> None:
    """Only a reply that is still in memory alone can be lost, and no refresh token goes twice."""
    moments = [moment for moment in dooms() if moment.doing is Doing.REFRESH]

    report = await NamedKills(tmp_path, database_url).run_at(moments)

    assert report.kills == len(moments)
    assert report.not_met == []
    assert report.wrong == []
