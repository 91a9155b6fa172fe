"""The history over HTTP: pages and streams, on a real socket, at a test's own speed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import pytest
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from daemon.config.settings import Address
from daemon.domain.clock import system_entropy
from daemon.domain.connection import Connection, Status
from daemon.domain.event_body import event_body
from daemon.sidecar.access import Callers
from daemon.sidecar.event_routes import EventParts, EventRoutes
from daemon.sidecar.listener import Listener
from daemon.sidecar.problems import error_middleware
from daemon.sidecar.room import Limits
from daemon.sidecar.routing import IDENTITY, Finder
from daemon.upkeep.feed import Feed
from tests.support.api_parts import CALLERS, KEYS, SETTINGS
from tests.support.clock import START, FakeClock
from tests.support.memory_history import MemoryHistory, event
from tests.support.waiting import until

STREAM = {"Accept": "text/event-stream"}
JSON = {"Accept": "application/json"}


class KnownConnections:
    """Port: the store, as far as finding goes. ``gone`` gave way to ``acme-1``."""

    async def get(self, connection_id: str) -> Connection | None:
        """Return one connection, disconnected."""
        if not connection_id.startswith("acme-"):
            return None
        return Connection(
            id=connection_id,
            provider="acme",
            grant="authorization_code",
            status=Status.DISCONNECTED,
            created_at=START,
            updated_at=START,
        )

    async def survivor_of(self, connection_id: str) -> str | None:
        """Return where it went."""
        return "acme-1" if connection_id == "gone" else None


@dataclass
class Answered:
    """An answer, read."""

    status: int
    headers: Mapping[str, str]
    body: Any


class Stream:
    """One open stream."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def line(self) -> str:
        """Return the next line that is not empty; ``""`` at the end."""
        async with asyncio.timeout(10):
            while raw := await self.response.content.readline():
                if raw != b"\n":
                    return raw.decode().rstrip("\n")
        return ""

    async def ids(self, count: int) -> list[str]:
        """Return the ids of the next events, whole."""
        found: list[str] = []
        while len(found) < count:
            line = await self.line()
            if line.startswith("id: "):
                found.append(line.removeprefix("id: "))
                assert (await self.line()).startswith("event: ")
                data = json.loads((await self.line()).removeprefix("data: "))
                assert data["id"] == found[-1]
        return found


class Stage:
    """The routes on a listener; time passes when a test says so."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.clock = FakeClock()
        self.history = MemoryHistory()
        self.feed = Feed(history=self.history, clock=self.clock, largest_audience=3)
        self.session = session
        self.url = ""
        finder = Finder(connections=KnownConnections(), settings=lambda: SETTINGS)
        self.routes = EventRoutes(
            EventParts(finder=finder, pages=self.history, feed=self.feed, clock=self.clock)
        )

    async def ask(
        self, path: str, *, key: str = "admin", headers: Mapping[str, str] = JSON
    ) -> Answered:
        """Send one request and read the answer."""
        sent = {**headers, "Authorization": f"Bearer {KEYS[key]}"}
        async with self.session.get(f"{self.url}{path}", headers=sent) as answer:
            body = await answer.json(content_type=None)
            return Answered(answer.status, answer.headers, body)

    @asynccontextmanager
    async def stream(
        self, query: str = "", *, key: str = "admin", headers: Mapping[str, str] = STREAM
    ) -> AsyncIterator[Stream]:
        """Open a stream."""
        sent = {**headers, "Authorization": f"Bearer {KEYS[key]}"}
        async with self.session.get(f"{self.url}/v1/events{query}", headers=sent) as answer:
            assert answer.status == 200
            stream = Stream(answer)
            assert await stream.line() == "retry: 2000"
            yield stream

    async def happen(self, *numbers: int, connection: str = "acme-1") -> None:
        """Let events happen, and the feed look."""
        self.history.add(*(event(number, connection) for number in numbers))
        self.feed.wake()
        await self.clock.settle()

    async def pass_time(self, seconds: float) -> None:
        """Let time pass for everybody who sleeps."""
        await self.clock.settle()
        self.clock.advance(seconds)
        await self.clock.settle()


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """Run the routes; the history has five events of two connections."""
    callers = Callers(CALLERS)

    @web.middleware
    async def identify(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[IDENTITY] = callers.authenticate(request.headers.get(hdrs.AUTHORIZATION), None)
        return await handler(request)

    async with aiohttp.ClientSession() as session:
        stage = Stage(session)
        app = web.Application(middlewares=[error_middleware(system_entropy), identify])
        app.add_routes(stage.routes.routes())
        listener = Listener(
            app, name="api", entropy=system_entropy, limits=Limits(shutdown_grace=1.0)
        )
        await listener.start(address=Address("127.0.0.1", 0))
        stage.url = f"http://{listener.addresses[0]}"
        stage.history.add(*(event(n, "acme-1") for n in (1, 2, 4)), event(3, "x"), event(5, "x"))
        task = asyncio.create_task(stage.feed.run())
        yield stage
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await listener.stop()


def _ids(answer: Answered) -> list[str]:
    return [one["id"] for one in answer.body["events"]]


async def test_a_page_of_one_connection(stage: Stage) -> None:
    """Newest first, also of a disconnected connection, and nothing of others."""
    answer = await stage.ask("/v1/connections/acme-1/events")
    assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-store")
    assert _ids(answer) == ["evt_4", "evt_2", "evt_1"]
    assert answer.body["next_cursor"] is None
    assert answer.body["events"][0] == json.loads(json.dumps(dict(event_body(event(4, "acme-1")))))


async def test_pages_follow_each_other(stage: Stage) -> None:
    """The cursor leads on to the end; events that come meanwhile do not shift it."""
    first = await stage.ask("/v1/connections/acme-1/events?limit=2")
    assert _ids(first) == ["evt_4", "evt_2"]
    await stage.happen(6)
    cursor = first.body["next_cursor"]
    second = await stage.ask(f"/v1/connections/acme-1/events?limit=2&cursor={cursor}")
    assert _ids(second) == ["evt_1"]
    assert second.body["next_cursor"] is None


async def test_pages_are_bounded(stage: Stage) -> None:
    """50 by default, 200 at most."""
    stage.history.add(*(event(number, "acme-1") for number in range(10, 300)))
    assert len(_ids(await stage.ask("/v1/connections/acme-1/events"))) == 50
    for limit in (200, 201, 999_999_999):
        answer = await stage.ask(f"/v1/connections/acme-1/events?limit={limit}")
        assert len(_ids(answer)) == 200


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=-1",
        "limit=",
        "limit=x",
        "limit=1e2",
        "limit=1&limit=2",
        "limit=%D9%A1",
        "limit=10000000000",
        "cursor=",
        "cursor=4",
        "cursor=evt_x",
        "cursor=evt_99999999999999999999",
        "after=evt_1",
        "other=1",
    ],
)
@pytest.mark.parametrize("path", ["/v1/connections/acme-1/events", "/v1/events"])
async def test_bad_pages(stage: Stage, path: str, query: str) -> None:
    """A parameter that is wrong is named."""
    answer = await stage.ask(f"{path}?{query}")
    assert (answer.status, answer.body["code"]) == (400, "bad_request")


@pytest.mark.parametrize(
    ("connection", "key", "status", "code"),
    [
        ("x", "admin", 404, "unknown_connection"),
        ("gone", "admin", 404, "unknown_connection"),
        ("acme-x", "reader", 404, "unknown_connection"),
        ("acme-1", "tokens", 403, "permission_denied"),
        ("acme-1", "manager", 403, "permission_denied"),
    ],
)
async def test_who_may_not_read(
    *, stage: Stage, connection: str, key: str, status: int, code: str
) -> None:
    """After a purge, for others' connections and without the permission there is no history."""
    answer = await stage.ask(f"/v1/connections/{connection}/events", key=key)
    assert (answer.status, answer.body["code"]) == (status, code)
    assert answer.body.get("merged_into") == ("acme-1" if connection == "gone" else None)


async def test_a_page_of_all_for_who_takes_json(stage: Stage) -> None:
    """The same route gives pages of everything the caller may see."""
    assert _ids(await stage.ask("/v1/events")) == [f"evt_{n}" for n in (5, 4, 3, 2, 1)]
    mine = await stage.ask("/v1/events?limit=2", key="reader")
    assert _ids(mine) == ["evt_4", "evt_2"]
    rest = await stage.ask(f"/v1/events?cursor={mine.body['next_cursor']}", key="reader")
    assert (_ids(rest), rest.body["next_cursor"]) == (["evt_1"], None)
    assert (await stage.ask("/v1/events", key="tokens")).status == 403


async def test_one_look_is_bounded(stage: Stage) -> None:
    """Who sees little among much gets a cursor to go on with, not a long wait."""
    stage.history.add(*(event(number, "x") for number in range(10, 3000)))
    answer = await stage.ask("/v1/events", key="reader")
    assert _ids(answer) == []
    found: list[str] = []
    while cursor := answer.body["next_cursor"]:
        answer = await stage.ask(f"/v1/events?cursor={cursor}", key="reader")
        found += _ids(answer)
    assert found == ["evt_4", "evt_2", "evt_1"]


@pytest.mark.parametrize("accept", [STREAM, {}, {"Accept": "text/event-stream, application/json"}])
async def test_from_now_on(stage: Stage, accept: Mapping[str, str]) -> None:
    """A stream begins with what happens after its headers."""
    async with stage.stream(headers=accept) as stream:
        assert stream.response.content_type == "text/event-stream"
        assert stream.response.headers["Cache-Control"] == "no-store"
        await stage.happen(6, 7)
        assert await stream.ids(2) == ["evt_6", "evt_7"]


async def test_only_ones_own(stage: Stage) -> None:
    """A stream has the events of the connections that its caller may see."""
    async with stage.stream(key="reader") as stream:
        await stage.happen(6, connection="x")
        await stage.happen(7)
        assert await stream.ids(1) == ["evt_7"]


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("?after=evt_2", {}),
        ("", {"Last-Event-ID": "evt_2"}),
        ("?after=evt_0", {"Last-Event-ID": "evt_2"}),
    ],
)
async def test_coming_back(stage: Stage, query: str, headers: Mapping[str, str]) -> None:
    """What was missed comes first, then what happens, without a gap; the header wins."""
    async with stage.stream(query, headers={**STREAM, **headers}) as stream:
        assert await stream.ids(3) == ["evt_3", "evt_4", "evt_5"]
        await stage.happen(6)
        assert await stream.ids(1) == ["evt_6"]


async def test_coming_back_sees_only_ones_own(stage: Stage) -> None:
    """The past is filtered as the present is."""
    async with stage.stream("?after=evt_0", key="reader") as stream:
        await stage.happen(6)
        assert await stream.ids(4) == ["evt_1", "evt_2", "evt_4", "evt_6"]


async def test_an_id_from_before_a_restored_backup(stage: Stage) -> None:
    """An id that does not exist yet does not silence the stream."""
    async with stage.stream("?after=evt_1000000") as stream:
        await stage.happen(6)
        assert await stream.ids(1) == ["evt_6"]


async def test_an_event_that_is_committed_late(stage: Stage) -> None:
    """A lower id that becomes visible later is neither lost nor told twice."""
    stage.history.add(event(7, "acme-1"))
    async with stage.stream("?after=evt_5") as stream:
        await stage.pass_time(0.5)
        stage.history.add(event(6, "acme-1"))
        await stage.pass_time(0.5)
        assert await stream.ids(2) == ["evt_6", "evt_7"]
        await stage.happen(8)
        assert await stream.ids(1) == ["evt_8"]


async def test_a_gap_that_stays(stage: Stage) -> None:
    """An id that never comes is waited for, but not for long; a heartbeat is in between."""
    stage.history.add(event(9, "acme-1"))
    async with stage.stream("?after=evt_5") as stream:
        for _ in range(6):
            await stage.pass_time(0.5)
        assert await stream.ids(1) == ["evt_9"]


@pytest.mark.parametrize("name", ["5", "evt_", "x", "evt_-1"])
async def test_bad_ids(stage: Stage, name: str) -> None:
    """An id that is none is refused, not ignored."""
    for query, headers in ((f"?after={name}", STREAM), ("", {**STREAM, "Last-Event-ID": name})):
        answer = await stage.ask(f"/v1/events{query}", headers=headers)
        assert (answer.status, answer.body["code"]) == (400, "bad_request")


async def test_heartbeats(stage: Stage) -> None:
    """Silence is broken every 15 seconds, so that nobody in between cuts the stream."""
    async with stage.stream() as stream:
        for _ in range(2):
            await stage.pass_time(15)
            assert await stream.line() == ": alive"


async def test_the_database_may_be_away(stage: Stage) -> None:
    """A new stream is refused with 503; one that is open goes on, also while it reads the past."""
    async with stage.stream() as live, stage.stream("?after=evt_4") as late:
        assert await late.ids(1) == ["evt_5"]
        stage.history.is_away = True
        await stage.pass_time(0.5)
        stage.history.is_away = False
        await stage.pass_time(2)
        await stage.happen(6)
        assert await live.ids(1) == await late.ids(1) == ["evt_6"]
    await until(lambda: stage.feed.audience == 2)
    stage.history.is_away = True
    for query in ("?after=evt_1",):
        answer = await stage.ask(f"/v1/events{query}", headers=STREAM)
        assert (answer.status, answer.body["code"]) == (503, "database_unavailable")


async def test_streams_are_bounded(stage: Stage) -> None:
    """One too many is told to come back, and a place that is free is given again."""
    async with stage.stream(), stage.stream():
        async with stage.stream():
            answer = await stage.ask("/v1/events", headers=STREAM)
            assert (answer.status, answer.body["code"]) == (503, "too_many_streams")
            assert answer.headers["Retry-After"] == "10"
        # Whoever has hung up is noticed at the next heartbeat.
        await stage.pass_time(15)
        await stage.pass_time(15)
        await until(lambda: stage.feed.audience == 2)
        async with stage.stream():
            assert stage.feed.audience == 3


async def test_the_daemon_stops(stage: Stage) -> None:
    """A stream ends well, and the client knows when to come back."""
    async with stage.stream() as stream:
        stage.feed.close()
        assert await stream.line() == ""
    assert (await stage.ask("/v1/events", headers=STREAM)).status == 503


async def test_a_slow_reader_is_cut(stage: Stage) -> None:
    """Who reads nothing is let go; what it did get ends between two events or breaks off."""
    async with stage.stream() as stream:
        for start in range(6, 4006, 500):
            stage.history.events = [
                replace(event(number, "acme-1"), detail={"text": "x" * 10_000})
                for number in range(start, start + 500)
            ]
            stage.feed.wake()
            await stage.clock.settle()
            if not stage.feed.audience:
                break
        assert stage.feed.audience == 0
        with suppress(aiohttp.ClientError):
            while await stream.line():
                pass


async def test_a_head_is_no_stream(stage: Stage) -> None:
    """HEAD is not answered by something that never ends."""
    sent = {"Authorization": f"Bearer {KEYS['admin']}"}
    async with stage.session.head(f"{stage.url}/v1/events", headers=sent) as answer:
        assert answer.status == 405
