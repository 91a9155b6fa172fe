"""SIGKILL at each step of start, connecting and disconnecting; see ``make kill-test``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaigns.doomed import Doing, dooms
from tests.campaigns.named_kills import NamedKills


@pytest.mark.parametrize("doing", [Doing.START, Doing.CONNECT, Doing.DISCONNECT])
async def test_killed_at_any_other_step_it_goes_on_where_it_was(
    doing: Doing, tmp_path: Path, database_url: str
) -> None:
    """Recovery may be cut anywhere, a code goes out once, and what is disconnected stays so."""
    moments = [moment for moment in dooms() if moment.doing is doing]

    report = await NamedKills(tmp_path, database_url).run_at(moments)

    assert report.kills >= len(moments)
    assert report.not_met == []
    assert report.wrong == []
