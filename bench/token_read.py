"""Token reads of the real daemon, over TCP and a Unix socket, paired with bare aiohttp handlers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

from bench.bare_handler import PATH
from bench.daemons import imported, provider, serving, target_of
from bench.load import Target, generator
from bench.paired import Comparison, Goal, Report, Round, in_turns, summary
from bench.processes import SERVER_CORE, running

CONNECTIONS = (1, 16, 64)
GOAL = 0.85
GOAL_P99_MS = 2.0


@dataclass(frozen=True, slots=True)
class _Place:
    """The same target twice: how it is reached over TCP and over its Unix socket."""

    tcp: Target
    unix: Target

    @classmethod
    def of(cls, tcp: Target, unix_socket: Path) -> _Place:
        return cls(tcp, replace(tcp, place=str(unix_socket)))


async def measure(directory: Path, *, pairs: int, seconds: float) -> Report:
    """Measure rounds of ``seconds`` each, ``pairs`` of them, at every number of connections."""
    rows: list[dict[str, str | float]] = []
    goals: list[Goal] = []
    async with AsyncExitStack() as stack:
        daemon = await stack.enter_async_context(serving(directory, {"acme": provider()}))
        await daemon.create("acme", id="bench", tokens=imported(timedelta(days=30)))
        body = directory / "body.json"
        body.write_bytes((await daemon.token("bench")).content)
        places = {"tokenward": _Place.of(target_of(daemon), directory / "api.sock")}
        for kind in ("app", "server"):
            places[f"aiohttp {kind}"] = await stack.enter_async_context(
                _bare(kind, body, directory / f"{kind}.sock", key=daemon.key)
            )
        load = await stack.enter_async_context(generator())
        for transport in ("tcp", "unix"):
            targets = {
                name: place.tcp if transport == "tcp" else place.unix
                for name, place in places.items()
            }
            for connections in CONNECTIONS:
                asked = partial(load.run, connections=connections, seconds=seconds)
                rounds = await in_turns(
                    {name: partial(asked, target) for name, target in targets.items()}, pairs=pairs
                )
                rows += _rows(f"{transport} {connections}", rounds)
                goals += _goals(f"{transport}, {connections} connections", rounds)
    return Report(name="token_read", rows=rows, goals=goals)


@asynccontextmanager
async def _bare(kind: str, body: Path, unix_socket: Path, *, key: str) -> AsyncIterator[_Place]:
    async with running(
        "bare_handler", kind, str(body), str(unix_socket), core=SERVER_CORE
    ) as process:
        port = (await process.ask())["port"]
        yield _Place.of(Target(place=port, path=PATH, key=key, pid=process.pid), unix_socket)


def _rows(place: str, rounds: dict[str, list[Round]]) -> list[dict[str, str | float]]:
    ours = rounds["tokenward"]
    rows: list[dict[str, str | float]] = []
    for name, theirs in rounds.items():
        found = Comparison.of(ours, theirs)
        is_own = theirs is ours
        rows.append(
            {"place": place, "server": name}
            | summary(theirs)
            | {
                "our rate ÷ its": "" if is_own else str(found.rate),
                "our CPU ÷ its": "" if is_own else str(found.cpu),
                "our p99 ÷ its": "" if is_own else str(found.p99),
            }
        )
    return rows


def _goals(place: str, rounds: dict[str, list[Round]]) -> list[Goal]:
    ours = rounds["tokenward"]
    rate = Comparison.of(ours, rounds["aiohttp app"]).rate.middle
    p99 = float(summary(ours)["p99 ms"])
    goals = [Goal(what=f"rate, {place}", value=rate, bound=GOAL)]
    if place.endswith("64 connections"):
        goals.append(Goal(what=f"p99 ms, {place}", value=p99, bound=GOAL_P99_MS, is_ceiling=True))
    return goals
