"""What it costs to have a reply on the disk before it is read, beside a bare append and fdatasync.

Both write the same bytes to the same disk. The journal seals them first, and replies that come
together share one sync; the yardstick syncs each by itself, as its one thread comes to it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from bench.paired import Goal, Report, Round, in_turns, summary
from bench.token_server import ACCESS_TOKEN_LENGTH, REFRESH_TOKEN_LENGTH
from daemon.config.settings import EncryptionKey
from daemon.domain.clock import SystemClock, system_entropy
from daemon.domain.journal import JournaledReply, Purpose
from daemon.domain.reply import RawReply
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.journal import Journal

IN_FLIGHT = (1, 8, 64)
# Alone a reply waits for one sync, and for two changes of thread.
GOAL_ALONE = 2.0
# Together they share syncs.
GOAL_TOGETHER = 2.0
_BODY = b'{"access_token":"%b","refresh_token":"%b","token_type":"Bearer","expires_in":3600}' % (
    b"a" * ACCESS_TOKEN_LENGTH,
    b"r" * REFRESH_TOKEN_LENGTH,
)
# A record of such a reply with its envelope.
_RECORD_LENGTH = 1500


async def measure(directory: Path, *, pairs: int, seconds: float) -> Report:
    """Measure ``pairs`` rounds of ``seconds`` each, with 1, 8 and 64 replies at once."""
    rows: list[dict[str, str | float]] = []
    goals: list[Goal] = []
    async with _journal(directory) as journal, _file(directory) as file:
        for at_once in IN_FLIGHT:
            keeps = {"journal": journal.keep, "bare": file.keep}
            rounds = await in_turns(
                {
                    name: partial(_round, keep, at_once=at_once, seconds=seconds)
                    for name, keep in keeps.items()
                },
                pairs=pairs,
            )
            rows += [{"": f"{name}, {at_once} at once", **summary(r)} for name, r in rounds.items()]
            goals += _goals(at_once, rounds["journal"], rounds["bare"])
    return Report(name="journal", rows=rows, goals=goals)


def _goals(at_once: int, ours: list[Round], bare: list[Round]) -> list[Goal]:
    pairs = list(zip(ours, bare, strict=True))
    if at_once == 1:
        what, ratio = "p50 ÷ bare, alone", median(mine.p50 / its.p50 for mine, its in pairs)
        return [Goal(what=what, value=ratio, bound=GOAL_ALONE, is_ceiling=True)]
    if at_once == max(IN_FLIGHT):
        what = f"rate ÷ bare, {at_once} at once"
        ratio = median(mine.rate / its.rate for mine, its in pairs)
        return [Goal(what=what, value=ratio, bound=GOAL_TOGETHER)]
    return []


async def _round(keep: Callable[[], Awaitable[None]], *, at_once: int, seconds: float) -> Round:
    latencies: list[float] = []
    began, cpu_before = time.perf_counter(), time.process_time()

    async def work() -> None:
        while (start := time.perf_counter()) < began + seconds:
            await keep()
            latencies.append(time.perf_counter() - start)

    await asyncio.gather(*(work() for _ in range(at_once)))
    latencies.sort()
    return Round(
        requests=len(latencies),
        seconds=time.perf_counter() - began,
        cpu=time.process_time() - cpu_before,
        p50=latencies[len(latencies) // 2],
        p99=latencies[len(latencies) * 99 // 100],
    )


@dataclass(slots=True)
class _Kept:
    """The journal, used as an attempt does."""

    journal: Journal
    number: int = 0

    async def keep(self) -> None:
        """Reserve, keep and settle one reply."""
        self.number += 1
        attempt = f"attempt-{self.number}"
        async with self.journal.reserved():
            await self.journal.keep(
                JournaledReply(
                    attempt=attempt,
                    purpose=Purpose.REFRESH,
                    connection_id="bench",
                    provider="acme",
                    generation=self.number,
                    scopes=("read", "write"),
                    sent_at=SystemClock().now(),
                    reply=RawReply(
                        status=200, headers={"content-type": "application/json"}, body=_BODY
                    ),
                )
            )
        await self.journal.settled(attempt)


@asynccontextmanager
async def _journal(directory: Path) -> AsyncIterator[_Kept]:
    cipher = TokenCipher([EncryptionKey(id="k1", secret=bytes(32))], entropy=system_entropy)
    journal = Journal(directory, cipher, clock=SystemClock(), entropy=system_entropy)
    journal.open()
    try:
        yield _Kept(journal)
    finally:
        await journal.close()


class _File:
    """One preallocated file and one thread that writes it, round and round."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._size = 8 * 1024 * 1024
        os.posix_fallocate(self._file, 0, self._size)
        os.fsync(self._file)
        self._place = 0
        self._thread = ThreadPoolExecutor(1)

    async def keep(self) -> None:
        """Append a record and sync it."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._write)

    def _write(self) -> None:
        os.pwrite(self._file, b"\x55" * _RECORD_LENGTH, self._place)
        os.fdatasync(self._file)
        self._place = (self._place + _RECORD_LENGTH) % (self._size - _RECORD_LENGTH)

    def close(self) -> None:
        """Let go."""
        self._thread.shutdown()
        os.close(self._file)


@asynccontextmanager
async def _file(directory: Path) -> AsyncIterator[_File]:
    file = _File(directory / "bare")
    try:
        yield file
    finally:
        file.close()
