"""Fail the Nth: every request to the database, in each flow, spoiled once in each way.

A fault proxy stands between the daemon and PostgreSQL. Each flow runs once to count its requests,
then once for each request and each fault. Afterwards the daemon must be well by itself: the
authorization server's live token is served, none was sent twice, nobody saw a 500.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

import asyncpg
from aiohttp import ClientError

from tests.campaigns.fleet import BUGS, KEYS
from tests.support.oauth_flow import browser_session
from tests.support.polling import eventually
from tests.support.postgres import Cluster
from tests.support.strict_server import Grant, StrictServer
from tests.support.tokenward import Reply, Tokenward
from tests.support.wire import Fault, FaultyWire

# What the daemon needs to be well again: its longest pause between two tries is 5 s.
WELL_WITHIN = 15.0
# With a journal to store and a fault to get over, on a machine that does other things, too.
_STARTED_WITHIN = 60.0
_NAMES = count(1)


class Flow(StrEnum):
    """What the daemon is doing when the database fails."""

    CONNECT = "connect"
    REFRESH = "refresh"
    DISCONNECT = "disconnect"
    START = "start"
    FIRST_START = "first start"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One run: which request of which flow fails, and how."""

    flow: Flow
    fault: Fault
    number: int


@dataclass
class SweepReport:
    """What a sweep found; ``wrong`` must stay empty."""

    requests: dict[Flow, int] = field(default_factory=dict)
    points: Counter[Flow] = field(default_factory=Counter)
    met: Counter[Flow] = field(default_factory=Counter)
    slowest: dict[Flow, tuple[float, str]] = field(default_factory=dict)
    left_over: int = 0
    wrong: list[str] = field(default_factory=list)

    def took(self, point: Point, seconds: float, met: str | None) -> None:
        """Note one run."""
        self.points[point.flow] += 1
        self.met[point.flow] += met is not None
        if seconds > self.slowest.get(point.flow, (0.0, ""))[0]:
            self.slowest[point.flow] = (seconds, f"{point.fault} {point.number}: {met}")

    def __str__(self) -> str:
        """Return a few lines for people."""
        lines = [
            f"{flow}: {self.requests.get(flow, 0)} requests to the database; {points} runs, "
            f"{self.met[flow]} met their fault; slowest {self.slowest[flow][0]:.1f} s "
            f"({self.slowest[flow][1]})"
            for flow, points in self.points.items()
        ]
        lines.append(f"grants that a repeated login has left at the server: {self.left_over}")
        lines.append(f"wrong: {len(self.wrong)}")
        return "\n".join([*lines, *(f"  WRONG: {line}" for line in self.wrong)])


class Stage:
    """A daemon, its database behind a fault proxy, and its authorization server."""

    def __init__(self, directory: Path, cluster: Cluster, database_url: str | None = None) -> None:
        self._directory = directory
        self.server = StrictServer()
        self.database_url = database_url or cluster.create_database()
        self.wire = FaultyWire(self.database_url)
        self.daemon = Tokenward(directory)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.server)
        await self._stack.enter_async_context(self.wire)
        self._stack.push_async_callback(self.daemon.close)
        self.daemon.settings |= {
            "database": {"url": self.wire.url},
            "encryption": {"keys": KEYS},
            "refresh": {"request_timeout": "2s"},
            "providers": {"acme": self.server.provider()},
        }
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def query(self, statement: str, *values: object) -> list[asyncpg.Record]:
        """Ask the database itself, past the proxy."""
        connection = await asyncpg.connect(self.database_url)
        try:
            return list(await connection.fetch(statement, *values))
        finally:
            await connection.close()

    async def imported(self) -> tuple[str, Grant]:
        """Return a connection that is warm and good for long, and its grant."""
        name, grant = f"swept-{next(_NAMES)}", self.server.grant()
        tokens = {
            "refresh_token": grant.refresh_token,
            "access_token": grant.access_token,
            "expires_at": "2030-01-01T00:00:00Z",
        }

        async def made() -> bool:
            body = {"provider": "acme", "id": name, "tokens": tokens}
            reply = await self.daemon.request("POST", "/v1/connections", json=body)
            return reply.status in {201, 409}

        await eventually(made, within=WELL_WITHIN, what="an import")

        async def read() -> bool:
            return (await self.daemon.token(name)).status == 200

        await eventually(read, within=WELL_WITHIN, what="the imported token")
        return name, grant


# The proxy can also keep an answer back for ever: such a run takes the 12 s of a hung statement.
QUICK_FAULTS = tuple(fault for fault in Fault if fault is not Fault.HUNG)


class Runs:
    """Runs points on one stage and says what is wrong afterwards."""

    def __init__(self, stage: Stage, cluster: Cluster, report: SweepReport) -> None:
        self._stage = stage
        self._cluster = cluster
        self._report = report
        self._flows: dict[Flow, Callable[[], Awaitable[str | None]]] = {
            Flow.CONNECT: self._connect,
            Flow.REFRESH: self._refresh,
            Flow.DISCONNECT: self._disconnect,
            Flow.START: self._start,
        }
        self._fault: tuple[Fault | None, int] = (None, 0)
        self._met: str | None = None
        self._asked = self._logged = 0
        self._queued: list[str] = []

    async def until_revoked(self, *, within: float) -> None:
        """Wait until the authorization server was told of every disconnect."""

        async def are_revoked() -> bool:
            return set(self._queued) <= self._stage.server.revoked

        try:
            await eventually(are_revoked, within=within, what="the revocations")
        except AssertionError:
            left = set(self._queued) - self._stage.server.revoked
            self._report.wrong.append(f"never revoked: {sorted(left)}")

    async def count(self, flow: Flow) -> int:
        """Run a flow unspoiled and return how many requests it makes."""
        wrong = await self._run(flow, None, 0)
        if wrong is not None:
            raise AssertionError(f"{flow} without any fault: {wrong}")
        return self._asked

    async def run(self, point: Point) -> None:
        """Run one point."""
        began = time.monotonic()
        try:
            wrong = await self._run(point.flow, point.fault, point.number)
        except (AssertionError, ClientError, OSError, KeyError) as error:
            wrong = f"{type(error).__name__}: {str(error)[-1500:]}"
            # What follows must not suffer from it.
            await self._revive()
        met = self._met
        self._report.took(point, time.monotonic() - began, met)
        if wrong is not None:
            self._report.wrong.append(
                f"{point.flow}, {point.fault} {point.number} ({met}): {wrong}"
            )

    async def _run(self, flow: Flow, fault: Fault | None, number: int) -> str | None:
        self._fault, self._met, self._asked = (fault, number), None, 0
        if flow is Flow.FIRST_START:
            return await self._first_start()
        self._logged = len(self._stage.daemon.log())
        wrong = await self._flows[flow]()
        return wrong or self._bug(self._stage.daemon)

    def _arm(self, wire: FaultyWire | None = None) -> None:
        (wire or self._stage.wire).arm(*self._fault)

    def _disarm(self, wire: FaultyWire | None = None) -> None:
        wire = wire or self._stage.wire
        self._asked, self._met = len(wire.asked), wire.disarm()

    def _bug(self, daemon: Tokenward) -> str | None:
        lines = daemon.log()[self._logged :].splitlines()
        return next((f"logged: {line[:800]}" for line in lines if BUGS.search(line)), None)

    async def _revive(self) -> None:
        self._stage.server.release()
        self._stage.wire.disarm()
        await self._stage.wire.mend()
        process = self._stage.daemon.process
        if process is not None and process.poll() is not None:
            await self._stage.daemon.start(within=60)

    # --- refresh

    async def _refresh(self) -> str | None:
        stage = self._stage
        name, grant = await stage.imported()
        self._arm()
        forcing = asyncio.create_task(_answer(stage.daemon, "POST", f"{_of(name)}/refresh"))
        wrong: str | None = None
        while not forcing.done():
            reply = await stage.daemon.token(name)
            if reply.status != 200:
                wrong = f"a good token was not served: {reply.content!r}"
            await asyncio.sleep(0.02)
        answered = await forcing
        if answered is None or answered.status not in {200, 503}:
            wrong = f"a refresh was answered by {answered and answered.content!r}"
        self._disarm()
        return wrong or await self._is_well(name, grant)

    async def _is_well(self, name: str, grant: Grant) -> str | None:
        """Tell what is wrong with a connection that must be refreshable again."""
        stage = self._stage
        generation = (await stage.daemon.token(name)).body.get("generation", 0)

        async def refreshed() -> bool:
            reply = await _answer(stage.daemon, "POST", f"{_of(name)}/refresh")
            if reply is not None and reply.status == 500:
                raise AssertionError(f"500: {reply.content!r}")
            return reply is not None and reply.status == 200

        try:
            await eventually(refreshed, within=WELL_WITHIN, what="a refresh afterwards")
        except AssertionError as error:
            row = await stage.query(
                "SELECT state, take_over_at - now() AS left FROM refresh_schedule"
                " WHERE connection_id = $1",
                name,
            )
            return f"{error}; the claim is {dict(row[0]) if row else 'gone'}"
        served = (await stage.daemon.token(name)).body
        if served.get("access_token") != grant.access_token:
            return f"{served} is served, {grant.access_token} is good"
        if served["generation"] <= generation and grant.rotations == 0:
            return "nothing was refreshed"
        return self._books(grant)

    def _books(self, grant: Grant) -> str | None:
        server = self._stage.server
        if server.reuses or server.sent_twice():
            return f"sent twice: {server.reuses} {server.sent_twice()}"
        return None if grant.is_alive else "the grant is dead"

    # --- connect

    async def _connect(self) -> str | None:
        stage = self._stage
        name, granted = f"swept-{next(_NAMES)}", len(stage.server.grants)
        self._arm()
        pages: list[int] = []
        try:
            within = WELL_WITHIN * 2
            await eventually(lambda: self._log_in(name, pages), within=within, what="a login")
        except AssertionError as error:
            return f"{error}; the answers were {pages}"
        finally:
            self._disarm()
        if set(pages) & {0, 500}:
            return f"somebody who logged in saw {pages}"
        if any(times > 1 for times in stage.server.codes.values()):
            return "a code was sent twice"
        served = (await stage.daemon.token(name)).body
        grant = stage.server.grant_of(served.get("access_token", ""))
        if grant is None or not stage.server.is_good(served["access_token"]):
            return f"{served} is served, which is not good"
        made = stage.server.grants[granted:]
        self._report.left_over += sum(one.is_alive for one in made if one is not grant)
        return await self._is_well(name, grant)

    async def _log_in(self, name: str, pages: list[int]) -> bool:
        """Go once from "create" to the callback; tell whether there is a connection then."""
        daemon = self._stage.daemon
        body = {"provider": "acme", "id": name}
        created = await _answer(daemon, "POST", "/v1/connections", pages, json=body)
        if created is not None and created.status == 409:
            created = await _answer(daemon, "POST", f"{_of(name)}/authorize", pages)
        if created is None or created.status not in {200, 201}:
            return False
        async with browser_session() as browser:
            url, there = created.body["connect_url"], ""
            for method in ("GET", "POST"):
                async with browser.request(method, url, allow_redirects=False) as page:
                    pages.append(page.status)
                    there = page.headers.get("Location", "")
            if not there:
                return False
            async with browser.get(there, allow_redirects=False) as granted:
                back = granted.headers["Location"]
            async with browser.get(back) as last:
                pages.append(last.status)
        return (await daemon.token(name)).status == 200

    # --- disconnect

    async def _disconnect(self) -> str | None:
        stage = self._stage
        name, grant = await stage.imported()
        refresh_token = grant.refresh_token
        self._arm()
        answers: list[int] = []

        async def disconnected() -> bool:
            reply = await _answer(stage.daemon, "DELETE", _of(name), answers)
            return reply is not None and reply.status == 200

        try:
            await eventually(disconnected, within=WELL_WITHIN, what="a disconnect")
        except AssertionError as error:
            return f"{error}; the answers were {answers}"
        finally:
            self._disarm()
        if set(answers) & {0, 500}:
            return f"a caller that disconnects saw {answers}"
        read = await stage.daemon.token(name)
        if (read.status, read.body["code"]) != (409, "disconnected"):
            return f"afterwards a token read says {read.content!r}"
        if refresh_token in stage.server.revoked:
            return None
        self._queued.append(refresh_token)
        queued = await stage.query(
            "SELECT id FROM revocations WHERE connection_id = $1"
            " AND token_type_hint = 'refresh_token'",
            name,
        )
        return None if queued or refresh_token in stage.server.revoked else "nobody will revoke it"

    # --- start

    async def _start(self) -> str | None:
        """Start over a journal whose last reply the database has not got."""
        stage = self._stage
        name, grant = await stage.imported()
        stage.server.hold()
        forcing = asyncio.create_task(_answer(stage.daemon, "POST", f"{_of(name)}/refresh"))

        async def is_rotated() -> bool:
            return grant.rotations == 1

        await eventually(is_rotated, what="the rotation")
        await stage.wire.cut()
        stage.server.release()

        await eventually(_serves(stage.daemon, name, grant), what="the new token from memory")
        stage.daemon.signal(signal.SIGKILL)
        await stage.daemon.ended()
        await forcing
        await stage.wire.mend()
        self._logged = len(stage.daemon.log())
        self._arm()
        await stage.daemon.start(within=_STARTED_WITHIN)
        self._disarm()
        await eventually(_serves(stage.daemon, name, grant), what="the journal's token")
        return self._books(grant) or await self._is_well(name, grant)

    async def _first_start(self) -> str | None:
        """Start over an empty database."""
        url = self._cluster.create_database()
        directory = self._stage.daemon.directory / f"first-{next(_NAMES)}"
        try:
            async with Stage(directory, self._cluster, url) as stage:
                self._logged = 0
                self._arm(stage.wire)
                await stage.daemon.start(within=_STARTED_WITHIN)
                self._disarm(stage.wire)
                runs = Runs(stage, self._cluster, self._report)
                wrong = await runs._run(Flow.REFRESH, None, 0)
                return wrong or self._bug(stage.daemon)
        finally:
            self._cluster.drop_database(url)


class Sweep:
    """All points, or every ``step``-th, on several stages at once."""

    def __init__(
        self,
        directory: Path,
        cluster: Cluster,
        *,
        flows: Sequence[Flow] = tuple(Flow),
        faults: Sequence[Fault] = QUICK_FAULTS,
        step: int = 1,
        first: int = 1,
        stages: int = 3,
        revoked_within: float = 150.0,
    ) -> None:
        self.report = SweepReport()
        self._cluster = cluster
        self._flows, self._faults = flows, faults
        self._step, self._first = step, first
        self._revoked_within = revoked_within
        self._stages = [Stage(directory / f"stage-{number}", cluster) for number in range(stages)]

    async def run(self) -> SweepReport:
        """Count, then spoil."""
        async with AsyncExitStack() as stack:
            all_runs = []
            for stage in self._stages:
                await stack.enter_async_context(stage)
                await stage.daemon.start()
                all_runs.append(Runs(stage, self._cluster, self.report))
            for flow in self._flows:
                # The first run prepares statements, which later ones do not.
                self.report.requests[flow] = await all_runs[0].count(flow)
            points = self._points()
            await asyncio.gather(*(_work(runs, points) for runs in all_runs))
            if self._revoked_within:
                ends = (runs.until_revoked(within=self._revoked_within) for runs in all_runs)
                await asyncio.gather(*ends)
        return self.report

    def _points(self) -> Iterator[Point]:
        """Yield all points, some requests past the last one that was counted included."""
        number = count()
        return (
            Point(flow=flow, fault=fault, number=request)
            for flow in self._flows
            for request in range(1, self.report.requests[flow] + 1)
            for fault in self._faults
            if next(number) % self._step == self._first % self._step
        )


async def _work(runs: Runs, points: Iterator[Point]) -> None:
    for point in points:
        await runs.run(point)


def _serves(daemon: Tokenward, name: str, grant: Grant) -> Callable[[], Awaitable[bool]]:
    """Return a look at whether a daemon serves the newest token of a grant."""

    async def look() -> bool:
        reply = await daemon.token(name)
        return bool(reply.status == 200 and reply.body["access_token"] == grant.access_token)

    return look


def _of(name: str) -> str:
    return f"/v1/connections/{name}"


async def _answer(
    daemon: Tokenward,
    method: str,
    path: str,
    statuses: list[int] | None = None,
    *,
    json: object = None,
) -> Reply | None:
    """Ask; note the status, 0 and ``None`` where no answer came."""
    try:
        reply = await daemon.request(method, path, json=json)
    except (TimeoutError, ClientError, OSError):
        reply = None
    if statuses is not None:
        statuses.append(0 if reply is None else reply.status)
    return reply
