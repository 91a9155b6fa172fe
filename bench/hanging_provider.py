"""One provider hangs, with 200 callers waiting for it: what do another provider's callers notice?

Two daemons with the same connections take turns; one of them has the hanging provider's callers.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

from aiohttp import ClientError, ClientSession, TCPConnector

from bench.daemons import imported, pid_of, provider, serving, target_of
from bench.load import generator
from bench.paired import Comparison, Goal, Report, Round, in_turns, summary
from bench.processes import CLIENT_CORE, cpu_seconds, running
from tests.support.tokenward import Tokenward

CALLERS = 200
CONNECTIONS = 64
# "No slower", less what paired ratios drift by.
GOAL = 0.95
_REFRESHES = 20
# Old enough, after the pause, to be worth refreshing, and good for as long as this takes.
_LIFETIME, _PAUSE = timedelta(seconds=60), 5.0
_MIN_TTL = 58
_WITH, _WITHOUT = "one provider hangs", "none hangs"


async def measure(directory: Path, *, pairs: int, seconds: float) -> Report:
    """Measure reads and forced refreshes of the other provider, with and without."""
    async with AsyncExitStack() as stack:
        endpoint = await stack.enter_async_context(running("token_server", core=CLIENT_CORE))
        other = provider((await endpoint.ask())["port"], rate="100000/s")
        hanging = provider(await stack.enter_async_context(_silence()))
        daemons: dict[str, Tokenward] = {}
        for name, folder in ((_WITH, "with"), (_WITHOUT, "without")):
            daemon = await stack.enter_async_context(
                serving(directory / folder, {"other": other, "hanging": hanging})
            )
            await daemon.create("other", id="bench", tokens=imported(timedelta(days=30)))
            await daemon.create("other", id="forced", tokens=imported(timedelta(days=30)))
            # The first read of an imported connection takes it into the cache.
            await daemon.token("bench")
            daemons[name] = daemon
        # Killed in the end: it would wait for what hangs, as it should, for a minute.
        stack.callback(daemons[_WITH].signal, signal.SIGKILL)
        await stack.enter_async_context(_callers(daemons[_WITH]))
        load = await stack.enter_async_context(generator())
        reads = await in_turns(
            {
                name: partial(load.run, target_of(daemon), connections=CONNECTIONS, seconds=seconds)
                for name, daemon in daemons.items()
            },
            pairs=pairs,
        )
        refreshes = await in_turns(
            {name: partial(_forced, daemon) for name, daemon in daemons.items()}, pairs=pairs
        )
    return _report({"token reads": reads, "refreshes, one at a time": refreshes})


def _report(found: dict[str, dict[str, list[Round]]]) -> Report:
    rows: list[dict[str, str | float]] = []
    goals: list[Goal] = []
    for what, rounds in found.items():
        comparison = Comparison.of(rounds[_WITH], rounds[_WITHOUT])
        goals.append(Goal(what=f"{what}: rate", value=comparison.rate.middle, bound=GOAL))
        for name, measured in rounds.items():
            is_with = name == _WITH
            rows.append(
                {"what": what, "while": name}
                | summary(measured)
                | {
                    "rate with ÷ without": str(comparison.rate) if is_with else "",
                    "p99 with ÷ without": str(comparison.p99) if is_with else "",
                }
            )
    return Report(name="hanging_provider", rows=rows, goals=goals)


@asynccontextmanager
async def _silence() -> AsyncIterator[int]:
    """Accept connections, read, never answer; yields the port."""

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass
        writer.close()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0, backlog=1024)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@asynccontextmanager
async def _callers(daemon: Tokenward) -> AsyncIterator[None]:
    """Have 200 callers wait for tokens of the hanging provider, each for its own."""
    names = [f"hanging-{number}" for number in range(CALLERS)]
    for name in names:
        await daemon.create("hanging", id=name, tokens=imported(_LIFETIME))
    async with ClientSession(connector=TCPConnector(limit=0)) as session:
        await asyncio.sleep(_PAUSE)
        callers = [asyncio.create_task(_insist(session, daemon, name)) for name in names]
        try:
            yield
        finally:
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)


async def _insist(session: ClientSession, daemon: Tokenward, name: str) -> None:
    url = f"{daemon.api_url}/v1/connections/{name}/token?min_ttl={_MIN_TTL}"
    headers = {"Authorization": f"Bearer {daemon.key}"}
    while True:
        try:
            async with session.get(url, headers=headers) as answer:
                await answer.read()
                pause = float(answer.headers.get("Retry-After", "0.1"))
        except ClientError:
            pause = 0.1
        await asyncio.sleep(pause)


async def _forced(daemon: Tokenward) -> Round:
    """Refresh a token of the other provider, one time after another."""
    latencies = []
    cpu = cpu_seconds([pid_of(daemon)])
    generation = (await daemon.token("forced")).body["generation"]
    for _ in range(_REFRESHES):
        began = perf_counter()
        answer = await daemon.token("forced", f"?newer_than={generation}")
        latencies.append(perf_counter() - began)
        if answer.status != 200 or answer.body["generation"] <= generation:
            raise RuntimeError(f"not refreshed: {answer.status}")
        generation = answer.body["generation"]
    return Round(
        requests=_REFRESHES,
        seconds=sum(latencies),
        cpu=cpu_seconds([pid_of(daemon)]) - cpu,
        p50=median(latencies),
        p99=max(latencies),
    )
