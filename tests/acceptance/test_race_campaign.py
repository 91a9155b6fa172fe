"""Short runs of the race campaigns; ``make race-test`` and ``make database-test`` run long ones."""

from __future__ import annotations

from pathlib import Path

from tests.campaigns.disconnects import DisconnectCampaign
from tests.campaigns.race import Plan, RaceCampaign
from tests.campaigns.shutdown import ShutdownCampaign


async def test_as_many_requests_as_rotations_as_generations(
    tmp_path: Path, database_url: str
) -> None:
    """Three replicas forced to refresh the same connections at once send each token once."""
    plan = Plan(replicas=3, connections=20, rounds=4)
    books = await RaceCampaign(tmp_path, database_url, plan).run()

    assert books.faults == []
    assert books.requests == books.rotations == books.gained >= 20 * 4
    assert set(books.statuses) == {200}


async def test_a_replica_that_was_stopped_for_a_while_sends_nothing_twice(
    tmp_path: Path, database_url: str
) -> None:
    """Stopped in the middle of its requests, a replica stores their replies when it goes on."""
    plan = Plan(replicas=3, connections=20, rounds=2, paused=1, pause=3.0, request_timeout=2)
    books = await RaceCampaign(tmp_path, database_url, plan).run()

    assert books.faults == books.excused == []
    assert books.requests == books.rotations == books.gained


async def test_sigterm_leaves_nothing_open(tmp_path: Path, database_url: str) -> None:
    """While the provider answers, a process that is asked to end stores all that it has sent."""
    report = await ShutdownCampaign(tmp_path, database_url, seed=20261121).run(5)

    assert report.wrong == report.books.faults == []
    assert report.in_flight > 0
    assert report.slowest < 30


async def test_a_disconnect_wins_against_a_refresh(tmp_path: Path, database_url: str) -> None:
    """A second after the 200 no replica serves a token, and every new one has been revoked."""
    report = await DisconnectCampaign(tmp_path, database_url, seed=20261121).run(30)

    assert report.wrong == []
    assert report.raced > 0
    assert report.latest < 1.0
