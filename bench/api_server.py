"""An API that answers at once with prepared bytes: the cheapest that speaks HTTP.

First line out: its port. ``/small`` is 1 KB of JSON, ``/large`` 1 MiB; both with a length.
"""

from __future__ import annotations

import asyncio
from typing import cast

import uvloop

from bench.processes import answer_lines

_SMALL = b'{"items":"' + b"i" * 1000 + b'"}'
_LARGE = b"l" * (1024 * 1024)


def _answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while self._transport is not None and b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            self._transport.write(_answer(_LARGE if b"/large " in head else _SMALL))


async def _main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Connection, "127.0.0.1", 0, backlog=1024)

    async def pong(_: object) -> object:
        return {}

    await answer_lines(pong, first={"port": server.sockets[0].getsockname()[1]})
    server.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main())
