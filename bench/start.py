"""From the start of ``tokenward run`` on an existing embedded database to ``/startup`` 200."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from urllib.parse import urlsplit

from bench.daemons import hosted, pid_of, provider
from bench.paired import Goal, Report, spread
from bench.processes import cpu_seconds, descendants, resident_megabytes
from tests.support.tokenward import Tokenward

CONNECTIONS = 10_000
GOAL_SECONDS = 2.0
GOAL_MEGABYTES = 80.0
_POLL_SECONDS = 0.005
# What a start leaves behind is collected and given back by then.
_SETTLE_SECONDS = 1.0


async def measure(directory: Path, *, starts: int) -> Report:
    """Measure ``starts`` starts with an empty database, and as many with 10,000 connections."""
    daemon = Tokenward(directory, {"providers": {"acme": provider()}})
    rows: list[dict[str, str | float]] = []
    goals: list[Goal] = []
    async with hosted(daemon, core=None):
        pass
    for connections in (0, CONNECTIONS):
        if connections:
            async with hosted(daemon, core=None) as process:
                await process.ask({"do": "seed", "count": connections})
        found = [await start_once(daemon) for _ in range(starts)]
        seconds = spread([start.seconds for start in found])
        megabytes = median(start.megabytes for start in found)
        cpu = median(start.cpu for start in found)
        what = f"{connections:,} connections"
        rows.append(
            {"": what, "start s": str(seconds), "CPU s": round(cpu, 2), "memory MB": megabytes}
        )
        goals += [
            Goal(
                what=f"start s, {what}", value=seconds.middle, bound=GOAL_SECONDS, is_ceiling=True
            ),
            Goal(what=f"memory MB, {what}", value=megabytes, bound=GOAL_MEGABYTES, is_ceiling=True),
        ]
    return Report(name="start", rows=rows, goals=goals)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a start took, with its database's, and the megabytes it leaves the daemon with."""

    seconds: float
    cpu: float
    megabytes: float


async def start_once(daemon: Tokenward) -> Start:
    """Start and stop a daemon."""
    began = perf_counter()
    daemon.spawn()
    try:
        await asyncio.to_thread(_wait_started, urlsplit(daemon.ops_url).port or 0)
        seconds = perf_counter() - began
        pid = pid_of(daemon)
        cpu = cpu_seconds([pid, *descendants(pid)])
        await asyncio.sleep(_SETTLE_SECONDS)
        return Start(seconds=seconds, cpu=cpu, megabytes=resident_megabytes(pid))
    finally:
        await daemon.stop()


def _wait_started(port: int) -> None:
    give_up = perf_counter() + 60
    while perf_counter() < give_up:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/startup")
            if connection.getresponse().status == 200:
                return
        except (OSError, HTTPException):
            pass
        finally:
            connection.close()
        sleep(_POLL_SECONDS)
    raise TimeoutError("the daemon does not start")
