"""Daemons for measurements: configured quietly, filled, pinned."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from bench.load import Target
from bench.processes import SERVER_CORE, LineProcess, pin, running
from daemon.domain.clock import SystemClock
from tests.support.tokenward import Tokenward

# As long as a common JWT access token.
TOKEN = "e" * 900


def provider(port: int = 9, **members: Any) -> dict[str, Any]:
    """Return a provider entry whose token endpoint is at a local port."""
    return {
        "authorization_endpoint": f"http://127.0.0.1:{port}/authorize",
        "token_endpoint": f"http://127.0.0.1:{port}/token",
        "client_id": "bench",
        "client_secret": "not-so-secret-0123456789",
        **members,
    }


def imported(lifetime: timedelta) -> dict[str, str]:
    """Return the ``tokens`` member of a connection whose access token lives for so long."""
    expires_at = SystemClock().now() + lifetime
    return {
        "access_token": TOKEN,
        "refresh_token": "r" * 64,
        "expires_at": expires_at.isoformat(timespec="seconds"),
    }


@asynccontextmanager
async def serving(directory: Path, providers: Mapping[str, Any]) -> AsyncIterator[Tokenward]:
    """Run ``tokenward run`` on the servers' core, with a Unix socket at ``api.sock``."""
    daemon = Tokenward(directory, {"providers": providers})
    daemon.settings["listen"]["api"]["unix_socket"] = str(directory / "api.sock")
    async with daemon:
        pin(pid_of(daemon), SERVER_CORE)
        yield daemon


@asynccontextmanager
async def hosted(
    daemon: Tokenward, *, core: int | None = SERVER_CORE
) -> AsyncIterator[LineProcess]:
    """Run ``bench.hosted_daemon`` with the configuration of a daemon that is not running."""
    daemon.write_config()
    arguments = (str(daemon.config_path), str(daemon.log_path))
    async with running("hosted_daemon", *arguments, core=None) as process:
        await process.ask()
        if core is not None:
            pin(process.pid, core)
        yield process


def pid_of(daemon: Tokenward) -> int:
    """Return the process id of a daemon that runs."""
    if daemon.process is None:
        raise AssertionError("not started")
    return daemon.process.pid


def target_of(daemon: Tokenward, connection: str = "bench") -> Target:
    """Return a connection's token read over TCP."""
    return Target(
        place=int(daemon.api_url.rpartition(":")[2]),
        path=f"/v1/connections/{connection}/token",
        key=daemon.key,
        pid=pid_of(daemon),
    )
