"""Network namespaces on this machine: a pod has one of its own, and so has the rest of its cluster.

Everything here works on threads: a thread that enters a namespace makes sockets that stay in it,
wherever they are used afterwards.
"""

from __future__ import annotations

import ctypes
import http.client
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace with its address on the link between the two."""

    name: str
    address: str

    def command(self, *arguments: str) -> list[str]:
        """Return the command line that runs a program in here."""
        return ["ip", "netns", "exec", self.name, *arguments]

    def within(self, work: Callable[[], T]) -> T:
        """Run ``work`` in a thread that is in here. Blocks."""

        def entered() -> T:
            with Path("/run/netns", self.name).open("rb") as namespace:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            return work()

        # A thread that has entered never serves anybody else.
        with ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(entered).result()

    def listening(self, host: str, port: int = 0) -> socket.socket:
        """Return a socket that listens in here and may be served from anywhere."""
        return self.within(lambda: socket.create_server((host, port), backlog=128))

    def connect(self, host: str, port: int) -> socket.socket:
        """Return a connection that was made from in here."""
        return self.within(lambda: socket.create_connection((host, port), timeout=_PATIENCE))

    def ask(
        self,
        method: str,
        host: str,
        port: int,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> tuple[int, bytes]:
        """Send one HTTP request from in here and return status and body."""
        connection = http.client.HTTPConnection(host, port, timeout=_PATIENCE)
        connection.sock = self.connect(host, port)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def reason_to_skip() -> str | None:
    """Return why there can be no namespaces here; ``None`` where there can."""
    if shutil.which("ip") is None:
        return "needs the program ip (Debian package iproute2)"
    if os.geteuid() != 0:
        return "only root makes network namespaces"
    name = f"tokenward-try-{os.getpid()}"
    tried = _ip("netns", "add", name, must=False)
    if tried.returncode != 0:
        return f"no network namespaces here: {tried.stderr.strip()}"
    _ip("netns", "del", name)
    return None


@contextmanager
def linked_namespaces() -> Iterator[tuple[Namespace, Namespace]]:
    """Make two namespaces with a link between them, as a pod and its node have; skip if need be."""
    why_not = reason_to_skip()
    if why_not is not None:
        pytest.skip(why_not)
    number = os.getpid() % 64_000
    subnet = f"10.{200 + number // 256 % 50}.{number % 256}"
    pod = Namespace(f"tokenward-pod-{number}", f"{subnet}.2")
    rest = Namespace(f"tokenward-rest-{number}", f"{subnet}.1")
    try:
        for each in (pod, rest):
            _ip("netns", "add", each.name)
            _ip("-n", each.name, "link", "set", "lo", "up")
        _ip(
            *("-n", pod.name, "link", "add", "eth0", "type", "veth"),
            *("peer", "name", "eth0", "netns", rest.name),
        )
        for each in (pod, rest):
            _ip("-n", each.name, "address", "add", f"{each.address}/24", "dev", "eth0")
            _ip("-n", each.name, "link", "set", "eth0", "up")
        yield pod, rest
    finally:
        for each in (pod, rest):
            _ip("netns", "del", each.name, must=False)


def _ip(*arguments: str, must: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own arguments
        ["ip", *arguments],  # noqa: S607 - found by its name, as everywhere
        check=must,
        capture_output=True,
        text=True,
    )
