"""The slow campaign: thousands of sockets on each listener that never come to the point.

Real daemon, real PostgreSQL, a provider that counts. Healthy callers keep asking at a steady pace,
in turn without and with the slow ones. Nothing of what these say may reach database or provider.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from tests.support.token_server import TokenServer
from tests.support.tokenward import ROOT, Tokenward

# A head has 5 s, a body 10 s; beyond that only what an event loop may be late by.
LONGEST_LIFE = 10.0
_SLACK = 3.0
# Bytes of memory for one open connection: buffers, a task, timers.
_MEMORY_EACH = 24 * 1024
# What callers may notice. Of the rarer requests p99 is the worst of a hundred or so: some
# milliseconds are what two cores with four busy processes make of that.
_TIMES, _FEW_MS = 2.0, 5.0
# Tables that only an authorization, and nothing in the background, looks at.
_PRIVATE = ("connect_tickets", "authorizations")
_SCANS = """
SELECT coalesce(sum(seq_scan + coalesce(idx_scan, 0)), 0)::bigint FROM pg_stat_user_tables
WHERE relname = ANY($1::text[])
"""
_TRANSACTIONS = """
SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """``sockets`` at each listener, ``rounds`` of ``seconds`` without and with them."""

    sockets: int = 2000
    rounds: int = 3
    seconds: float = 20.0


@dataclass(slots=True)
class Findings:
    """What was found, line by line; ``faults`` must stay empty."""

    lines: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def note(self, line: str, *, holds: bool = True) -> None:
        """Report ``line``; it is a fault where it does not hold."""
        (self.lines if holds else self.faults).append(line)

    def __str__(self) -> str:
        """Return a few lines for people."""
        faults = [f"  WRONG: {line}" for line in self.faults]
        return "\n".join([*(f"  {line}" for line in self.lines), *faults])


class Attackers:
    """The driver's side of ``slow_sockets``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def all_open(self) -> int:
        """Return how many are open once all were opened."""
        return int((await _line(self._process))["open"])

    async def ended(self, *, now: bool = True) -> dict[str, Any]:
        """Return what they have seen; unless ``now``, when all of them were cut."""
        if now and self._process.stdin is not None:
            self._process.stdin.close()
        seen: dict[str, Any] = await _line(self._process)
        return seen


@asynccontextmanager
async def attackers(
    daemon: Tokenward, sockets: int, *, ramp: float, again: bool
) -> AsyncIterator[Attackers]:
    """Run slow sockets at all three listeners."""
    order = {"places": ports(daemon), "sockets": sockets, "ramp": ramp, "again": again}
    process = await _module("slow_sockets", order)
    try:
        yield Attackers(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def ports(daemon: Tokenward) -> dict[str, int]:
    """Return each listener's port."""
    urls = {"api": daemon.api_url, "public": daemon.public_url, "ops": daemon.ops_url}
    return {name: urlsplit(url).port or 0 for name, url in urls.items()}


async def healthy(daemon: Tokenward, seconds: float) -> dict[str, dict[str, Any]]:
    """Ask for so long, and return what was found by kind of request."""
    place = ports(daemon)
    token = "/v1/connections/slow-0/token"
    asks = [
        {"name": "token", "port": place["api"], "path": token, "pace": 200, "fresh": False},
        {"name": "token, new connection", "port": place["api"], "path": token, "pace": 20},
        {"name": "readiness", "port": place["ops"], "path": "/readiness", "pace": 10},
        {"name": "page", "port": place["public"], "path": "/connect/completed", "pace": 10},
    ]
    order = {
        "seconds": seconds,
        "key": daemon.key,
        "asks": [{"fresh": True, **ask} for ask in asks],
    }
    process = await _module("slow_callers", order)
    try:
        found: dict[str, dict[str, Any]] = await _line(process)
    finally:
        await process.wait()
    return found


async def reached(url: str) -> tuple[int, int]:
    """Return the database's transactions so far, and the looks at what only strangers ask for."""
    # A session tells what it did a second after it, at the latest.
    await asyncio.sleep(2.0)
    connection = await asyncpg.connect(url)
    try:
        transactions = await connection.fetchval(_TRANSACTIONS)
        return int(transactions), int(await connection.fetchval(_SCANS, list(_PRIVATE)))
    finally:
        await connection.close()


def memory_of(pid: int) -> int:
    """Return a process's resident memory in bytes."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@asynccontextmanager
async def stage(directory: Path, url: str) -> AsyncIterator[tuple[Tokenward, TokenServer]]:
    """Run a daemon with one connection whose token is good for a day."""
    daemon = Tokenward(directory, {"database": {"url": url}, "log": {"level": "warning"}})
    async with TokenServer(expires_in=86_400) as server:
        daemon.settings["providers"] = {"acme": server.provider()}
        async with daemon:
            await daemon.create("acme", id="slow-0", tokens={"refresh_token": "first"})
            await daemon.until_served("slow-0")
            yield daemon, server


async def everything(directory: Path, url: str, plan: Plan) -> Findings:
    """Run the campaign."""
    findings = Findings()
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = []
    async with stage(directory, url) as (daemon, server):
        requests = len(server.seen)
        for _ in range(plan.rounds):
            pair = await _round(daemon, url, plan, findings)
            pairs.append(pair)
        findings.note(
            f"provider: {len(server.seen) - requests} requests", holds=len(server.seen) == requests
        )
        alive = daemon.process is not None and daemon.process.poll() is None
        findings.note("the daemon lives", holds=alive)
    for line, holds in _compared(pairs):
        findings.note(line, holds=holds)
    return findings


async def _round(
    daemon: Tokenward, url: str, plan: Plan, findings: Findings
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure once without and once with them."""
    pid = daemon.process.pid if daemon.process is not None else 0
    start, memory = await reached(url), memory_of(pid)
    before = await healthy(daemon, plan.seconds)
    middle = await reached(url)
    # Opened over as long as a head may take, so that they do not all come back in one moment.
    async with attackers(daemon, plan.sockets, ramp=5.0, again=True) as slow:
        is_open = await slow.all_open()
        quiet = await reached(url)
        during = await healthy(daemon, plan.seconds)
        grown = memory_of(pid) - memory
        end = await reached(url)
        seen = await slow.ended()
    usual, unusual = middle[0] - start[0], end[0] - quiet[0]
    findings.note(
        f"{is_open} open; cut {sum(seen['cut'].values())} "
        f"({seen['refused']} connects failed), the longest after {seen['longest']:.1f} s; "
        f"answers {seen['statuses']}",
        holds=seen["longest"] < LONGEST_LIFE + _SLACK,
    )
    findings.note(
        f"  database: {usual} transactions without, {unusual} with; looks at tickets and "
        f"authorizations: {end[1] - start[1]}",
        holds=unusual <= usual * 1.3 + 10 and end[1] == start[1],
    )
    each = grown / max(1, 3 * plan.sockets)
    findings.note(
        f"  memory: {memory / 2**20:.0f} MiB and {grown / 2**20:.0f} MiB more, "
        f"{each / 1024:.1f} KiB for each",
        holds=each < _MEMORY_EACH,
    )
    return before, during


def _compared(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> Iterator[tuple[str, bool]]:
    """Yield a line for each kind of request, and whether its p99 has less than doubled."""
    for name in pairs[0][0]:
        faults = [fault for pair in pairs for found in pair for fault in found[name]["faults"]]
        yield f"{name}: refused {faults}" if faults else f"{name}: all answered", not faults
        times = {
            share: [median(pair[side][name][share] for pair in pairs) * 1000 for side in (0, 1)]
            for share in ("p50", "p99", "worst")
        }
        words = ", ".join(
            f"{share} {was:.2f} → {now:.2f} ms" for share, (was, now) in times.items()
        )
        ratio = median(pair[1][name]["p99"] / pair[0][name]["p99"] for pair in pairs)
        more = times["p99"][1] - times["p99"][0]
        yield f"  {words}; p99 times {ratio:.2f}", ratio < _TIMES or more < _FEW_MS


async def _module(name: str, order: dict[str, Any]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"tests.campaigns.{name}", json.dumps(order)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


async def _line(process: asyncio.subprocess.Process) -> Any:
    if process.stdout is None:
        raise AssertionError("started with pipes")
    return json.loads(await process.stdout.readline())
