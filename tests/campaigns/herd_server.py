"""A provider for herds, as a process of its own: it notes to the millisecond when who asked.

``python -m tests.campaigns.herd_server LIFETIME``: a line of JSON in is a command, a line out its
answer. An access token says until when it is good, so whoever reads one can tell. Refresh tokens
rotate; a spent one that comes again is counted, and refused.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import suppress
from typing import Any, cast
from urllib.parse import parse_qs

from daemon.domain.clock import SystemClock

_LENGTH = b"content-length:"
_PRIORITY = -15
_TURNED_AWAY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def access_token(name: str, generation: int, expires_at: float) -> str:
    """Return a token that is good until ``expires_at`` (seconds since 1970)."""
    return f"access.{name}.{generation}.{expires_at:.3f}".replace(".", "~")


def expiry_of(token: str) -> float:
    """Return until when a token is good."""
    *_, seconds, fraction = token.split("~")
    return float(f"{seconds}.{fraction}")


def refresh_token(name: str, generation: int) -> str:
    """Return the refresh token that goes with it."""
    return f"refresh~{name}~{generation}"


class Books:
    """Who asked when, and what is in force. ``mode``: grant, turn away (503), hold."""

    def __init__(self, lifetime: float) -> None:
        self.mode = "grant"
        self.released = asyncio.Event()
        self.arrivals: list[tuple[float, str, bool]] = []
        self.spent = 0
        self._lifetime = lifetime
        self._generations: dict[str, int] = {}
        self._clock = SystemClock()

    def now(self) -> float:
        """Return seconds since 1970."""
        return self._clock.now().timestamp()

    async def answer(self, body: str, arrived: float) -> bytes:
        """Return the whole reply to a refresh request."""
        token = parse_qs(body)["refresh_token"][0]
        _, name, generation = token.split("~")
        if self.mode == "turn_away":
            self.arrivals.append((arrived, name, False))
            return _TURNED_AWAY
        self.arrivals.append((arrived, name, True))
        if self.mode == "hold":
            await self.released.wait()
        if int(generation) != self._generations.get(name, 1):
            self.spent += 1
            return _reply("400 Bad Request", {"error": "invalid_grant"})
        newer = self._generations[name] = int(generation) + 1
        expires_at = arrived + self._lifetime
        members = {
            "access_token": access_token(name, newer, expires_at),
            "refresh_token": refresh_token(name, newer),
            "token_type": "Bearer",
            "expires_in": int(self._lifetime),
        }
        return _reply("200 OK", members)


def _reply(status: str, members: dict[str, object]) -> bytes:
    body = json.dumps(members).encode()
    return (
        b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
        b"Connection: close\r\n\r\n%b" % (status.encode(), len(body), body)
    )


class _Wire(asyncio.Protocol):
    def __init__(self, books: Books, tasks: set[asyncio.Task[None]]) -> None:
        self._books = books
        self._tasks = tasks
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        fields = head.lower()
        length = int(fields[fields.index(_LENGTH) + len(_LENGTH) :].partition(b"\r\n")[0])
        if len(body) < length:
            return
        self._received = b""
        arrived = self._books.now()
        task = asyncio.get_running_loop().create_task(self._answer(body.decode(), arrived))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, body: str, arrived: float) -> None:
        answer = await self._books.answer(body, arrived)
        if self._transport is not None:
            self._transport.write(answer)
            self._transport.close()


class _Place:
    """The listener, which an outage may close."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def open(self) -> None:
        """Listen, at the same port as before."""
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Wire(self._books, self._tasks), "127.0.0.1", self.port, backlog=4096
        )
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Refuse connections."""
        if self._server is not None:
            self._server.close()
            self._server = None


async def _main(lifetime: float) -> None:
    # A provider has a machine of its own: how busy this one is must not blur what arrives when.
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)
    books = Books(lifetime)
    place = _Place(books)
    await place.open()
    _say({"port": place.port})
    while line := await asyncio.to_thread(sys.stdin.readline):
        _say(await _carry_out(json.loads(line), books, place))


async def _carry_out(command: dict[str, Any], books: Books, place: _Place) -> object:
    match command["do"]:
        case "mode":
            books.mode = command["mode"]
        case "refuse":
            place.close()
        case "open":
            await place.open()
        case "release":
            books.released.set()
        case "books":
            since = command["since"]
            return {"arrivals": [a for a in books.arrivals if a[0] >= since], "spent": books.spent}
    return {}


def _say(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_main(float(sys.argv[1])))
