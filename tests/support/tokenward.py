"""The real daemon as a process, with what a test asks of it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import orjson
from aiohttp import ClientError, ClientSession, ClientTimeout, UnixConnector

from tests.support.polling import eventually

ROOT = Path(__file__).parents[2]


def _candidates() -> Iterator[int]:
    """Yield ports that the kernel hands out to nobody, other ones to each test process."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 10_000 + worker % 10 * 2_000
    start = os.getpid() * 8 % 2_000
    yield from (first + (start + step) % 2_000 for step in count())


_CANDIDATES = _candidates()


def free_ports(wanted: int) -> list[int]:
    """Return ports that nobody listens at."""
    found: list[int] = []
    while len(found) < wanted:
        port = next(_CANDIDATES)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        found.append(port)
    return found


class Reply:
    """An answer of the api listener."""

    def __init__(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        self.status = status
        self.headers = headers
        self.content = content

    @property
    def body(self) -> dict[str, Any]:
        """Return the JSON body."""
        parsed: dict[str, Any] = orjson.loads(self.content)
        return parsed


class Process(Protocol):
    """What is asked of a daemon's process: ``subprocess.Popen``, or one that was forked."""

    @property
    def pid(self) -> int:
        """Return its number."""

    def poll(self) -> int | None:
        """Return its exit code; ``None`` while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Block until it has ended. Raises subprocess.TimeoutExpired."""

    def send_signal(self, number: int, /) -> None:
        """Send a signal."""


class Tokenward:
    """One daemon process. ``settings`` is merged over a configuration with free ports."""

    def __init__(self, directory: Path, settings: Mapping[str, Any] | None = None) -> None:
        self.directory = directory
        self.state_dir = directory / "state"
        self.log_path = directory / "tokenward.log"
        api, public, ops = free_ports(3)
        self.api_url = f"http://127.0.0.1:{api}"
        self.public_url = f"http://localhost:{public}"
        self.ops_url = f"http://127.0.0.1:{ops}"
        self.settings: dict[str, Any] = {
            "state_dir": str(self.state_dir),
            "public_url": self.public_url,
            "listen": {
                "api": {"address": f"127.0.0.1:{api}"},
                "public": {"address": f"127.0.0.1:{public}"},
                "ops": {"address": f"127.0.0.1:{ops}"},
            },
            **(settings or {}),
        }
        # What ``python -m`` runs; the daemon's own arguments follow.
        self.program: tuple[str, ...] = ("daemon",)
        self.arguments: tuple[str, ...] = ()
        # In front of everything: where it runs.
        self.launcher: tuple[str, ...] = ()
        self.process: Process | None = None
        self._session: ClientSession | None = None

    @property
    def redirect_uri(self) -> str:
        """Return what to register at an authorization server."""
        return f"{self.public_url}/callback"

    @property
    def config_path(self) -> Path:
        """Return where the configuration is written at each start."""
        return self.directory / "tokenward.yaml"

    @property
    def key(self) -> str:
        """Return the key that the first start wrote."""
        return (self.state_dir / "api.key").read_text().strip()

    @property
    def session(self) -> ClientSession:
        """Return the session of this daemon's caller."""
        if self._session is None:
            self._session = ClientSession(timeout=ClientTimeout(total=70))
        return self._session

    def write_config(self) -> None:
        """Write the configuration (JSON is YAML)."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.config_path.write_bytes(orjson.dumps(self.settings))

    def spawn(self) -> None:
        """Start the process without waiting for it."""
        self.write_config()
        self.process = self.launch(
            [*self.program, "--config", str(self.config_path), "run", *self.arguments]
        )

    def launch(self, arguments: list[str]) -> Process:
        """Start Python with a module and its arguments; what it says goes to the log."""
        with self.log_path.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own interpreter
                [*self.launcher, sys.executable, "-m", *arguments],
                cwd=ROOT,
                env={"PATH": os.environ["PATH"], "HOME": str(self.directory)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def start(self, *, within: float = 30.0) -> Self:
        """Start the process and wait for its first full start."""
        self.spawn()
        await eventually(self.has_started, within=within, what="the start")
        return self

    async def has_started(self) -> bool:
        """Tell whether ``/startup`` says so; fail where the process has ended."""
        if self.process is None or self.process.poll() is not None:
            raise AssertionError(f"the daemon has ended:\n{self.log()}")
        try:
            async with self.session.get(f"{self.ops_url}/startup") as answer:
                return answer.status == 200
        except ClientError:
            return False

    async def stop(self, *, within: float = 60.0) -> int:
        """Send SIGTERM and return the exit code."""
        self.signal(signal.SIGTERM)
        return await self.ended(within=within)

    async def ended(self, *, within: float = 60.0) -> int:
        """Return the exit code once the process has ended."""
        process = self.process
        if process is None:
            raise AssertionError("not started")
        return await asyncio.to_thread(process.wait, within)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        if self.process is not None:
            self.process.send_signal(number)

    async def reload(self) -> bool:
        """Write ``settings``, send SIGHUP, and tell whether they were taken."""
        outcomes = {"configuration_reloaded": True, "configuration_rejected": False}
        before = {event: self.log().count(event) for event in outcomes}
        self.write_config()
        self.signal(signal.SIGHUP)

        async def decided() -> str | None:
            return next((e for e in outcomes if self.log().count(e) > before[e]), None)

        return outcomes[await eventually(decided, what="the end of the reload")]

    def log(self) -> str:
        """Return all that was logged."""
        return self.log_path.read_text() if self.log_path.exists() else ""

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Return the log lines of one event."""
        lines = (orjson.loads(line) for line in self.log().splitlines() if line.startswith("{"))
        return [line for line in lines if line.get("event") == event]

    async def request(
        self, method: str, path: str, *, json: object = None, key: str | None = None, **more: Any
    ) -> Reply:
        """Ask the api listener as a caller with ``key`` (default: the one with all rights)."""
        headers = {"Authorization": f"Bearer {key or self.key}", **more.pop("headers", {})}
        async with self.session.request(
            method, self.api_url + path, json=json, headers=headers, **more
        ) as answer:
            return Reply(answer.status, answer.headers, await answer.read())

    async def token(self, connection: str, query: str = "") -> Reply:
        """Read a token."""
        return await self.request("GET", f"/v1/connections/{connection}/token{query}")

    async def connection(self, connection: str) -> dict[str, Any]:
        """Return one connection's body."""
        return (await self.request("GET", f"/v1/connections/{connection}")).body

    async def until_status(self, connection: str, status: str) -> dict[str, Any]:
        """Wait until a connection has a status; return its body."""

        async def look() -> dict[str, Any] | None:
            shown = await self.connection(connection)
            return shown if shown["status"] == status else None

        return await eventually(look, within=40, what=f"{connection} {status}")

    async def until_served(self, connection: str, *, after: int = 0) -> dict[str, Any]:
        """Wait until a token newer than generation ``after`` is served; return its body."""

        async def look() -> dict[str, Any] | None:
            reply = await self.token(connection)
            newer = reply.status == 200 and reply.body["generation"] > after
            return reply.body if newer else None

        return await eventually(look, within=40, what=f"a fresh token of {connection}")

    async def create(self, provider: str, **members: object) -> dict[str, Any]:
        """Create a connection; fail where that is refused."""
        reply = await self.request(
            "POST", "/v1/connections", json={"provider": provider, **members}
        )
        assert reply.status == 201, reply.content
        return reply.body

    async def metrics(self) -> dict[str, float]:
        """Return all series by their text name."""
        async with self.session.get(f"{self.ops_url}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    async def __aenter__(self) -> Self:
        """Start."""
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the process whatever happened, and show its log where the test failed."""
        await self.close()
        if error is not None:
            sys.stderr.write(f"--- log of {self.directory.name}\n{self.log()[-20000:]}\n")

    async def close(self) -> None:
        """End the process if it still runs."""
        if self._session is not None:
            await self._session.close()
            self._session = None
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            try:
                await self.ended(within=20)
            except subprocess.TimeoutExpired:
                self.signal(signal.SIGKILL)
                await self.ended()


async def connect(browser: ClientSession, connect_url: str, login: Any) -> tuple[int, str]:
    """Go through a connect URL as a person would; return status and text of the last page.

    ``login(url, session=…)`` logs in at the provider and returns the callback URL.
    """
    async with browser.get(connect_url) as page:
        assert page.status == 200, await page.text()
    async with browser.post(connect_url, allow_redirects=False) as begun:
        assert begun.status == 303, await begun.text()
        location = begun.headers["Location"]
    callback = await login(location, session=browser)
    assert urlsplit(callback).path == "/callback"
    async with browser.get(callback) as last:
        return last.status, await last.text()


def unix_session(path: Path) -> ClientSession:
    """Return a session through a Unix socket."""
    return ClientSession(connector=UnixConnector(path=str(path)))
