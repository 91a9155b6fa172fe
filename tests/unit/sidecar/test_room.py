"""When a stranger has said enough to be listened to in earnest, and who gives way to it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from daemon.sidecar.problems import error_middleware
from daemon.sidecar.room import Idleness, Limits, says_enough, who_gives_way


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


@dataclass(frozen=True, slots=True)
class _Caller:
    """One that has been quiet for some reason since some time; by its name it is recognised."""

    name: str
    why: Idleness | None
    quiet_since: float

    def idleness(self) -> Idleness | None:
        """Return why."""
        return self.why


_NOW = 100.0
_BUSY = _Caller("busy", None, 0.0)
_OLD_IDLE = _Caller("old idle", Idleness.BETWEEN_REQUESTS, 30.0)
_NEW_IDLE = _Caller("new idle", Idleness.BETWEEN_REQUESTS, 99.999)
_OLD_HEAD = _Caller("old without head", Idleness.NO_HEAD_YET, 95.5)
_OLD_BODY = _Caller("old without body", Idleness.NO_BODY_YET, 99.0)
_NEW_HEAD = _Caller("new without head", Idleness.NO_HEAD_YET, 99.5)
_NEW_BODY = _Caller("new without body", Idleness.NO_BODY_YET, 99.25)


@pytest.mark.parametrize(
    ("connections", "here", "expected"),
    [
        (16, [_NEW_IDLE, _NEW_HEAD, _OLD_BODY, _BUSY, _OLD_HEAD, _OLD_IDLE], [_OLD_HEAD]),
        (16, [_NEW_IDLE, _NEW_HEAD, _OLD_BODY, _BUSY, _OLD_IDLE], [_OLD_BODY]),
        (16, [_NEW_IDLE, _NEW_HEAD, _NEW_BODY, _BUSY, _OLD_IDLE], [_OLD_IDLE]),
        (16, [_NEW_IDLE, _NEW_HEAD, _NEW_BODY, _BUSY], [_NEW_IDLE]),
        (16, [_NEW_HEAD, _NEW_BODY, _BUSY], [_NEW_BODY]),
        (16, [_NEW_HEAD, _BUSY], [_NEW_HEAD]),
        (16, [_BUSY], []),
        # A part of the silent at once, never of the idle; and none of another kind with them.
        (32, [_NEW_IDLE, _NEW_HEAD, _OLD_BODY, _OLD_HEAD, _OLD_IDLE], [_OLD_HEAD, _OLD_BODY]),
        (48, [_NEW_IDLE, _NEW_HEAD, _OLD_BODY, _OLD_HEAD, _OLD_IDLE], [_OLD_HEAD, _OLD_BODY]),
        (48, [_NEW_IDLE, _NEW_HEAD, _OLD_IDLE], [_OLD_IDLE]),
        (48, [_NEW_HEAD, _NEW_BODY, _BUSY], [_NEW_BODY, _NEW_HEAD]),
        # However few are allowed, one gives way.
        (1, [_OLD_HEAD], [_OLD_HEAD]),
    ],
)
def test_who_gives_way(connections: int, here: list[_Caller], expected: list[_Caller]) -> None:
    """The silent beyond our patience, then the idle, then the young; each oldest first."""
    assert who_gives_way(here, now=_NOW, limits=Limits(connections=connections)) == expected


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
