"""The failover campaign: the primary vanishes under load and a streaming standby is promoted.

Synchronously replicated, nothing may be lost. Asynchronously, the standby is made to lack the last
commits, so that it holds refresh tokens which are spent: the journals must put that right.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import asyncpg

from tests.campaigns.fleet import Books, Fleet
from tests.support.polling import eventually
from tests.support.standby import Pair
from tests.support.strict_server import StrictServer
from tests.support.tokenward import Tokenward

_BEFORE, _BEHIND, _AFTER, _QUIET = 2.0, 0.7, 3.0, 2.0
# Callers come this often: some requests are under way all the time.
_PAUSE = 0.05


class How(StrEnum):
    """How the primary is lost, and what the standby has then."""

    SYNCHRONOUS = "synchronous"
    """Its host vanishes; whatever was acknowledged has been replicated."""
    ASYNCHRONOUS = "asynchronous"
    """Its host vanishes; the standby lacks the last commits."""
    FENCED = "fenced"
    """It goes on, with all connections, and refuses writes; replication is synchronous."""


@dataclass
class FailoverReport:
    """What one failover did to callers, and the books afterwards."""

    how: How
    reads: int = 0
    failed_reads: list[str] = field(default_factory=list)
    writes_after: float = 0.0
    left_open: int = 0
    in_doubt: int = 0
    books: Books = field(default_factory=Books)

    def __str__(self) -> str:
        """Return a few lines for people."""
        return "\n".join(
            [
                f"{self.how}: {self.reads} reads of good tokens, {len(self.failed_reads)} failed",
                f"writes {self.writes_after:.1f} s after the promotion",
                f"claims left open {self.left_open}, in doubt {self.in_doubt}",
                str(self.books),
                *(f"  FAILED READ: {line}" for line in self.failed_reads[:10]),
            ]
        )


class FailoverCampaign:
    """One failover of one pair under refresh load."""

    def __init__(
        self, directory: Path, how: How, *, replicas: int = 2, connections: int = 10
    ) -> None:
        self._directory = directory
        self._replicas = replicas
        self._names = [f"moved-{number}" for number in range(connections)]
        self._is_over = asyncio.Event()
        self._refreshed_at: list[float] = []
        self.report = FailoverReport(how)

    async def run(self) -> FailoverReport:
        """Load, fail over, load, and balance."""
        how = self.report.how
        pair = Pair(self._directory / "pair", synchronous=how is not How.ASYNCHRONOUS)
        server = StrictServer(delay=lambda: 0.02)
        async with (
            server,
            pair,
            Fleet(self._directory, pair.url, server, replicas=self._replicas) as fleet,
        ):
            for name in self._names:
                await fleet.connect(name)
            loads = [
                asyncio.create_task(work(fleet, replica, name))
                for work in (self._refresh, self._read)
                for replica in fleet.replicas
                for name in self._names
            ]
            await asyncio.sleep(_BEFORE)
            promoted_at = await self._fail_over(pair)
            await eventually(self._has_written(promoted_at), within=60, what="a refresh")
            self.report.writes_after = self._first_after(promoted_at) - promoted_at
            await self._look_back(pair)
            await asyncio.sleep(_AFTER)
            self._is_over.set()
            await asyncio.gather(*loads)
            # A claim that is open still, with nothing under way, waits for its take-over.
            await asyncio.sleep(_QUIET)
            await self._count_claims(pair)
            self.report.books = await fleet.balance()
        return self.report

    async def _fail_over(self, pair: Pair) -> float:
        """Return when the new primary took writes."""
        match self.report.how:
            case How.FENCED:
                await pair.fence_primary()
            case How.ASYNCHRONOUS:
                pair.replication.stall()
                await asyncio.sleep(_BEHIND)
                await pair.kill_primary()
            case How.SYNCHRONOUS:
                await pair.kill_primary()
        await pair.promote()
        return time.monotonic()

    async def _look_back(self, pair: Pair) -> None:
        """Let the old primary come back, as one that only reads: it must not be used."""
        if self.report.how is not How.FENCED:
            await pair.bring_back_stale()

    async def _refresh(self, fleet: Fleet, replica: Tokenward, name: str) -> None:
        while not self._is_over.is_set():
            began = time.monotonic()
            reply = await fleet.force(replica, name)
            if reply is not None and reply.status == 200:
                self._refreshed_at.append(began)
            await asyncio.sleep(_PAUSE)

    async def _read(self, _: Fleet, replica: Tokenward, name: str) -> None:
        """Read a token that is good for an hour; every one must be there."""
        while not self._is_over.is_set():
            reply = await replica.token(name)
            self.report.reads += 1
            if reply.status != 200:
                self.report.failed_reads.append(f"{name}: {reply.status} {reply.content[:200]!r}")
            await asyncio.sleep(_PAUSE)

    def _has_written(self, since: float) -> Callable[[], Awaitable[bool]]:
        async def look() -> bool:
            return any(at > since for at in self._refreshed_at)

        return look

    def _first_after(self, since: float) -> float:
        return min(at for at in self._refreshed_at if at > since)

    async def _count_claims(self, pair: Pair) -> None:
        connection = await asyncpg.connect(pair.standby.url())
        try:
            rows = await connection.fetch("SELECT state FROM refresh_schedule")
        finally:
            await connection.close()
        states = [row["state"] for row in rows]
        self.report.left_open = states.count("sending")
        self.report.in_doubt = states.count("in_doubt")
