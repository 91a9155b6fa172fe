"""The load generator: keep-alive connections that ask again as soon as they are answered.

A process of its own: one epoll loop over raw sockets, a request prepared once, and answers of one
fixed length that are only counted. So the server is the limit, not the client.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson

from bench.paired import Round
from bench.processes import CLIENT_CORE, LineProcess, cpu_seconds, running, say_line

_BUFFER = 64 * 1024
_OK = b"HTTP/1.1 200"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is asked: ``place`` is a port at 127.0.0.1 or a Unix socket; ``pid`` answers."""

    place: int | str
    path: str
    key: str
    pid: int

    def request(self) -> str:
        """Return the request's bytes."""
        return (
            f"GET {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Authorization: Bearer {self.key}\r\nAccept: */*\r\nUser-Agent: bench\r\n\r\n"
        )


class Generator:
    """The driver's side."""

    def __init__(self, process: LineProcess) -> None:
        self._process = process

    async def run(self, target: Target, *, connections: int, seconds: float) -> Round:
        """Ask for ``seconds`` over ``connections``."""
        order = {
            "place": target.place,
            "request": target.request(),
            "connections": connections,
            "seconds": seconds,
        }
        before = cpu_seconds([target.pid])
        found = await self._process.ask(order)
        cpu = cpu_seconds([target.pid]) - before
        # Connecting and the one request each before the clock starts are the server's CPU, too.
        counted = found["requests"] + 2 * connections
        return Round(
            requests=found["requests"],
            seconds=found["seconds"],
            cpu=cpu * found["requests"] / counted,
            p50=found["p50"],
            p99=found["p99"],
        )


def generator() -> AbstractAsyncContextManager[Generator]:
    """Run a generator on the clients' core."""

    @asynccontextmanager
    async def started() -> AsyncIterator[Generator]:
        async with running("load", core=CLIENT_CORE) as process:
            yield Generator(process)

    return started()


def _connect(place: int | str) -> socket.socket:
    if isinstance(place, str):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(place)
        return sock
    sock = socket.create_connection(("127.0.0.1", place))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _first_answer(sock: socket.socket, request: bytes) -> int:
    """Ask once and return the answer's length in bytes."""
    sock.sendall(request)
    received = b""
    while b"\r\n\r\n" not in received:
        received += sock.recv(_BUFFER)
    head, _, rest = received.partition(b"\r\n\r\n")
    if not head.startswith(_OK):
        raise RuntimeError(f"not answered with 200: {received[:400]!r}")
    lines = head.lower().split(b"\r\n")
    length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
    while len(rest) < length:
        rest += sock.recv(_BUFFER)
    return len(head) + 4 + length


def _drive(order: dict[str, Any]) -> dict[str, float]:
    request = order["request"].encode()
    opened = [_connect(order["place"]) for _ in range(order["connections"])]
    sockets = {sock.fileno(): sock for sock in opened}
    try:
        lengths = {_first_answer(sock, request) for sock in sockets.values()}
        if len(lengths) != 1:
            raise RuntimeError(f"answers differ in length: {lengths}")
        for sock in sockets.values():
            sock.settimeout(0)
        return _loop(sockets, request, lengths.pop(), order["seconds"])
    finally:
        for sock in sockets.values():
            sock.close()


def _loop(
    sockets: dict[int, socket.socket], request: bytes, length: int, seconds: float
) -> dict[str, float]:
    poller = select.epoll()
    for number in sockets:
        poller.register(number, select.EPOLLIN)
    now = time.perf_counter
    latencies: list[float] = []
    missing = dict.fromkeys(sockets, length)
    began = now()
    asked = dict.fromkeys(sockets, began)
    end = began + seconds
    for sock in sockets.values():
        sock.send(request)
    while (moment := now()) < end:
        for number, _ in poller.poll(1.0):
            sock = sockets[number]
            answer = sock.recv(_BUFFER)
            left = missing[number]
            if not answer or (left == length and not answer.startswith(_OK)):
                raise RuntimeError(f"not answered with 200: {answer[:400]!r}")
            left -= len(answer)
            if left > 0:
                missing[number] = left
                continue
            if left < 0:
                raise RuntimeError("an answer is longer than the first one was")
            moment = now()
            latencies.append(moment - asked[number])
            asked[number] = moment
            missing[number] = length
            sock.send(request)
    latencies.sort()
    return {
        "requests": len(latencies),
        "seconds": moment - began,
        "p50": latencies[len(latencies) // 2],
        "p99": latencies[len(latencies) * 99 // 100],
    }


if __name__ == "__main__":
    for line in sys.stdin.buffer:
        say_line(_drive(orjson.loads(line)))
