"""The flows that a sweep spoils, and what must hold after each."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable

from aiohttp import ClientError

from tests.campaigns.fleet import BUGS
from tests.campaigns.points import Flow, Point, SweepReport
from tests.campaigns.stage import (
    NAMES,
    STARTED_WITHIN,
    WELL_WITHIN,
    Stage,
    answer,
    path_of,
    serves,
)
from tests.support.oauth_flow import browser_session
from tests.support.polling import eventually
from tests.support.postgres import Cluster
from tests.support.strict_server import Grant
from tests.support.tokenward import Tokenward
from tests.support.wire import Fault, FaultyWire


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
        forcing = asyncio.create_task(answer(stage.daemon, "POST", f"{path_of(name)}/refresh"))
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
            reply = await answer(stage.daemon, "POST", f"{path_of(name)}/refresh")
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
        name, granted = f"swept-{next(NAMES)}", len(stage.server.grants)
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
        created = await answer(daemon, "POST", "/v1/connections", pages, json=body)
        if created is not None and created.status == 409:
            created = await answer(daemon, "POST", f"{path_of(name)}/authorize", pages)
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
            reply = await answer(stage.daemon, "DELETE", path_of(name), answers)
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
        forcing = asyncio.create_task(answer(stage.daemon, "POST", f"{path_of(name)}/refresh"))

        async def is_rotated() -> bool:
            return grant.rotations == 1

        await eventually(is_rotated, what="the rotation")
        await stage.wire.cut()
        stage.server.release()

        await eventually(serves(stage.daemon, name, grant), what="the new token from memory")
        stage.daemon.signal(signal.SIGKILL)
        await stage.daemon.ended()
        await forcing
        await stage.wire.mend()
        self._logged = len(stage.daemon.log())
        self._arm()
        await stage.daemon.start(within=STARTED_WITHIN)
        self._disarm()
        await eventually(serves(stage.daemon, name, grant), what="the journal's token")
        return self._books(grant) or await self._is_well(name, grant)

    async def _first_start(self) -> str | None:
        """Start over an empty database."""
        # In a thread: PostgreSQL waits in it for those who log in just now, through our wires.
        url = await asyncio.to_thread(self._cluster.create_database)
        directory = self._stage.daemon.directory / f"first-{next(NAMES)}"
        try:
            async with Stage(directory, self._cluster, url) as stage:
                self._logged = 0
                self._arm(stage.wire)
                await stage.daemon.start(within=STARTED_WITHIN)
                self._disarm(stage.wire)
                runs = Runs(stage, self._cluster, self._report)
                wrong = await runs._run(Flow.REFRESH, None, 0)
                return wrong or self._bug(stage.daemon)
        finally:
            await asyncio.to_thread(self._cluster.drop_database, url)
