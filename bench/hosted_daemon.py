"""The daemon as ``tokenward run`` starts it, with a line of commands into its process.

For what cannot be asked from outside: thousands of connections at once, and all of a batch due
now. ``seed`` writes rows as the stores do; ``refresh`` makes rows due, wakes the scheduler and
waits until each is stored and in the cache.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from bench.processes import answer_lines
from daemon.cli.running import run_daemon
from daemon.config.loading import load_settings
from daemon.domain.clock import SystemClock
from daemon.domain.tokens import TokenSet
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.rows import seal_tokens
from daemon.wiring.assembly import Daemon

PROVIDER = "acme"
LIFETIME = timedelta(hours=1)
_BEARER = "Bearer"
_POLL_SECONDS = 0.005
_PATIENCE = 120.0


def connection_id(number: int) -> str:
    """Return the id of a seeded connection."""
    return f"bench-{number:06}"


class _Commands:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def answer(self, command: Any) -> object:
        """Carry out one command."""
        match command["do"]:
            case "seed":
                await self._seed(command["count"])
                return {}
            case "refresh":
                return await self._refresh(command["first"], command["count"])
            case other:
                raise ValueError(f"unknown command {other}")

    async def _seed(self, count: int) -> None:
        now = SystemClock().now()
        cipher = self._daemon.storage.cipher
        ids = [connection_id(number) for number in range(count)]
        connections = [
            (name, PROVIDER, "authorization_code", "active", "bench", now, now) for name in ids
        ]
        tokens = [_token_row(name, cipher, now) for name in ids]
        schedule = [(name, PROVIDER, now + LIFETIME) for name in ids]
        async with self._daemon.storage.database.transaction() as session:
            for table, columns, rows in (
                ("connections", _CONNECTION_COLUMNS, connections),
                ("token_sets", _TOKEN_COLUMNS, tokens),
                ("refresh_schedule", _SCHEDULE_COLUMNS, schedule),
            ):
                await session.copy_records_to_table(table, records=rows, columns=columns)
        await self._daemon.storage.database.execute("ANALYZE")

    async def _refresh(self, first: int, count: int) -> object:
        ids = [connection_id(number) for number in range(first, first + count)]
        storage, refreshing = self._daemon.storage, self._daemon.refreshing
        before = await storage.connections.versions(ids)
        await storage.database.execute(
            "UPDATE refresh_schedule SET due_at = $2 WHERE connection_id = ANY($1::text[])",
            ids,
            SystemClock().now(),
        )
        began = time.perf_counter()
        cpu_before = time.process_time()
        refreshing.scheduler.wake()
        for name in ids:
            while (entry := refreshing.cache.get(name)) is None or (
                entry.generation <= before[name][0]
            ):
                if time.perf_counter() - began > _PATIENCE:
                    raise TimeoutError(f"{name} is not refreshed")
                await asyncio.sleep(_POLL_SECONDS)
        return {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu_before}


_CONNECTION_COLUMNS = (
    *("id", "provider", "grant_type", "status", "created_by", "created_at", "updated_at"),
)
_TOKEN_COLUMNS = (
    *("connection_id", "generation", "access_token", "refresh_token", "token_type", "scopes"),
    *("issued_at", "expires_at", "stored_at"),
)
_SCHEDULE_COLUMNS = ("connection_id", "provider", "due_at")


def _token_row(name: str, cipher: TokenCipher, now: datetime) -> tuple[object, ...]:
    tokens = TokenSet(
        generation=1,
        access_token=name.rjust(900, "a"),
        refresh_token=name.rjust(64, "s"),
        token_type=_BEARER,
        scopes=("read", "write"),
        issued_at=now,
        expires_at=now + LIFETIME,
    )
    access, refresh = seal_tokens(cipher, name, tokens)
    return name, 1, access, refresh, _BEARER, tokens.scopes, now, now + LIFETIME, now


async def _on_started(daemon: Daemon) -> None:
    await answer_lines(_Commands(daemon).answer, first={})
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    with Path(sys.argv[2]).open("w", encoding="utf-8") as log_file:
        run_daemon(
            load_settings(path=Path(sys.argv[1]), environ={}),
            load=None,
            stream=log_file,
            on_started=_on_started,
        )
