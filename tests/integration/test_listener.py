"""A listener under callers that are slow, many, rude or gone, on both event loops."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import structlog
import uvloop
from aiohttp import web

from daemon.config.settings import Address
from daemon.domain.clock import system_entropy
from daemon.domain.errors import ConfigurationError, DatabaseUnavailableError, Problem
from daemon.sidecar.guard import connection_id_from
from daemon.sidecar.listener import BeforeRouter, Listener
from daemon.sidecar.problems import error_middleware
from daemon.sidecar.protocol import awaiting_body, peer_uid
from daemon.sidecar.room import Limits
from daemon.sidecar.sockets import bind_unix_socket
from tests.support.raw_client import RawClient
from tests.support.waiting import until

LOOPBACK = Address("127.0.0.1", 0)
KEY = "tw_a-key-that-must-not-be-logged"

Run = Callable[[Coroutine[object, object, None]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a scenario on a fresh loop of each kind."""

    def run(scenario: Coroutine[object, object, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(scenario)

    return run


class Probe:
    """An application that tells what happened in it."""

    def __init__(self) -> None:
        self.entered = 0
        self.finished = 0
        self.cancelled = 0
        self.go_on = asyncio.Event()

    def has_entered(self, times: int) -> bool:
        """Tell whether so many requests have come to their handlers."""
        return self.entered == times

    def app(self) -> web.Application:
        """Return an application of its own, as a listener needs."""
        app = web.Application(middlewares=[error_middleware(system_entropy)])
        app.router.add_get("/", self._hello)
        app.router.add_post("/", self._hello)
        app.router.add_post("/read", self._read)
        app.router.add_get("/wait", self._wait)
        app.router.add_get("/big", self._big)
        app.router.add_get("/fail", self._fail)
        app.router.add_get("/database", self._database)
        app.router.add_get("/half", self._half)
        app.router.add_get("/nothing", self._nothing)
        app.router.add_get("/elsewhere", self._elsewhere)
        app.router.add_get("/wait-and-fail", self._wait_and_fail)
        app.router.add_get("/uid", self._uid)
        app.router.add_get("/c/{id}/token", self._connection)
        return app

    async def _hello(self, request: web.Request) -> web.Response:
        self.entered += 1
        return web.Response(text=request.query.get("n", "hello"))

    async def _read(self, request: web.Request) -> web.Response:
        self.entered += 1
        with awaiting_body(request):
            return web.Response(body=await request.read())

    async def _wait(self, request: web.Request) -> web.Response:
        del request
        self.entered += 1
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.finished += 1
        return web.Response(text="done")

    async def _big(self, request: web.Request) -> web.Response:
        del request
        self.entered += 1
        return web.Response(body=bytes(64 * 1024 * 1024))

    async def _fail(self, request: web.Request) -> web.Response:
        del request
        raise ValueError(KEY)

    async def _database(self, request: web.Request) -> web.Response:
        del request
        raise DatabaseUnavailableError

    async def _half(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "10"})
        await response.prepare(request)
        await response.write(b"12345")
        raise ValueError(KEY)

    async def _nothing(self, request: web.Request) -> web.Response:
        del request
        return cast("web.Response", None)

    async def _elsewhere(self, request: web.Request) -> web.Response:
        del request
        raise web.HTTPSeeOther("/")

    async def _wait_and_fail(self, request: web.Request) -> web.Response:
        await self._wait(request)
        raise ValueError(KEY)

    async def _uid(self, request: web.Request) -> web.Response:
        return web.Response(text=str(peer_uid(request)))

    async def _connection(self, request: web.Request) -> web.Response:
        return web.Response(text=connection_id_from(request.match_info["id"]))


@asynccontextmanager
async def _listening(
    probe: Probe, limits: Limits | None = None, before_router: BeforeRouter | None = None
) -> AsyncIterator[tuple[Listener, int]]:
    listener = Listener(
        probe.app(),
        name="api",
        entropy=system_entropy,
        limits=limits or Limits(shutdown_grace=1.0),
        before_router=before_router,
    )
    await listener.start(address=LOOPBACK)
    try:
        yield listener, listener.addresses[0].port
    finally:
        await listener.stop()


async def _pass(seconds: float) -> None:
    """Let a real deadline come near or go by: the loop's timers are what is tested."""
    end = asyncio.get_running_loop().time() + seconds
    await until(lambda: asyncio.get_running_loop().time() > end)


def test_one_connection_carries_many_requests(run: Run) -> None:
    """Keep-alive holds beyond the header deadline, which runs only while a head is on its way."""

    async def scenario() -> None:
        async with (
            _listening(Probe(), Limits(header_deadline=0.1)) as (_, port),
            await RawClient.connect(port) as caller,
        ):
            deadline = asyncio.get_running_loop().time() + 0.3
            answers = 0
            while asyncio.get_running_loop().time() < deadline:
                answer = await caller.ask("/")
                assert (answer.status, answer.body) == (200, b"hello")
                answers += 1
            assert answers > 3

    run(scenario())


def test_an_idle_connection_outlives_the_header_deadline(run: Run) -> None:
    """Between requests a caller may be silent for the idle timeout, then it is closed."""

    async def scenario() -> None:
        limits = Limits(header_deadline=0.05, idle_timeout=0.4)
        async with (
            _listening(Probe(), limits) as (_, port),
            await RawClient.connect(port) as caller,
        ):
            await caller.ask("/")
            began = asyncio.get_running_loop().time()
            assert await caller.closed() == b""
            assert asyncio.get_running_loop().time() - began > 0.3

    run(scenario())


@pytest.mark.parametrize(
    "beginning",
    [b"", b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: y\r\n"],
)
def test_a_slow_first_head_is_cut(run: Run, beginning: bytes) -> None:
    """A new connection without a whole head by the deadline is closed, silent or not."""

    async def scenario() -> None:
        probe = Probe()
        async with (
            _listening(probe, Limits(header_deadline=0.1)) as (listener, port),
            await RawClient.connect(port) as caller,
        ):
            caller.send(beginning)
            assert await caller.closed() == b""
            await until(lambda: listener.connections == 0)
        assert probe.entered == 0

    run(scenario())


def test_a_dripping_head_is_cut(run: Run) -> None:
    """Bytes that keep coming do not move the deadline, on a used connection neither."""

    async def scenario() -> None:
        async with (
            _listening(Probe(), Limits(header_deadline=0.15)) as (_, port),
            await RawClient.connect(port) as caller,
        ):
            await caller.ask("/")
            caller.send("GET / HTTP/1.1\r\n")

            async def drip() -> None:
                while True:
                    caller.send("X: y\r\n")
                    await _pass(0.01)

            dripping = asyncio.create_task(drip())
            began = asyncio.get_running_loop().time()
            assert await caller.closed() == b""
            assert asyncio.get_running_loop().time() - began < 5
            dripping.cancel()

    run(scenario())


def test_a_head_in_two_parts_is_answered(run: Run) -> None:
    """A head that arrives within the deadline, in pieces, is as good as one in one piece."""

    async def scenario() -> None:
        async with (
            _listening(Probe(), Limits(header_deadline=0.2)) as (_, port),
            await RawClient.connect(port) as caller,
        ):
            for _ in range(3):
                caller.send("GET / HTTP/1.1\r\nHo")
                await _pass(0.02)
                caller.send("st: 127.0.0.1\r\n\r\n")
                assert (await caller.answer()).status == 200
            # The deadline that the last pieces started passes meanwhile: it must not strike.
            await _pass(0.3)
            assert (await caller.ask("/")).status == 200

    run(scenario())


def test_a_slow_handler_is_no_slow_head(run: Run) -> None:
    """The header deadline never ends a request that is being answered, bytes behind it or not."""

    async def scenario() -> None:
        probe = Probe()
        async with (
            _listening(probe, Limits(header_deadline=0.05)) as (_, port),
            await RawClient.connect(port) as caller,
        ):
            caller.request("/wait")
            await until(lambda: probe.entered == 1)
            caller.send("GET /")
            await _pass(0.15)
            probe.go_on.set()
            assert (await caller.answer()).body == b"done"
            caller.send(" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert (await caller.answer()).body == b"hello"

    run(scenario())


def test_pipelined_requests_are_answered_in_order(run: Run) -> None:
    """Requests sent without waiting all get their answers, in their order."""

    async def scenario() -> None:
        async with (
            _listening(Probe(), Limits(header_deadline=0.2)) as (_, port),
            await RawClient.connect(port) as caller,
        ):
            for number in range(100):
                caller.request(f"/?n={number}")
            for number in range(100):
                assert (await caller.answer()).body == str(number).encode()

    run(scenario())


def test_beyond_its_connections_a_listener_closes_at_once(run: Run) -> None:
    """Where all are being answered, one too many is closed without an answer; told once."""

    async def scenario() -> None:
        probe = Probe()
        async with _listening(probe, Limits(connections=10)) as (listener, port):
            callers = [await RawClient.connect(port) for _ in range(10)]
            for caller in callers:
                caller.request("/wait")
            await until(lambda: probe.entered == 10)
            for _ in range(5):
                async with await RawClient.connect(port) as refused:
                    assert await refused.closed() == b""
            assert listener.connections == 10
            probe.go_on.set()
            for caller in callers:
                assert (await caller.answer()).status == 200
            await callers.pop().leave()
            await until(lambda: listener.connections == 9)
            async with await RawClient.connect(port) as welcome:
                assert (await welcome.ask("/")).status == 200
            for caller in callers:
                await caller.leave()

    with structlog.testing.capture_logs() as lines:
        run(scenario())
    assert [(line["event"], line["dropped"]) for line in lines] == [("listener_full", 0)]


def test_who_says_nothing_gives_way_first(run: Run) -> None:
    """In a full listener those that long sent no head give way, the oldest first, in parts."""

    async def scenario() -> None:
        limits = Limits(connections=32, patience=0.05)
        async with _listening(Probe(), limits) as (listener, port):
            known = [await RawClient.connect(port) for _ in range(2)]
            for caller in known:
                assert (await caller.ask("/")).status == 200
            silent = [await RawClient.connect(port) for _ in range(30)]
            await until(lambda: listener.connections == 32)
            silent[0].send("GET / HTTP/1.1\r\nHo")
            await _pass(limits.patience)
            async with await RawClient.connect(port) as new:
                assert (await new.ask("/")).status == 200
                for gone in silent[:2]:
                    assert await gone.closed() == b""
                assert listener.connections == 31
                for caller in (*known, silent[2], silent[29]):
                    assert (await caller.ask("/")).status == 200
            for caller in (*known, *silent):
                await caller.leave()
            await until(lambda: listener.connections == 0)

    with structlog.testing.capture_logs() as lines:
        run(scenario())
    assert [(line["event"], line["dropped"]) for line in lines] == [("listener_full", 2)]


def test_callers_that_arrive_together_do_not_cut_each_other(run: Run) -> None:
    """A listener full of idle callers serves twenty new ones at once, in place of the idlest."""

    async def ask(caller: RawClient, number: int) -> bytes:
        return (await caller.ask(f"/?n={number}")).body

    async def scenario() -> None:
        probe = Probe()
        async with AsyncExitStack() as stack:
            listener, port = await stack.enter_async_context(
                _listening(probe, Limits(connections=64))
            )

            async def come() -> RawClient:
                return await stack.enter_async_context(await RawClient.connect(port))

            busy = [await come() for _ in range(4)]
            for caller in busy:
                caller.request("/wait")
            await until(partial(probe.has_entered, 4))
            idle = [await come() for _ in range(60)]
            for number, caller in enumerate(idle):
                assert await ask(caller, number) == str(number).encode()
            new = await asyncio.gather(*(come() for _ in range(20)))
            # All are let in before the first of them says anything.
            for caller in idle[:20]:
                assert await caller.closed() == b""
            assert listener.connections == 64
            answers = await asyncio.gather(*(ask(caller, n) for n, caller in enumerate(new)))
            assert answers == [str(number).encode() for number in range(20)]
            probe.go_on.set()
            for caller in busy:
                assert (await caller.answer()).body == b"done"
            for caller in (*busy, *idle[20:], *new):
                assert (await caller.ask("/")).status == 200

    with structlog.testing.capture_logs() as lines:
        run(scenario())
    assert [(line["event"], line["dropped"]) for line in lines] == [("listener_full", 1)]


def test_a_body_that_does_not_come_gives_way(run: Run) -> None:
    """Who sends a head and then holds the body back is as idle as who sends nothing."""

    async def scenario() -> None:
        probe = Probe()
        async with _listening(probe, Limits(connections=8)) as (listener, port):
            stalled = [await RawClient.connect(port) for _ in range(8)]
            for place, caller in enumerate(stalled, start=1):
                caller.send("POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx")
                # In this order.
                await until(partial(probe.has_entered, place))
            async with await RawClient.connect(port) as new:
                assert (await new.ask("/")).status == 200
                assert await stalled[0].closed() == b""
                stalled[7].send("12345678")
                assert (await stalled[7].answer()).body == b"x12345678"
            for caller in stalled:
                await caller.leave()
            await until(lambda: listener.connections == 0)

    with structlog.testing.capture_logs() as lines:
        run(scenario())
    assert [line["event"] for line in lines] == ["listener_full"]


def test_the_idlest_caller_gives_way_last(run: Run) -> None:
    """Where all have been answered before, one whose last answer is the oldest is closed."""

    async def scenario() -> None:
        async with _listening(Probe(), Limits(connections=4)) as (_, port):
            callers = [await RawClient.connect(port) for _ in range(4)]
            for caller in (*callers, callers[0]):
                assert (await caller.ask("/")).status == 200
                await _pass(0.01)
            async with await RawClient.connect(port) as new:
                assert (await new.ask("/")).status == 200
                assert await callers[1].closed() == b""
                for caller in (callers[0], *callers[2:]):
                    assert (await caller.ask("/")).status == 200
            for caller in callers:
                await caller.leave()

    run(scenario())


def test_a_head_without_end_is_cut_by_its_size(run: Run) -> None:
    """Long before its deadline: many fields, each short enough, are held in memory no further."""

    async def scenario() -> None:
        probe = Probe()
        async with (
            _listening(probe, Limits(head_size=4096, header_fields=100)) as (_, port),
            await RawClient.connect(port) as caller,
        ):
            caller.send("GET / HTTP/1.1\r\nHost: a\r\n")
            began = asyncio.get_running_loop().time()
            for _ in range(3):
                caller.send(f"X: {'y' * 2000}\r\n")
                await _pass(0.02)
            assert await caller.closed() == b""
            assert asyncio.get_running_loop().time() - began < 4
        assert probe.entered == 0

    run(scenario())


def test_idle_connections_do_not_disturb_others(run: Run) -> None:
    """Hundreds of silent connections are all cut at the deadline while a caller is served."""

    async def scenario() -> None:
        limits = Limits(header_deadline=0.5, connections=600)
        async with _listening(Probe(), limits) as (listener, port):
            idle = [await RawClient.connect(port) for _ in range(500)]
            async with await RawClient.connect(port) as caller:
                for _ in range(50):
                    assert (await caller.ask("/")).status == 200
                for silent in idle:
                    assert await silent.closed() == b""
                    await silent.leave()
                assert (await caller.ask("/")).status == 200
                await until(lambda: listener.connections == 1)

    run(scenario())


def test_a_caller_that_does_not_read_is_cut(run: Run) -> None:
    """An answer that stays unread until the write deadline ends the connection."""

    async def scenario() -> None:
        probe = Probe()
        async with _listening(probe, Limits(write_deadline=0.1)) as (listener, port):
            with socket.create_connection(("127.0.0.1", port)) as deaf:
                deaf.sendall(b"GET /big HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                await until(lambda: probe.entered == 1)
                await until(lambda: listener.connections == 0)

    run(scenario())


def test_a_caller_that_reads_gets_all(run: Run) -> None:
    """A large answer to a caller that reads is no stalled one, however often the buffer fills."""

    async def scenario() -> None:
        async with (
            _listening(Probe(), Limits(write_deadline=5.0)) as (_, port),
            await RawClient.connect(port) as caller,
        ):
            assert len((await caller.ask("/big")).body) == 64 * 1024 * 1024
            assert (await caller.ask("/")).status == 200

    run(scenario())


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + KEY.encode() + b"\0\r\n\r\n",
        b"GET /" + KEY.encode() * 1000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 9000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n folded: x\r\n\r\n",
    ],
)
def test_malformed_requests_are_refused_without_an_echo(
    run: Run, request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Smuggling shapes and garbage get one problem and the end; answer and log quote nothing."""

    async def scenario() -> None:
        probe = Probe()
        async with _listening(probe) as (_, port), await RawClient.connect(port) as caller:
            caller.send(request_bytes)
            answer = await caller.answer()
            assert (answer.status, answer.code) == (400, "bad_request")
            assert b"yyyy" not in answer.body
            assert KEY.encode() not in answer.body
            assert await caller.closed() == b""
        assert probe.entered == 0

    with structlog.testing.capture_logs() as lines, caplog.at_level(logging.DEBUG):
        run(scenario())
    assert KEY not in repr(lines) + caplog.text
    assert caplog.text.count("aiohttp") == 0


def test_an_early_end_is_quiet(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """A caller that goes in mid-request, or in mid-answer, leaves no error behind."""

    async def scenario() -> None:
        probe = Probe()
        async with _listening(probe) as (listener, port):
            for part in (
                b"GET /wa",
                b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n",
                b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n",
                b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx",
            ):
                caller = await RawClient.connect(port)
                caller.send(part)
                await caller.until_sent()
                await until(lambda: listener.connections == 1)
                await caller.leave()
                await until(lambda: listener.connections == 0)
            probe.go_on.set()

    with structlog.testing.capture_logs() as lines:
        run(scenario())
    assert lines == []
    assert caplog.text == ""


def test_errors_of_handlers_are_problems(run: Run) -> None:
    """What a handler raises, or the router, is answered as a problem and the connection lives."""

    async def scenario() -> None:
        async with _listening(Probe()) as (_, port), await RawClient.connect(port) as caller:
            failed = await caller.ask("/fail")
            assert (failed.status, failed.code) == (500, "internal_error")
            assert KEY.encode() not in failed.body
            away = await caller.ask("/database")
            assert (away.status, away.code) == (503, "database_unavailable")
            assert int(away.headers["retry-after"]) >= 1
            assert (await caller.ask("/nowhere")).code == "not_found"
            wrong = await caller.ask("/", method="DELETE")
            assert (wrong.status, wrong.code) == (405, "method_not_allowed")
            assert wrong.headers["allow"] == "GET, HEAD, POST"
            assert (await caller.ask("/")).status == 200

    with structlog.testing.capture_logs() as lines:
        run(scenario())
    assert [line["event"] for line in lines] == ["request_failed"]
    assert KEY not in repr(lines)


def test_redirects_of_handlers_pass(run: Run) -> None:
    """A redirect is no error."""

    async def scenario() -> None:
        async with _listening(Probe()) as (_, port), await RawClient.connect(port) as caller:
            answer = await caller.ask("/elsewhere")
            assert (answer.status, answer.headers["location"]) == (303, "/")

    run(scenario())


def test_a_failure_after_its_caller_has_gone_is_quiet(run: Run) -> None:
    """What fails when nobody waits for it any more is not reported as an error of ours."""

    async def scenario() -> None:
        probe = Probe()
        async with _listening(probe) as (listener, port):
            caller = await RawClient.connect(port)
            caller.request("/wait-and-fail")
            await until(lambda: probe.entered == 1)
            await caller.leave()
            await until(lambda: listener.connections == 0)
            probe.go_on.set()
            await until(lambda: probe.finished == 1)

    with structlog.testing.capture_logs() as lines:
        run(scenario())
    assert lines == []


def test_a_handler_without_an_answer_is_an_error(run: Run) -> None:
    """A handler that returns nothing is told in the log, and its caller gets a 500."""

    async def scenario() -> None:
        async with _listening(Probe()) as (_, port), await RawClient.connect(port) as caller:
            assert (await caller.ask("/nothing")).status == 500

    with structlog.testing.capture_logs() as lines:
        run(scenario())
    assert [line["error"] for line in lines] == ["a handler returned no response"]


def test_an_error_in_mid_answer_cuts_the_connection(run: Run) -> None:
    """A half-sent answer is never followed by another; the caller sees that it is incomplete."""

    async def scenario() -> None:
        async with _listening(Probe()) as (_, port), await RawClient.connect(port) as caller:
            caller.request("/half")
            assert (await caller.closed()).endswith(b"\r\n\r\n12345")

    with structlog.testing.capture_logs() as lines:
        run(scenario())
    assert [line["event"] for line in lines] == ["request_failed"]


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/c/acme-1/token", 200),
        ("/c/a%3Ab/token", 200),
        ("/c/../token", 404),
        ("/c/%2e%2e/token", 404),
        ("/c/a%2Fb/token", 404),
        ("/c/a%5cb/token", 404),
        ("/c/a;b/token", 404),
        ("/c//token", 404),
        ("/c/a%00/token", 404),
        ("/c/%ff%fe/token", 404),
        ("/c/\xff\xfe/token", 400),
        ("/c/" + "x" * 8000 + "/token", 404),
        ("/c/" + "x" * 100_000 + "/token", 400),
        ("/../../etc/passwd", 404),
    ],
)
def test_odd_paths_lead_nowhere(run: Run, target: str, status: int) -> None:
    """Dot segments, encoded slashes, NUL, raw bytes and giants end in a problem (P3)."""

    async def scenario() -> None:
        async with _listening(Probe()) as (_, port), await RawClient.connect(port) as caller:
            answer = await caller.ask(target)
            assert answer.status == status

    with structlog.testing.capture_logs() as lines:
        run(scenario())
    assert lines == []


def test_the_hook_is_asked_before_the_router(run: Run) -> None:
    """Its answer is used, its problem is answered, its failure is a 500, ``None`` passes on."""

    def before_router(request: web.BaseRequest) -> web.StreamResponse | None:
        match request.raw_path:
            case "/fast":
                return web.Response(text="fast")
            case "/refuse":
                raise Problem(403, "permission_denied", "Ask for something else.")
            case "/break":
                raise ValueError(KEY)
            case _:
                return None

    async def scenario() -> None:
        async with (
            _listening(Probe(), before_router=before_router) as (_, port),
            await RawClient.connect(port) as caller,
        ):
            assert (await caller.ask("/fast")).body == b"fast"
            refused = await caller.ask("/refuse")
            assert (refused.status, refused.code) == (403, "permission_denied")
            assert (await caller.ask("/")).body == b"hello"
            broken = await caller.ask("/break")
            assert (broken.status, broken.code) == (500, "internal_error")
            assert KEY.encode() not in broken.body

    with structlog.testing.capture_logs() as lines:
        run(scenario())
    assert KEY not in repr(lines)


def test_stopping_does_not_wait_for_who_says_nothing(run: Run) -> None:
    """Whoever has not sent a whole head is cut before anybody else is waited for."""

    async def scenario() -> None:
        probe = Probe()
        async with (
            _listening(probe, Limits(shutdown_grace=10.0)) as (listener, port),
            await RawClient.connect(port) as silent,
            await RawClient.connect(port) as slow,
            await RawClient.connect(port) as busy,
        ):
            slow.send("GET / HTTP/1.1\r\nHo")
            busy.request("/wait")
            await until(lambda: probe.entered == 1 and listener.connections == 3)
            stopping = asyncio.create_task(listener.stop())
            assert await silent.closed() == b""
            assert await slow.closed() == b""
            assert not stopping.done()
            probe.go_on.set()
            assert (await busy.answer()).body == b"done"
            await stopping

    run(scenario())


def test_stopping_lets_requests_in_flight_finish(run: Run) -> None:
    """After ``stop`` nobody new is served, idle callers are closed, waiting ones answered."""

    async def scenario() -> None:
        probe = Probe()
        limits = Limits(shutdown_grace=10.0)
        async with (
            _listening(probe, limits) as (listener, port),
            await RawClient.connect(port) as idle,
            await RawClient.connect(port) as busy,
        ):
            await idle.ask("/")
            busy.request("/wait")
            await until(lambda: probe.entered == 2)
            stopping = asyncio.create_task(listener.stop())
            assert await idle.closed() == b""
            with pytest.raises(ConnectionRefusedError):
                await RawClient.connect(port)
            probe.go_on.set()
            assert (await busy.answer()).body == b"done"
            assert await busy.closed() == b""
            await stopping
            assert listener.connections == 0
        assert (probe.finished, probe.cancelled) == (1, 0)

    run(scenario())


def test_stopping_cancels_what_outlasts_the_grace(run: Run) -> None:
    """A handler that does not end is cancelled and its caller cut; ``stop`` returns."""

    async def scenario() -> None:
        probe = Probe()
        async with (
            _listening(probe, Limits(shutdown_grace=0.2)) as (listener, port),
            await RawClient.connect(port) as stuck,
        ):
            stuck.request("/wait")
            await until(lambda: probe.entered == 1)
            async with asyncio.timeout(5):
                await listener.stop()
            assert await stuck.closed() == b""
            await until(lambda: probe.cancelled == 1)
            assert listener.connections == 0

    run(scenario())


def test_stopping_does_not_wait_for_a_caller_that_does_not_read(run: Run) -> None:
    """Bytes that nobody takes do not hold ``stop`` up."""

    async def scenario() -> None:
        probe = Probe()
        async with _listening(probe, Limits(shutdown_grace=0.2)) as (listener, port):
            with socket.create_connection(("127.0.0.1", port)) as deaf:
                deaf.sendall(b"GET /big HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                await until(lambda: probe.entered == 1)
                async with asyncio.timeout(5):
                    await listener.stop()
                await until(lambda: listener.connections == 0)

    run(scenario())


def test_a_taken_port_names_its_setting(run: Run) -> None:
    """An address in use is a configuration error with its path, and nothing stays open."""

    async def scenario() -> None:
        async with _listening(Probe()) as (_, port):
            second = Listener(Probe().app(), name="ops", entropy=system_entropy)
            with pytest.raises(ConfigurationError) as caught:
                await second.start(address=Address("127.0.0.1", port))
            (finding,) = caught.value.findings
            assert finding.path == "listen.ops.address"
            assert f"127.0.0.1:{port}" in finding.message
            assert "another process" in finding.message

    run(scenario())


@asynccontextmanager
async def _on_socket(path: Path, *uids: int) -> AsyncIterator[Listener]:
    listener = Listener(
        Probe().app(), name="api", entropy=system_entropy, limits=Limits(shutdown_grace=1.0)
    )
    await listener.start(unix_socket=path, allowed_uids=uids)
    try:
        yield listener
    finally:
        await listener.stop()


def test_a_unix_socket_tells_who_is_there(run: Run, tmp_path: Path) -> None:
    """The kernel states the peer's uid; over TCP there is none."""

    async def scenario() -> None:
        path = tmp_path / "api.sock"
        async with _on_socket(path) as listener:
            assert listener.addresses == ()
            async with await RawClient.connect(path) as caller:
                assert (await caller.ask("/uid")).body == str(os.geteuid()).encode()
                assert (await caller.ask("/uid")).body == str(os.geteuid()).encode()
        async with _listening(Probe()) as (_, port), await RawClient.connect(port) as caller:
            assert (await caller.ask("/uid")).body == b"None"

    run(scenario())


def test_both_places_are_served_at_once(run: Run, tmp_path: Path) -> None:
    """One listener serves TCP and a Unix socket, with one count of connections."""

    async def scenario() -> None:
        path = tmp_path / "api.sock"
        listener = Listener(Probe().app(), name="api", entropy=system_entropy)
        await listener.start(address=LOOPBACK, unix_socket=path)
        port = listener.addresses[0].port
        async with await RawClient.connect(port) as one, await RawClient.connect(path) as other:
            assert (await one.ask("/")).status == 200
            assert (await other.ask("/")).status == 200
            assert listener.connections == 2
        await listener.stop()

    run(scenario())


def test_the_socket_file_is_ours_alone_unless_others_are_allowed(run: Run, tmp_path: Path) -> None:
    """Mode 0600, or 0666 where another uid is allowed; whatever the umask; gone after stop."""

    async def scenario() -> None:
        own = os.geteuid()
        for uids, mode in (((), 0o600), ((own,), 0o600), ((own, own + 1), 0o666)):
            path = tmp_path / "api.sock"
            async with _on_socket(path, *uids):
                assert stat.S_IMODE(path.lstat().st_mode) == mode
            assert not path.exists()

    previous = os.umask(0)
    try:
        run(scenario())
    finally:
        os.umask(previous)


def test_an_inherited_sockets_file_stays(run: Run, tmp_path: Path) -> None:
    """What another process bound is served, and its file is there after the stop."""

    async def scenario() -> None:
        path = tmp_path / "api.sock"
        with socket.socket(socket.AF_UNIX) as inherited:
            inherited.bind(str(path))
            listener = Listener(Probe().app(), name="api", entropy=system_entropy)
            await listener.start(unix_socket=path, inherited=inherited)
            async with await RawClient.connect(path) as caller:
                assert (await caller.ask("/")).status == 200
            await listener.stop()
            assert path.is_socket()

    run(scenario())


def test_a_dead_processs_socket_is_replaced(run: Run, tmp_path: Path) -> None:
    """A socket file on which nobody listens is no obstacle."""

    async def scenario() -> None:
        path = tmp_path / "api.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        async with _on_socket(path), await RawClient.connect(path) as caller:
            assert (await caller.ask("/")).status == 200

    run(scenario())


def test_a_living_processs_socket_is_left_alone(run: Run, tmp_path: Path) -> None:
    """A socket on which somebody listens is refused, with its setting's path, and stays."""

    async def scenario() -> None:
        path = tmp_path / "api.sock"
        async with _on_socket(path):
            with pytest.raises(ConfigurationError) as caught:
                async with _on_socket(path):
                    raise AssertionError
            assert caught.value.findings[0].path == "listen.api.unix_socket"
            async with await RawClient.connect(path) as caller:
                assert (await caller.ask("/")).status == 200

    run(scenario())


@pytest.mark.parametrize("kind", ["file", "directory", "link", "absent directory", "long"])
def test_what_is_no_socket_is_never_replaced(run: Run, tmp_path: Path, kind: str) -> None:
    """A file, directory or link in the way, or an impossible path, is a configuration error."""
    path = tmp_path / "api.sock"
    match kind:
        case "file":
            path.write_text("precious")
        case "directory":
            path.mkdir()
        case "link":
            path.symlink_to(tmp_path / "elsewhere")
        case "absent directory":
            path = tmp_path / "absent" / "api.sock"
        case _:
            path = tmp_path / ("x" * 120)

    async def scenario() -> None:
        with pytest.raises(ConfigurationError) as caught:
            async with _on_socket(path):
                raise AssertionError
        assert caught.value.findings[0].path == "listen.api.unix_socket"

    run(scenario())
    if kind == "file":
        assert path.read_text() == "precious"
    if kind == "link":
        assert path.is_symlink()


def test_a_successors_socket_is_not_removed(tmp_path: Path) -> None:
    """One that stops after its successor has taken the place leaves the successor's file."""
    path = tmp_path / "api.sock"
    first = bind_unix_socket(path)
    path.unlink()
    second = bind_unix_socket(path)
    first.unlink()
    assert path.exists()
    second.unlink()
    second.unlink()
    assert not path.exists()
    for bound in (first, second):
        bound.socket.close()


def test_a_full_backlog_counts_as_listening(tmp_path: Path) -> None:
    """A listener too busy to accept is alive all the same."""
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(path))
        busy.listen(0)
        waiting = []
        try:
            while True:
                caller = socket.socket(socket.AF_UNIX)
                waiting.append(caller)
                caller.settimeout(0)
                caller.connect(str(path))
        except BlockingIOError:
            pass
        with pytest.raises(OSError, match="another process") as caught:
            bind_unix_socket(path)
        assert caught.value.errno == errno.EADDRINUSE
        for caller in waiting:
            caller.close()
