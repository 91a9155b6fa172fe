"""``python -m tests.deploy.drill``: half an hour of bad luck, watched by a real Prometheus.

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
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

from aiohttp import ClientError

from daemon.domain.clock import SystemClock, system_entropy
from daemon.persistence.embedded.server import EmbeddedPostgres
from tests.deploy.drawing import Band
from tests.deploy.panels import draw
from tests.deploy.prometheus import MISSING, Prometheus, find
from tests.support.postgres import QUICK, Cluster
from tests.support.raw_server import Answer
from tests.support.token_server import TokenServer, refuses, says
from tests.support.tokenward import Tokenward

_CLOCK = SystemClock()
ACME, GLOBEX = "acme", "globex"
_CONNECTIONS = 20
# So short that an outage of minutes ends tokens, and 40 connections are refreshed all the time.
_LIFETIMES = {ACME: 240, GLOBEX: 120}
_READ_EVERY = 0.1
_SCRAPE = 5

# Minutes after the start: what begins then. The last one is the end.
OUTAGE, REVOKED, HEALED, STOPPED, STARTED, END = 3, 4, 11, 17, 20, 28


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """What was done, from when to when (minutes), and the alerts that it must cause."""

    name: str
    begins: float
    ends: float
    alerts: frozenset[tuple[str, str]]
    """Pairs of alert and provider; no provider where it is about the daemon."""
    may: frozenset[tuple[str, str]] = frozenset()
    """Alerts that depend on when tokens happen to end."""
    clears_within: float = 11.0


INCIDENTS = (
    Incident(
        name="acme answers 503",
        begins=OUTAGE,
        ends=HEALED,
        alerts=frozenset(
            (name, ACME)
            for name in (
                "TokenwardProviderCircuitOpen",
                "TokenwardTokensAboutToExpire",
                "TokenwardConnectionsExpired",
                "TokenwardTokensUnavailable",
                "TokenwardRefreshesFailing",
            )
        ),
    ),
    Incident(
        name="a grant is revoked at globex",
        begins=REVOKED,
        ends=REVOKED,
        alerts=frozenset({("TokenwardReauthorizationRequired", GLOBEX)}),
        clears_within=18.0,
    ),
    Incident(
        name="PostgreSQL is stopped",
        begins=STOPPED,
        ends=STARTED,
        alerts=frozenset(
            {
                ("TokenwardDatabaseDown", ""),
                ("TokenwardTokensAboutToExpire", ACME),
                ("TokenwardTokensAboutToExpire", GLOBEX),
            }
        ),
        may=frozenset(
            (name, provider)
            for name in ("TokenwardTokensUnavailable", "TokenwardConnectionsExpired")
            for provider in (ACME, GLOBEX)
        ),
    ),
)


@dataclass(kw_only=True)
class Firing:
    """One alert that fired, in minutes after the start."""

    alert: str
    provider: str
    labels: Mapping[str, str]
    spans: list[tuple[float, float]] = field(default_factory=list)


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
            await self._suffer(acme, globex, postgres, daemon)
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
        return judge(firings, end=END)

    async def _suffer(
        self, acme: TokenServer, globex: TokenServer, postgres: EmbeddedPostgres, daemon: Tokenward
    ) -> None:
        await self._until(OUTAGE, "acme answers 503")
        acme.answer = says(503, {"message": "maintenance"})
        await self._until(REVOKED, "a grant is revoked at globex")
        globex.answer = _refuse_once(globex)
        await self._until(HEALED, "acme is back")
        acme.answer = acme.grant
        await self._until(STOPPED, "PostgreSQL is stopped")
        await postgres.stop()
        await self._until(STARTED, "PostgreSQL is started")
        await postgres.start()
        await self._until(END, "the end")
        assert daemon.process is not None
        assert daemon.process.poll() is None, daemon.log()[-5000:]

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
        firings = [_firing(series, self.started_at) for series in found["result"]]
        return sorted(firings, key=lambda one: (one.spans[0], one.alert, one.provider))


def _refuse_once(server: TokenServer) -> Answer:
    """Return an answer that ends the one grant that comes next."""

    async def answer(wire: Any) -> None:
        server.answer = server.grant
        await refuses("invalid_grant")(wire)

    return answer


def _firing(series: Mapping[str, Any], began: float) -> Firing:
    labels = series["metric"]
    firing = Firing(alert=labels["alertname"], provider=labels.get("provider", ""), labels=labels)
    for at, _ in series["values"]:
        minute = (float(at) - began) / 60
        if firing.spans and minute - firing.spans[-1][1] < 2.5 * _SCRAPE / 60:
            firing.spans[-1] = (firing.spans[-1][0], minute)
        else:
            firing.spans.append((minute, minute))
    return firing


def judge(firings: list[Firing], *, end: float) -> list[str]:
    """Return what did not fire, fired for nothing, or did not clear. Pure."""
    faults = []
    for incident in INCIDENTS:
        seen = {
            (one.alert, one.provider)
            for one in firings
            for since, _ in one.spans
            if incident.begins <= since <= incident.ends + incident.clears_within
        }
        faults += [
            f"{incident.name}: {name} {p} did not fire" for name, p in incident.alerts - seen
        ]
    for one in firings:
        for since, until in one.spans:
            if not any(_explains(incident, one, since, until) for incident in INCIDENTS):
                faults.append(f"{one.alert} {one.provider} fired from {since:.1f} to {until:.1f}")
            if until > end - 0.5:
                faults.append(f"{one.alert} {one.provider} has not cleared")
    return faults


def _explains(incident: Incident, firing: Firing, since: float, until: float) -> bool:
    is_its_own = (firing.alert, firing.provider) in incident.alerts | incident.may
    return (
        is_its_own and incident.begins <= since and until <= incident.ends + incident.clears_within
    )


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
