"""What a refresh costs, and a start, with a thousand, a hundred thousand and a million connections.

One database that grows. At each size the same number of connections, scattered over all of them,
is refreshed in rounds; the cost is CPU of the daemon and of PostgreSQL, which other programs on
the machine disturb less than they do the rate. Then the daemon is left alone for a while, and
started anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.bare_loop import IN_FLIGHT
from bench.daemons import hosted, provider
from bench.paired import Goal, Report
from bench.processes import (
    CLIENT_CORE,
    LineProcess,
    cpu_seconds,
    descendants,
    pin,
    resident_megabytes,
    running,
)
from bench.start import start_once
from tests.support.tokenward import Tokenward

SIZES = (1_000, 100_000, 1_000_000)
SIZES_SHORT = (1_000, 20_000)
GOAL_COST = 1.5
GOAL_SECONDS = 5.0
GOAL_MEGABYTES = 300.0
_BATCH = 1_000
_STARTS = 3
_IDLE_SECONDS = 35.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sized:
    """What was measured at one size: seconds and CPU seconds, each refresh or each second."""

    size: int
    rate: float
    daemon: float
    database: float
    census: float
    idle: float
    megabytes: float

    @property
    def cost(self) -> float:
        """Return all CPU seconds that one refresh costs."""
        return self.daemon + self.database

    def row(self) -> dict[str, str | float]:
        """Return a line of the table."""
        return {
            "": f"{self.size:,}",
            "refreshes/s": round(self.rate),
            "CPU µs": round(self.daemon * 1e6),
            "PostgreSQL µs": round(self.database * 1e6),
            "gauges ms": round(self.census * 1e3),
            "idle CPU %": round(self.idle * 100, 1),
            "memory MB": round(self.megabytes),
        }


async def measure(directory: Path, *, sizes: Sequence[int], rounds: int) -> Report:
    """Measure at each of ``sizes``, which grow."""
    found: list[_Sized] = []
    async with AsyncExitStack() as stack:
        endpoint = await stack.enter_async_context(running("token_server", core=CLIENT_CORE))
        port = (await endpoint.ask())["port"]
        acme = provider(port, concurrency=IN_FLIGHT, rate="100000/s")
        settings = {"providers": {"acme": acme}, "refresh": {"concurrency": IN_FLIGHT}}
        daemon = Tokenward(directory, settings)
        there = 0
        for size in sizes:
            async with _hosted(daemon) as process:
                await process.ask({"do": "seed", "first": there, "count": size - there})
                there = size
            async with _hosted(daemon) as process:
                found.append(await _at(process, size, rounds))
        starts = [await start_once(daemon) for _ in range(_STARTS)]
    last = found[-1]
    seconds = median(start.seconds for start in starts)
    megabytes = median(start.megabytes for start in starts)
    cost = f"cost of a refresh at {last.size:,} ÷ at {found[0].size:,}"
    return Report(
        name="sizes",
        rows=[each.row() for each in found],
        goals=[
            Goal(what=cost, value=last.cost / found[0].cost, bound=GOAL_COST, is_ceiling=True),
            Goal(what="start s", value=seconds, bound=GOAL_SECONDS, is_ceiling=True),
            # On a machine that is busy with something else this tells more.
            Goal(
                what="start, CPU s",
                value=median(start.cpu for start in starts),
                bound=GOAL_SECONDS,
                is_ceiling=True,
            ),
            Goal(what="memory MB", value=megabytes, bound=GOAL_MEGABYTES, is_ceiling=True),
        ],
    )


@asynccontextmanager
async def _hosted(daemon: Tokenward) -> AsyncIterator[LineProcess]:
    async with hosted(daemon) as process:
        for pid in descendants(process.pid):
            pin(pid, CLIENT_CORE)
        yield process


async def _at(process: LineProcess, size: int, rounds: int) -> _Sized:
    stride = max(1, size // _BATCH)
    measured = [
        await _round(process, first=number % stride, stride=stride) for number in range(rounds + 1)
    ][1:]
    rate, daemon, database = (median(values) for values in zip(*measured, strict=True))
    return _Sized(
        size=size,
        rate=rate,
        daemon=daemon,
        database=database,
        census=(await process.ask({"do": "census"}))["seconds"],
        idle=await _idle(process),
        megabytes=resident_megabytes(process.pid),
    )


async def _round(process: LineProcess, *, first: int, stride: int) -> tuple[float, float, float]:
    """Return refreshes a second, and CPU seconds of daemon and database for each."""
    order = {"do": "refresh", "first": first, "count": _BATCH, "stride": stride}
    found = await process.ask(order)
    return _BATCH / found["seconds"], found["cpu"] / _BATCH, found["database"] / _BATCH


async def _idle(process: LineProcess) -> float:
    """Return the share of a core that daemon and database use while nothing is asked of them."""
    pids = [process.pid, *descendants(process.pid)]
    before, began = cpu_seconds(pids), time.perf_counter()
    await asyncio.sleep(_IDLE_SECONDS)
    return (cpu_seconds(pids) - before) / (time.perf_counter() - began)
