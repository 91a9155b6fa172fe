"""Group commit: one thread writes, and what comes while it does goes together into its next sync.

The hard idea: whoever waits is told once what it gave is on the disk, never before; a note that
something is settled waits for nobody and goes with the next reply.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from daemon.domain.errors import JournalError

log = structlog.get_logger()

T = TypeVar("T")


class JournalWriter:
    """Brings records to the disk by ``write``, which blocks, in the one thread of a journal.

    ``write`` is given bytes, and attempt and payload of each reply that is in them.
    """

    def __init__(
        self, directory: Path, write: Callable[[bytes, Sequence[tuple[str, bytes]]], None]
    ) -> None:
        self._directory = directory
        self._write = write
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._waiting: list[_Part] = []
        # What is settled and not written down yet.
        self._notes: list[bytes] = []
        self._writer: asyncio.Task[None] | None = None

    async def append(self, content: bytes, attempt: str = "", payload: bytes = b"") -> None:
        """Return once it is on the disk, with all notes before it. Raises JournalError."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Part(content, done, attempt, payload))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all(), name="journal")
        await done

    def note(self, content: bytes) -> None:
        """Write this with what is appended next."""
        self._notes.append(content)

    async def write_notes(self) -> None:
        """Write notes now; where the disk refuses them they are lost."""
        if self._notes:
            with suppress(JournalError):
                await self.append(b"")

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run blocking work, in its turn, in the journal's thread. Raises JournalError."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except OSError as error:
            log.warning("journal_failed", error=error.strerror)
            raise JournalError(
                f"the journal in {self._directory} cannot be written: {error.strerror}. Give its "
                "disk room, or move state_dir to a sound one"
            ) from error

    async def close(self) -> None:
        """Return when what waits is written, and the thread has ended."""
        if self._writer is not None:
            await self._writer
        self._thread.shutdown(wait=True)

    async def _write_all(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            notes, self._notes = self._notes, []
            content = b"".join((*notes, *(part.content for part in group)))
            replies = [(part.attempt, part.payload) for part in group if part.attempt]
            try:
                await self.in_thread(partial(self._write, content, replies))
            except JournalError as error:
                for part in group:
                    if not part.done.done():
                        part.done.set_exception(error)
            else:
                for part in group:
                    if not part.done.done():
                        part.done.set_result(None)


@dataclass(frozen=True, slots=True)
class _Part:
    """What waits to be written; ``attempt`` and ``payload`` are a reply's, else empty."""

    content: bytes = field(repr=False)
    done: asyncio.Future[None]
    attempt: str
    payload: bytes = field(repr=False)
