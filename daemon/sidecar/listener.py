"""A listener: one application on TCP, on a Unix socket, or on both, with limits.

Opens and closes; what happens on one connection is in ``daemon.sidecar.protocol``.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from daemon.config.settings import Address
from daemon.domain.clock import Entropy
from daemon.domain.errors import ConfigurationError, Finding, Problem
from daemon.sidecar.problems import problem_response
from daemon.sidecar.protocol import GuardedHandler
from daemon.sidecar.room import Limits, Lobby, Room
from daemon.sidecar.sockets import BoundSocket, bind_unix_socket

BeforeRouter = Callable[
    [web.BaseRequest], web.StreamResponse | Awaitable[web.StreamResponse] | None
]
"""Answers a request without the router and its middlewares, or passes it on with ``None``.

Not a coroutine function: what is answered at once costs no task switch. May raise ``Problem``.
"""

_BACKLOG = 1024
# Enough for the last bytes of ordinary answers; whoever reads slower than that is cut.
_LAST_WORDS = 0.5
# From 3.13 on both event loops would remove a socket's file at the end, systemd's too. We remove
# our own ourselves, and only where it is still ours.
_LEAVE_THE_FILE: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}


class Listener:
    """Serves an application. ``name`` is the listener's in the configuration: it is in errors."""

    def __init__(
        self,
        app: web.Application,
        *,
        name: str,
        entropy: Entropy,
        limits: Limits | None = None,
        before_router: BeforeRouter | None = None,
    ) -> None:
        self._name = name
        self._room = Room(name, limits or Limits(), entropy)
        # In two halves, because aiohttp waits twice: for the answers, then for the handlers.
        self._runner = web.AppRunner(app, shutdown_timeout=self._room.limits.shutdown_grace / 2)
        self._before_router = before_router
        self._servers: list[asyncio.Server] = []
        self._unix_socket: BoundSocket | None = None
        self._stopped = False

    async def start(
        self,
        *,
        address: Address | None = None,
        unix_socket: Path | None = None,
        allowed_uids: Collection[int] = (),
        inherited: socket.socket | None = None,
    ) -> None:
        """Start the application and accept connections at each place that is given.

        ``inherited`` listens at ``unix_socket`` already. Its file stays: it is somebody else's.

        Raises:
            ConfigurationError: a place cannot be listened at. Nothing is left open then.
        """
        try:
            server = await self._application_server()
            if address is not None:
                await self._listen(server, address)
            if inherited is not None:
                await self._accept_unix(server, inherited)
            elif unix_socket is not None:
                await self._listen_unix(server, unix_socket, allowed_uids)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop accepting, let requests in flight end within the grace, cut what is left.

        Handlers that are not done after the grace are cancelled. A second call does nothing.
        """
        if self._stopped:
            return
        self._stopped = True
        if self._unix_socket is not None:
            self._unix_socket.unlink()
            self._unix_socket = None
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        self._room.close_lobby()
        await self._runner.cleanup()
        await self._room.empty(within=_LAST_WORDS)
        for server in servers:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS):
                    await server.wait_closed()

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Return where TCP connections are accepted, with the ports that were really bound."""
        return tuple(
            Address(*sock.getsockname()[:2])
            for server in self._servers
            for sock in server.sockets
            if sock.family != socket.AF_UNIX
        )

    @property
    def connections(self) -> int:
        """Return how many connections are open."""
        return len(self._room.open)

    async def _application_server(self) -> web.Server:
        await self._runner.setup()
        server = self._runner.server
        if server is None:
            raise RuntimeError("aiohttp made no server for the application")
        if self._before_router is not None:
            server.request_handler = _asking_first(self._before_router, server.request_handler)
        return server

    async def _listen(self, server: web.Server, address: Address) -> None:
        try:
            listening = await asyncio.get_running_loop().create_server(
                lambda: self._stranger(server, unix_socket=False),
                address.host,
                address.port,
                backlog=_BACKLOG,
            )
        except OSError as error:
            raise self._cannot_listen("address", str(address), error) from error
        self._servers.append(listening)

    async def _listen_unix(
        self, server: web.Server, path: Path, allowed_uids: Collection[int]
    ) -> None:
        try:
            self._unix_socket = bind_unix_socket(path, allowed_uids=allowed_uids)
        except OSError as error:
            raise self._cannot_listen("unix_socket", str(path), error) from error
        await self._accept_unix(server, self._unix_socket.socket)

    async def _accept_unix(self, server: web.Server, sock: socket.socket) -> None:
        self._servers.append(
            await asyncio.get_running_loop().create_unix_server(
                lambda: self._stranger(server, unix_socket=True),
                sock=sock,
                backlog=_BACKLOG,
                **_LEAVE_THE_FILE,
            )
        )

    def _stranger(self, server: web.Server, *, unix_socket: bool) -> Lobby:
        make = partial(GuardedHandler, server, self._room, unix_socket=unix_socket)
        return Lobby(self._room, make)

    def _cannot_listen(self, key: str, place: str, error: OSError) -> ConfigurationError:
        reason = "another process listens there" if error.errno == errno.EADDRINUSE else str(error)
        message = f"cannot listen on {place}: {reason}. Free it or configure another place."
        return ConfigurationError([Finding(f"listen.{self._name}.{key}", message)])


def _asking_first(
    before_router: BeforeRouter, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        try:
            response = before_router(request)
            if response is not None:
                return response if isinstance(response, web.StreamResponse) else await response
        except Problem as problem:
            return problem_response(problem)
        return await handler(request)

    return answer
