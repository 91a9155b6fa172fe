"""``python -m tests.deploy.drill``: 24 minutes of bad luck, watched by a real Prometheus.

A provider fails, a grant is revoked, the database goes away: the alerts of deploy/prometheus, with
the durations that they have, must fire for what happened, for nothing else, and clear afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

from aiohttp import ClientError

from daemon.domain.clock import SystemClock, system_entropy
from daemon.persistence.embedded.server import EmbeddedPostgres
from tests.deploy.drawing import Band
from tests.deploy.incidents import (
    ACME,
    END,
    GLOBEX,
    HEALED,
    INCIDENTS,
    OUTAGE,
    REVOKED,
    STARTED,
    STOPPED,
    Firing,
    firing_of,
    judge,
)
from tests.deploy.panels import draw
from tests.deploy.prometheus import MISSING, Prometheus, find
from tests.support.postgres import QUICK, Cluster
from tests.support.raw_server import Answer
from tests.support.token_server import TokenServer, refuses, says
from tests.support.tokenward import Tokenward

_CLOCK = SystemClock()
_CONNECTIONS = 20
# So short that an outage of minutes ends tokens, and 40 connections are refreshed all the time.
_LIFETIMES = {ACME: 240, GLOBEX: 120}
_READ_EVERY = 0.1
_SCRAPE = 5


class Drill:
    """The daemon, its two providers, its database."""

    def __init__(self, directory: Path, *, pace: float = 1.0) -> None:
        self.readings: dict[int, int] = {}
        self.started_at = 0.0
        self._directory = directory
        self._pace = pace
        self._began = 0.0

    async def run(self, executable: str, pictures: Path | None) -> list[str]:
        """Go through it all; return what was not as it should be."""
        async with AsyncExitStack() as stack:
            acme = await stack.enter_async_context(self._server(ACME))
            globex = await stack.enter_async_context(self._server(GLOBEX))
            postgres = EmbeddedPostgres(
                self._directory / "postgres",
                entropy=system_entropy,
                clock=_CLOCK,
                options=QUICK,
            )
            await postgres.start()
            stack.push_async_callback(postgres.stop)
            url = Cluster(postgres).create_database()
            daemon = Tokenward(
                self._directory / "daemon",
                {
                    "database": {"url": url},
                    "refresh": {"request_timeout": "5s"},
                    "providers": {
                        ACME: acme.provider(rotation="overlap"),
                        GLOBEX: globex.provider(rotation="overlap"),
                    },
                },
            )
            stack.push_async_callback(daemon.close)
            await daemon.start(within=120)
            prometheus = await stack.enter_async_context(
                Prometheus(
                    executable,
                    self._directory / "prometheus",
                    [daemon.ops_url.removeprefix("http://")],
                    interval=f"{_SCRAPE}s",
                )
            )
            self._began, self.started_at = time.monotonic(), _CLOCK.now().timestamp()
            names = await self._connect(daemon)
            reading = asyncio.create_task(self._read(daemon, names))
            await self._suffer(acme, globex, postgres)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            firings = await self._firings(prometheus)
            for firing in firings:
                spans = ", ".join(f"{since:.1f} to {until:.1f}" for since, until in firing.spans)
                _say(f"{firing.alert} {firing.provider}: minutes {spans}")
            _say(f"answers to {sum(self.readings.values())} reads: {self.readings}")
            if pictures is not None:
                bands = [Band(name=i.name, begins=i.begins, ends=i.ends) for i in INCIDENTS]
                await draw(
                    prometheus,
                    pictures,
                    since=self.started_at,
                    until=_CLOCK.now().timestamp(),
                    provider=ACME,
                    bands=bands,
                )
            if not await daemon.has_started():
                raise AssertionError("the daemon does not answer")
        return judge(firings, end=END)

    async def _suffer(
        self, acme: TokenServer, globex: TokenServer, postgres: EmbeddedPostgres
    ) -> None:
        await self._until(REVOKED, "a grant is revoked at globex")
        globex.answer = _refuse_once(globex)
        await self._until(OUTAGE, "acme answers 503")
        acme.answer = says(503, {"message": "maintenance"})
        await self._until(HEALED, "acme is back")
        acme.answer = acme.grant
        await self._until(STOPPED, "PostgreSQL is stopped")
        await postgres.stop()
        await self._until(STARTED, "PostgreSQL is started")
        await postgres.start()
        await self._until(END, "the end")

    async def _until(self, minute: float, what: str) -> None:
        left = self._began + minute * 60 * self._pace - time.monotonic()
        await asyncio.sleep(max(0.0, left))
        _say(f"minute {minute}: {what}")

    @asynccontextmanager
    async def _server(self, name: str) -> AsyncIterator[TokenServer]:
        async with TokenServer(prefix=f"{name}-", expires_in=_LIFETIMES[name]) as server:
            yield server

    async def _connect(self, daemon: Tokenward) -> list[str]:
        names = [f"{p}-{n}" for p in (ACME, GLOBEX) for n in range(_CONNECTIONS)]
        for name in names:
            provider = name.partition("-")[0]
            await daemon.create(provider, id=name, tokens={"refresh_token": f"first-{name}"})
        return names

    async def _read(self, daemon: Tokenward, names: list[str]) -> None:
        for name in cycle(names):
            status = 0
            with contextlib.suppress(ClientError, TimeoutError):
                status = (await daemon.token(name)).status
            self.readings[status] = self.readings.get(status, 0) + 1
            await asyncio.sleep(_READ_EVERY)

    async def _firings(self, prometheus: Prometheus) -> list[Firing]:
        found = await prometheus.ask(
            "query_range",
            query='ALERTS{alertstate="firing"}',
            start=str(self.started_at),
            end=str(_CLOCK.now().timestamp()),
            step=str(_SCRAPE),
        )
        firings = [firing_of(series, self.started_at, every=_SCRAPE) for series in found["result"]]
        return sorted(firings, key=lambda one: (one.spans[0], one.alert, one.provider))


def _refuse_once(server: TokenServer) -> Answer:
    """Return an answer that ends the one grant that comes next."""

    async def answer(wire: Any) -> None:
        server.answer = server.grant
        await refuses("invalid_grant")(wire)

    return answer


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Run it; 1 where an alert did not do what it should."""
    parser = argparse.ArgumentParser(prog="python -m tests.deploy.drill")
    parser.add_argument("--pictures", type=Path, help="where to put pictures, and what they show")
    parser.add_argument("--pace", type=float, default=1.0, help="below 1 only to try the script")
    arguments = parser.parse_args()
    executable = find("prometheus")
    if executable is None:
        _say(MISSING)
        return 2
    with tempfile.TemporaryDirectory() as directory:
        drill = Drill(Path(directory), pace=arguments.pace)
        faults = asyncio.run(drill.run(executable, arguments.pictures))
    for fault in faults:
        _say(f"FAULT: {fault}")
    _say("All alerts did what they should." if not faults else f"{len(faults)} faults.")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
