"""A caller that says anything, to the byte: what no well-kept HTTP library would send."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

# A test that waits this long has failed; nothing is timed by it.
_PATIENCE = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One HTTP response; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Return the body, parsed."""
        return json.loads(self.body)

    @property
    def code(self) -> Any:
        """Return the code of a problem."""
        assert self.headers["content-type"].startswith("application/problem+json")
        return self.json["code"]


class RawClient:
    """One connection; as a context manager it closes itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, where: int | Path) -> Self:
        """Connect to a port of 127.0.0.1, or to a Unix socket."""
        if isinstance(where, Path):
            return cls(*await asyncio.open_unix_connection(where))
        return cls(*await asyncio.open_connection("127.0.0.1", where))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.leave()

    async def leave(self) -> None:
        """Close without a farewell."""
        self._writer.transport.abort()
        with suppress(OSError):
            await self._writer.wait_closed()

    def send(self, data: bytes | str) -> None:
        """Send bytes."""
        self._writer.write(data.encode("latin-1") if isinstance(data, str) else data)

    def request(
        self,
        target: str = "/",
        *headers: str,
        method: str = "GET",
        body: bytes = b"",
        host: str = "127.0.0.1",
    ) -> None:
        """Send a whole request, with a Content-Length where there is a body."""
        length = [f"Content-Length: {len(body)}"] if body else []
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *headers, *length, "", ""]
        self.send("\r\n".join(lines).encode("latin-1") + body)

    async def answer(self, *, has_body: bool = True) -> Answer:
        """Return the next response; one to HEAD has a length and no body."""
        async with asyncio.timeout(_PATIENCE):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.strip().split("\r\n")
            headers = {
                name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
            }
            length = int(headers.get("content-length", "0")) if has_body else 0
            body = await self._reader.readexactly(length)
            return Answer(status=int(first.split(" ")[1]), headers=headers, body=body)

    async def ask(self, target: str = "/", *headers: str, **request: Any) -> Answer:
        """Send a request and return its response."""
        self.request(target, *headers, **request)
        return await self.answer()

    async def closed(self) -> bytes:
        """Return what still comes before the server closes."""
        async with asyncio.timeout(_PATIENCE):
            try:
                return await self._reader.read()
            except ConnectionResetError:
                return b""

    async def until_sent(self) -> None:
        """Wait until the system has taken what was sent, as far as its buffers go."""
        await self._writer.drain()
