"""The race campaign: many replicas forced to refresh the same connections at the same moment.

A strict server counts: as many refresh requests as rotations as generations gained, none twice.
Replicas may be stopped in the middle (SIGSTOP) for longer than their claims last: what they wake
up with must not be sent any more.
"""

from __future__ import annotations

import asyncio
import random  # noqa: TID251 - a campaign's chance is its seed, printed with the report
import signal
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from tests.campaigns.fleet import Books, Fleet
from tests.support.polling import eventually
from tests.support.strict_server import StrictServer
from tests.support.tokenward import Tokenward


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of what. ``pause`` is for how many seconds ``paused`` replicas are stopped.

    ``insist``: meanwhile people ask for refreshes at the others, who are obeyed whatever the doubt:
    what a stopped replica holds unread is then sent again. Else only callers ask.
    """

    replicas: int
    connections: int
    rounds: int
    paused: int = 0
    pause: float = 0.0
    request_timeout: int = 30
    seed: int = 1
    lifetime: int = 3600
    insist: bool = False


class RaceCampaign:
    """One fleet under forced rounds."""

    def __init__(self, directory: Path, database_url: str, plan: Plan) -> None:
        self._directory = directory
        self._database_url = database_url
        self._plan = plan
        self._chance = random.Random(plan.seed)  # noqa: S311 - moments, not secrets
        self._names = [f"raced-{number}" for number in range(plan.connections)]
        self.open_when_paused: set[str] = set()

    async def run(self) -> Books:
        """Run all rounds and balance the books."""
        plan = self._plan
        server = StrictServer(
            expires_in=plan.lifetime, delay=lambda: self._chance.uniform(0.0, 0.05)
        )
        settings = {"refresh": {"concurrency": 500, "request_timeout": f"{plan.request_timeout}s"}}
        async with (
            server,
            Fleet(
                self._directory,
                self._database_url,
                server,
                replicas=plan.replicas,
                settings=settings,
            ) as fleet,
        ):
            await asyncio.gather(*(fleet.connect(name) for name in self._names))
            for number in range(plan.rounds):
                if plan.paused and number == plan.rounds // 2:
                    await self._round_with_paused(fleet)
                await self._round(fleet, fleet.replicas)
            await self._quiet(fleet)
            return await fleet.balance(excused=await self._excused(fleet))

    async def _round(self, fleet: Fleet, replicas: list[Tokenward], *, insist: float = 0.7) -> None:
        """Force every connection at every replica at once, a share of ``insist`` as people do."""
        asks = [
            (fleet.force if self._chance.random() < insist else fleet.newer)(replica, name)
            for name in self._names
            for replica in replicas
        ]
        self._chance.shuffle(asks)
        await asyncio.gather(*asks)

    async def _round_with_paused(self, fleet: Fleet) -> None:
        """Stop some replicas in the middle of a round, and go on without them."""
        plan = self._plan
        paused = self._chance.sample(fleet.replicas, plan.paused)
        others = [replica for replica in fleet.replicas if replica not in paused]
        disturbed = asyncio.create_task(self._round(fleet, fleet.replicas))
        # A moment in the middle of the round, whichever: not a condition to wait for.
        await asyncio.sleep(0.3)
        for replica in paused:
            replica.signal(signal.SIGSTOP)
        await asyncio.sleep(0.5)
        self.open_when_paused = await self._open_claims()
        loop = asyncio.get_running_loop()
        wakes_at = loop.time() + plan.pause
        while loop.time() < wakes_at:
            await self._round(fleet, others, insist=0.7 if plan.insist else 0.0)
            await asyncio.sleep(1.0)
        for replica in paused:
            replica.signal(signal.SIGCONT)
        await disturbed

    async def _open_claims(self) -> set[str]:
        """Return which connections a stopped replica holds a claim of."""
        rows = await self._query(
            "SELECT connection_id FROM refresh_schedule WHERE state = 'sending'"
        )
        return {row["connection_id"] for row in rows}

    async def _quiet(self, fleet: Fleet) -> None:
        async def is_quiet() -> bool:
            return fleet.server.under_way == 0 and not await self._open_claims()

        await eventually(is_quiet, within=200, what="the end of all attempts")

    async def _excused(self, fleet: Fleet) -> frozenset[str]:
        """Return whose reply a stopped replica held unread when somebody else's turn came."""
        if not self._plan.paused:
            return frozenset()
        lost = {reuse.grant for reuse in fleet.server.reuses}
        return frozenset(
            name
            for name, grant in fleet.grants.items()
            if grant.number in lost and name in self.open_when_paused
        )

    async def _query(self, statement: str) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self._database_url)
        try:
            return list(await connection.fetch(statement))
        finally:
            await connection.close()
