"""A token endpoint that rotates at once: the cheapest that speaks HTTP, so that it is no limit.

First line out: its port. Any line in: how many requests were answered, and how many of them
repeated a refresh token that was spent, which must be none.
"""

from __future__ import annotations

import asyncio
from itertools import count
from typing import cast

import uvloop

from bench.processes import answer_lines

ACCESS_TOKEN_LENGTH, REFRESH_TOKEN_LENGTH = 900, 64
LIFETIME = 3600
_MARK = b"refresh_token="
_NAME = b"content-length:"


class _Tokens:
    def __init__(self) -> None:
        self.answered = 0
        self.repeated = 0
        self._spent: set[bytes] = set()
        self._numbers = count(1)

    def refresh(self, body: bytes) -> bytes:
        """Return the reply to a refresh request."""
        token = body[body.index(_MARK) + len(_MARK) :].partition(b"&")[0]
        self.answered += 1
        self.repeated += token in self._spent
        self._spent.add(token)
        number = b"%d" % next(self._numbers)
        return (
            b'{"access_token":"%b","refresh_token":"%b","token_type":"Bearer","expires_in":%d}'
            % (
                number.rjust(ACCESS_TOKEN_LENGTH, b"a"),
                number.rjust(REFRESH_TOKEN_LENGTH, b"n"),
                LIFETIME,
            )
        )


class _Connection(asyncio.Protocol):
    def __init__(self, tokens: _Tokens) -> None:
        self._tokens = tokens
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or self._transport is None:
            return
        fields = head.lower()
        length = int(fields[fields.index(_NAME) + len(_NAME) :].partition(b"\r\n")[0])
        if len(body) < length:
            return
        self._received = b""
        answer = self._tokens.refresh(body)
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(answer), answer)
        )
        if b"connection: close" in fields:
            self._transport.close()


async def _main() -> None:
    tokens = _Tokens()
    server = await asyncio.get_running_loop().create_server(
        lambda: _Connection(tokens), "127.0.0.1", 0, backlog=1024
    )

    async def told(_: object) -> object:
        return {"answered": tokens.answered, "repeated": tokens.repeated}

    await answer_lines(told, first={"port": server.sockets[0].getsockname()[1]})
    server.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        loop.run(_main())
