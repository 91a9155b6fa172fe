"""A TCP connection to a database that a test can cut, stall and mend, or break at one message."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(slots=True, eq=False)
class Link:
    """One connection through a wire, and what its two ends have said to each other."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    begun: bool = False
    statements: dict[bytes, str] = field(default_factory=dict)
    doing: str = "connect"
    spoils: Fault | None = None
    ends_with: bytes = b""

    def cut(self) -> None:
        """End it at once, with RST where the end is a TCP socket."""
        for writer in (self.client, self.server):
            raw: socket.socket | None = writer.get_extra_info("socket")
            if raw is not None and raw.family == socket.AF_INET:
                with suppress(OSError):
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class Wire:
    """Forwards a port of loopback to the server of a database URL, a Unix socket's too.

    ``url`` is the way through it. As a context manager it opens and closes itself.
    """

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._server: asyncio.Server | None = None
        self._port = 0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Return the database URL that leads through this wire."""
        return f"postgresql://{self._credentials}{self.address}{self._target.path}?sslmode=disable"

    @property
    def address(self) -> str:
        """Return host and port of its own end."""
        return f"127.0.0.1:{self._port}"

    @property
    def _credentials(self) -> str:
        credentials, at, _ = self._target.netloc.rpartition("@")
        return credentials + at

    async def __aenter__(self) -> Self:
        await self.mend()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.cut()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def mend(self) -> None:
        """Accept connections and let bytes through."""
        self._flowing.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
            self._port = self._server.sockets[0].getsockname()[1]

    def stall(self) -> None:
        """Hold every byte back, in both directions, with all connections open."""
        self._flowing.clear()

    async def cut(self) -> None:
        """Close all connections and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            far_reader, far_writer = await self._reach()
        except OSError:
            # Nobody is at the other end: the client hears what it would have heard there.
            writer.transport.abort()
            return
        self._writers.add(far_writer)
        link = Link(writer, far_writer)
        for pumping in (self._upstream(link, reader), self._downstream(link, far_reader)):
            pump = asyncio.create_task(pumping)
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _reach(self) -> _Stream:
        folder = parse_qs(self._target.query).get("host", [""])[0]
        port = self._target.port or int(parse_qs(self._target.query).get("port", ["5432"])[0])
        if folder.startswith("/"):
            return await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.{port}")
        return await asyncio.open_connection(folder or self._target.hostname, port)

    async def _upstream(self, link: Link, source: asyncio.StreamReader) -> None:
        await self._pump(source, link.server)

    async def _downstream(self, link: Link, source: asyncio.StreamReader) -> None:
        await self._pump(source, link.client)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await self._send(sink, data)
        except OSError:
            return
        finally:
            sink.close()

    async def _send(self, sink: asyncio.StreamWriter, data: bytes) -> None:
        await self._flowing.wait()
        sink.write(data)
        await sink.drain()


class Fault(StrEnum):
    """What becomes of a request to the database."""

    UNASKED = "unasked"
    """The connection is reset before the request gets there."""
    UNANSWERED = "unanswered"
    """It is carried out, and the connection is reset before the answer gets back."""
    TORN = "torn"
    """It is carried out, and the connection is reset in the middle of its answer."""
    SLOW = "slow"
    """It gets there, and its answer back, some seconds late."""
    HUNG = "hung"
    """It is carried out, and no answer gets back, on a connection that stays open."""
    GONE = "gone"
    """Unasked, and for some time nobody else gets an answer either."""


# A client's messages after which it waits for the server: query, sync, flush, password.
_ASKS = b"QSHp"
# The last message of an answer: to a flush a description or an error, else "ready" or the next
# step of logging in.
_LAST = {b"H": b"TnE"}
_LAST_ELSE = b"ZRE"
_LITERAL = re.compile(r"\s+")


class FaultyWire(Wire):
    """Counts what the client asks of PostgreSQL, and spoils the request whose number is named.

    Requests of all connections are counted together, in the order of their arrival, from
    ``arm`` on; connecting counts, too. ``met`` says what the spoiled request was about.
    """

    def __init__(self, url: str, *, seconds: float = 1.0) -> None:
        super().__init__(url)
        self.asked: list[str] = []
        self.met: str | None = None
        self._seconds = seconds
        self._links: set[Link] = set()
        self._fault: tuple[Fault, int] | None = None
        self._mending: asyncio.Task[None] | None = None

    def arm(self, fault: Fault | None = None, number: int = 0) -> None:
        """Count from 0 on; spoil request ``number`` (the first is 1) where ``fault`` is given."""
        self.asked.clear()
        self.met = None
        self._fault = None if fault is None else (fault, number)

    def disarm(self) -> str | None:
        """Spoil nothing more; return what the spoiled request was about, if there was one."""
        self._fault = None
        return self.met

    async def _upstream(self, link: Link, source: asyncio.StreamReader) -> None:
        self._links.add(link)
        try:
            buffer = b""
            while data := await source.read(65536):
                buffer += data
                for message, kind in _messages(buffer, is_first=not link.begun):
                    buffer = buffer[len(message) :]
                    await self._ask(link, message, kind)
        except OSError:
            return
        finally:
            self._links.discard(link)
            link.server.close()

    async def _ask(self, link: Link, message: bytes, kind: bytes) -> None:
        _note(link, message, kind)
        if link.begun and kind not in _ASKS:
            await self._send(link.server, message)
            return
        link.begun = True
        self.asked.append(link.doing)
        if self._fault is None or len(self.asked) != self._fault[1]:
            await self._send(link.server, message)
            return
        fault, self._fault, self.met = self._fault[0], None, link.doing
        match fault:
            case Fault.UNASKED:
                link.cut()
            case Fault.GONE:
                await self._be_gone(link)
            case Fault.UNANSWERED | Fault.TORN | Fault.HUNG:
                link.spoils, link.ends_with = fault, _LAST.get(kind, _LAST_ELSE)
                await self._send(link.server, message)
            case Fault.SLOW:
                await asyncio.sleep(self._seconds)
                await self._send(link.server, message)

    async def _be_gone(self, link: Link) -> None:
        link.cut()
        for other in tuple(self._links):
            other.cut()
        await self.cut()

        async def come_back() -> None:
            await asyncio.sleep(self._seconds)
            await self.mend()

        self._mending = asyncio.create_task(come_back())

    async def _downstream(self, link: Link, source: asyncio.StreamReader) -> None:
        try:
            withheld = b""
            while data := await source.read(65536):
                if link.spoils is None:
                    await self._send(link.client, data)
                    continue
                withheld += data
                kinds = [kind for _, kind in _messages(withheld, is_first=False)]
                if link.spoils is not Fault.HUNG and any(kind in link.ends_with for kind in kinds):
                    if link.spoils is Fault.TORN:
                        await self._send(link.client, withheld[: len(withheld) // 2])
                    link.cut()
                    return
        except OSError:
            return
        finally:
            link.client.close()


def _messages(buffer: bytes, *, is_first: bool) -> Iterator[tuple[bytes, bytes]]:
    """Yield each whole message of ``buffer`` and its type; a connection's first one has none."""
    at = 0
    while len(buffer) - at >= (4 if is_first else 5):
        head = at if is_first else at + 1
        if len(buffer) - head < 4:
            return
        end = head + int.from_bytes(buffer[head : head + 4], "big")
        if end > len(buffer):
            return
        yield buffer[at:end], b"" if is_first else buffer[at : at + 1]
        at, is_first = end, False


def _note(link: Link, message: bytes, kind: bytes) -> None:
    """Remember what the connection is about to ask, in the words of its statement."""
    parts = message[5:].split(b"\0")
    match kind:
        case b"P":
            link.doing = link.statements[parts[0]] = _shortened(parts[1])
        case b"B":
            link.doing = link.statements.get(parts[1], "a statement")
        case b"Q":
            link.doing = _shortened(parts[0])


def _shortened(statement: bytes) -> str:
    return _LITERAL.sub(" ", statement.decode("utf-8", "replace")).strip()[:90]
