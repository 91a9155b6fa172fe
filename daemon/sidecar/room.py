"""How many are in a listener, and where they wait until they have said what they want.

The hard idea: a stranger costs next to nothing. Until the first request's head is whole a
connection is a timer and a few bytes (``Lobby``); parser, task and buffers come only then. Else
some thousand silent sockets would keep the garbage collector busy, and all others waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from operator import itemgetter
from typing import Any, Protocol, cast

import structlog

from daemon.domain.clock import Entropy

log = structlog.get_logger()

# Of the connections that a full listener holds, so large a part at most gives way at once.
_PART_THAT_GIVES_WAY = 16
# Methods are written in capitals (RFC 9110 9.1).
_FIRST_LETTER, _LAST_LETTER = b"AZ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one connection may take of us. Times are in seconds."""

    header_deadline: float = 5.0
    """From the first byte of a request's head (a new connection: from connecting) to its end."""
    idle_timeout: float = 75.0
    """Between two requests on one connection."""
    patience: float = 1.0
    """How long one may hold back its head or body before it gives way sooner than idle ones do.

    Who means well sends at once; this leaves time for a lost packet, and for a busy loop of ours.
    """
    write_deadline: float = 60.0
    """How long a caller may leave our send buffer full."""
    linger: float = 2.0
    """How long the unread rest of a body is awaited after its answer."""
    connections: int = 4096
    """Open at once on this listener; for a further one others give way (``who_gives_way``)."""
    head_size: int = 32 * 1024
    """Bytes of a request's head that comes in pieces: what is not whole yet is held in memory."""
    line_size: int = 8190
    """Bytes of the request line, and of one header field."""
    header_fields: int = 64
    shutdown_grace: float = 20.0
    """How long requests in flight may go on after ``stop``."""


class Idleness(Enum):
    """Why a connection is not being answered."""

    NO_HEAD_YET = auto()
    """It has never sent a whole head."""
    NO_BODY_YET = auto()
    """Its request's body is being waited for, by a route that reads it whole."""
    BETWEEN_REQUESTS = auto()
    """It has been answered, and may ask again."""


class Visitor(Protocol):
    """Whoever holds an open connection."""

    @property
    def quiet_since(self) -> float:
        """Return when the idleness began, on some clock that all connections share."""

    def idleness(self) -> Idleness | None:
        """Return why nothing is being done for this connection; ``None``: something is."""


class Room:
    """The open connections of one listener, and what all of them share."""

    def __init__(self, name: str, limits: Limits, entropy: Entropy) -> None:
        self.limits = limits
        self.entropy = entropy
        self.open: dict[Visitor, asyncio.Transport] = {}
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

    def admit(self, visitor: Visitor, transport: asyncio.Transport) -> bool:
        """Take a connection in; ``False`` where as many as allowed are open, and all at work.

        Otherwise others give way: see ``who_gives_way``.
        """
        if len(self.open) >= self.limits.connections:
            given_way = self._make_room()
            if not self._is_full:
                self._is_full = True
                log.warning(
                    "listener_full",
                    listener=self._name,
                    connections=self.limits.connections,
                    dropped=given_way,
                )
            if not given_way:
                return False
        self.open[visitor] = transport
        return True

    def leave(self, visitor: Visitor) -> None:
        """Forget a connection, admitted or not."""
        if self.open.pop(visitor, None) is not None:
            # Told again only after a real change, not at each refused connection.
            self._is_full = self._is_full and len(self.open) * 10 > self.limits.connections * 9
            self._left.set()

    def _make_room(self) -> int:
        """Cut some connections; return how many."""
        now = asyncio.get_running_loop().time()
        leaving = who_gives_way(self.open, now=now, limits=self.limits)
        for visitor in leaving:
            self.open.pop(visitor).abort()
        return len(leaving)

    def let_in(self, stranger: Lobby, visitor: Visitor) -> None:
        """Go on with a connection that has said what it wants."""
        self.open[visitor] = self.open.pop(stranger)

    def close_lobby(self) -> None:
        """Cut whoever has not yet said what they want: nothing is on its way for them."""
        for visitor, transport in self.open.items():
            if isinstance(visitor, Lobby):
                transport.abort()

    async def empty(self, *, within: float) -> None:
        """Return when all have left; cut those that have not after ``within`` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while self.open:
                    self._left.clear()
                    await self._left.wait()
        for transport in self.open.values():
            transport.abort()


class Lobby(asyncio.Protocol):
    """A connection before its first request: it becomes ``make()`` when a head is whole.

    Also where it is too long or no HTTP at all, so that it is refused in the usual words. At the
    header deadline it is cut.
    """

    __slots__ = ("_deadline", "_heard", "_make", "_room", "_transport", "quiet_since")

    def __init__(self, room: Room, make: Callable[[], Handler]) -> None:
        self._room = room
        self._make = make
        self._heard = bytearray()
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self.quiet_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait, where there is room."""
        self._transport = connected = cast("asyncio.Transport", transport)
        loop = asyncio.get_running_loop()
        self.quiet_since = loop.time()
        if not self._room.admit(self, connected):
            connected.abort()
            return
        self._deadline = loop.call_later(self._room.limits.header_deadline, connected.abort)

    def data_received(self, data: bytes) -> None:
        """Listen; go on once enough was said."""
        transport = self._transport
        if transport is None or self not in self._room.open:
            return
        heard = self._heard
        if not heard and says_enough(data):
            heard = bytearray(data)
        else:
            seam = max(0, len(heard) - 3)
            heard += data
            if not says_enough(heard, since=seam) and len(heard) <= self._room.limits.head_size:
                return
        self._end_deadline()
        handler = self._make()
        self._room.let_in(self, handler)
        transport.set_protocol(cast("asyncio.BaseProtocol", handler))
        handler.connection_made(transport)
        handler.data_received(bytes(heard))

    def connection_lost(self, exc: BaseException | None) -> None:
        """Give the place back."""
        del exc
        self._end_deadline()
        self._room.leave(self)
        self._transport = None

    def idleness(self) -> Idleness | None:
        """Return that nothing was said yet."""
        return Idleness.NO_HEAD_YET

    def _end_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class Handler(Visitor, Protocol):
    """What a stranger becomes: an asyncio protocol."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""

    def data_received(self, data: bytes) -> None:
        """Take what was said so far."""


def who_gives_way(visitors: Iterable[Visitor], *, now: float, limits: Limits) -> list[Visitor]:
    """Choose whom a full listener cuts for a newcomer; nobody that is being answered. Pure.

    First those that have held back their head or body beyond our patience, a part of them at
    once. Then the one idle since the oldest answer. The young among the silent last: callers
    that arrive together would else cut one another before any of them was heard.
    """
    silent: list[tuple[float, Visitor]] = []
    idle: list[tuple[float, Visitor]] = []
    young: list[tuple[float, Visitor]] = []
    for visitor in visitors:
        kind = visitor.idleness()
        if kind is None:
            continue
        since = visitor.quiet_since
        if kind is Idleness.BETWEEN_REQUESTS:
            idle.append((since, visitor))
        elif now - since >= limits.patience:
            silent.append((since, visitor))
        else:
            young.append((since, visitor))
    # Looking at all of them takes a millisecond: many at once, or a flood would buy one each.
    number = max(1, limits.connections // _PART_THAT_GIVES_WAY)
    if idle and not silent:
        number = 1
    leaving = sorted(silent or idle or young, key=itemgetter(0))
    return [visitor for _, visitor in leaving[:number]]


def says_enough(heard: bytes | bytearray, *, since: int = 0) -> bool:
    """Tell whether these first bytes hold a whole head, or are no head of HTTP/1. Pure.

    ``since`` is where to look for the head's end.
    """
    is_method = _FIRST_LETTER <= heard[0] <= _LAST_LETTER
    return not is_method or heard.find(b"\n\r\n", since) >= 0 or heard.find(b"\n\n", since) >= 0
