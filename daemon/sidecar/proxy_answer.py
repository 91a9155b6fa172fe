"""An API's answer on its way to the caller: head filtered, body as it comes, with back pressure.

The one hard idea: an answer that ends early must not look whole. Where the API breaks off, the
caller's connection is cut, whatever the framing.
"""

from __future__ import annotations

import re
from http import HTTPStatus

from aiohttp import ClientResponse, hdrs, web
from aiohttp.http import HttpVersion10, HttpVersion11

from daemon.domain.errors import Problem
from daemon.oauth.outbound import ERRORS
from daemon.sidecar.proxy_headers import returned_headers

_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f]")
_BODILESS = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})


class RelayedResponse(web.StreamResponse):
    """An answer that was sent, head and body, before aiohttp is told of it."""

    def __init__(self, *, status: int, keep_alive: bool) -> None:
        super().__init__(status=status)
        self._is_kept_alive = keep_alive

    @property
    def keep_alive(self) -> bool:
        """Return whether the connection stays open."""
        return self._is_kept_alive

    async def prepare(self, request: web.BaseRequest) -> None:
        """Do nothing: all was sent."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing: all was sent."""


async def relay(request: web.BaseRequest, response: ClientResponse) -> RelayedResponse:
    """Send an API's answer to the caller as it arrives.

    Raises:
        ConnectionError: the caller is gone, or the API broke off and the caller was cut off, too.
        Problem: 502 for a head that cannot be passed on; nothing was sent.
    """
    keep_alive = await _begin(request, response)
    try:
        await _stream(request, response)
    except ERRORS as error:
        response.close()
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionError("the answer could not be sent to its end") from error
    return RelayedResponse(status=response.status, keep_alive=keep_alive)


async def _begin(request: web.BaseRequest, response: ClientResponse) -> bool:
    """Write the head (not sent yet) and return whether the connection stays open afterwards."""
    headers = returned_headers(response.headers)
    if any(_CONTROL.search(text) for pair in headers.items() for text in pair):
        # aiohttp's writer refuses them; what comes of an API must not be our own failure.
        raise Problem(
            502,
            "upstream_failed",
            "The API's answer has a control character in a header, so it was not passed on.",
        )
    keep_alive = request.keep_alive
    writer = request.writer
    length = _length(response)
    if length is not None:
        headers[hdrs.CONTENT_LENGTH] = length
    elif _has_body(request, response):
        if request.version == HttpVersion11:
            writer.enable_chunking()
            headers[hdrs.TRANSFER_ENCODING] = "chunked"
        else:
            keep_alive = False
    if not keep_alive:
        headers[hdrs.CONNECTION] = "close"
    elif request.version == HttpVersion10:
        headers[hdrs.CONNECTION] = "keep-alive"
    major, minor = request.version
    reason = _CONTROL.sub("", response.reason or "")
    await writer.write_headers(f"HTTP/{major}.{minor} {response.status} {reason}", headers)
    return keep_alive


def _length(response: ClientResponse) -> str | None:
    if response.status == HTTPStatus.NO_CONTENT or hdrs.TRANSFER_ENCODING in response.headers:
        return None
    return response.headers.get(hdrs.CONTENT_LENGTH)


def _has_body(request: web.BaseRequest, response: ClientResponse) -> bool:
    return request.method != hdrs.METH_HEAD and response.status not in _BODILESS


async def _stream(request: web.BaseRequest, response: ClientResponse) -> None:
    writer, content = request.writer, response.content
    # What came with the head goes out with the head; an event stream's head goes out alone.
    first = content.read_nowait()
    if content.at_eof():
        await writer.write_eof(first)
        return
    if first:
        await writer.write(first)
    else:
        writer.send_headers()
    while chunk := await content.readany():
        await writer.write(chunk)
    await writer.write_eof()
