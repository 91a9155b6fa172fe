"""Files for applications that only read files, kept by the real process."""

from __future__ import annotations

import asyncio
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.polling import eventually
from tests.support.token_server import TokenServer, refuses
from tests.support.tokenward import ROOT, Tokenward

IMPORTED = {"refresh_token": "imported"}
_APPLICATION = """
import pathlib, signal, sys
token = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGHUP, lambda *_: print(token.read_text(), flush=True))
print("ready", flush=True)
while True: signal.pause()
"""


@pytest.fixture
async def server() -> AsyncIterator[TokenServer]:
    """A provider."""
    async with TokenServer() as server:
        yield server


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the application looks."""
    directory = tmp_path / "run"
    directory.mkdir()
    return directory


def configure(daemon: Tokenward, server: TokenServer, path: Path, **sink: Any) -> None:
    """Let a daemon keep a file of ``acme-1``."""
    daemon.settings["providers"] = {"acme": server.provider()}
    daemon.settings["sinks"] = [{"connection": "acme-1", "path": str(path), **sink}]


def names(directory: Path) -> list[str]:
    """Return what is in a directory."""
    return sorted(path.name for path in directory.iterdir())


def text_of(path: Path) -> str | None:
    """Return what a file holds, if it is there."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


async def holds(path: Path, text: str | None, *, within: float = 1.0) -> None:
    """Wait until a file holds ``text``, or is gone: within a second, as the promise is."""

    async def look() -> bool:
        return text_of(path) == text

    await eventually(look, within=within, what=f"a file with {text}")


async def test_from_connect_to_disconnect(
    daemon: Tokenward, server: TokenServer, directory: Path
) -> None:
    """Made once there is a token, replaced by a refresh, gone with the connection."""
    path = directory / "token"
    configure(daemon, server, path, mode="0640")
    async with daemon:
        assert names(directory) == []
        await daemon.create("acme", id="acme-1", tokens=IMPORTED)
        # Nobody asks for the token: the file alone wants it.
        await holds(path, "access-1", within=5)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        await daemon.request("POST", "/v1/connections/acme-1/refresh")
        await holds(path, "access-2")
        await daemon.request("DELETE", "/v1/connections/acme-1")
        await holds(path, None)

        async def is_counted() -> bool:
            return (await daemon.metrics())['tokenward_sink_writes_total{outcome="removed"}'] == 1

        await eventually(is_counted, what="the count of what was removed")
        metrics = await daemon.metrics()
        assert metrics['tokenward_sink_writes_total{outcome="written"}'] == 2
        assert metrics["tokenward_sinks_failing"] == 0
        assert "access-" not in daemon.log()
    assert names(directory) == []


async def test_another_replica_refreshes(
    daemon: Tokenward, server: TokenServer, directory: Path
) -> None:
    """What one process fetches is in the file of the other within a second, as is a disconnect."""
    path = directory / "token"
    keys = [{"id": "a", "secret": "A" * 43 + "="}]
    shared = {"database": daemon.settings["database"], "encryption": {"keys": keys}}
    configure(daemon, server, path)
    daemon.settings |= shared
    settings = {"providers": {"acme": server.provider()}, **shared}
    other = Tokenward(directory.parent / "other", settings)
    # As beside an application in a pod: it only serves, and keeps the file.
    daemon.arguments = ("--role", "serve")
    async with other, daemon:
        await other.create("acme", id="acme-1", tokens=IMPORTED)
        await other.token("acme-1")
        await holds(path, "access-1")
        await other.request("POST", "/v1/connections/acme-1/refresh")
        await holds(path, "access-2")
        await other.request("DELETE", "/v1/connections/acme-1")
        await holds(path, None)


async def test_gone_at_the_expiry(daemon: Tokenward, server: TokenServer, directory: Path) -> None:
    """While the provider is away a file does not outlive its token."""
    path = directory / "token"
    configure(daemon, server, path)
    server.members["expires_in"] = 3
    async with daemon:
        await daemon.create("acme", id="acme-1", tokens=IMPORTED)
        await daemon.token("acme-1")
        await holds(path, "access-1")
        server.answer = refuses("temporarily_unavailable", status=503)
        await holds(path, None, within=5)
        assert (await daemon.token("acme-1")).status == 503


async def test_killed_started_and_reloaded(
    daemon: Tokenward, server: TokenServer, directory: Path
) -> None:
    """After kill -9 there is a whole token; after a start the right one; after a reload none."""
    path = directory / "token"
    configure(daemon, server, path)
    async with daemon:
        await daemon.create("acme", id="acme-1", tokens=IMPORTED)
        await daemon.token("acme-1")
        await daemon.request("POST", "/v1/connections/acme-1/refresh")
        daemon.signal(signal.SIGKILL)
        await daemon.ended()
        assert text_of(path) in {None, "access-1", "access-2"}
        path.unlink(missing_ok=True)
        await daemon.start()
        # An application that starts after ``/startup`` finds its file.
        assert text_of(path) == (await daemon.token("acme-1")).body["access_token"]
        assert names(directory) == ["token"]
        daemon.settings["sinks"] = []
        assert await daemon.reload()
        await holds(path, None)


async def test_the_application_is_signalled(
    daemon: Tokenward, server: TokenServer, directory: Path
) -> None:
    """It reads the new token when it is told."""
    path, pid_file = directory / "token", directory / "app.pid"
    configure(daemon, server, path, signal={"pid_file": str(pid_file)})
    with subprocess.Popen(  # noqa: ASYNC220, S603 - our own interpreter, started before anything waits
        [sys.executable, "-c", _APPLICATION, str(path)], stdout=subprocess.PIPE
    ) as application:
        assert application.stdout is not None
        try:
            assert application.stdout.readline() == b"ready\n"
            pid_file.write_text(str(application.pid))
            async with daemon:
                await daemon.create("acme", id="acme-1", tokens=IMPORTED)
                await daemon.token("acme-1")
                said = await asyncio.to_thread(application.stdout.readline)
                assert said == b"access-1\n"
                assert await daemon.stop() == 0
                # Whoever reads it during a restart still finds it.
                assert text_of(path) == "access-1"
        finally:
            application.kill()


def test_check_looks_at_directories(tmp_path: Path) -> None:
    """What is not there is warned of, what everybody may write is refused, before anything runs."""
    shared_place = tmp_path / "shared"
    shared_place.mkdir()
    shared_place.chmod(0o777)
    shared = {"connection": "acme-1", "path": str(shared_place / "token")}
    there = {"connection": "acme-1", "path": str(tmp_path / "token")}
    missing = {"connection": "acme-1", "path": str(tmp_path / "missing" / "token")}
    daemon = Tokenward(tmp_path, {"sinks": [there, missing, shared]})
    daemon.write_config()
    command = [sys.executable, "-m", "daemon", "--config", str(daemon.config_path), "check"]
    said = subprocess.run(  # noqa: S603 - our own interpreter
        [*command, "--output", "json"], cwd=ROOT, capture_output=True, check=False
    )
    found = {one["subject"]: one["level"] for one in orjson.loads(said.stdout)["findings"]}
    assert [found[f"sinks[{n}].path"] for n in range(3)] == ["ok", "warning", "error"]
