"""A short run of the herd campaign; ``make herd-test`` runs 10,000 connections."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaigns.herd import Plan, busiest, crowd, herds

SPREAD = Plan(connections=300, rate=100, lifetime=10, importing=8, beyond=0, slack=0.25)
OUTAGE = Plan(connections=300, rate=100, lifetime=5, importing=8, beyond=2, slack=0.25)


async def test_equal_expiries_are_spread_and_an_outage_ends_without_a_burst(
    tmp_path: Path, database_url: str
) -> None:
    """Tokens are served to their end, the rate holds, an outage sees few attempts."""
    plans = {"spread": SPREAD, "outage": OUTAGE}
    for findings in await herds(tmp_path, database_url, plans, at_once=True):
        assert findings.faults == [], str(findings)


async def test_callers_of_one_ended_token_cost_one_request(
    tmp_path: Path, database_url: str
) -> None:
    """Whichever of two replicas they ask."""
    findings = await crowd(tmp_path, database_url, callers=300, replicas=2)
    assert findings.faults == [], str(findings)


@pytest.mark.parametrize(
    ("moments", "most"), [([], 0), ([1.0], 1), ([1.0, 1.5, 1.99, 2.0, 2.5], 3), ([1, 3, 5], 1)]
)
def test_the_busiest_second(moments: list[float], most: int) -> None:
    """Any second counts, not only those of the clock."""
    assert busiest(moments, 1.0) == most
