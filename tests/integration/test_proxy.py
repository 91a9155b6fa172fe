"""The proxy on real sockets: what passes in either direction, what does not, and how it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from daemon.config.settings import Permission
from daemon.domain.connection import Status
from daemon.domain.errors import DatabaseUnavailableError
from daemon.sidecar.proxy import ProxyLimits
from tests.support.proxy_stage import (
    KEY,
    MIB,
    PROXY,
    ProxyStage,
    Upstream,
    echo,
    provider,
    proxying,
    upstream,
)
from tests.support.raw_client import RawClient
from tests.support.raw_server import RawServer, writes, writes_then_resets, writes_then_waits
from tests.support.waiting import until

SMALL = ProxyLimits(connect=2.0, idle=0.3, spool=64 * 1024)
AUTHORIZED = f"Authorization: Bearer {KEY}"


@asynccontextmanager
async def staged(
    handle: Any = None, *, limits: ProxyLimits | None = None, base: str = "/base", **members: Any
) -> AsyncIterator[tuple[ProxyStage, Upstream]]:
    """Run an upstream and the proxy before it."""
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(upstream(handle))
        configured = provider(api.url(base), **members)
        yield await stack.enter_async_context(proxying(configured, limits=limits)), api


async def told(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """Return what the echo says."""
    assert response.status == 200
    found: dict[str, Any] = await response.json(content_type=None)
    found["all"] = found["headers"]
    found["headers"] = dict(found["headers"])
    return found


async def code_of(response: aiohttp.ClientResponse) -> str:
    """Return the code of an answer of ours."""
    body = await response.json(content_type="application/problem+json")
    assert response.headers["Tokenward-Error"] == body["code"]
    assert response.headers["Cache-Control"] == "no-store"
    return str(body["code"])


async def test_a_request_goes_on_with_the_token() -> None:
    """Method, path, query and body arrive as sent; the caller's key does not, the token does."""
    async with staged() as (stage, api):
        async with stage.ask("/a%2Fb/c;v=1?x=%20y&x=2&&z", method="PUT", data=b"body") as response:
            seen = await told(response)
            assert "Tokenward-Error" not in response.headers
        assert seen["method"] == "PUT"
        assert seen["target"] == "/base/a%2Fb/c;v=1?x=%20y&x=2&&z"
        assert seen["body"] == "body"
        assert seen["headers"]["authorization"] == "Bearer access 1"
        assert seen["headers"]["host"] == f"127.0.0.1:{api.port}"
        assert KEY not in json.dumps(seen)
        assert stage.counted == [("acme", 200)]
        assert stage.here.cache.take_used() == ["acme-1"]
        assert stage.connections.asked == 0


@pytest.mark.parametrize(
    ("path", "target"),
    [("", "/base"), ("/", "/base/"), ("?q=1", "/base?q=1"), ("/a//b", "/base/a//b")],
)
async def test_the_base_path_stays_in_front(path: str, target: str) -> None:
    """What stands behind /proxy is put behind api_base_url, to the byte."""
    async with staged() as (stage, _), stage.ask(path) as response:
        assert (await told(response))["target"] == target


async def test_headers_for_this_hop_do_not_pass() -> None:
    """Hop-by-hop headers, the caller's credentials and claims about others stay here."""
    async with staged() as (stage, _):
        async with await RawClient.connect(stage.port) as client:
            answer = await client.ask(
                f"{PROXY}/echo",
                AUTHORIZED,
                "Connection: keep-alive, X-Hop",
                "Keep-Alive: timeout=5",
                "X-Hop: secret",
                "X-Stays: yes",
                "X-Stays: twice",
                "Cookie: session=1",
                "TE: trailers",
                "Trailer: X",
                "Proxy-Authorization: Basic eA==",
                "X-Forwarded-For: 1.2.3.4",
                "Forwarded: for=1.2.3.4",
                "Via: 1.1 me",
                "Tokenward-Anything: x",
                "X-Real-IP: 1.2.3.4",
            )
        seen = answer.json
    names = [name for name, _ in seen["headers"]]
    assert sorted(names) == sorted(
        ["host", "x-stays", "x-stays", "authorization", "accept", "accept-encoding", "user-agent"]
    )
    assert dict(seen["headers"])["user-agent"].startswith("tokenward/")


async def test_headers_for_a_browser_do_not_come_back() -> None:
    """Cookies, CORS and rules for an origin are dropped; the rest comes as it was, repeats too."""

    async def handle(_: web.BaseRequest) -> web.Response:
        response = web.Response(body=b"x", status=429, reason="Slow down")
        response.headers.extend(
            [
                ("Set-Cookie", "a=1"),
                ("Access-Control-Allow-Origin", "*"),
                ("Strict-Transport-Security", "max-age=1"),
                ("Alt-Svc", "h3"),
                ("Tokenward-Error", "lie"),
                ("Proxy-Authenticate", "Basic"),
                ("Retry-After", "7"),
                ("Link", "</1>"),
                ("Link", "</2>"),
                ("Content-Encoding", "gzip"),
                ("Server", "theirs"),
            ]
        )
        return response

    async with staged(handle) as (stage, _), stage.ask() as response:
        assert (response.status, response.reason) == (429, "Slow down")
        assert await response.read() == b"x"
        assert response.headers.getall("Link") == ["</1>", "</2>"]
        assert response.headers["Retry-After"] == "7"
        assert response.headers["Content-Encoding"] == "gzip"
        assert response.headers["Server"] == "theirs"
        dropped = {"Set-Cookie", "Alt-Svc", "Tokenward-Error", "Proxy-Authenticate"}
        dropped |= {"Access-Control-Allow-Origin", "Strict-Transport-Security"}
        assert not dropped & set(response.headers)
        assert stage.counted == [("acme", 429)]


async def test_a_redirect_is_the_callers_to_follow() -> None:
    """A 3xx comes back with its Location as it is, and is not followed."""

    async def handle(_: web.BaseRequest) -> web.Response:
        return web.Response(status=307, headers={"Location": "https://evil.example/x"})

    async with staged(handle) as (stage, api), stage.ask(method="POST", data=b"1") as response:
        assert response.status == 307
        assert response.headers["Location"] == "https://evil.example/x"
        assert len(api.seen) == 1


@pytest.mark.parametrize("status", [200, 204, 304])
async def test_bodiless_answers_leave_the_connection_usable(status: int) -> None:
    """HEAD, 204 and 304 have no body, whatever their headers say; the next request works."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "HEAD" or status != 200:
            return web.Response(status=status, headers={"X-A": "1"})
        return await echo(request)

    async with staged(handle) as (stage, _), await RawClient.connect(stage.port) as client:
        client.request(f"{PROXY}/x", AUTHORIZED, method="HEAD")
        head = await client._reader.readuntil(b"\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {status} ".encode())
        assert b"X-A: 1" in head
        assert (await client.ask("/nowhere", AUTHORIZED)).status == 404


async def test_request_values_are_put_on_every_request() -> None:
    """Headers, query and JSON body of the provider win over the caller's; the token goes last."""
    request = {
        "headers": {"X-Api-Version": "2", "X-Region": "{region}"},
        "query": {"v": "a b", "k": "{fields.region}"},
        "body": {"dummy": True, "deep": {"x": 1}},
    }
    async with staged(request=request) as (stage, _):
        stage.connections.fields = {"region": "e/u"}
        async with stage.ask(
            "/echo?v=mine&w=1",
            method="POST",
            json={"deep": {"y": 2}, "dummy": 0, "big": 2**70},
            headers={"X-Api-Version": "1"},
        ) as response:
            seen = await told(response)
        assert seen["target"] == "/base/echo?w=1&v=a%20b&k=e%2Fu"
        assert seen["headers"]["x-api-version"] == "2"
        assert seen["headers"]["x-region"] == "e/u"
        assert seen["headers"]["authorization"] == "Bearer access 1"
        assert json.loads(seen["body"]) == {
            "deep": {"y": 2, "x": 1},
            "dummy": True,
            "big": 2**70,
        }


@pytest.mark.parametrize(
    "request_values",
    [
        {"headers": {"X-Api-Key": "{access_token}"}},
        {"headers": {"authorization": "token {token.access_token}"}},
        {"query": {"key": "{access_token}"}},
    ],
)
async def test_the_token_stands_in_one_place(request_values: dict[str, dict[str, str]]) -> None:
    """Where the configuration says where the token goes, it is nowhere else (RFC 6750 2)."""
    async with staged(request=request_values) as (stage, _), stage.ask() as response:
        seen = await told(response)
        text = json.dumps(seen["all"]) + seen["target"].replace("%20", " ")
        assert text.count("access 1") == 1
        assert stage.connections.asked == 0


async def test_a_form_gets_the_values_too() -> None:
    """A form keeps its own fields byte for byte, and gets the provider's."""
    async with staged(request={"body": {"tenant": "{region}"}}) as (stage, _):
        stage.connections.fields = {"region": "eu 1"}
        async with stage.ask(
            method="POST",
            data=b"a=%20&tenant=x&b",
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        ) as response:
            assert (await told(response))["body"] == "a=%20&b&tenant=eu+1"


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"<x/>", "application/xml", 415, "unsupported_media_type"),
        (b"[1]", "application/json", 415, "unsupported_media_type"),
        (b"{", "application/json", 400, "bad_request"),
        (b'{"a": "' + b"x" * 100_000 + b'"}', "application/json", 413, "body_too_large"),
    ],
)
async def test_a_body_that_cannot_take_values_is_refused(
    body: bytes, kind: str, status: int, code: str
) -> None:
    """Where values must go into the body and cannot, nothing is sent and the answer says why."""
    async with staged(request={"body": {"a": 1}}, limits=SMALL) as (stage, api):
        headers = {"Content-Type": kind}
        async with stage.ask(method="POST", data=body, headers=headers) as response:
            assert response.status == status
            assert await code_of(response) == code
        assert api.connections == 0


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/echo?access_token=x", None),
        ("/echo?a=1&%61ccess%5Ftoken=x", None),
        ("/echo?ACCESS_TOKEN", None),
        ("/echo", b"access_token=x"),
        ("/echo", b"a=1&acc%65ss_token=x"),
    ],
)
async def test_a_token_of_the_callers_is_refused(path: str, form: bytes | None) -> None:
    """``access_token`` in the query or a form is 400, and nothing is sent."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"} if form else {}
    async with staged() as (stage, api):
        async with stage.ask(path, method="POST", data=form, headers=headers) as response:
            assert response.status == 400
            assert await code_of(response) == "bad_request"
        assert api.connections == 0


async def test_a_401_leads_to_one_refresh_and_one_retry() -> None:
    """An API that does not know the token any more gets the same request with a new one."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if request.headers["Authorization"] == "Bearer access 1":
            return web.Response(status=401, text="who are you")
        return await echo(request)

    async with staged(handle) as (stage, api):
        async with stage.ask(method="POST", data=b"again") as response:
            seen = await told(response)
        assert seen["body"] == "again"
        assert seen["headers"]["authorization"] == "Bearer new access 1"
        assert stage.here.sender.sent == ["refresh 1"]
        assert len(api.seen) == 2


async def test_a_streamed_body_within_the_bound_is_sent_again() -> None:
    """A body that came in pieces is kept up to the bound, so that the retry has all of it."""

    async def body() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"x" * 1000
            await asyncio.sleep(0)

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if request.headers["Authorization"] == "Bearer access 1":
            await request.read()
            return web.Response(status=401)
        return await echo(request)

    async with (
        staged(handle, limits=SMALL) as (stage, _),
        stage.ask(method="POST", data=body()) as response,
    ):
        assert len((await told(response))["body"]) == 10_000


async def test_an_early_401_is_retried_with_the_whole_body() -> None:
    """An API that refuses before it has read the body gets all of it the second time."""
    go_on = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"first "
        await go_on.wait()
        yield b"second"

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if request.headers["Authorization"] == "Bearer access 1":
            go_on.set()
            return web.Response(status=401)
        return await echo(request)

    async with staged(handle) as (stage, _), stage.ask(method="POST", data=body()) as response:
        assert (await told(response))["body"] == "first second"


async def test_a_large_body_is_not_sent_again() -> None:
    """Beyond the bound the 401 is the answer; the token is refreshed all the same."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if request.headers["Authorization"] == "Bearer access 1":
            await request.read()
            return web.Response(status=401, text="no")
        return await echo(request)

    async with staged(handle, limits=SMALL) as (stage, api):
        async with stage.ask(method="POST", data=b"x" * 400_000) as response:
            assert (response.status, await response.text()) == (401, "no")
        assert len(api.seen) == 1
        async with stage.ask() as response:
            assert (await told(response))["headers"]["authorization"] == "Bearer new access 1"


async def test_a_401_that_no_refresh_cures_costs_one_refresh() -> None:
    """Where the new token is refused, too, further 401s pass without a refresh for a minute."""

    async def handle(_: web.BaseRequest) -> web.Response:
        return web.Response(status=401, headers={"WWW-Authenticate": "Bearer"})

    async with staged(handle) as (stage, api):
        for _ in range(3):
            async with stage.ask() as response:
                assert response.status == 401
                assert "WWW-Authenticate" in response.headers
        assert len(stage.here.sender.sent) == 1
        assert len(api.seen) == 4
        stage.here.clock.advance(61.0)
        async with stage.ask():
            assert len(stage.here.sender.sent) == 2


async def test_large_bodies_that_meet_a_401_cost_one_refresh() -> None:
    """A body that cannot be sent again must not have the token refreshed with every request."""

    async def handle(request: web.BaseRequest) -> web.Response:
        await request.read()
        return web.Response(status=401)

    async with staged(handle, limits=SMALL) as (stage, _):
        for _ in range(3):
            async with stage.ask(method="POST", data=b"x" * 400_000) as response:
                assert response.status == 401
        assert len(stage.here.sender.sent) == 1


async def test_a_callers_places_are_bounded() -> None:
    """Answers that nobody reads take places; the next one hears so, and others do not wait."""
    go_on = asyncio.Event()

    async def handle(_: web.BaseRequest) -> web.Response:
        await go_on.wait()
        return web.Response(text="done")

    async with staged(handle, limits=ProxyLimits(places=2)) as (stage, api):

        async def ask() -> int:
            async with stage.ask() as response:
                return response.status

        waiting = [asyncio.create_task(ask()) for _ in range(2)]
        await until(lambda: len(api.seen) == 2)
        async with stage.ask() as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
            assert await code_of(response) == "too_many_proxied_requests"
        go_on.set()
        assert await asyncio.gather(*waiting) == [200, 200]
        assert await ask() == 200


async def test_a_403_is_no_reason_to_refresh() -> None:
    """``insufficient_scope`` is the grant's, not the token's: it passes."""

    async def handle(_: web.BaseRequest) -> web.Response:
        return web.Response(status=403)

    async with staged(handle) as (stage, _), stage.ask() as response:
        assert response.status == 403
        assert stage.here.sender.sent == []


async def test_events_come_one_by_one() -> None:
    """Server-sent events are not held back: head first, each event as it happens."""
    step = asyncio.Queue[bytes]()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while event := await step.get():
            await response.write(event)
        return response

    async with staged(handle, limits=ProxyLimits(idle=5.0)) as (stage, _):
        step.put_nowait(b"data: 0\n\n")
        async with stage.ask() as response:
            assert response.headers["Content-Type"] == "text/event-stream"
            for number in range(3):
                assert await response.content.readany() == b"data: %d\n\n" % number
                step.put_nowait(b"data: %d\n\n" % (number + 1))
            step.put_nowait(b"")
            assert await response.content.read() == b"data: 3\n\n"


async def test_a_head_without_a_body_yet_is_sent_at_once() -> None:
    """The caller sees status and headers before the first byte of the body exists."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    async with RawServer(writes_then_waits(head)) as api:
        configured = provider(api.url("/"))
        async with proxying(configured) as stage, stage.ask() as response:
            assert response.status == 200


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_large_bodies_stream_in_both_directions(is_chunked: bool) -> None:  # noqa: FBT001
    """32 MiB pass each way; what the process needs for it does not grow with them."""
    total, piece = 32 * MIB, b"p" * 65536

    async def body() -> AsyncIterator[bytes]:
        for _ in range(total // len(piece)):
            yield piece

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        if not is_chunked:
            response.content_length = total
        await response.prepare(request)
        while chunk := await request.content.readany():
            await response.write(chunk)
        return response

    async with staged(handle) as (stage, api):
        headers = {} if is_chunked else {"Content-Length": str(total)}
        before = _resident()
        async with stage.ask(method="POST", data=body(), headers=headers) as response:
            assert (response.headers.get("Content-Length") is None) is is_chunked
            received = 0
            async for chunk in response.content.iter_any():
                received += len(chunk)
                assert chunk.strip(b"p") == b""
        assert received == total
        assert _resident() - before < 16 * MIB
        sent = api.seen[0].headers
        assert (sent.get("Transfer-Encoding") == "chunked") is is_chunked
        assert sent.get("Content-Length") == (None if is_chunked else str(total))


async def test_a_caller_that_does_not_read_holds_the_api_back() -> None:
    """Back pressure: what the API may send on is bounded by what the caller takes."""
    written = 0

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(400):
            await response.write(b"x" * MIB)
            written += 1
        return response

    async with (
        staged(handle, limits=ProxyLimits(idle=5.0)) as (stage, _),
        await RawClient.connect(stage.port) as client,
    ):
        # Its reader takes 64 KiB and then stops to read.
        client.request(f"{PROXY}/big", AUTHORIZED)
        await until(lambda: written > 0)
        last = -1
        while written != last:
            last = written
            await asyncio.sleep(0.2)
        assert written < 100


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


async def test_a_body_of_a_caller_that_waits_for_100_continue() -> None:
    """``Expect: 100-continue`` is answered here, once the request is known to be good."""
    async with staged() as (stage, _), await RawClient.connect(stage.port) as client:
        client.send(
            f"POST {PROXY}/echo HTTP/1.1\r\nHost: localhost\r\n{AUTHORIZED}\r\n"
            "Expect: 100-continue\r\nContent-Length: 4\r\n\r\n"
        )
        assert (await client.answer()).status == 100
        client.send(b"body")
        answer = await client.answer()
        assert answer.json["body"] == "body"
        assert "expect" not in dict(answer.json["headers"])


async def test_a_refused_caller_is_not_told_to_continue() -> None:
    """A caller that waits with its body learns that it is not wanted before it sends it."""
    async with staged() as (stage, api), await RawClient.connect(stage.port) as client:
        client.send(
            f"POST {PROXY}/../x HTTP/1.1\r\nHost: localhost\r\n{AUTHORIZED}\r\n"
            "Expect: 100-continue\r\nContent-Length: 4\r\n\r\n"
        )
        assert (await client.answer()).status == 400
        assert api.connections == 0


async def test_an_http_10_caller_gets_the_end_by_the_close() -> None:
    """HTTP/1.0 knows no chunks: the body ends with the connection."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"one ")
        await response.write(b"two")
        return response

    async with staged(handle) as (stage, _), await RawClient.connect(stage.port) as client:
        client.send(f"GET {PROXY}/x HTTP/1.0\r\nHost: localhost\r\n{AUTHORIZED}\r\n\r\n")
        answer = await client.closed()
        assert answer.endswith(b"\r\n\r\none two")
        assert b"chunked" not in answer


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"
LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"


@pytest.mark.parametrize("head", [CHUNKED, LENGTH])
@pytest.mark.parametrize("end", [writes, writes_then_resets, writes_then_waits])
async def test_an_answer_that_breaks_off_never_looks_whole(head: bytes, end: Any) -> None:
    """An API that ends, resets or falls silent in its body costs the caller the connection."""
    async with RawServer(end(head)) as api, AsyncExitStack() as stack:
        stage = await stack.enter_async_context(proxying(provider(api.url("/")), limits=SMALL))
        client = await stack.enter_async_context(await RawClient.connect(stage.port))
        client.request(f"{PROXY}/x", AUTHORIZED)
        received = await client.closed()
        assert b"0\r\n\r\n" not in received
        assert received.count(b"half") <= 1


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (writes(b""), 502, "upstream_failed"),
        (writes(b"SSH-2.0-OpenSSH\r\n"), 502, "upstream_failed"),
        (writes_then_resets(b"HTTP/1.1 200 OK\r\n"), 502, "upstream_failed"),
        (writes_then_waits(b"HTTP/1.1 200 OK\r\n"), 504, "upstream_timeout"),
        (writes_then_waits(b""), 504, "upstream_timeout"),
        (writes(b"HTTP/1.1 200 OK\r\nX: a\x01b\r\n\r\nbody"), 502, "upstream_failed"),
        (
            writes(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
            ),
            502,
            "upstream_failed",
        ),
    ],
)
async def test_an_api_without_an_answer(answer: Any, status: int, code: str) -> None:
    """Where no answer begins, ours says so in a problem, and names the API."""
    async with RawServer(answer) as api:
        configured = provider(api.url("/"))
        async with (
            proxying(configured, limits=SMALL) as stage,
            stage.ask(method="POST") as response,
        ):
            assert response.status == status
            assert await code_of(response) == code
            assert stage.counted == [("acme", status)]


async def test_an_api_that_is_not_there() -> None:
    """A refused connect is 502."""
    async with RawServer(writes(b"")) as api:
        base = api.url("/")
    async with proxying(provider(base)) as stage, stage.ask() as response:
        assert response.status == 502
        assert await code_of(response) == "upstream_failed"


async def test_an_api_that_does_not_read_is_a_timeout() -> None:
    """An upload that the API does not take ends after the idle time."""
    async with RawServer(writes_then_waits(b""), before_request=True) as api:
        configured = provider(api.url("/"))
        async with proxying(configured, limits=SMALL) as stage:
            with suppress(aiohttp.ClientError):
                async with stage.ask(method="POST", data=_pieces(64 * MIB)) as response:
                    assert response.status == 504
            await until(lambda: stage.counted == [("acme", 504)])


async def _pieces(total: int) -> AsyncIterator[bytes]:
    for _ in range(total // 65536):
        yield b"x" * 65536


async def test_a_caller_that_stalls_in_its_body_is_told() -> None:
    """A caller that sends half a body gets 408, and the API never sees a whole request."""
    async with staged(limits=SMALL) as (stage, api), await RawClient.connect(stage.port) as client:
        client.send(
            f"POST {PROXY}/echo HTTP/1.1\r\nHost: localhost\r\n{AUTHORIZED}\r\n"
            "Content-Length: 10\r\n\r\nhalf"
        )
        answer = await client.answer()
        assert (answer.status, answer.code) == (408, "request_timeout")
        assert api.seen == [] or not api.seen[0].content.is_eof()


async def test_a_caller_that_leaves_ends_the_request_upstream() -> None:
    """Nobody waits for an answer: the API's connection is closed although it is silent."""
    gone = asyncio.Event()

    async with upstream() as api:

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"data: 1\n\n")
            transport = request.transport
            assert transport is not None
            await until(transport.is_closing)
            gone.set()
            return response

        api.handle = handle
        async with proxying(provider(api.url())) as stage:
            async with await RawClient.connect(stage.port) as client:
                client.request(f"{PROXY}/x", AUTHORIZED)
                await until(lambda: bool(api.seen))
            async with asyncio.timeout(10):
                await gone.wait()


async def test_a_caller_that_leaves_before_the_answer_ends_the_request_upstream() -> None:
    """The same while the API has not begun to answer."""
    gone = asyncio.Event()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None
        await until(transport.is_closing)
        gone.set()
        return web.Response()

    async with staged(handle) as (stage, api):
        async with await RawClient.connect(stage.port) as client:
            client.request(f"{PROXY}/x", AUTHORIZED)
            await until(lambda: bool(api.seen))
        async with asyncio.timeout(10):
            await gone.wait()


@pytest.mark.parametrize(
    ("method", "headers", "status", "code"),
    [
        ("GET", ["Connection: Upgrade", "Upgrade: websocket"], 501, "upgrade_not_supported"),
        ("TRACE", [], 405, "method_not_allowed"),
        ("POST", ["Expect: 200-ok"], 417, "expectation_failed"),
        ("GET", ["Tokenward-Target: x", "Tokenward-Target: y"], 400, "bad_request"),
        ("GET", ["X-Bad: \xff"], 400, "bad_request"),
        ("GET", ["Origin: https://evil.example"], 403, "cross_origin"),
    ],
)
async def test_what_is_not_sent_on(method: str, headers: list[str], status: int, code: str) -> None:
    """WebSocket, TRACE and the like are refused in words, before anything is sent."""
    async with staged() as (stage, api), await RawClient.connect(stage.port) as client:
        answer = await client.ask(f"{PROXY}/x", AUTHORIZED, *headers, method=method)
        assert (answer.status, answer.code) == (status, code)
        assert answer.headers["tokenward-error"] == code
        assert api.connections == 0


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (Status.PENDING, "not_authorized_yet"),
        (Status.DISCONNECTED, "disconnected"),
        (Status.REAUTHORIZATION_REQUIRED, "reauthorization_required"),
    ],
)
async def test_a_connection_without_a_token(status: Status, code: str) -> None:
    """The answer is the token route's, and nothing is sent."""
    async with staged() as (stage, api):
        stage.here.cache.drop("acme-1")
        stage.put(generation=2, status=status)
        stage.here.clock.advance(4000.0)
        async with stage.ask() as response:
            assert response.status == 409
            assert await code_of(response) == code
        assert api.connections == 0


async def test_who_may_not() -> None:
    """No key, another's connection, an unknown one, and no permission: as everywhere."""
    async with staged() as (stage, api):
        for path, key, status in (
            (f"{PROXY}/x", "wrong", 401),
            ("/v1/connections/other/proxy/x", KEY, 404),
            ("/v1/connections/acme-9/proxy/x", KEY, 404),
            ("/v1/connections/acme-1%2F..%2Fx/proxy/x", KEY, 404),
        ):
            async with await RawClient.connect(stage.port) as client:
                answer = await client.ask(path, f"Authorization: Bearer {key}")
                assert answer.status == status
        assert api.connections == 0
    tokens_only = frozenset({Permission.TOKEN})
    async with (
        proxying(provider("https://a.example"), permissions=tokens_only) as stage,
        stage.ask() as response,
    ):
        assert await code_of(response) == "permission_denied"


async def test_another_allowed_host() -> None:
    """Tokenward-Target takes the request to another host of the list, from its root."""
    async with upstream() as other, staged() as (stage, api):
        hosts = (f"127.0.0.1:{api.port}", f"localhost:{other.port}")
        stage.set_provider(provider(api.url("/base"), allowed_hosts=hosts))
        target = {"Tokenward-Target": f"http://localhost:{other.port}"}
        async with stage.ask("/a?b", headers=target) as response:
            seen = await told(response)
        assert seen["target"] == "/a?b"
        assert seen["headers"]["host"] == f"localhost:{other.port}"
        assert "tokenward-target" not in seen["headers"]
        assert (api.connections, other.connections) == (0, 1)


async def test_fields_choose_the_tenant_within_a_second() -> None:
    """A changed field counts a second later; meanwhile the database is not asked per request."""
    async with upstream() as one, upstream() as two:
        base = f"http://localhost:{one.port}/{{region}}"
        async with proxying(provider(base)) as stage:
            stage.connections.fields = {"region": "us"}
            for _ in range(3):
                async with stage.ask() as response:
                    assert (await told(response))["target"] == "/us/echo"
            assert stage.connections.asked == 1
            stage.connections.fields = {"region": "eu"}
            stage.here.clock.advance(1.0)
            async with stage.ask() as response:
                assert (await told(response))["target"] == "/eu/echo"
            stage.connections.error = DatabaseUnavailableError("away")
            stage.here.clock.advance(1.0)
            async with stage.ask() as response:
                assert (await told(response))["target"] == "/eu/echo"
        assert two.connections == 0


async def test_how_a_request_looks() -> None:
    """/request tells URL, headers, query and body, each thing once, and may not be stored."""
    values = {"headers": {"X-Api-Version": "2"}, "query": {"v": "1"}, "body": {"dummy": True}}
    configured = provider("https://api.acme.example/v1", request=values)
    async with proxying(configured) as stage:
        url = stage.url("/v1/connections/acme-1/request")
        headers = {"Authorization": f"Bearer {KEY}"}
        params = {"url": "https://API.acme.example/me?x=%20&v=0"}
        async with stage.session.get(url, params=params, headers=headers) as response:
            assert response.headers["Cache-Control"] == "no-store"
            assert await response.json() == {
                "url": "https://api.acme.example/me?x=%20",
                "headers": {"X-Api-Version": "2", "Authorization": "Bearer access 1"},
                "query": {"v": "1"},
                "body": {"dummy": True},
            }
        for bad, status in (
            ("https://evil.example/", 403),
            ("https://api.acme.example/?access_token=1", 400),
            ("", 403),
        ):
            async with stage.session.get(url, params={"url": bad}, headers=headers) as response:
                assert response.status == status
        async with stage.session.get(url, headers=headers) as response:
            assert response.status == 400
