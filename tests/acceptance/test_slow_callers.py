"""Slow and half-open sockets at every listener: cut in time, and nobody else notices."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.campaigns.slow import LONGEST_LIFE, attackers, healthy, reached, stage
from tests.campaigns.slow_sockets import BEGINNINGS

SOCKETS = 200


async def test_slow_sockets_are_cut_and_reach_nothing(tmp_path: Path, database_url: str) -> None:
    """600 of all kinds: healthy callers are served meanwhile, and each slow one ends by itself.

    Only who has sent a head is answered. Neither the database nor the provider hears of any.
    """
    async with stage(tmp_path, database_url) as (daemon, server):
        requests, (_, looks) = len(server.seen), await reached(database_url)
        async with attackers(daemon, SOCKETS, ramp=0.5, again=False) as slow:
            assert await slow.all_open() > 0
            asking = asyncio.create_task(healthy(daemon, 2.0))
            ended = asyncio.create_task(slow.ended(now=False))
            served = await asking
            async with asyncio.timeout(3 * LONGEST_LIFE):
                seen = await ended
        assert [fault for found in served.values() for fault in found["faults"]] == []
        assert all(found["answered"] for found in served.values())
        kinds = {f"{name} {kind}" for name, all_ in BEGINNINGS.items() for kind, _, _ in all_}
        assert seen["cut"] == dict.fromkeys(kinds, SOCKETS // 4)
        assert seen["statuses"] == {"api 408": 50, "public 408": 50, "ops 405": 50}
        assert len(server.seen) == requests
        assert (await reached(database_url))[1] == looks
        assert daemon.logged("listener_full") == []
        assert await daemon.stop() == 0
