"""Request bodies over real connections: strict, bounded in size and in time."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import pytest
from aiohttp import web

from daemon.config.settings import Address
from daemon.domain.clock import system_entropy
from daemon.sidecar.bodies import BODY_LIMIT, read_form, read_json
from daemon.sidecar.listener import Listener
from daemon.sidecar.problems import error_middleware
from daemon.sidecar.room import Limits
from tests.support.raw_client import Answer, RawClient

JSON = "Content-Type: application/json"
FORM = "Content-Type: application/x-www-form-urlencoded"


async def _json(request: web.Request) -> web.Response:
    body = await read_json(request, deadline=0.2)
    return web.Response(body=orjson.dumps(body), content_type="application/json")


async def _form(request: web.Request) -> web.Response:
    body = await read_form(request, limit=1000, deadline=0.2)
    return web.Response(body=orjson.dumps(body), content_type="application/json")


@asynccontextmanager
async def _calling() -> AsyncIterator[RawClient]:
    app = web.Application(middlewares=[error_middleware(system_entropy)])
    app.router.add_post("/json", _json)
    app.router.add_post("/form", _form)
    listener = Listener(
        app, name="api", entropy=system_entropy, limits=Limits(shutdown_grace=1.0, linger=0.2)
    )
    await listener.start(address=Address("127.0.0.1", 0))
    try:
        async with await RawClient.connect(listener.addresses[0].port) as caller:
            yield caller
    finally:
        await listener.stop()


async def _post(target: str, header: str, body: bytes) -> Answer:
    async with _calling() as caller:
        answer = await caller.ask(target, header, method="POST", body=body)
        # Whatever the body was, the connection carries another request unless it says otherwise.
        if answer.headers.get("connection") != "close":
            again = await caller.ask("/json", JSON, method="POST", body=b"{}")
            assert (again.status, again.json) == (200, {})
        return answer


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b' {"a": [1, {"b": null}], "c": "\xc3\xa9"} ',
        b'{"a": "\\\\u0000"}',
        b'{"a": {"b": 1}, "b": {"b": 1}}',
    ],
)
async def test_objects_are_read(body: bytes) -> None:
    """A JSON object comes back as it was sent."""
    answer = await _post("/json", JSON, body)
    assert (answer.status, answer.json) == (200, orjson.loads(body))


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=UTF-8", "APPLICATION/JSON", "application/json;"]
)
async def test_the_type_may_be_spelt_freely(content_type: str) -> None:
    """Case and a charset of UTF-8 are no obstacle."""
    answer = await _post("/json", f"Content-Type: {content_type}", b"{}")
    assert answer.status == 200


@pytest.mark.parametrize(
    "header",
    [
        "X: y",
        "Content-Type: text/plain",
        FORM,
        "Content-Type: application/json; charset=utf-16",
        f"{JSON}\r\nContent-Encoding: gzip",
    ],
)
async def test_other_types_are_unsupported(header: str) -> None:
    """What a browser's form can send without a preflight, and what is packed, is 415."""
    answer = await _post("/json", header, b"{}")
    assert (answer.status, answer.code) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "body",
    [
        b" ",
        b"null",
        b"[]",
        b'"text"',
        b"1",
        b"{",
        b"{}{}",
        b"{'a': 1}",
        b'{"a": 1, "a": 1}',
        b'{"x": {"a": 1, "a": 2}}',
        b'{"x": [{"a": 1, "\\u0061": 2}]}',
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": "\\u0000"}',
        b'{"a\\u0000": 1}',
        b'{"a": ["x", ["\\u0000"]]}',
        b'{"a": "\\ud800"}',
        b'{"a": "\xff"}',
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b"[" * 30_000,
        b'{"a":' * 10_000,
        gzip.compress(b"{}", mtime=0),
    ],
)
async def test_what_is_no_strict_object_is_a_bad_request(body: bytes) -> None:
    """Repeated names, NaN, NUL, surrogates, other encodings, depth, non-objects: 400, no echo."""
    answer = await _post("/json", JSON, body)
    assert (answer.status, answer.code) == (400, "bad_request")


async def test_no_body_is_a_bad_request() -> None:
    """A request that announces JSON and sends nothing is told what to send."""
    answer = await _post("/json", JSON, b"")
    assert (answer.status, answer.code) == (400, "bad_request")


async def test_a_body_at_the_limit_is_read() -> None:
    """The limit itself is allowed."""
    body = b'{"a":"' + b"x" * (BODY_LIMIT - 8) + b'"}'
    assert len(body) == BODY_LIMIT
    assert (await _post("/json", JSON, body)).status == 200


async def test_a_body_that_announces_too_much_is_refused_unread() -> None:
    """413 comes on the announcement alone, and the connection ends."""
    async with _calling() as caller:
        caller.send(
            f"POST /json HTTP/1.1\r\nHost: a\r\n{JSON}\r\nContent-Length: 1000000000\r\n\r\n"
        )
        answer = await caller.answer()
        assert (answer.status, answer.code) == (413, "body_too_large")
        assert answer.headers["connection"] == "close"
        assert await caller.closed() == b""


async def test_endless_chunks_are_refused() -> None:
    """A body without an announced length is cut at the limit, as it comes."""
    async with _calling() as caller:
        caller.send(
            f"POST /json HTTP/1.1\r\nHost: a\r\n{JSON}\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"1000\r\n" + b"x" * 0x1000 + b"\r\n"
        for _ in range(64):
            caller.send(chunk)
        answer = await caller.answer()
        assert (answer.status, answer.code) == (413, "body_too_large")
        assert await caller.closed() == b""


@pytest.mark.parametrize("beginning", [b"", b'{"a":'])
async def test_a_slow_body_is_cut_at_the_deadline(beginning: bytes) -> None:
    """A body that does not come is 408 at the deadline, and the connection ends."""
    async with _calling() as caller:
        caller.send(f"POST /json HTTP/1.1\r\nHost: a\r\n{JSON}\r\nContent-Length: 100\r\n\r\n")
        caller.send(beginning)
        answer = await caller.answer()
        assert (answer.status, answer.code) == (408, "request_timeout")
        assert answer.headers["connection"] == "close"
        assert await caller.closed() == b""


async def test_a_dripping_body_is_cut_at_the_deadline() -> None:
    """Bytes that keep coming do not move the deadline."""
    async with _calling() as caller:
        caller.send(f"POST /json HTTP/1.1\r\nHost: a\r\n{JSON}\r\nContent-Length: 60000\r\n\r\n")

        async def drip() -> None:
            while True:
                caller.send(b" ")
                await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        assert (await caller.answer()).code == "request_timeout"
        assert await caller.closed() == b""
        dripping.cancel()


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"", {}),
        (b"a=1&b=", {"a": "1", "b": ""}),
        (b"a=x+y%20z%C3%A9", {"a": "x y z\u00e9"}),
        (b"refresh_token=a%3Db%26c", {"refresh_token": "a=b&c"}),
    ],
)
async def test_forms_are_read(body: bytes, fields: dict[str, str]) -> None:
    """Fields are decoded once, as forms are; empty ones stay."""
    answer = await _post("/form", FORM, body)
    assert (answer.status, answer.json) == (200, fields)


@pytest.mark.parametrize(
    "body",
    [
        b"a",
        b"a=1&&b=2",
        b"a=1&a=1",
        b"a=1&%61=2",
        b"a=%ff",
        b"a=\xc3\xa9",
        b"a=%00",
        b"%00=1",
        b"&".join(b"f%d=1" % number for number in range(101)),
    ],
)
async def test_odd_forms_are_bad_requests(body: bytes) -> None:
    """Repeated fields (RFC 6749 3.2), other encodings, NUL, too many and broken ones are 400."""
    answer = await _post("/form", FORM, body)
    assert (answer.status, answer.code) == (400, "bad_request")


async def test_a_form_has_its_limit() -> None:
    """A caller of the reader may set a lower limit."""
    async with _calling() as caller:
        answer = await caller.ask("/form", FORM, method="POST", body=b"a=" + b"x" * 1000)
        assert (answer.status, answer.code) == (413, "body_too_large")
