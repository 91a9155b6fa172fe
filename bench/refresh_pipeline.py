"""Refreshes a second through the whole pipeline, paired with a bare POST + encrypt + UPDATE loop.

Both write to the same embedded PostgreSQL, durably, and ask the same token endpoint. The daemon
opens a connection for each request, as it must for rotating providers; the yardstick is measured
both that way, which is what the goal is about, and with kept ones, which shows the price of it. The
daemon without its journal, which must never be, shows the price of that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bench.bare_loop import IN_FLIGHT
from bench.daemons import hosted, provider
from bench.paired import Comparison, Goal, Report, Round, Spread, in_turns, spread
from bench.processes import (
    CLIENT_CORE,
    SERVER_CORE,
    LineProcess,
    cpu_seconds,
    descendants,
    pin,
    running,
)
from daemon.domain.clock import SystemClock, system_entropy
from daemon.persistence.embedded.server import EmbeddedPostgres
from tests.support.tokenward import Tokenward

GOAL = 0.5
# As many as the daemon's pool has.
_POOL = 10
_NEW, _KEPT = "bare loop, new connections", "bare loop, kept connections"
_OURS, _FORGETFUL = "tokenward", "tokenward, no journal"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Metered:
    """A round with where else it used CPU: seconds of PostgreSQL and of the token endpoint."""

    round: Round
    database: float
    endpoint: float


class _Batches:
    """Hands out batches of rows in turn, so that a row is not refreshed twice in a row."""

    def __init__(self, *, size: int, rows: int) -> None:
        self._size = size
        self._rows = rows
        self._first = 0

    def next(self) -> dict[str, Any]:
        first, self._first = self._first, (self._first + self._size) % self._rows
        return {"do": "refresh", "first": first, "count": self._size}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    daemon: LineProcess
    loop: LineProcess
    endpoint: LineProcess
    metered: dict[str, list[_Metered]]

    async def measure(self, name: str, batches: _Batches) -> Round:
        """Run one batch and note who used CPU for it."""
        is_ours = name in {_OURS, _FORGETFUL}
        worker = self.daemon if is_ours else self.loop
        order = batches.next() | (
            {"journal": name == _OURS} if is_ours else {"keeps": name == _KEPT}
        )
        postgres = descendants(self.daemon.pid)
        database, endpoint = cpu_seconds(postgres), cpu_seconds([self.endpoint.pid])
        found = await worker.ask(order)
        done = Round(requests=order["count"], seconds=found["seconds"], cpu=found["cpu"])
        self.metered[name].append(
            _Metered(
                round=done,
                # The daemon knows better: what made its rows due is no part of a refresh.
                database=found.get("database", cpu_seconds(postgres) - database),
                endpoint=cpu_seconds([self.endpoint.pid]) - endpoint,
            )
        )
        return done


async def measure(directory: Path, *, pairs: int, batch: int) -> Report:
    """Measure ``pairs`` batches of so many refreshes by each."""
    rows = batch * 4
    async with _started(directory, rows) as bench:
        batches = {name: _Batches(size=batch, rows=rows) for name in bench.metered}
        # Rows of one daemon, whether it keeps a journal or not.
        batches[_FORGETFUL] = batches[_OURS]
        rounds = await in_turns(
            {name: partial(bench.measure, name, batches[name]) for name in batches}, pairs=pairs
        )
        told = await bench.endpoint.ask({})
    ours = rounds[_OURS]
    comparisons = {name: Comparison.of(ours, theirs) for name, theirs in rounds.items()}
    return Report(
        name="refresh_pipeline",
        rows=[_row(name, comparisons[name].rate, bench.metered[name][1:]) for name in rounds],
        goals=[
            Goal(what=f"rate ÷ {_NEW}", value=comparisons[_NEW].rate.middle, bound=GOAL),
            Goal(what="spent tokens sent", value=told["repeated"], bound=0, is_ceiling=True),
        ],
    )


@asynccontextmanager
async def _started(directory: Path, rows: int) -> AsyncIterator[_Bench]:
    async with AsyncExitStack() as stack:
        endpoint = await stack.enter_async_context(running("token_server", core=CLIENT_CORE))
        port = (await endpoint.ask())["port"]
        acme = provider(port, concurrency=IN_FLIGHT, rate="100000/s")
        settings = {"providers": {"acme": acme}, "refresh": {"concurrency": IN_FLIGHT}}
        daemon = await stack.enter_async_context(hosted(Tokenward(directory, settings)))
        for pid in descendants(daemon.pid):
            pin(pid, CLIENT_CORE)
        await daemon.ask({"do": "seed", "count": rows})
        database = EmbeddedPostgres(
            directory / "state", entropy=system_entropy, clock=SystemClock()
        ).url()
        arguments = (database, f"http://127.0.0.1:{port}/token", str(_POOL))
        loop = await stack.enter_async_context(running("bare_loop", *arguments, core=SERVER_CORE))
        await loop.ask()
        await loop.ask({"do": "seed", "count": rows})
        names = (_OURS, _FORGETFUL, _NEW, _KEPT)
        metered: dict[str, list[_Metered]] = {name: [] for name in names}
        yield _Bench(daemon=daemon, loop=loop, endpoint=endpoint, metered=metered)


def _row(name: str, ratio: Spread, found: list[_Metered]) -> dict[str, str | float]:
    def each(seconds: list[float]) -> float:
        counts = [m.round.requests for m in found]
        return round(median(s / n for s, n in zip(seconds, counts, strict=True)) * 1e6)

    return {
        "": name,
        "refreshes/s": round(spread([m.round.rate for m in found]).middle),
        "CPU µs": each([m.round.cpu for m in found]),
        "PostgreSQL µs": each([m.database for m in found]),
        "endpoint µs": each([m.endpoint for m in found]),
        "our rate ÷ its": "" if name == _OURS else str(ratio),
    }
