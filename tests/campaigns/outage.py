"""The database away: warm tokens are served throughout, nothing is sent, then all is well again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from aiohttp import ClientError

from tests.campaigns.fleet import Books, Fleet
from tests.support.polling import eventually
from tests.support.strict_server import StrictServer
from tests.support.tokenward import Tokenward
from tests.support.wire import Wire

_READ_EVERY = 0.02


class Away(StrEnum):
    """What being away looks like."""

    CUT = "cut"
    """Connections are reset, new ones refused."""
    STALLED = "stalled"
    """Every connection stands, no byte comes through."""


@dataclass
class OutageReport:
    """What callers and probes saw."""

    how: Away
    seconds: float
    reads: int = 0
    failed: list[str] = field(default_factory=list)
    sent_meanwhile: int = 0
    unready: int = 0
    refreshed_after: float = 0.0
    started_after: float = 0.0
    books: Books = field(default_factory=Books)

    def __str__(self) -> str:
        """Return a few lines for people."""
        return "\n".join(
            [
                f"database {self.how} for {self.seconds:.0f} s",
                f"{self.reads} reads of warm tokens, {len(self.failed)} failed",
                f"requests to the provider meanwhile: {self.sent_meanwhile}",
                f"a refresh {self.refreshed_after:.1f} s after its return",
                f"a process started meanwhile is up after {self.started_after:.1f} s",
                *(f"  FAILED READ: {line}" for line in self.failed[:10]),
                str(self.books),
            ]
        )


class OutageCampaign:
    """A running replica, and one that starts in the middle of the outage."""

    def __init__(
        self,
        directory: Path,
        database_url: str,
        how: Away,
        *,
        seconds: float,
        connections: int = 20,
    ) -> None:
        self.report = OutageReport(how, seconds)
        self._directory = directory
        self._database_url = database_url
        self._names = [f"warm-{number}" for number in range(connections)]

    async def run(self) -> OutageReport:
        """Serve through the outage, recover, balance."""
        report = self.report
        async with StrictServer() as server, AsyncExitStack() as stack:
            wires = [await stack.enter_async_context(Wire(self._database_url)) for _ in range(2)]
            urls = [wire.url for wire in wires]
            fleet = Fleet(self._directory, urls, server, replicas=2)
            running, starting = fleet.replicas
            stack.push_async_callback(starting.close)
            stack.push_async_callback(running.close)
            await running.start()
            for name in self._names:
                await fleet.connect(name)
                await fleet.force(running, name)
            reading = asyncio.create_task(self._read(running))
            sent = server.sends.total()
            await self._be_away(fleet, wires)
            report.sent_meanwhile = server.sends.total() - sent
            back_at = time.monotonic()
            for wire in wires:
                await wire.mend()
            refreshed = _refreshes(fleet, running, self._names[0])
            await eventually(refreshed, within=60, what="a refresh")
            report.refreshed_after = time.monotonic() - back_at
            await eventually(starting.has_started, within=60, what="the start")
            report.started_after = time.monotonic() - back_at
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            report.books = await fleet.balance()
        return report

    async def _be_away(self, fleet: Fleet, wires: list[Wire]) -> None:
        report = self.report
        running, starting = fleet.replicas
        await wires[1].cut()
        if report.how is Away.CUT:
            await wires[0].cut()
        else:
            wires[0].stall()
        starting.spawn()
        ends_at = time.monotonic() + report.seconds
        while time.monotonic() < ends_at:
            await asyncio.gather(*(fleet.force(running, name) for name in self._names[:3]))
            report.unready += await _probe(running, "readiness") != 200
            await self._is_alive(starting)
            await asyncio.sleep(0.5)

    async def _is_alive(self, daemon: Tokenward) -> None:
        """Note a process that ends, or that says it is ready, without a database."""
        process = daemon.process
        if process is None or process.poll() is not None:
            raise AssertionError(f"the daemon has ended:\n{daemon.log()}")
        if await _probe(daemon, "readiness") == 200:
            self.report.failed.append("ready without a database")

    async def _read(self, daemon: Tokenward) -> None:
        while True:
            for name in self._names:
                reply = await daemon.token(name)
                self.report.reads += 1
                if reply.status != 200:
                    self.report.failed.append(f"{reply.status} {reply.content[:200]!r}")
                await asyncio.sleep(_READ_EVERY)


def _refreshes(fleet: Fleet, daemon: Tokenward, name: str) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        reply = await fleet.force(daemon, name)
        return reply is not None and reply.status == 200

    return look


async def _probe(daemon: Tokenward, name: str) -> int:
    """Return the status of a probe, 0 while nobody listens."""
    try:
        async with daemon.session.get(f"{daemon.ops_url}/{name}") as answer:
            return answer.status
    except ClientError:
        return 0
