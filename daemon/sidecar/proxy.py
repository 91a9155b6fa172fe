"""[serve] ``ANY /v1/connections/{id}/proxy/{path}``: a request to the API, with the token in it.

Answered before aiohttp's router, which would decode the path. The one hard idea: until everything
was judged (caller, path, host, state of the connection), no byte goes out; after that no byte is
held back, in either direction. Only a body that is still here whole can be sent a second time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from http import HTTPStatus
from io import BytesIO
from typing import Any

from aiohttp import ClientResponse, ClientTimeout, hdrs, web
from yarl import URL

from daemon.config.settings import Permission
from daemon.domain.clock import Clock, Entropy
from daemon.domain.errors import Problem
from daemon.domain.provider import Provider
from daemon.domain.tracing import NO_TRACER, Span, SpanKind, Tracer, method_of
from daemon.oauth.api_session import ApiSession
from daemon.oauth.outbound import CONNECT_TIMEOUT, ERRORS
from daemon.refresh.cache import Entry, TokenCache
from daemon.refresh.ports import Providers
from daemon.refresh.reading import TokenReader
from daemon.sidecar.access import Callers, Identity
from daemon.sidecar.connection_values import ConnectionValues
from daemon.sidecar.guard import Guard, connection_id_from
from daemon.sidecar.problems import problem_of, problem_response
from daemon.sidecar.protocol import GuardedHandler
from daemon.sidecar.proxy_answer import relay
from daemon.sidecar.proxy_body import Deadline, Spool
from daemon.sidecar.proxy_faults import no_answer, refuse_method, trouble
from daemon.sidecar.proxy_headers import check_headers, sent_headers
from daemon.sidecar.proxy_target import check_path, check_query, split_proxy_path
from daemon.sidecar.proxy_way import Way, Ways
from daemon.sidecar.request_values import (
    FORM,
    Added,
    merged_body,
    merged_query,
    read_content_type,
    refuse_token_parameter,
)
from daemon.sidecar.routing import Survivor
from daemon.sidecar.token_route import identify
from daemon.sidecar.traced import traced
from daemon.telemetry.token_reads import UNKNOWN_PROVIDER

ERROR_HEADER = "Tokenward-Error"
"""On our own answers only, with the problem's code: an API's answers never have it."""
_TARGET_HEADER = "Tokenward-Target"
_ROUTE = "/v1/connections/{id}/proxy/{path}"
_WRITING = frozenset({hdrs.METH_POST, hdrs.METH_PUT, hdrs.METH_PATCH})
_NO_TYPE_OF_OURS = (hdrs.CONTENT_TYPE,)
# aiohttp warns of larger bodies in one piece.
_LARGEST_PIECE = 1024 * 1024
# A 401 to a token that was just refreshed is not about the token: no further refresh for so long.
_FRUITLESS_FOR = 60.0
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyLimits:
    """Times in seconds, sizes in bytes. There is none for a whole answer: streams are long."""

    connect: float = CONNECT_TIMEOUT
    """For name, connection and TLS session together."""
    idle: float = 60.0
    """For an answer to begin, and between two parts of a body, in either direction."""
    places: int = 512
    """Requests in flight for each caller: an answer that is not read takes some 100 KB."""
    spool: int = 1024 * 1024
    """How much of a body is kept, to send it again or to put values into it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyPorts:
    """What the proxy works with. ``count`` is told provider and status of each answer."""

    callers: Callers
    guard: Guard
    cache: TokenCache
    reader: TokenReader
    providers: Providers
    values: ConnectionValues
    survivor_of: Survivor
    session: ApiSession
    count: Callable[[str, int], None]
    clock: Clock
    entropy: Entropy
    tracer: Tracer = NO_TRACER


@dataclass(slots=True)
class _Call:
    """One proxied request. ``body`` is set where all of it is here."""

    request: web.BaseRequest
    connection_id: str
    path: str
    query: str
    origins: Sequence[str]
    spool: Spool | None
    provider: str = UNKNOWN_PROVIDER
    body: bytes | None = field(default=None, repr=False)


class ProxyRoute:
    """Sends callers' requests to APIs."""

    def __init__(self, ports: ProxyPorts, *, limits: ProxyLimits | None = None) -> None:
        self._ports = ports
        self._limits = limits or ProxyLimits()
        self._timeout = ClientTimeout(
            total=None, connect=self._limits.connect, sock_read=self._limits.idle
        )
        self._ways = Ways(
            cache=ports.cache,
            reader=ports.reader,
            providers=ports.providers,
            values=ports.values,
            survivor_of=ports.survivor_of,
            clock=ports.clock,
        )
        # By connection: the generation that a 401 has brought about, and until when another 401
        # to it is not about the token.
        self._renewed: dict[str, tuple[int, float]] = {}
        self._in_flight: Counter[str] = Counter()

    def before_router(self, request: web.BaseRequest) -> Awaitable[web.StreamResponse] | None:
        """Answer a proxied request; ``None`` for everything else.

        What is awaited raises ``ConnectionError`` where the caller is gone, or was cut off because
        the API broke off.
        """
        found = split_proxy_path(request.raw_path)
        if found is None:
            return None
        origins = request.headers.getall(_TARGET_HEADER, ())
        call = _Call(request, *found, origins, self._spool(request))
        return traced(self._ports.tracer, request, _ROUTE, partial(self._told, call))

    async def _told(self, call: _Call, span: Span) -> web.StreamResponse:
        try:
            return await self._handle(call)
        finally:
            if call.provider != UNKNOWN_PROVIDER:
                span.set("tokenward.provider", call.provider)
                span.set("tokenward.connection", call.connection_id)

    async def _handle(self, call: _Call) -> web.StreamResponse:
        protocol = call.request.protocol
        task = asyncio.current_task()
        if isinstance(protocol, GuardedHandler) and task is not None:
            protocol.on_lost = task.cancel
        try:
            response = await self._answer(call)
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - the HTTP boundary of this route
            response = self._refusal(call, error)
        finally:
            if isinstance(protocol, GuardedHandler):
                protocol.on_lost = None
        self._ports.count(call.provider, response.status)
        return response

    async def _answer(self, call: _Call) -> web.StreamResponse:
        request, ports = call.request, self._ports
        call.connection_id = connection_id_from(call.connection_id)
        identity = await identify(
            request, Permission.PROXY, call.connection_id, callers=ports.callers, guard=ports.guard
        )
        with self._place_for(identity.name):
            return await self._proxied(call, identity)

    async def _proxied(self, call: _Call, identity: Identity) -> web.StreamResponse:
        request = call.request
        refuse_method(request)
        check_path(call.path)
        check_query(call.query)
        refuse_token_parameter(call.query, where="query")
        check_headers(request.headers)
        way = await self._ways.find(call, identity)
        if call.spool is not None:
            await self._take_body(call, call.spool, way.provider)
        response = await self._send(call, way)
        if response.status == HTTPStatus.UNAUTHORIZED:
            response = await self._once_more(call, way, response)
        try:
            return await relay(request, response)
        except BaseException:
            response.close()
            raise

    @contextmanager
    def _place_for(self, caller: str) -> Iterator[None]:
        """Hold one of a caller's places: answers that nobody reads are memory of ours."""
        if self._in_flight[caller] >= self._limits.places:
            raise Problem(
                503,
                "too_many_proxied_requests",
                f"This caller has {self._limits.places} proxied requests in flight, which is the "
                "most. Read their answers to the end, and try again.",
                retry_after=1,
            )
        self._in_flight[caller] += 1
        try:
            yield
        finally:
            self._in_flight[caller] -= 1

    async def _take_body(self, call: _Call, spool: Spool, provider: Provider) -> None:
        """Read as much of the body as must be looked at, or is here already."""
        if provider.request.body:
            call.body = await spool.read()
            if call.body is None:
                raise _too_large(self._limits.spool)
            return
        if read_content_type(call.request.headers.get(hdrs.CONTENT_TYPE, ""))[0] == FORM:
            await spool.read()
            refuse_token_parameter(spool.kept.decode("latin-1"), where="form")
        call.body = spool.arrived()

    async def _send(self, call: _Call, way: Way) -> ClientResponse:
        """Send the request; the span of it ends with the answer's head."""
        told = {
            "http.request.method": method_of(call.request.method),
            "server.address": way.place.host,
            "tokenward.provider": call.provider,
        }
        name, withheld = told["http.request.method"], way.values.values()
        with self._ports.tracer.span(name, told, kind=SpanKind.CLIENT, withheld=withheld) as span:
            response = await self._sent(call, way)
            span.set("http.response.status_code", response.status)
            if response.status >= HTTPStatus.BAD_REQUEST:
                span.fail(str(response.status))
            return response

    async def _sent(self, call: _Call, way: Way) -> ClientResponse:
        request, provider = call.request, way.provider
        extra = self._ways.additions(way)
        headers = sent_headers(request.headers, extra.headers)
        self._ports.tracer.outgoing(headers)
        deadline = Deadline(self._limits.idle)
        body = _body(call, extra, headers, deadline)
        is_typed = hdrs.CONTENT_TYPE in headers or (body is None and request.method not in _WRITING)
        sending = self._ports.session.streaming(
            allow_private_hosts=provider.allow_private_hosts
        ).request(
            request.method,
            URL(_url(way, merged_query(call.query, extra.query)), encoded=True),
            data=body,
            headers=headers,
            allow_redirects=False,
            skip_auto_headers=None if is_typed else _NO_TYPE_OF_OURS,
            timeout=self._timeout,
        )
        try:
            if body is None:
                # The session's own limits see to a request that is only a head.
                response = await sending
            else:
                async with deadline:
                    response = await sending
        except ERRORS as error:
            failure = None if call.spool is None else call.spool.failure
            raise trouble(error, way.place, failure) from error
        if response.status < HTTPStatus.OK:
            # Switching protocols, which nobody asked for.
            response.close()
            raise no_answer(way.place)
        return response

    async def _once_more(self, call: _Call, way: Way, response: ClientResponse) -> ClientResponse:
        """Have the token refreshed, once, and send again what can be sent again.

        Where no newer token is to be had, or the body is gone, the 401 stays the answer.
        """
        try:
            newer = await self._newer(way.entry)
        except BaseException:
            response.close()
            raise
        is_lost = call.spool is not None and call.body is None and not call.spool.is_replayable
        if newer is None or is_lost:
            return response
        response.close()
        again = await self._send(call, replace(way, entry=newer))
        if again.status != HTTPStatus.UNAUTHORIZED:
            self._renewed.pop(newer.connection, None)
        return again

    async def _newer(self, entry: Entry) -> Entry | None:
        now = self._ports.clock.boottime()
        generation, until = self._renewed.get(entry.connection, (0, 0.0))
        if generation == entry.generation and now < until:
            return None
        try:
            reading = await self._ports.reader.read(entry.connection, newer_than=entry.generation)
        except Problem:
            return None
        if reading is None or reading.entry.generation <= entry.generation:
            return None
        if len(self._renewed) >= _REMEMBERED:
            self._renewed.clear()
        self._renewed[entry.connection] = (reading.entry.generation, now + _FRUITLESS_FOR)
        return reading.entry

    def _refusal(self, call: _Call, error: Exception) -> web.Response:
        problem = problem_of(error, self._ports.entropy)
        if call.request.writer.output_size > 0:
            raise ConnectionError("the answer had begun") from error
        response = problem_response(problem)
        response.headers[ERROR_HEADER] = problem.code
        return response

    def _spool(self, request: web.BaseRequest) -> Spool | None:
        if not request.body_exists:
            return None

        async def say_continue() -> None:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            # It is no part of the answer, which may still be a problem.
            request.writer.output_size = 0

        return Spool(
            request.content,
            bound=self._limits.spool,
            idle=self._limits.idle,
            before_first=say_continue if hdrs.EXPECT in request.headers else None,
        )


def _url(way: Way, query: str) -> str:
    return f"{way.url}{'&' if '?' in way.url else '?'}{query}" if query else way.url


def _body(call: _Call, extra: Added, headers: Any, deadline: Deadline) -> Any:
    """Return what aiohttp sends as the body, and set the headers that describe it."""
    request, body = call.request, call.body
    if extra.body and (body is not None or request.method in _WRITING):
        if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
            raise Problem(
                415,
                "unsupported_media_type",
                "This provider's request values go into the body too, which must not be "
                "compressed for that.",
            )
        body, headers[hdrs.CONTENT_TYPE] = merged_body(
            body or b"", request.headers.get(hdrs.CONTENT_TYPE, ""), extra.body
        )
    if body is not None:
        return body if len(body) <= _LARGEST_PIECE else BytesIO(body)
    if call.spool is None:
        return None
    if request.content_length is not None:
        headers[hdrs.CONTENT_LENGTH] = str(request.content_length)
    return call.spool.chunks(deadline)


def _too_large(bound: int) -> Problem:
    return Problem(
        413,
        "body_too_large",
        "This provider's request values go into the body, so it must be read whole: at most "
        f"{bound} bytes. Send a smaller one.",
    )
