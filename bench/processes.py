"""Processes of a measurement: started, pinned to a core, asked by lines of JSON, and metered."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

ROOT = Path(__file__).parents[1]

SERVER_CORE, CLIENT_CORE = 0, 1
"""Where what is measured runs, and where everything else does."""

_LONGEST_LINE = 16 * 1024 * 1024
# The kernel's number of another process' CPU clock: see clock_getcpuclockid(3).
_CPU_CLOCK_OF_PROCESS = 2


class LineProcess:
    """A Python module of this package as a process; one JSON line in, one out."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._process.pid

    async def ask(self, question: object = None) -> Any:
        """Send a line (none for ``None``) and return the answer."""
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("started with pipes")
        if question is not None:
            self._process.stdin.write(orjson.dumps(question) + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"process {self.pid} ended before its answer; see above")
        return orjson.loads(line)

    async def end(self) -> None:
        """Close its input, which ends it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(30):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def running(module: str, *arguments: str, core: int | None) -> AsyncIterator[LineProcess]:
    """Run ``python -m bench.MODULE`` on a core until the block ends."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"bench.{module}", *arguments),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LONGEST_LINE,
    )
    if core is not None:
        pin(process.pid, core)
    child = LineProcess(process)
    try:
        yield child
    finally:
        await child.end()


async def answer_lines(answer: Callable[[Any], Awaitable[object]], *, first: object = None) -> None:
    """Answer lines until the input ends: the other side of ``LineProcess``."""
    say_line(first)
    while line := await asyncio.to_thread(sys.stdin.buffer.readline):
        say_line(await answer(orjson.loads(line)))


def say_line(value: object) -> None:
    """Write one line of JSON."""
    sys.stdout.buffer.write(orjson.dumps(value) + b"\n")
    sys.stdout.buffer.flush()


def pin(pid: int, core: int) -> None:
    """Keep a process, with all threads it has now, on one core, if there is more than one."""
    cores = sorted(os.sched_getaffinity(0)) if len(_machine()) < 2 else _machine()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), {cores[core % len(cores)]})


def _machine() -> list[int]:
    return list(range(os.cpu_count() or 1))


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time that these processes have used since they began."""
    total = 0.0
    for pid in pids:
        with suppress(OSError):
            total += time.clock_gettime((~pid << 3) | _CPU_CLOCK_OF_PROCESS)
    return total


def descendants(pid: int) -> list[int]:
    """Return the children of a process, and theirs."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *descendants(child)]
    return found


def resident_megabytes(pid: int) -> float:
    """Return the resident memory of a process (``VmRSS``)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has no memory")
