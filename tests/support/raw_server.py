"""A server that misbehaves to the byte: plain sockets, one scripted answer per connection.

A token endpoint's worst days (resets, drips, lies about lengths) cannot be had from a well-kept
server, so this one writes whatever its ``Answer`` writes.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_NOT_BEFORE = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
_NOT_AFTER = dt.datetime(2120, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Wire:
    """The server's end of one connection."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Write and wait until it has left; a client that is gone is no error."""
        with suppress(OSError):
            self.writer.write(data)
            await self.writer.drain()

    def reset(self) -> None:
        """End the connection with RST instead of FIN."""
        raw: socket.socket = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def until_closed(self) -> None:
        """Wait for the client to go."""
        with suppress(OSError):
            await self.writer.wait_closed()


Answer = Callable[[Wire], Awaitable[None]]


class RawServer:
    """Listens on a free loopback port, reads each request whole, then lets ``answer`` write.

    ``answer`` may be replaced between requests. ``connections`` counts what was accepted,
    ``octets`` what was received over plain TCP, whether or not it was a request.
    """

    def __init__(
        self, answer: Answer, *, tls: ssl.SSLContext | None = None, before_request: bool = False
    ) -> None:
        self.answer = answer
        self.seen: list[Seen] = []
        self.connections = 0
        self._tls = tls
        self._before_request = before_request
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def port(self) -> int:
        """Return the port it listens on."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def url(self, path: str = "/token", *, host: str = "127.0.0.1") -> str:
        """Return a URL of this server."""
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}{path}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        wire = Wire(writer)
        try:
            if not self._before_request:
                self.seen.append(await _request(reader))
            await self.answer(wire)
        except (asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()


async def _request(reader: asyncio.StreamReader) -> Seen:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    method, target, _ = first.split(" ")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Seen(method=method, target=target, headers=headers, body=body)


def replies(body: bytes, *headers: str, status: str = "200 OK") -> Answer:
    """Return an answer that is a whole, honest HTTP reply."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return writes("\r\n".join(lines).encode("latin-1") + body)


def writes(data: bytes) -> Answer:
    """Return an answer that writes ``data`` and closes."""

    async def answer(wire: Wire) -> None:
        await wire.send(data)

    return answer


def writes_then_resets(data: bytes) -> Answer:
    """Return an answer that writes ``data`` and resets the connection."""

    async def answer(wire: Wire) -> None:
        await wire.send(data)
        wire.reset()

    return answer


def writes_then_waits(data: bytes) -> Answer:
    """Return an answer that writes ``data`` and then says no more until the client goes."""

    async def answer(wire: Wire) -> None:
        await wire.send(data)
        await wire.until_closed()
        await asyncio.Event().wait()

    return answer


def repeats(head: bytes, chunk: bytes, *, pause: float = 0.0) -> Answer:
    """Return an answer that writes ``head`` and then ``chunk`` for ever."""

    async def answer(wire: Wire) -> None:
        await wire.send(head)
        while not wire.writer.is_closing():
            await wire.send(chunk)
            await asyncio.sleep(pause)

    return answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """What makes a TLS server, and a client's context that trusts it."""

    server: ssl.SSLContext
    client: ssl.SSLContext


def certificates(
    directory: str, *, host: str = "127.0.0.1", not_after: dt.datetime = _NOT_AFTER
) -> Certificates:
    """Make a self-signed certificate for ``host`` in ``directory``, and contexts for both ends."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate(key, host, not_after)
    path = f"{directory}/{host}.pem"
    with open(path, "wb") as file:  # noqa: PTH123 - a few bytes for ssl, which reads only files
        file.write(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        file.write(certificate.public_bytes(serialization.Encoding.PEM))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(path)
    return Certificates(server=server, client=client)


def _certificate(
    key: ec.EllipticCurvePrivateKey, host: str, not_after: dt.datetime
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    try:
        san: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        san = x509.DNSName(host)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectAlternativeName([san]), critical=False)
        .sign(key, hashes.SHA256())
    )
