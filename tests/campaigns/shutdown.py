"""The shutdown campaign: SIGTERM in the middle of refreshes, again and again.

As long as the provider answers, a process that is asked to end stores everything that it has sent:
no claim stays open, none is in doubt, no reply is left over for the journal.
"""

from __future__ import annotations

import asyncio
import random  # noqa: TID251 - a campaign's chance is its seed, printed with the report
import time
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from tests.campaigns.fleet import Books, Fleet
from tests.support.strict_server import StrictServer

_STARTED_WITHIN = 60.0


@dataclass
class ShutdownReport:
    """What the ends were like; ``wrong`` must stay empty."""

    seed: int
    stops: int = 0
    in_flight: int = 0
    slowest: float = 0.0
    wrong: list[str] = field(default_factory=list)
    books: Books = field(default_factory=Books)

    def __str__(self) -> str:
        """Return a few lines for people."""
        return "\n".join(
            [
                f"seed {self.seed}: {self.stops} stops with {self.in_flight} requests under way",
                f"slowest end {self.slowest:.1f} s; wrong: {len(self.wrong)}",
                *(f"  WRONG: {line}" for line in self.wrong),
                str(self.books),
            ]
        )


class ShutdownCampaign:
    """One daemon that is asked to end while its connections are refreshed."""

    def __init__(
        self, directory: Path, database_url: str, *, seed: int, connections: int = 20
    ) -> None:
        self.report = ShutdownReport(seed)
        self._directory = directory
        self._database_url = database_url
        self._chance = random.Random(seed)  # noqa: S311 - moments, not secrets
        self._names = [f"stopped-{number}" for number in range(connections)]

    async def run(self, stops: int) -> ShutdownReport:
        """End it so many times, then balance the books."""
        server = StrictServer(delay=lambda: self._chance.uniform(0.0, 0.4))
        async with (
            server,
            Fleet(self._directory, self._database_url, server, replicas=1) as fleet,
        ):
            daemon = fleet.replicas[0]
            await asyncio.gather(*(fleet.connect(name) for name in self._names))
            for _ in range(stops):
                await self._stop_once(fleet)
                await daemon.start(within=_STARTED_WITHIN)
            self.report.books = await fleet.balance()
        return self.report

    async def _stop_once(self, fleet: Fleet) -> None:
        daemon, report = fleet.replicas[0], self.report
        hammering = [asyncio.create_task(self._hammer(fleet, name)) for name in self._names]
        await asyncio.sleep(self._chance.uniform(0.05, 0.6))
        report.in_flight += fleet.server.under_way
        began = time.monotonic()
        code = await daemon.stop(within=75)
        report.slowest = max(report.slowest, time.monotonic() - began)
        report.stops += 1
        for task in hammering:
            task.cancel()
        await asyncio.gather(*hammering, return_exceptions=True)
        if code != 0:
            report.wrong.append(f"exit code {code} at stop {report.stops}")
        if open_claims := await self._open_claims():
            report.wrong.append(f"after stop {report.stops}: {open_claims}")

    async def _hammer(self, fleet: Fleet, name: str) -> None:
        while True:
            reply = await fleet.force(fleet.replicas[0], name)
            await asyncio.sleep(0.0 if reply is not None else 0.05)

    async def _open_claims(self) -> list[str]:
        connection = await asyncpg.connect(self._database_url)
        try:
            rows = await connection.fetch(
                "SELECT connection_id, state FROM refresh_schedule WHERE state <> 'idle'"
            )
        finally:
            await connection.close()
        return [f"{row['connection_id']} is {row['state']}" for row in rows]
