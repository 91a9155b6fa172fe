"""One connection to a listener: aiohttp's HTTP protocol with the limits that it lacks.

aiohttp bounds neither how long a request's head may take nor how long an answer may stay unread,
and what it says of malformed requests, to the caller and into its log, quotes them: keys included.
How a connection comes here is in ``daemon.sidecar.room``. The names with an underscore are
aiohttp's; tests pin them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from http import HTTPStatus
from typing import Any

import structlog
from aiohttp import web

from daemon.domain.errors import Problem
from daemon.sidecar.problems import problem_of, problem_response
from daemon.sidecar.room import Idleness, Room
from daemon.sidecar.sockets import peer_uid_of

log = structlog.get_logger()


class GuardedHandler(web.RequestHandler):
    """One connection. Adds deadlines for heads and for stalled writing, and the peer's uid."""

    __slots__ = (
        "_body_since",
        "_head_size",
        "_head_timer",
        "_room",
        "_unix_socket",
        "_write_timer",
        "on_lost",
        "peer_uid",
    )

    def __init__(self, server: web.Server, room: Room, *, unix_socket: bool) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **room.handler_arguments)
        self._room = room
        self._unix_socket = unix_socket
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._head_size = 0
        self._body_since: float | None = None
        self.peer_uid: int | None = None
        # Called once when the caller has left; whoever sets it takes it back when it has answered.
        self.on_lost: Callable[[], object] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to serve a connection that was admitted; ``data_received`` follows at once."""
        if self._unix_socket:
            self.peer_uid = peer_uid_of(transport.get_extra_info("socket"))
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
                self._head_size = 0
        elif data and (self._is_idle() or not parsed):
            self._head_size += len(data)
            if self._head_timer is None:
                self._await_head()
            if self._head_size > self._room.limits.head_size:
                self.force_close()

    def idleness(self) -> Idleness | None:
        """Return why nothing is being done for this connection; ``None``: something is."""
        if self._body_since is not None:
            return Idleness.NO_BODY_YET
        if not self._request_count:
            return Idleness.NO_HEAD_YET
        return Idleness.BETWEEN_REQUESTS if self._is_idle() else None

    @property
    def quiet_since(self) -> float:
        """Return when the idleness began, on some clock that all connections share."""
        if self._body_since is not None:
            return self._body_since
        # aiohttp sets it at the beginning and after each answer, all by the same timeout.
        return self._next_keepalive_close_time - self._keepalive_timeout

    @contextmanager
    def awaiting_body(self) -> Iterator[None]:
        """Say that within the block nothing is done but to wait for a body."""
        self._body_since = self._loop.time()
        try:
            yield
        finally:
            self._body_since = None

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


def awaiting_body(request: web.BaseRequest) -> AbstractContextManager[None]:
    """Say that within the block nothing is done for a request but to wait for its body.

    A full listener may cut it then, which the reader meets as a connection that was lost.
    """
    protocol = request.protocol
    return protocol.awaiting_body() if isinstance(protocol, GuardedHandler) else nullcontext()


def _malformed() -> Problem:
    return Problem(
        400,
        "bad_request",
        "This is not well-formed HTTP/1.1, or its request line or a header field is longer than "
        "8190 bytes. Use an ordinary HTTP library and a shorter URL.",
    )
