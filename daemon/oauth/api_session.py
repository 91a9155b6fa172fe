"""Requests to providers' APIs, which carry an access token: sessions that judge every address.

Two kinds: ``send`` for a request whose whole reply is wanted (tests, webhooks), on a connection of
its own; ``streaming`` for the proxy, on connections that are kept. Kept connections are never
shared between providers that may reach private addresses and those that may not.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from aiohttp.abc import AbstractResolver

from daemon.domain.reply import NoReply, RawReply
from daemon.oauth.addresses import guarded_sockets
from daemon.oauth.outbound import CONNECT_TIMEOUT, Progress, send_once, tracing, verifying

# Answers of APIs have more headers than those of token endpoints, and longer ones (Link, CSP).
_MAX_HEADERS = 256
_MAX_LINE = 32 * 1024
# Kept connections are closed by us before servers do it: many after 5 s. What is sent on one that
# is closing just then is lost, and only some of it may be sent again.
_KEPT_FOR = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiRequest:
    """A request with its whole body. The URL must be one that was checked against an allow list."""

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)
    allow_private_hosts: bool = False


class ApiSession:
    """Sends requests to APIs. An async context manager; one for the whole process.

    No redirect is followed, no cookie kept, no proxy or netrc taken from the environment. TLS is
    verified, version 1.2 or later. Every address is judged right before it is connected to.
    ``resolver`` is aiohttp's own by default, which asks the system.
    """

    def __init__(
        self,
        *,
        ssl_context: ssl.SSLContext | None = None,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._resolver = resolver
        self._ssl_context = verifying(ssl_context)
        self._sending: dict[bool, ClientSession] = {}
        self._streaming: dict[bool, ClientSession] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for allow_private in (False, True):
            sending = self._session(allow_private=allow_private, is_streaming=False)
            streaming = self._session(allow_private=allow_private, is_streaming=True)
            self._sending[allow_private] = await self._stack.enter_async_context(sending)
            self._streaming[allow_private] = await self._stack.enter_async_context(streaming)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._sending.clear()
        self._streaming.clear()
        await self._stack.aclose()

    async def send(self, request: ApiRequest, *, hard_timeout: float) -> RawReply | NoReply:
        """Send once and return the whole reply, at most 1 MiB, or what is known of it.

        ``hard_timeout`` in seconds covers everything from the name to the last byte. A name that
        leads only to addresses that may not be reached is ``Fault.ADDRESS``, with nothing sent.
        Never raises for what a server or network does; when cancelled, the fate is unknown.
        """
        return await send_once(
            self._sending[request.allow_private_hosts],
            request.method,
            request.url,
            request.headers,
            body=request.body or None,
            hard_timeout=hard_timeout,
            progress=Progress(),
        )

    def streaming(self, *, allow_private_hosts: bool) -> ClientSession:
        """Return the session for the proxy: bodies as they are, no time limit but connecting.

        A refused address is a ``ClientConnectorError`` whose ``os_error`` is an
        ``AddressRefusedError``; ``daemon.oauth.outbound.fault_of`` tells it from others.
        """
        return self._streaming[allow_private_hosts]

    def _session(self, *, allow_private: bool, is_streaming: bool) -> ClientSession:
        sockets = guarded_sockets(allow_private=allow_private)
        connector = (
            TCPConnector(
                ssl=self._ssl_context,
                socket_factory=sockets,
                resolver=self._resolver,
                limit=0,
                keepalive_timeout=_KEPT_FOR,
            )
            if is_streaming
            else TCPConnector(
                ssl=self._ssl_context,
                socket_factory=sockets,
                resolver=self._resolver,
                limit=0,
                force_close=True,
            )
        )
        return ClientSession(
            connector=connector,
            cookie_jar=DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            max_headers=_MAX_HEADERS,
            max_line_size=_MAX_LINE,
            max_field_size=_MAX_LINE,
            timeout=ClientTimeout(total=None, connect=CONNECT_TIMEOUT),
            # The hook raises on a second sending, which for the proxy is aiohttp's right thing
            # to do where a kept connection turns out to be closed.
            trace_configs=[] if is_streaming else [tracing()],
        )
