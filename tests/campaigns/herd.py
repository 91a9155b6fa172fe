"""The herd campaign: thousands of tokens that end at one moment, and a provider that goes away.

Real daemon, real PostgreSQL, a provider in a process of its own that notes when who asked. While
it runs, a reader samples all connections: a token that is still good must be served, one that has
ended never. ``spread`` looks at equal expiries, ``outage`` at an outage and what comes after it,
``crowd`` at callers who all want one token that has ended.
"""

from __future__ import annotations

import asyncio
import json
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from daemon.domain.clock import SystemClock
from tests.campaigns.herd_server import access_token, expiry_of, refresh_token
from tests.support.polling import eventually
from tests.support.tokenward import ROOT, Tokenward

# The contract: in any one second at most so many more than the rate.
BURST = 10
# An open circuit lets one request through in so many seconds.
PROBE_SECONDS = 30.0
# A circuit opens at the fifth failure; what is in flight then is on its way.
_BEFORE_IT_OPENS = 5
# With less left a token counts as ended.
_LAST_SECOND = 1.0
# A lifetime counts from when its request left, which only the daemon knows, and is announced cut
# to the second: so much before the provider's own moment a token may be said to end.
_EARLY = 2.0
_KEYS = [{"id": "k1", "secret": "A" * 43 + "="}]
_EXPIRED_LONG_AGO = "2020-01-01T00:00:00Z"
_IMPORTS_AT_ONCE = 16
_WAITING_CALLERS = 20
_GATHERING_SECONDS = 90
_CONNECTING_AT_ONCE = 50
_LONGEST_LINE = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of what. Times are in seconds.

    All imported tokens end ``lifetime`` after the import is over, for which ``importing`` is
    allowed. The outage begins then and ends ``beyond`` after the last token's end. ``slack`` is the
    share of the rate by which the busiest second may exceed what is allowed: on a machine that is
    busy with something else, requests that left one after the other arrive together.
    """

    connections: int
    rate: int
    lifetime: float
    importing: float
    beyond: float
    reads: float = 300.0
    concurrency: int = 64
    slack: float = 0.0


@dataclass(slots=True)
class Reads:
    """What a reader has seen. ``faults`` must stay empty."""

    served: int = 0
    refused: int = 0
    warned: int = 0
    faults: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Findings:
    """What a phase found, line by line; ``faults`` must stay empty."""

    name: str
    lines: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def note(self, line: str, *, holds: bool = True) -> None:
        """Report ``line``; it is a fault where it does not hold."""
        (self.lines if holds else self.faults).append(line)

    def __str__(self) -> str:
        """Return a few lines for people."""
        faults = [f"  WRONG: {line}" for line in self.faults[:20]]
        return "\n".join([f"{self.name}:", *(f"  {line}" for line in self.lines), *faults])


class Provider:
    """The driver's side of a ``herd_server``."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self._process = process
        self.port = port

    async def ask(self, do: str, **more: object) -> Any:
        """Give a command and return what it answers."""
        if self._process.stdin is None:
            raise AssertionError("started with pipes")
        self._process.stdin.write(json.dumps({"do": do, **more}).encode() + b"\n")
        return await _line(self._process)

    def settings(self, plan: Plan, **more: object) -> dict[str, Any]:
        """Return a provider entry."""
        url = f"http://127.0.0.1:{self.port}"
        return {
            "authorization_endpoint": f"{url}/authorize",
            "token_endpoint": f"{url}/token",
            "client_id": "tokenward",
            "client_secret": "a secret that nobody checks",
            "scopes": ["read"],
            "rate": f"{plan.rate}/s",
            "concurrency": plan.concurrency,
            **more,
        }


@asynccontextmanager
async def provider(lifetime: float) -> AsyncIterator[Provider]:
    """Run a provider whose tokens live for so long."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.campaigns.herd_server", str(lifetime)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LONGEST_LINE,
    )
    try:
        yield Provider(process, (await _line(process))["port"])
    finally:
        process.terminate()
        await process.wait()


async def _line(process: asyncio.subprocess.Process) -> Any:
    if process.stdout is None:
        raise AssertionError("started with pipes")
    return json.loads(await process.stdout.readline())


class Herd:
    """One provider's connections at one daemon, and a reader that samples them."""

    def __init__(self, name: str, daemon: Tokenward, server: Provider, plan: Plan) -> None:
        self.findings = Findings(name)
        self.reads = Reads()
        self._name = name
        self._daemon = daemon
        self._server = server
        self._plan = plan
        self._clock = SystemClock()
        self._names = [f"{name}-{number}" for number in range(plan.connections)]
        # As callers are told, and as the provider has it.
        self._good_until: dict[str, float] = {}
        self._ends_at: dict[str, float] = {}
        self._fresh_at: dict[str, float] = {}
        self._began = 0.0

    def now(self) -> float:
        """Return seconds since 1970."""
        return self._clock.now().timestamp()

    async def spread(self) -> Findings:
        """Import tokens that all end at one moment; wait until each was refreshed once."""
        await self._import()
        async with self._reading(self._names):
            await self._until_refreshed(self._began + self._plan.importing + self._plan.lifetime)
        arrivals = await self._arrivals()
        self._note_reads()
        note = self.findings.note
        missed = len(self._names) - len(self._fresh_at)
        note(f"{missed} connections not refreshed before their tokens' end", holds=not missed)
        note(f"{len(arrivals)} requests", holds=len(arrivals) >= len(self._names))
        self._note_peak([at for at, _, _ in arrivals])
        self._note_uniformity([at for at, _, _ in arrivals])
        return self.findings

    async def outage(self) -> Findings:
        """Import, take the provider away until after all tokens have ended, bring it back."""
        await self._import()
        end = max(self._good_until.values())
        some = self._names[:: max(1, len(self._names) // _WAITING_CALLERS)]
        await self._server.ask("mode", mode="turn_away")
        gone_at = self.now()
        async with self._reading(self._names):
            await self._sleep_until((gone_at + end) / 2)
            # The second half: nobody listens at all.
            await self._server.ask("refuse")
            await self._sleep_until(end + 1)
        async with self._reading(some):
            await self._sleep_until(end + self._plan.beyond)
            attempts = await self._failures()
            await self._server.ask("mode", mode="grant")
            await self._server.ask("open")
            back_at = self.now()
            within = PROBE_SECONDS * 2 + 3 * self._plan.connections / self._plan.rate
            await self._until_granted(back_at, within)
        self._note_attempts(attempts, seconds=back_at - gone_at)
        self._note_reads()
        await self._note_recovery(back_at, some)
        return self.findings

    async def _import(self) -> None:
        plan = self._plan
        self._began = self.now()
        # To the second, so that a token's own text says the same.
        end = float(round(self._began + plan.importing + plan.lifetime))
        names = iter(self._names)
        await asyncio.gather(*(self._import_some(names, end) for _ in range(_IMPORTS_AT_ONCE)))
        seconds = self.now() - self._began
        self.findings.note(
            f"{len(self._names)} imported in {seconds:.1f} s; their tokens end in one second",
            holds=seconds <= plan.importing,
        )

    async def _import_some(self, names: Iterable[str], end: float) -> None:
        for name in names:
            await self._daemon.create(
                self._name,
                id=name,
                tokens={
                    "refresh_token": refresh_token(name, 1),
                    "access_token": access_token(name, 1, end),
                    "expires_at": datetime.fromtimestamp(end, UTC).isoformat(),
                },
            )
            self._good_until[name] = self._ends_at[name] = end

    @asynccontextmanager
    async def _reading(self, names: Sequence[str]) -> AsyncIterator[None]:
        """Sample ``names`` in turn, at the plan's rate, while the block runs."""
        stop = asyncio.Event()
        reader = asyncio.create_task(self._read_all(names, stop))
        try:
            yield
        finally:
            stop.set()
            await reader

    async def _read_all(self, names: Sequence[str], stop: asyncio.Event) -> None:
        reading: set[asyncio.Task[None]] = set()
        number = 0
        pause = max(1 / self._plan.reads, 0.1 / len(names))
        while not stop.is_set():
            if len(reading) < 4 * _IMPORTS_AT_ONCE:
                task = asyncio.create_task(self._read(names[number % len(names)]))
                reading.add(task)
                task.add_done_callback(reading.discard)
                number += 1
            await asyncio.sleep(pause)
        await asyncio.gather(*reading)

    async def _read(self, name: str) -> None:
        asked_at = self.now()
        reply = await self._daemon.token(name)
        if reply.status == 200:
            self.reads.served += 1
            self.reads.warned += "warning" in reply.body
            self._note_served(name, reply.body, asked_at)
            return
        self.reads.refused += 1
        if reply.status != 503 or "Retry-After" not in reply.headers:
            self.reads.faults.append(f"{name}: {reply.status} {reply.content[:200]!r}")
        left = self._good_until[name] - self.now()
        if left > _LAST_SECOND:
            said = reply.content[:300].decode(errors="replace")
            self.reads.faults.append(f"{name}: not served, with {left:.1f} s to live: {said}")

    def _note_served(self, name: str, token: Mapping[str, Any], asked_at: float) -> None:
        ends_at = expiry_of(token["access_token"])
        if ends_at <= asked_at:
            late = asked_at - ends_at
            self.reads.faults.append(f"{name}: served {late:.1f} s after its end")
        said = datetime.fromisoformat(token["expires_at"]).timestamp()
        if ends_at - said > _EARLY:
            early = ends_at - said
            self.reads.faults.append(f"{name}: said to end {early:.1f} s before its time")
        said = max(said, asked_at + token["expires_in"])
        self._good_until[name] = max(said, self._good_until[name])
        if ends_at > self._ends_at[name]:
            self._ends_at[name] = ends_at
            self._fresh_at.setdefault(name, self.now())

    async def _until_refreshed(self, end: float) -> None:
        async def are_fresh() -> bool:
            return len(self._fresh_at) == len(self._names)

        await eventually(are_fresh, within=end - self.now(), what="the last refresh")

    async def _until_granted(self, since: float, within: float) -> None:
        while self.now() < since + within:
            found = (await self._server.ask("books", since=since))["arrivals"]
            if len({name for _, name, granted in found if granted}) == len(self._names):
                return
            await asyncio.sleep(0.5)

    async def _sleep_until(self, moment: float) -> None:
        await asyncio.sleep(max(0.0, moment - self.now()))

    async def _arrivals(self, since: float = 0.0) -> list[tuple[float, str, bool]]:
        books = await self._server.ask("books", since=since)
        self.findings.note(f"{books['spent']} spent tokens sent", holds=books["spent"] == 0)
        return sorted(map(tuple, books["arrivals"]))

    async def _failures(self) -> float:
        metrics = await self._daemon.metrics()
        series = f'tokenward_refresh_failures_total{{provider="{self._name}"'
        return sum(value for name, value in metrics.items() if name.startswith(series))

    def _note_reads(self) -> None:
        reads = self.reads
        self.findings.note(
            f"{reads.served} reads served ({reads.warned} with a warning), {reads.refused} "
            "refused for want of a good token"
        )
        self.findings.note(
            f"{len(reads.faults)} reads wrong{': ' + reads.faults[0] if reads.faults else ''}",
            holds=not reads.faults,
        )

    def _note_peak(self, arrivals: Sequence[float]) -> None:
        limit, peak = self._plan.rate + BURST, busiest(arrivals, 1.0)
        self.findings.note(
            f"busiest second: {peak} requests; allowed: {limit}",
            holds=peak <= limit + self._plan.slack * self._plan.rate,
        )

    def _note_uniformity(self, arrivals: Sequence[float]) -> None:
        if not arrivals:
            return
        seconds = arrivals[-1] - arrivals[0]
        tenth = max(seconds / 10, 1e-3)
        parts = Counter(min(9, int((at - arrivals[0]) / tenth)) for at in arrivals)
        mean = len(arrivals) / 10
        self.findings.note(
            f"spread over {seconds:.1f} s; tenths of that: "
            + " ".join(str(parts[part]) for part in range(10))
            + f"; the fullest is {max(parts.values()) / mean:.2f} of the mean"
        )

    def _note_attempts(self, attempts: float, *, seconds: float) -> None:
        allowed = _BEFORE_IT_OPENS + self._plan.concurrency + seconds // PROBE_SECONDS + 1
        self.findings.note(
            f"{attempts:.0f} attempts in an outage of {seconds:.0f} s; allowed: {allowed:.0f}",
            holds=0 < attempts <= allowed,
        )

    async def _note_recovery(self, back_at: float, some: Sequence[str]) -> None:
        arrivals = [each for each in await self._arrivals(back_at) if each[2]]
        times = [at for at, _, _ in arrivals]
        first: dict[str, float] = {}
        note = self.findings.note
        for at, name, _ in arrivals:
            first.setdefault(name, at)
        missing = len(self._names) - len(first)
        note(f"{missing} connections not recovered", holds=not missing)
        if not times:
            return
        self._note_peak(times)
        seconds, ideal = times[-1] - times[0], len(self._names) / self._plan.rate
        probe = times[0] - back_at
        note(f"the first request came {probe:.1f} s after the return", holds=probe <= 31)
        note(
            f"recovered in {seconds:.1f} s; backlog ÷ rate: {ideal:.1f} s; {len(times)} requests",
            holds=seconds <= 1.25 * ideal + 5,
        )
        waited = [first[name] - times[0] for name in some if name in first]
        others = [at - times[0] for name, at in first.items() if name not in set(some)]
        note(
            f"of whom callers wait: {max(waited, default=0):.1f} s at most; the others: "
            f"{median(others):.1f} s in the middle",
            holds=max(waited, default=0) <= max(5.0, median(others)),
        )


def busiest(moments: Sequence[float], seconds: float) -> int:
    """Return how many of ``moments`` (ascending) fell within any ``seconds``. Pure."""
    return max(
        (bisect_left(moments, at + seconds) - number for number, at in enumerate(moments)),
        default=0,
    )


async def crowd(directory: Path, database_url: str, *, callers: int, replicas: int) -> Findings:
    """Let so many callers wait, over all replicas, for one token that has ended."""
    findings = Findings("crowd")
    plan = Plan(connections=1, rate=100, lifetime=3600, importing=1, beyond=1)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(provider(plan.lifetime))
        await server.ask("mode", mode="hold")
        settings = _settings(database_url, crowd=server.settings(plan))
        # Longer than it takes to come together.
        settings["refresh"] = {"request_timeout": f"{2 * _GATHERING_SECONDS}s"}
        fleet = [Tokenward(directory / f"crowd-{number}", settings) for number in range(replicas)]
        for replica in fleet:
            await stack.enter_async_context(replica)
        ended = {
            "refresh_token": refresh_token("one", 1),
            "access_token": access_token("one", 1, 0),
            "expires_at": _EXPIRED_LONG_AGO,
        }
        await fleet[0].create("crowd", id="one", tokens=ended)
        places = asyncio.Semaphore(_CONNECTING_AT_ONCE)
        asking = [
            asyncio.create_task(_ask(fleet[number % replicas], places)) for number in range(callers)
        ]
        await _until_waiting(fleet, callers)
        await server.ask("release")
        answers = Counter(await asyncio.gather(*asking))
        books = await server.ask("books", since=0)
    found = ", ".join(f"{count} answers {answer}" for answer, count in answers.items())
    findings.note(
        f"{callers} callers at {replicas} replicas: {found}", holds=list(answers) == ["200 2"]
    )
    requests = len(books["arrivals"])
    findings.note(f"{requests} requests at the provider", holds=requests == 1)
    return findings


async def _ask(replica: Tokenward, places: asyncio.Semaphore) -> str:
    """Read a token; return the answer's status and what generation it is of, or which problem.

    Written by hand: a client with thousands of connections writes its requests too late.
    """
    port = int(replica.api_url.rpartition(":")[2])
    async with places:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            f"GET /v1/connections/one/token HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            f"Authorization: Bearer {replica.key}\r\nConnection: close\r\n\r\n".encode()
        )
        await writer.drain()
    try:
        head, _, content = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    if not content:
        return "none"
    body = json.loads(content)
    return f"{head.split()[1].decode()} {body.get('generation', body.get('code'))}"


async def _until_waiting(fleet: Sequence[Tokenward], callers: int) -> None:
    """Wait until as many sockets as there are callers are open at the replicas."""
    ports = {int(replica.api_url.rpartition(":")[2]) for replica in fleet}

    async def are_connected() -> bool:
        return _established(ports) >= callers

    await eventually(are_connected, within=_GATHERING_SECONDS, what="the callers' connections")


def _established(ports: set[int]) -> int:
    """Return how many connections to these ports of loopback are open (proc(5))."""
    wanted = {f"0100007F:{port:04X}" for port in ports}
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(line.split()[1] in wanted and line.split()[3] == "01" for line in lines)


def _settings(database_url: str, **providers: object) -> dict[str, Any]:
    return {
        "database": {"url": database_url},
        "encryption": {"keys": _KEYS},
        "providers": providers,
    }


async def herds(
    directory: Path, database_url: str, plans: dict[str, Plan], *, at_once: bool
) -> list[Findings]:
    """Run ``spread`` and ``outage``, each with its plan, at one daemon."""
    async with AsyncExitStack() as stack:
        servers = {
            name: await stack.enter_async_context(provider(plan.lifetime))
            for name, plan in plans.items()
        }
        providers = {name: servers[name].settings(plan) for name, plan in plans.items()}
        daemon = Tokenward(directory / "herd", _settings(database_url, **providers))
        await stack.enter_async_context(daemon)
        herds = {name: Herd(name, daemon, servers[name], plan) for name, plan in plans.items()}
        phases = [_PHASES[name](herd) for name, herd in herds.items()]
        if at_once:
            return list(await asyncio.gather(*phases))
        return [await phase for phase in phases]


_PHASES = {"spread": Herd.spread, "outage": Herd.outage}


async def everything(
    directory: Path, database_urls: tuple[str, str], *, connections: int, rate: int, callers: int
) -> AsyncIterator[Findings]:
    """Run all three at full size, one after the other, and yield what each found."""
    importing = connections / 100 + 10
    # The last three tenths of a life hold twice the time that the rate takes for all.
    lifetime = 7.0 * connections / rate
    plans = {
        "spread": Plan(
            connections=connections, rate=rate, lifetime=lifetime, importing=importing, beyond=0
        ),
        "outage": Plan(
            connections=connections, rate=rate, lifetime=180, importing=importing, beyond=60
        ),
    }
    for findings in await herds(directory, database_urls[0], plans, at_once=False):
        yield findings
    yield await crowd(directory, database_urls[1], callers=callers, replicas=callers // 3500 + 1)
