"""Callers that never come to the point: thousands of sockets on one epoll loop, in one process.

Started with its orders as one argument in JSON: ``places`` (listener → port), ``sockets`` for each,
``ramp`` (seconds over which they are opened) and ``again`` (whether one that was cut comes back).
Prints one line when all are open, and one with what it has seen when its standard input ends.
"""

from __future__ import annotations

import errno
import heapq
import json
import os
import resource
import select
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass
from itertools import cycle
from typing import Any

_BODY = "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 4000\r\n\r\ngrant_type="
_HOST = "HTTP/1.1\r\nHost: 127.0.0.1\r\n"
# What each kind says at first, and then once a second, for ever.
_HEAD_DRIP = b"X-Slow: y\r\n"
_BODY_DRIP = b"z"
BEGINNINGS: dict[str, list[tuple[str, bytes, bytes]]] = {
    "api": [
        ("silent", b"", b""),
        ("head", f"GET /v1/connections/slow-0/token {_HOST}".encode(), _HEAD_DRIP),
        ("half", f"GET /v1/connections/slow-0/token {_HOST}Authorizat".encode(), b""),
        ("body", f"POST /v1/connections/slow-0/oauth2/token {_HOST}{_BODY}".encode(), _BODY_DRIP),
    ],
    "public": [
        ("silent", b"", b""),
        ("head", f"GET /callback?code=slow&state=slow {_HOST}".encode(), _HEAD_DRIP),
        ("half", b"GET /connect/", b""),
        ("body", f"POST /callback {_HOST}{_BODY}".encode(), _BODY_DRIP),
    ],
    "ops": [
        ("silent", b"", b""),
        ("head", f"GET /metrics {_HOST}".encode(), _HEAD_DRIP),
        ("half", b"G", b""),
        ("body", f"POST /metrics {_HOST}{_BODY}".encode(), _BODY_DRIP),
    ],
}
_EVERY = 1.0
_BACK_AFTER = 0.01
_STDIN = 0


@dataclass(eq=False, slots=True)
class Slow:
    """One place at a listener, with whatever socket holds it now."""

    listener: str
    kind: str
    port: int
    beginning: bytes
    drip: bytes
    sock: socket.socket | None = None
    opened_at: float = 0.0
    turn: int = 0


class SlowSockets:
    """All of them."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._again = bool(order["again"])
        self._epoll = select.epoll()
        self._by_number: dict[int, Slow] = {}
        self._agenda: list[tuple[float, int, Slow, int]] = []
        self._order = 0
        self.cut: Counter[str] = Counter()
        self.refused = 0
        self.statuses: Counter[str] = Counter()
        self.longest = 0.0
        self._places = [
            Slow(name, kind, port, beginning, drip)
            for name, port in order["places"].items()
            for _, (kind, beginning, drip) in zip(
                range(order["sockets"]), cycle(BEGINNINGS[name]), strict=False
            )
        ]
        self._wanted = len(self._places)
        began = time.monotonic()
        # In turn, so that each listener has its share of each second.
        for place, slow in enumerate(sorted(self._places, key=lambda _: os.urandom(4))):
            self._plan(began + order["ramp"] * place / self._wanted, slow)

    def run(self) -> None:
        """Go on until standard input ends, or where nobody comes back until all were cut."""
        self._epoll.register(_STDIN, select.EPOLLIN | select.EPOLLHUP)
        is_said = False
        while True:
            wait = max(0.0, self._agenda[0][0] - time.monotonic()) if self._agenda else 1.0
            for number, _ in self._epoll.poll(min(wait, 1.0)):
                if number == _STDIN:
                    if not os.read(_STDIN, 1024):
                        return
                else:
                    self._read(self._by_number[number])
            self._do_what_is_due()
            if not is_said and len(self._by_number) + sum(self.cut.values()) >= self._wanted:
                is_said = True
                say({"open": len(self._by_number)})
            if not self._again and sum(self.cut.values()) >= self._wanted:
                return

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        while self._agenda and self._agenda[0][0] <= now:
            _, _, slow, turn = heapq.heappop(self._agenda)
            if turn != slow.turn:
                continue
            if slow.sock is None:
                self._open(slow, now)
            elif slow.drip:
                self._send(slow, slow.drip)
                self._plan(now + _EVERY, slow)

    def _plan(self, at: float, slow: Slow) -> None:
        self._order += 1
        heapq.heappush(self._agenda, (at, self._order, slow, slow.turn))

    def _open(self, slow: Slow, now: float) -> None:
        sock = socket.socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            # On loopback this is over at once; what a full backlog drops is tried again.
            sock.settimeout(0.5)
            sock.connect(("127.0.0.1", slow.port))
        except OSError:
            sock.close()
            self.refused += 1
            self._plan(now + _BACK_AFTER, slow)
            return
        sock.settimeout(0)
        slow.sock, slow.opened_at = sock, now
        self._by_number[sock.fileno()] = slow
        self._epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
        if slow.beginning:
            self._send(slow, slow.beginning)
        if slow.drip:
            self._plan(now + _EVERY, slow)

    def _send(self, slow: Slow, data: bytes) -> None:
        if slow.sock is None:
            return
        try:
            slow.sock.send(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.EAGAIN):
                raise

    def _read(self, slow: Slow) -> None:
        if slow.sock is None:
            return
        try:
            data = slow.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            if data.startswith(b"HTTP/1.1 "):
                self.statuses[f"{slow.listener} {data[9:12].decode()}"] += 1
            return
        now = time.monotonic()
        self._epoll.unregister(slow.sock.fileno())
        del self._by_number[slow.sock.fileno()]
        slow.sock.close()
        slow.sock = None
        slow.turn += 1
        self.cut[f"{slow.listener} {slow.kind}"] += 1
        self.longest = max(self.longest, now - slow.opened_at)
        if self._again:
            self._plan(now + _BACK_AFTER, slow)


def say(members: dict[str, Any]) -> None:
    """Print one line."""
    sys.stdout.write(json.dumps(members) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Follow the orders."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sockets = SlowSockets(json.loads(sys.argv[1]))
    sockets.run()
    say(
        {
            "cut": dict(sockets.cut),
            "refused": sockets.refused,
            "statuses": dict(sockets.statuses),
            "longest": sockets.longest,
        }
    )


if __name__ == "__main__":
    main()
