"""What a refresh costs, and a start, with a thousand, a hundred thousand and a million connections.

One database that grows, and beside it one that stays small. At each size the same number of
connections, scattered over all of them, is refreshed in rounds, in turn with as many of the small
one: whatever else the machine does concerns both. The cost is CPU of the daemon and of PostgreSQL,
which others disturb less than they do the rate. Then the daemon is left alone for a while, and in
the end started anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from bench.bare_loop import IN_FLIGHT
from bench.daemons import hosted, provider
from bench.paired import Goal, Report, Spread, spread
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

_Measured = tuple[float, float, float]


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
    cost: Spread
    """All CPU seconds of one refresh, as a multiple of what it costs in the small database."""

    def row(self) -> dict[str, str | float]:
        """Return a line of the table."""
        return {
            "": f"{self.size:,}",
            "refreshes/s": round(self.rate),
            "CPU µs": round(self.daemon * 1e6),
            "PostgreSQL µs": round(self.database * 1e6),
            "cost ÷ small": str(self.cost),
            "gauges ms": round(self.census * 1e3),
            "idle CPU %": round(self.idle * 100, 1),
            "memory MB": round(self.megabytes),
        }


async def measure(directory: Path, *, sizes: Sequence[int], rounds: int) -> Report:
    """Measure at each of ``sizes``, which grow; the first is that of the small database, too."""
    found: list[_Sized] = []
    async with AsyncExitStack() as stack:
        endpoint = await stack.enter_async_context(running("token_server", core=CLIENT_CORE))
        port = (await endpoint.ask())["port"]
        acme = provider(port, concurrency=IN_FLIGHT, rate="100000/s")
        settings = {"providers": {"acme": acme}, "refresh": {"concurrency": IN_FLIGHT}}
        daemon, small = (Tokenward(directory / name, settings) for name in ("grows", "small"))
        await _seed(small, 0, sizes[0])
        for there, size in pairwise((0, *sizes)):
            await _seed(daemon, there, size)
            async with _hosted(small) as yardstick, _hosted(daemon) as process:
                found.append(await _at(process, yardstick, (size, sizes[0]), rounds))
        starts = [await start_once(daemon) for _ in range(_STARTS)]
    last = found[-1]
    seconds = median(start.seconds for start in starts)
    megabytes = median(start.megabytes for start in starts)
    cost = f"cost of a refresh at {last.size:,} ÷ at {sizes[0]:,}"
    return Report(
        name="sizes",
        rows=[each.row() for each in found],
        goals=[
            Goal(what=cost, value=last.cost.middle, bound=GOAL_COST, is_ceiling=True),
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


async def _seed(daemon: Tokenward, first: int, end: int) -> None:
    async with _hosted(daemon) as process:
        await process.ask({"do": "seed", "first": first, "count": end - first})


@asynccontextmanager
async def _hosted(daemon: Tokenward) -> AsyncIterator[LineProcess]:
    async with hosted(daemon) as process:
        for pid in descendants(process.pid):
            pin(pid, CLIENT_CORE)
        yield process


async def _at(
    process: LineProcess, yardstick: LineProcess, sizes: tuple[int, int], rounds: int
) -> _Sized:
    ours, theirs = _Rounds(process, sizes[0]), _Rounds(yardstick, sizes[1])
    pairs = [await _pair(ours, theirs, number) for number in range(rounds + 1)][1:]
    rate, daemon, database = (
        median(each) for each in zip(*(mine for mine, _ in pairs), strict=True)
    )
    return _Sized(
        size=sizes[0],
        rate=rate,
        daemon=daemon,
        database=database,
        census=(await process.ask({"do": "census"}))["seconds"],
        idle=await _idle(process),
        megabytes=resident_megabytes(process.pid),
        cost=spread([sum(mine[1:]) / sum(other[1:]) for mine, other in pairs]),
    )


async def _pair(ours: _Rounds, theirs: _Rounds, number: int) -> tuple[_Measured, _Measured]:
    """Measure both, in alternating order."""
    if number % 2:
        return await ours.measure(number), await theirs.measure(number)
    other = await theirs.measure(number)
    return await ours.measure(number), other


@dataclass(frozen=True, slots=True)
class _Rounds:
    """Rounds of refreshes of one daemon, scattered over all ``size`` connections."""

    process: LineProcess
    size: int

    async def measure(self, number: int) -> _Measured:
        """Return refreshes a second, and CPU seconds of daemon and database for each."""
        stride = max(1, self.size // _BATCH)
        order = {"do": "refresh", "first": number % stride, "count": _BATCH, "stride": stride}
        found = await self.process.ask(order)
        return _BATCH / found["seconds"], found["cpu"] / _BATCH, found["database"] / _BATCH


async def _idle(process: LineProcess) -> float:
    """Return the share of a core that daemon and database use while nothing is asked of them."""
    pids = [process.pid, *descendants(process.pid)]
    before, began = cpu_seconds(pids), time.perf_counter()
    await asyncio.sleep(_IDLE_SECONDS)
    return (cpu_seconds(pids) - before) / (time.perf_counter() - began)
