"""[exchange] The one HTTP session for strangers: no redirects, no cookies, no environment, limits.

The one hard idea: after a failure, was anything sent? aiohttp raises the same error for a
connection that was reset at once and one that was closed after it read the request, so the kind
of error never decides. A trace hook that runs right before the first byte of a request does:
where it did not run, provably nothing left.
"""

from __future__ import annotations

import ssl
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace, TracebackType
from typing import Self

from aiohttp import (
    ClientConnectorCertificateError,
    ClientConnectorDNSError,
    ClientConnectorError,
    ClientError,
    ClientOSError,
    ClientPayloadError,
    ClientResponse,
    ClientSession,
    ClientSSLError,
    ClientTimeout,
    DummyCookieJar,
    InvalidURL,
    NonHttpUrlClientError,
    ServerDisconnectedError,
    TCPConnector,
    TraceConfig,
    TraceRequestHeadersSentParams,
)
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from daemon.domain.reply import Fault, NoReply, RawReply
from daemon.oauth.addresses import AddressRefusedError
from daemon.oauth.patience import patience
from daemon.oauth.token_request import USER_AGENT

MAX_BODY = 1024 * 1024
_MAX_HEADERS = 64
_MAX_LINE = 8190
CONNECT_TIMEOUT = 5.0
"""Seconds for name, connection and TLS session together."""
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_RAW_DEFLATE = -zlib.MAX_WBITS
# ``ClientError`` and ``OSError`` cover the connection, the others what a server can make of
# aiohttp's parser and our decoder.
ERRORS = (ClientError, HttpProcessingError, OSError, ValueError)
"""What a session raises for what a server or network does."""
# In this order: a certificate error is a connector error too.
_FAULTS: tuple[tuple[type[BaseException], Fault], ...] = (
    (InvalidURL, Fault.URL),
    (NonHttpUrlClientError, Fault.URL),
    (ClientConnectorDNSError, Fault.NAME),
    (ClientConnectorCertificateError, Fault.CERTIFICATE),
    (ClientSSLError, Fault.TLS),
    (ClientConnectorError, Fault.CONNECT),
    (ServerDisconnectedError, Fault.DISCONNECTED),
    (ClientPayloadError, Fault.DISCONNECTED),
    (ClientOSError, Fault.DISCONNECTED),
    (TimeoutError, Fault.TIMEOUT),
    (OSError, Fault.DISCONNECTED),
)


MaySend = Callable[[], Awaitable[bool]]
"""Awaited when a connection stands, right before the first byte: ``False`` keeps it back."""


class _RefusedError(Exception):
    """Ends a request from within: ``fault`` says why."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


@dataclass(slots=True)
class Progress:
    """What is known of one request. ``sending`` turns true right before its first byte."""

    may_send: MaySend | None = None
    sending: bool = False


class Outbound:
    """Sends requests to providers. An async context manager; one for the whole process.

    ``ssl_context`` must verify certificate and host name, as ``create_default_context`` does. No
    redirect is followed, no cookie kept, no proxy or netrc taken from the environment, and no
    request is ever sent twice.
    """

    def __init__(self, *, ssl_context: ssl.SSLContext | None = None) -> None:
        self._ssl_context = verifying(ssl_context)
        self._session: ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = ClientSession(
            connector=self._connector(),
            cookie_jar=DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            max_headers=_MAX_HEADERS,
            max_line_size=_MAX_LINE,
            max_field_size=_MAX_LINE,
            # The hard timeout is our own, over everything: aiohttp rounds long ones up.
            timeout=ClientTimeout(total=None, connect=CONNECT_TIMEOUT),
            trace_configs=[tracing()],
        )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def post(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        hard_timeout: float,
        may_send: MaySend | None = None,
    ) -> RawReply | NoReply:
        """Send once, on a connection of its own, and return the whole reply or what is known.

        ``hard_timeout`` in seconds covers everything from the name to the last byte. ``may_send``
        is asked when the connection stands, right before the first byte, and may let it wait.
        Never raises for what a server or network does; when cancelled, the fate of the request is
        unknown.
        """
        progress = Progress(may_send=may_send)
        return await self._request(
            "POST", url, headers, body=body, hard_timeout=hard_timeout, progress=progress
        )

    async def get(
        self, url: str, headers: Mapping[str, str], *, hard_timeout: float
    ) -> RawReply | NoReply:
        """Fetch a document, with the same limits as :meth:`post`."""
        headers = {"Accept-Encoding": "identity", "User-Agent": USER_AGENT} | dict(headers)
        progress = Progress()
        return await self._request(
            "GET", url, headers, body=None, hard_timeout=hard_timeout, progress=progress
        )

    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        *,
        hard_timeout: float,
    ) -> RawReply | NoReply:
        """Send once by any method, with the same limits as :meth:`post`."""
        return await self._request(
            method, url, headers, body=body, hard_timeout=hard_timeout, progress=Progress()
        )

    def _connector(self) -> TCPConnector:
        """Return the connector.

        No pool: a kept connection that the server closes meanwhile would put every first request
        on it in doubt. No limit either: how much may be in flight is decided by those who send.
        """
        return TCPConnector(ssl=self._ssl_context, force_close=True, limit=0)

    async def _request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        body: bytes | None,
        hard_timeout: float,
        progress: Progress,
    ) -> RawReply | NoReply:
        if self._session is None:
            raise RuntimeError("Outbound is used outside its context")
        return await send_once(
            self._session,
            method,
            url,
            headers,
            body=body,
            hard_timeout=hard_timeout,
            progress=progress,
        )


async def send_once(
    session: ClientSession,
    method: str,
    url: str,
    headers: Mapping[str, str],
    *,
    body: bytes | None,
    hard_timeout: float,
    progress: Progress,
) -> RawReply | NoReply:
    """Send one request by a session that has :func:`tracing`, and read its whole reply.

    Never raises for what a server or network does; when cancelled, the fate is unknown.
    """
    try:
        async with (
            patience(hard_timeout, has_sent=lambda: progress.sending),
            session.request(
                method,
                # Encoded: the endpoint's own query is kept byte for byte (RFC 6749 3.2).
                URL(url, encoded=True),
                headers=headers,
                data=body,
                allow_redirects=False,
                trace_request_ctx=progress,
            ) as response,
        ):
            return await _read(response)
    except _RefusedError as error:
        return NoReply(sent=progress.sending, fault=error.fault)
    except ERRORS as error:
        return NoReply(sent=progress.sending, fault=fault_of(error, sending=progress.sending))


def verifying(ssl_context: ssl.SSLContext | None) -> ssl.SSLContext:
    """Return a context that verifies certificate and host name, with TLS 1.2 or later.

    Making one takes 21 ms, so one is shared. Raises ``ValueError`` for a given one that does not.
    """
    context = ssl_context or ssl.create_default_context()
    if context.verify_mode is not ssl.CERT_REQUIRED or not context.check_hostname:
        raise ValueError("the TLS context must verify certificate and host name")
    context.minimum_version = max(ssl.TLSVersion.TLSv1_2, context.minimum_version)
    return context


def tracing() -> TraceConfig:
    """Return the hook that tells whether a request was sent, and keeps it from being sent twice."""
    config: TraceConfig = TraceConfig()
    config.on_request_headers_sent.append(_before_first_byte)
    return config


async def _before_first_byte(
    _session: ClientSession, context: SimpleNamespace, _params: TraceRequestHeadersSentParams
) -> None:
    """Run when the connection stands and the headers are about to be written.

    Raising closes the connection with nothing written.
    """
    progress: Progress = context.trace_request_ctx
    if progress.sending:
        # aiohttp repeats what it takes for idempotent after a lost connection. We never do.
        raise _RefusedError(Fault.DISCONNECTED)
    if progress.may_send is not None and not await progress.may_send():
        raise _RefusedError(Fault.LATE)
    progress.sending = True


def fault_of(error: BaseException, *, sending: bool) -> Fault:
    """Return why a request has no whole reply. ``sending``: its first byte had left."""
    if isinstance(error, ClientConnectorError) and isinstance(error.os_error, AddressRefusedError):
        return Fault.ADDRESS
    fault = next((fault for kind, fault in _FAULTS if isinstance(error, kind)), None)
    if fault is None:
        return Fault.MALFORMED if sending else Fault.URL
    if fault is Fault.TIMEOUT and not sending:
        return Fault.CONNECT
    return fault


async def _read(response: ClientResponse) -> RawReply:
    raw = bytearray()
    async for chunk in response.content.iter_any():
        raw += chunk
        if len(raw) > MAX_BODY:
            raise _RefusedError(Fault.OVERSIZE)
    headers: dict[str, str] = {}
    for raw_name, raw_value in response.raw_headers:
        # Latin-1 maps every octet to one character: nothing is lost, nothing can fail.
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    body = _decoded(bytes(raw), headers.get("content-encoding", ""))
    return RawReply(status=response.status, headers=headers, body=body)


def _decoded(raw: bytes, coding: str) -> bytes:
    """Undo a content coding that we did not ask for; a bomb ends at the cap."""
    match coding.strip().lower():
        case "" | "identity":
            return raw
        case "gzip" | "x-gzip":
            return _inflated(raw, _GZIP_OR_ZLIB)
        case "deflate":
            # RFC 9110 8.4.1.2: some send it without the zlib wrapper, whose first half is always 8.
            wrapped = bool(raw) and raw[0] & 0x0F == zlib.DEFLATED
            return _inflated(raw, _GZIP_OR_ZLIB if wrapped else _RAW_DEFLATE)
        case _:
            raise _RefusedError(Fault.MALFORMED)


def _inflated(raw: bytes, window: int) -> bytes:
    stream = zlib.decompressobj(window)
    try:
        body = stream.decompress(raw, MAX_BODY + 1)
    except zlib.error as error:
        raise _RefusedError(Fault.MALFORMED) from error
    if len(body) > MAX_BODY:
        raise _RefusedError(Fault.OVERSIZE)
    if not stream.eof:
        raise _RefusedError(Fault.MALFORMED)
    return body
