"""When a stranger at a listener has said enough to be listened to in earnest."""

from __future__ import annotations

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from daemon.sidecar.problems import error_middleware
from daemon.sidecar.room import says_enough


@pytest.mark.parametrize(
    ("heard", "expected"),
    [
        (b"G", False),
        (b"GET / HTTP/1.1", False),
        (b"GET / HTTP/1.1\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", True),
        (b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nx", True),
        # What no parser takes is given to it at once: it has the words to refuse it.
        (b"GET / HTTP/1.1\nHost: a\n\n", True),
        (b"\x16\x03\x01", True),
        (b"get / HTTP/1.1", True),
        (b"\r\nGET / HTTP/1.1", True),
    ],
)
def test_a_whole_head_is_enough(heard: bytes, *, expected: bool) -> None:
    """The head's end, or a beginning that is none of HTTP/1."""
    assert says_enough(heard) is expected
    assert says_enough(bytearray(heard)) is expected


@pytest.mark.parametrize("cut", range(1, 27))
def test_the_end_is_found_wherever_the_parts_meet(cut: int) -> None:
    """A head in two parts is looked at again only from where the parts meet."""
    head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    assert not says_enough(head[:cut])
    assert says_enough(head, since=max(0, cut - 3))


async def test_an_answered_error_lets_go_of_its_frames() -> None:
    """The router keeps the error of a wrong path in the request: no circle is left of the two."""
    errors = [web.HTTPNotFound(), KeyError("x")]

    async def fail(request: web.Request) -> web.StreamResponse:
        del request
        raise errors[0] from errors[1]

    middleware = error_middleware(bytes)
    answer = await middleware(make_mocked_request("GET", "/nowhere"), fail)
    assert answer.status == 404
    assert [error.__traceback__ for error in errors] == [None, None]
