"""The journal in memory: what was kept and not settled, and a disk that can be full."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from daemon.domain.errors import JournalError
from daemon.domain.journal import JournaledReply


class MemoryJournal:
    """Port: ReplyJournal. While ``is_full`` nothing can be reserved or kept."""

    def __init__(self) -> None:
        self.is_full = False
        self.entries: dict[str, JournaledReply] = {}
        self.kept: list[JournaledReply] = []
        self.discarded: list[str] = []

    @asynccontextmanager
    async def reserved(self) -> AsyncIterator[None]:
        """Hold room."""
        if self.is_full:
            raise JournalError("the disk is full")
        yield

    async def keep(self, entry: JournaledReply) -> bool:
        """Keep."""
        if self.is_full:
            return False
        self.kept.append(entry)
        self.entries[entry.attempt] = entry
        return True

    async def settled(self, attempt: str, *, stored: bool = True) -> None:
        """Forget."""
        self.entries.pop(attempt, None)
        if not stored:
            self.discarded.append(attempt)
