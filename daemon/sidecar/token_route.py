"""[serve] ``GET /v1/connections/{id}/token``: from memory, before the router, in one write.

The plain read, with nothing to wait for, never enters aiohttp's router or its response classes:
those cost more than the read itself. Whatever the short way does not know goes the long way.
"""

from __future__ import annotations

from email.utils import formatdate
from functools import partial

from aiohttp import hdrs, web
from aiohttp.http import HttpVersion11

from daemon.config.settings import Permission
from daemon.domain.clock import Clock
from daemon.domain.connection import Status
from daemon.domain.errors import Problem
from daemon.domain.tracing import NO_TRACER, Span, Tracer
from daemon.refresh.cache import Entry, TokenCache
from daemon.refresh.reading import TokenReader
from daemon.sidecar.access import Callers, Identity
from daemon.sidecar.guard import Guard, connection_id_from
from daemon.sidecar.protocol import peer_uid
from daemon.sidecar.routing import Survivor, gone
from daemon.sidecar.traced import traced
from daemon.telemetry.token_reads import UNKNOWN_PROVIDER, TokenReads

_PREFIX = "/v1/connections/"
_SUFFIX = "/token"
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\n"
    b"Cache-Control: no-store\r\nDate: %b\r\nContent-Length: %d\r\n\r\n%b"
)
_ROUTE = "/v1/connections/{id}/token"
# More than any token lives is answered with the newest one and a warning, however much it is.
_LARGEST_NUMBER = 2**63 - 1
_MOST_DIGITS = 19


class WholeResponse(web.StreamResponse):
    """An answer that is complete, head and body, in one write. For HTTP/1.1 kept alive only."""

    def __init__(self, payload: bytes) -> None:
        super().__init__()
        self._payload = payload

    @property
    def keep_alive(self) -> bool:
        """Return that the connection stays open."""
        return True

    async def prepare(self, request: web.BaseRequest) -> None:
        """Send everything; waits where the caller does not read."""
        if request.transport is None:
            raise ConnectionResetError("the caller is gone")
        request.transport.write(self._payload)
        await request.writer.drain()

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing: all was sent."""


class TokenRoute:
    """Answers token reads, the short way and the long one."""

    def __init__(
        self,
        *,
        callers: Callers,
        guard: Guard,
        cache: TokenCache,
        reader: TokenReader,
        reads: TokenReads,
        survivor_of: Survivor,
        clock: Clock,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._callers = callers
        self._guard = guard
        self._cache = cache
        self._reader = reader
        self._reads = reads
        self._survivor_of = survivor_of
        self._clock = clock
        self._tracer = tracer
        self._date: tuple[int, bytes] = (0, b"")

    def before_router(self, request: web.BaseRequest) -> web.StreamResponse | None:
        """Answer a plain read of a good token; ``None`` for everything else.

        Raises:
            Problem: the guard's or the access check's.
        """
        target = request.raw_path
        if (
            not target.endswith(_SUFFIX)
            or not target.startswith(_PREFIX)
            or request.method != hdrs.METH_GET
        ):
            return None
        entry = self._cache.get(target[16:-6])
        if entry is None or request.version != HttpVersion11 or not request.keep_alive:
            return None
        began = self._clock.boottime()
        try:
            self._identify(request, entry.connection)
        except Problem:
            # The long way refuses in the same words and the same time whether or not the
            # connection exists. It also verifies a service account token that is new.
            return None
        now = self._clock.now().timestamp()
        if not entry.is_good(now):
            return None
        entry.used = True
        self._reads.count(entry.provider, "served" if entry.status is Status.ACTIVE else "warned")
        body = entry.body(now)
        response = WholeResponse(_HEAD % (self._http_date(now), len(body), body))
        self._reads.observe(self._clock.boottime() - began)
        return response

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Answer any read, waiting for a refresh where one is needed."""
        return await traced(self._tracer, request, _ROUTE, partial(self._get, request))

    async def _get(self, request: web.Request, span: Span) -> web.StreamResponse:
        began = self._clock.boottime()
        connection_id = connection_id_from(request.match_info["id"])
        provider = UNKNOWN_PROVIDER
        try:
            identity = await identify(
                request,
                Permission.TOKEN,
                connection_id,
                callers=self._callers,
                guard=self._guard,
            )
            min_ttl, newer_than = read_parameters(request)
            known = await self._reader.entry(connection_id)
            if known is None:
                raise await gone(connection_id, identity, self._survivor_of)
            provider = known.provider
            span.set("tokenward.provider", provider)
            span.set("tokenward.connection", connection_id)
            reading = await self._reader.read(connection_id, min_ttl=min_ttl, newer_than=newer_than)
            if reading is None:
                raise await gone(connection_id, identity, self._survivor_of)
        except Problem as problem:
            self._reads.count(provider, outcome_of(problem))
            raise
        finally:
            self._reads.observe(self._clock.boottime() - began)
        self._reads.count(provider, reading.outcome)
        span.set("tokenward.outcome", reading.outcome)
        reading.entry.used = True
        return _answer(reading.entry, self._clock.now().timestamp(), reading.warning)

    def _identify(self, request: web.BaseRequest, connection_id: str) -> None:
        """Return where the caller is known without waiting; raises as :func:`identify`."""
        uid = _judge(request, self._guard)
        identity = self._callers.authenticate(request.headers.get(hdrs.AUTHORIZATION), uid)
        identity.require(Permission.TOKEN, connection_id)

    def _http_date(self, now: float) -> bytes:
        second = int(now)
        if self._date[0] != second:
            self._date = (second, formatdate(second, usegmt=True).encode())
        return self._date[1]


async def identify(
    request: web.BaseRequest,
    permission: Permission,
    connection_id: str,
    *,
    callers: Callers,
    guard: Guard,
) -> Identity:
    """Return who sends a request that did not come through the application's middlewares.

    Raises:
        Problem: the guard's or the access check's.
    """
    uid = _judge(request, guard)
    identity = await callers.recognise(request.headers.get(hdrs.AUTHORIZATION), uid)
    identity.require(permission, connection_id)
    return identity


def _judge(request: web.BaseRequest, guard: Guard) -> int | None:
    """Return the uid at the other end of a Unix socket, where the guard lets the request pass."""
    uid = peer_uid(request)
    guard.check(request.method, request.raw_path, request.headers, unix_socket=uid is not None)
    return uid


def read_parameters(request: web.BaseRequest) -> tuple[float, int | None]:
    """Return ``min_ttl`` in seconds (0 where absent) and ``newer_than``.

    Raises:
        Problem: 400, naming the parameter and what it takes.
    """
    unknown = sorted(set(request.query) - {"min_ttl", "newer_than"})
    if unknown:
        raise Problem(
            400,
            "bad_request",
            "The parameters of a token read are min_ttl (seconds) and newer_than (a generation); "
            "remove the others.",
        )
    min_ttl = _whole(request, "min_ttl", "a whole number of seconds")
    newer_than = _whole(request, "newer_than", "the generation in hand")
    return float(min_ttl or 0), newer_than


def _whole(request: web.BaseRequest, name: str, what: str) -> int | None:
    values = request.query.getall(name, [])
    if not values:
        return None
    text = values[0]
    if len(values) > 1 or not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
        raise Problem(400, "bad_request", f"{name} takes {what}, once, as digits.")
    if int(text) > _LARGEST_NUMBER:
        raise Problem(400, "bad_request", f"{name} takes {what}, at most {_LARGEST_NUMBER}.")
    return int(text)


def outcome_of(problem: Problem) -> str:
    """Return the ``outcome`` label of a read that ended so."""
    match problem.code:
        case "reauthorization_required" | "not_authorized_yet" | "disconnected":
            return "reauthorization_required"
        case "token_unavailable":
            return "unavailable"
        case _:
            return "denied"


def _answer(entry: Entry, now: float, warning: str | None) -> web.Response:
    return web.Response(
        body=entry.body(now, warning=warning),
        headers={hdrs.CACHE_CONTROL: "no-store"},
        content_type="application/json",
        charset="utf-8",
    )
