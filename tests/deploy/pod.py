"""A pod on this machine: containers as processes in one network namespace, its cluster in another.

What stands for the kubelet here does as it does for a native sidecar: the application starts when
the sidecar's startup probe has succeeded, and the sidecar is told to end when the application has.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.namespaces import Namespace
from tests.support.polling import eventually
from tests.support.strict_server import StrictServer
from tests.support.tokenward import Tokenward

API, PUBLIC, OPS = 7420, 7421, 7422
KEY = "key-of-the-pod-0123456789"

# The application: it asks at once, without trying again, and once more when it is told to end.
_APPLICATION = """
import json, os, signal, sys, threading, urllib.request
ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ended.set())
def say(what, path, method="GET"):
    headers = {"Authorization": "Bearer " + os.environ["TOKENWARD_KEY"]}
    request = urllib.request.Request("http://127.0.0.1:7420" + path, headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        print(json.dumps({"at": what, "status": answer.status, **json.load(answer)}), flush=True)
say("start", "/v1/connections/acme-1/token")
if "--job" in sys.argv:
    say("quit", "/quitquitquit", "POST")
else:
    ended.wait()
    say("end", "/v1/connections/acme-1/token")
"""


@dataclass(slots=True)
class Application:
    """The application's process, and what it said."""

    process: subprocess.Popen[str]
    said: list[dict[str, Any]] = field(default_factory=list)

    async def speaks(self) -> None:
        """Return once it has said something: it runs, and has what it wanted."""
        if self.process.stdout is None:
            raise AssertionError("it cannot be heard")
        line = await asyncio.to_thread(self.process.stdout.readline)
        self.said.append(json.loads(line))

    async def ended(self) -> tuple[int, list[dict[str, Any]]]:
        """Return its exit code and what it said, once it has ended."""
        out, _ = await asyncio.to_thread(self.process.communicate, None, 30)
        self.said += [json.loads(line) for line in out.splitlines()]
        return self.process.returncode, self.said

    async def stop(self) -> tuple[int, list[dict[str, Any]]]:
        """Send SIGTERM; return as ``ended``."""
        self.process.send_signal(signal.SIGTERM)
        return await self.ended()


class Pod:
    """One pod with a tokenward in it; ``provider`` is a server on its loopback.

    ``namespaces`` are the pod's and its node's.
    """

    def __init__(
        self,
        directory: Path,
        namespaces: tuple[Namespace, Namespace],
        provider: StrictServer,
        settings: dict[str, Any],
    ) -> None:
        self.namespace, self.node = namespaces
        everything = ["token", "proxy", "read", "manage"]
        caller = {"name": "app", "key": KEY, "connections": ["*"], "permissions": everything}
        self.sidecar = Tokenward(
            directory,
            {
                "public_url": f"http://localhost:{PUBLIC}",
                "listen": {
                    "api": {"address": f"127.0.0.1:{API}"},
                    "public": {"address": f"0.0.0.0:{PUBLIC}", "allow_non_loopback": True},
                    "ops": {"address": f"0.0.0.0:{OPS}", "allow_non_loopback": True},
                },
                "callers": [caller],
                "encryption": {"keys": [{"id": "k", "secret": "A" * 43 + "="}]},
                "providers": {"acme": provider.provider()},
            },
        )
        self.sidecar.settings = _merged(self.sidecar.settings, settings)
        self.sidecar.launcher = tuple(self.namespace.command())
        self._applications: list[Application] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for application in self._applications:
            application.process.kill()
            await asyncio.to_thread(application.process.communicate)
        await self.sidecar.__aexit__(kind, error, at)

    async def probe(self, path: str) -> int:
        """Return what the node is answered on the ops listener; 0 where nobody answers."""
        with suppress(OSError):
            return (await self.from_node("GET", OPS, path))[0]
        return 0

    async def from_node(
        self, method: str, port: int, path: str, *, host: str | None = None
    ) -> tuple[int, bytes]:
        """Ask the pod from outside, by its address; ``host`` is what an ingress passes on."""
        headers = {} if host is None else {"Host": host}
        return await asyncio.to_thread(
            lambda: self.node.ask(method, self.namespace.address, port, path, headers=headers)
        )

    async def from_within(
        self, method: str, path: str, *, body: object = None
    ) -> tuple[int, dict[str, Any]]:
        """Ask the api listener as any container of the pod can."""
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        sent = None if body is None else json.dumps(body).encode()
        status, answer = await asyncio.to_thread(
            lambda: self.namespace.ask(method, "127.0.0.1", API, path, headers=headers, body=sent)
        )
        return status, json.loads(answer)

    async def start_sidecar(self) -> None:
        """Start it, and return when its startup probe has succeeded."""
        self.sidecar.spawn()

        async def has_started() -> bool:
            return await self.probe("/startup") == 200

        await eventually(has_started, within=60, what="the startup probe")

    def start_application(self, *arguments: str) -> Application:
        """Start the application."""
        process = subprocess.Popen(  # noqa: S603 - our own interpreter
            self.namespace.command(sys.executable, "-c", _APPLICATION, *arguments),
            env={"PATH": os.environ["PATH"], "TOKENWARD_KEY": KEY},
            stdout=subprocess.PIPE,
            text=True,
        )
        application = Application(process)
        self._applications.append(application)
        return application


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return ``one`` with ``other`` over it, level by level."""
    both = {name for name in one if name in other and isinstance(one[name], dict)}
    return {**one, **other, **{name: _merged(one[name], other[name]) for name in both}}
