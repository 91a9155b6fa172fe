"""One connection to a listener: aiohttp's HTTP protocol with the limits that it lacks.

aiohttp bounds neither how long a request's head may take nor how long an answer may stay unread
nor how many connections are open, and what it says of malformed requests, to the caller and into
its log, quotes them: keys included. The names with an underscore are aiohttp's; tests pin them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

import structlog
from aiohttp import web

from daemon.domain.clock import Entropy
from daemon.domain.errors import Problem
from daemon.sidecar.problems import problem_of, problem_response
from daemon.sidecar.sockets import peer_uid_of

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one connection may take of us. Times are in seconds."""

    header_deadline: float = 5.0
    """From the first byte of a request's head (a new connection: from connecting) to its end."""
    idle_timeout: float = 75.0
    """Between two requests on one connection."""
    write_deadline: float = 60.0
    """How long a caller may leave our send buffer full."""
    linger: float = 2.0
    """How long the unread rest of a body is awaited after its answer."""
    connections: int = 4096
    """Open at once on this listener; a further one is closed at once."""
    line_size: int = 8190
    """Bytes of the request line, and of one header field."""
    header_fields: int = 64
    shutdown_grace: float = 20.0
    """How long requests in flight may go on after ``stop``."""


class Room:
    """The open connections of one listener, and what all of them share."""

    def __init__(self, name: str, limits: Limits, entropy: Entropy) -> None:
        self.limits = limits
        self.entropy = entropy
        self.open: dict[GuardedHandler, asyncio.Transport] = {}
        self.handler_arguments: dict[str, Any] = {
            # Half the throughput; our own events say what happened.
            "access_log": None,
            "keepalive_timeout": limits.idle_timeout,
            "lingering_time": limits.linger,
            "max_line_size": limits.line_size,
            "max_field_size": limits.line_size,
            "max_headers": limits.header_fields,
            # No body is worth a decompression bomb; a proxied one passes as it is.
            "auto_decompress": False,
        }
        self._name = name
        self._is_full = False
        self._left = asyncio.Event()

    def admit(self, handler: GuardedHandler, transport: asyncio.Transport) -> bool:
        """Take a connection in; ``False`` where as many as allowed are open."""
        if len(self.open) >= self.limits.connections:
            if not self._is_full:
                self._is_full = True
                log.warning("listener_full", listener=self._name, connections=len(self.open))
            return False
        self.open[handler] = transport
        return True

    def leave(self, handler: GuardedHandler) -> None:
        """Forget a connection, admitted or not."""
        if self.open.pop(handler, None) is not None:
            # Told again only after a real change, not at each refused connection.
            self._is_full = self._is_full and len(self.open) * 10 > self.limits.connections * 9
            self._left.set()

    async def empty(self, *, within: float) -> None:
        """Return when all have left; cut those that have not after ``within`` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while self.open:
                    self._left.clear()
                    await self._left.wait()
        for transport in self.open.values():
            transport.abort()


class GuardedHandler(web.RequestHandler):
    """One connection. Adds deadlines for heads and for stalled writing, and the peer's uid."""

    __slots__ = ("_head_timer", "_room", "_unix_socket", "_write_timer", "on_lost", "peer_uid")

    def __init__(self, server: web.Server, room: Room, *, unix_socket: bool) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **room.handler_arguments)
        self._room = room
        self._unix_socket = unix_socket
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self.peer_uid: int | None = None
        # Called once when the caller has left; whoever sets it takes it back when it has answered.
        self.on_lost: Callable[[], object] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to serve, where there is room."""
        connected = cast("asyncio.Transport", transport)
        if not self._room.admit(self, connected):
            connected.abort()
            return
        if self._unix_socket:
            self.peer_uid = peer_uid_of(connected.get_extra_info("socket"))
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        """End the timers and give the place back."""
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._room.leave(self)
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()
            self.on_lost = None

    def data_received(self, data: bytes) -> None:
        """Parse. Bytes that complete no head, while no request is being answered, begin one."""
        parsed = self._request_count
        super().data_received(data)
        if self._request_count != parsed:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None
        elif self._head_timer is None and data and self._is_idle():
            self._await_head()

    def pause_writing(self) -> None:
        """Note that the send buffer is full: the caller has until the deadline to read from it."""
        super().pause_writing()
        deadline = self._room.limits.write_deadline
        self._write_timer = self._loop.call_later(deadline, self._write_overdue)

    def resume_writing(self) -> None:
        """Note that the caller reads again."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what no handler did. Neither the answer nor the log quotes the request.

        Raises:
            ConnectionError: nobody is left to answer, or an answer has begun.
        """
        del message
        if request.writer.output_size > 0 or isinstance(exc, ConnectionError):
            raise ConnectionError("no answer can be sent any more") from exc
        if status == HTTPStatus.BAD_REQUEST:
            response = problem_response(_malformed())
        else:
            error = exc if isinstance(exc, Exception) else TimeoutError()
            response = problem_response(problem_of(error, self._room.entropy))
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log a failure of the server itself by its type: its text may quote the request."""
        del args
        error = kw.get("exc_info")
        reason = "a handler returned no response" if error is None else type(error).__qualname__
        log.error("connection_failed", error=reason)

    def _is_idle(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    def _await_head(self) -> None:
        deadline = self._room.limits.header_deadline
        self._head_timer = self._loop.call_later(deadline, self._head_overdue)

    def _head_overdue(self) -> None:
        self._head_timer = None
        if self._is_idle():
            self.force_close()

    def _write_overdue(self) -> None:
        self._write_timer = None
        if self.transport is not None:
            self.transport.abort()


def peer_uid(request: web.BaseRequest) -> int | None:
    """Return the uid at the other end of a Unix socket; ``None`` for a TCP connection."""
    protocol = request.protocol
    return protocol.peer_uid if isinstance(protocol, GuardedHandler) else None


def _malformed() -> Problem:
    return Problem(
        400,
        "bad_request",
        "This is not well-formed HTTP/1.1, or its request line or a header field is longer than "
        "8190 bytes. Use an ordinary HTTP library and a shorter URL.",
    )
