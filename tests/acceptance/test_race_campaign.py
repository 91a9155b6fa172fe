"""Short runs of the race campaigns; ``make race-test`` and ``make database-test`` run long ones."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from tests.campaigns.disconnects import DisconnectCampaign
from tests.campaigns.fleet import Fleet
from tests.campaigns.race import Plan, RaceCampaign
from tests.campaigns.shutdown import ShutdownCampaign
from tests.support.polling import eventually
from tests.support.strict_server import StrictServer


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
    plan = Plan(replicas=3, connections=20, rounds=2, paused=1, pause=6.0, request_timeout=2)
    books = await RaceCampaign(tmp_path, database_url, plan).run()

    assert books.faults == books.excused == []
    assert books.requests == books.rotations == books.gained


async def test_a_reply_that_came_while_the_process_was_stopped_is_stored(
    tmp_path: Path, database_url: str
) -> None:
    """Stopped for longer than a request may take, it reads what has arrived before it gives up."""
    settings = {"refresh": {"request_timeout": "1s"}}
    server = StrictServer()
    async with (
        server,
        Fleet(tmp_path, database_url, server, replicas=1, settings=settings) as fleet,
    ):
        daemon, grant = fleet.replicas[0], await fleet.connect("acme-1")

        async def is_rotated() -> bool:
            return grant.rotations == 1

        async def is_served() -> bool:
            return bool((await daemon.token("acme-1")).body["access_token"] == grant.access_token)

        server.hold()
        forced = asyncio.create_task(fleet.force(daemon, "acme-1"))
        await eventually(is_rotated, what="the rotation")
        daemon.signal(signal.SIGSTOP)
        server.release()
        # Nothing tells of the end of a stopped process's patience: its deadline has to pass.
        await asyncio.sleep(3)
        daemon.signal(signal.SIGCONT)
        await forced
        await eventually(is_served, what="the new token")
        assert server.sends.total() == 1


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
