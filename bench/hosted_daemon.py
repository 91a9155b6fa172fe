"""The daemon as ``tokenward run`` starts it, with a line of commands into its process.

For what cannot be asked from outside: thousands of connections at once, and all of a batch due
now. ``seed`` writes rows as the stores do; ``refresh`` makes rows due, wakes the scheduler and
waits until each is stored and in the cache; ``census`` counts what the gauges show.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from bench.processes import answer_lines, cpu_seconds, descendants
from daemon.cli.running import run_daemon
from daemon.config.loading import load_settings
from daemon.domain.clock import SystemClock
from daemon.domain.journal import JournaledReply
from daemon.domain.tokens import TokenSet
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.journal import Journal
from daemon.persistence.rows import seal_tokens
from daemon.wiring.assembly import Daemon

PROVIDER = "acme"
LIFETIME = timedelta(hours=1)
_BEARER = "Bearer"
_POLL_SECONDS = 0.005
_PATIENCE = 120.0
_SEEDED_AT_ONCE = 20_000
_LONGEST_VACUUM = 1800.0


def connection_id(number: int) -> str:
    """Return the id of a seeded connection."""
    return f"bench-{number:07}"


class _Forgetful(Journal):
    """A journal that is off: for what the real one costs."""

    @asynccontextmanager
    async def reserved(self) -> AsyncIterator[None]:
        """Hold nothing."""
        yield

    async def keep(self, entry: JournaledReply) -> bool:
        """Keep nothing."""
        del entry
        return True


class _Commands:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def answer(self, command: Any) -> object:
        """Carry out one command."""
        match command["do"]:
            case "seed":
                await self._seed(command.get("first", 0), command["count"])
                return {}
            case "refresh":
                self._keep_replies(is_on=command.get("journal", True))
                first, stride = command["first"], command.get("stride", 1)
                return await self._refresh(range(first, first + command["count"] * stride, stride))
            case "census":
                began = time.perf_counter()
                now = SystemClock().now()
                await self._daemon.storage.connections.census(now=now)
                await self._daemon.storage.refreshes.count_due(now=now)
                return {"seconds": time.perf_counter() - began}
            case other:
                raise ValueError(f"unknown command {other}")

    async def _seed(self, first: int, count: int) -> None:
        for start in range(first, first + count, _SEEDED_AT_ONCE):
            await self._seed_some(range(start, min(start + _SEEDED_AT_ONCE, first + count)))
        async with self._daemon.storage.database.acquire() as session:
            await session.execute("SET statement_timeout = 0")
            await session.execute("VACUUM ANALYZE", timeout=_LONGEST_VACUUM)
            await session.execute("RESET statement_timeout")

    async def _seed_some(self, numbers: range) -> None:
        now = SystemClock().now()
        cipher = self._daemon.storage.cipher
        ids = [connection_id(number) for number in numbers]
        connections = [
            (name, PROVIDER, "authorization_code", "active", "bench", now, now) for name in ids
        ]
        tokens = [_token_row(name, cipher, now) for name in ids]
        # Due later than any measurement ends.
        schedule = [(name, PROVIDER, now + 24 * LIFETIME) for name in ids]
        async with self._daemon.storage.database.transaction() as session:
            for table, columns, rows in (
                ("connections", _CONNECTION_COLUMNS, connections),
                ("token_sets", _TOKEN_COLUMNS, tokens),
                ("refresh_schedule", _SCHEDULE_COLUMNS, schedule),
            ):
                await session.copy_records_to_table(table, records=rows, columns=columns)

    def _keep_replies(self, *, is_on: bool) -> None:
        self._daemon.refreshing.journal.__class__ = Journal if is_on else _Forgetful

    async def _refresh(self, numbers: range) -> object:
        ids = [connection_id(number) for number in numbers]
        storage, refreshing = self._daemon.storage, self._daemon.refreshing
        # Nobody reads here: what memory has of a connection came with a refresh or the start.
        before = {name: refreshing.cache.get(name) for name in ids}
        await storage.database.execute(
            "UPDATE refresh_schedule SET due_at = $2 WHERE connection_id = ANY($1::text[])",
            ids,
            SystemClock().now(),
        )
        # Only now: how rows become due here is not what a refresh costs.
        postgres = descendants(os.getpid())
        began = time.perf_counter()
        cpu_before, database_before = time.process_time(), cpu_seconds(postgres)
        refreshing.scheduler.wake()
        for name in ids:
            while refreshing.cache.get(name) is before[name]:
                if time.perf_counter() - began > _PATIENCE:
                    raise TimeoutError(f"{name} is not refreshed")
                await asyncio.sleep(_POLL_SECONDS)
        return {
            "seconds": time.perf_counter() - began,
            "cpu": time.process_time() - cpu_before,
            "database": cpu_seconds(postgres) - database_before,
        }


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
