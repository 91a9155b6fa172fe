"""Healthy callers at a steady pace: what one waits for is counted from when it was due to ask.

Started with its orders in JSON: ``seconds``, ``key`` and ``asks``, each ``{name, port, path, pace,
fresh}``. Prints, for each name, how many were answered with 200 and in what time.
"""

from __future__ import annotations

import heapq
import json
import socket
import sys
import time
from typing import Any

_CONNECTIONS = 8
_PATIENCE = 10.0


class Asker:
    """One kind of request, on connections that are kept, or on a new one each time."""

    def __init__(self, ask: dict[str, Any], key: str) -> None:
        self.name = str(ask["name"])
        self.interval = 1.0 / ask["pace"]
        self._port, self._fresh = ask["port"], ask["fresh"]
        end = "Connection: close\r\n\r\n" if self._fresh else "\r\n"
        head = f"GET {ask['path']} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
        self._request = (head + end).encode()
        self._kept: list[socket.socket] = []
        self._turn = 0
        self.waits: list[float] = []
        self.faults: list[str] = []

    def ask(self, due: float) -> None:
        """Ask once; note how long after ``due`` the answer was there."""
        try:
            answer = self._answer()
        except OSError as error:
            self._kept.clear()
            self.faults.append(type(error).__name__)
            return
        if answer.startswith(b"HTTP/1.1 200 "):
            self.waits.append(time.perf_counter() - due)
        else:
            self.faults.append(answer[:60].decode("latin-1"))

    def _answer(self) -> bytes:
        if self._fresh:
            with self._connect() as sock:
                return _exchange(sock, self._request)
        if len(self._kept) < _CONNECTIONS:
            self._kept.append(self._connect())
        self._turn = (self._turn + 1) % len(self._kept)
        return _exchange(self._kept[self._turn], self._request)

    def _connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self._port), timeout=_PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def report(self) -> dict[str, Any]:
        """Return what was found."""
        waits = sorted(self.waits)
        shares = {"p50": 0.5, "p99": 0.99, "worst": 1.0}
        found = {name: _at(waits, share) for name, share in shares.items()}
        return {"answered": len(waits), "faults": self.faults[:5], **found}


def _at(waits: list[float], share: float) -> float:
    return waits[min(len(waits) - 1, int(len(waits) * share))] if waits else float("inf")


def _exchange(sock: socket.socket, request: bytes) -> bytes:
    """Send a request and return the whole answer."""
    sock.sendall(request)
    received = b""
    while b"\r\n\r\n" not in received:
        part = sock.recv(65536)
        if not part:
            raise ConnectionError("closed")
        received += part
    head, _, rest = received.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next(int(one[15:]) for one in lines if one.startswith(b"content-length:"))
    while len(rest) < length:
        part = sock.recv(65536)
        if not part:
            raise ConnectionError("closed")
        rest += part
    return received


def main() -> None:
    """Follow the orders."""
    order = json.loads(sys.argv[1])
    askers = [Asker(ask, order["key"]) for ask in order["asks"]]
    began = time.perf_counter()
    agenda = [(began + asker.interval, place) for place, asker in enumerate(askers)]
    heapq.heapify(agenda)
    while agenda[0][0] < began + order["seconds"]:
        due, place = agenda[0]
        time.sleep(max(0.0, due - time.perf_counter()))
        askers[place].ask(due)
        heapq.heapreplace(agenda, (due + askers[place].interval, place))
    sys.stdout.write(json.dumps({one.name: one.report() for one in askers}) + "\n")


if __name__ == "__main__":
    main()
