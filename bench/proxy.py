"""Requests through the proxy, paired with a bare aiohttp streaming proxy and with the API."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from statistics import median

from bench.daemons import TOKEN
from bench.load import Target, generator
from bench.paired import Comparison, Goal, Report, Round, in_turns, spread, summary
from bench.processes import CLIENT_CORE, SERVER_CORE, running
from tests.support.proxy_stage import KEY, PROXY

GOAL = 0.9
GOAL_ADDED_MS = 1.0
_CONNECTIONS = {"/small": (1, 16, 64), "/large": (4,)}


async def measure(directory: Path, *, pairs: int, seconds: float) -> Report:
    """Measure rounds of ``seconds`` each: 1 KB answers at several concurrencies, and 1 MiB ones."""
    del directory
    rows: list[dict[str, str | float]] = []
    goals: list[Goal] = []
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(running("api_server", core=CLIENT_CORE))
        port = (await api.ask())["port"]
        places = {"direct": ("", port, api.pid)}
        for name, module, prefix in (
            ("tokenward", "hosted_proxy", PROXY),
            ("aiohttp app", "bare_proxy", ""),
        ):
            process = await stack.enter_async_context(
                running(module, str(port), TOKEN, core=SERVER_CORE)
            )
            places[name] = (prefix, (await process.ask())["port"], process.pid)
        load = await stack.enter_async_context(generator())
        for path, numbers in _CONNECTIONS.items():
            for connections in numbers:
                asked = partial(load.run, connections=connections, seconds=seconds)
                targets = {
                    name: Target(place=at, path=prefix + path, key=KEY, pid=pid)
                    for name, (prefix, at, pid) in places.items()
                }
                rounds = await in_turns(
                    {name: partial(asked, target) for name, target in targets.items()}, pairs=pairs
                )
                place = f"{path[1:]} {connections}"
                rows += _rows(place, rounds)
                goals += _goals(place, connections, rounds)
    return Report(name="proxy", rows=rows, goals=goals)


def _added(rounds: dict[str, list[Round]]) -> list[float]:
    pairs = zip(rounds["tokenward"], rounds["direct"], strict=True)
    return [(ours.p50 - theirs.p50) * 1e3 for ours, theirs in pairs]


def _rows(place: str, rounds: dict[str, list[Round]]) -> list[dict[str, str | float]]:
    ours = rounds["tokenward"]
    rows: list[dict[str, str | float]] = []
    for name, theirs in rounds.items():
        found = Comparison.of(ours, theirs)
        is_bare = name == "aiohttp app"
        rows.append(
            {"answers": place, "server": name}
            | summary(theirs)
            | {
                "our rate ÷ its": str(found.rate) if is_bare else "",
                "our CPU ÷ its": str(found.cpu) if is_bare else "",
                "ms added at p50": str(spread(_added(rounds))) if name == "direct" else "",
            }
        )
    return rows


def _goals(place: str, connections: int, rounds: dict[str, list[Round]]) -> list[Goal]:
    rate = Comparison.of(rounds["tokenward"], rounds["aiohttp app"]).rate.middle
    goals = [Goal(what=f"rate, {place}", value=rate, bound=GOAL)]
    if connections == 1:
        added = median(_added(rounds))
        what = f"ms added at the median, {place}"
        goals.append(Goal(what=what, value=added, bound=GOAL_ADDED_MS, is_ceiling=True))
    return goals
