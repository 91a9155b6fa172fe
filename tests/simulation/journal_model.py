"""The real journal on a model disk: its reader, writer and cipher run, the disk is the model's."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import cast

import orjson

from daemon.domain.clock import Entropy
from daemon.domain.journal import JournaledReply
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.journal import Journal
from daemon.persistence.segments import Segment
from tests.simulation.books import Books
from tests.simulation.clocks import MachineClock
from tests.simulation.disk_model import Disk, DiskPath
from tests.simulation.loop import Life
from tests.simulation.machines import Machine

# Four replies in flight fit, so that segments are changed often.
_SEGMENT = 256 * 1024


class DiskSegment(Segment):
    """A segment on the model."""

    def __init__(
        self, directory: Path, number: int, size: int, *, disk: Disk, clock: MachineClock
    ) -> None:
        del directory
        self.number = number
        self._size = size
        self._end = 0
        self._disk = disk
        self._clock = clock
        self._stored = disk.create(f"{number:012d}.journal", clock.now().timestamp())

    def append(self, content: bytes) -> None:
        """Write at the end and sync."""
        self._disk.write(self._stored, self._end, content, self._clock.now().timestamp())
        self._end += len(content)

    def close(self) -> None:
        """Cut off what is behind the end."""
        del self._stored.content[self._end :]
        self._stored.durable = self._stored.durable[: self._end]


class SimulatedJournal(Journal):
    """The journal on a model disk. It tells the books what it keeps."""

    def __init__(
        self,
        machine: Machine,
        cipher: TokenCipher,
        *,
        entropy: Entropy,
        books: Books,
        life: Life,
    ) -> None:
        super().__init__(
            cast("Path", DiskPath(machine.disk)),
            cipher,
            clock=machine.clock,
            entropy=entropy,
            segment_size=_SEGMENT,
            begin_segment=partial(DiskSegment, disk=machine.disk, clock=machine.clock),
        )
        self._machine = machine
        self._disk = machine.disk
        self._books = books
        self._life = life

    def open(self) -> list[JournaledReply]:
        """Take the journal; the books compare what is there with what must be."""
        pending = super().open()
        self._books.reopened(self._machine, pending)
        return pending

    async def keep(self, entry: JournaledReply) -> bool:
        """Keep a reply."""
        self._books.keeping(entry, access_token_in(entry.reply.body), self._life)
        is_kept = await super().keep(entry)
        self._books.kept(entry.attempt, self._machine, is_kept=is_kept)
        return is_kept

    async def settled(self, attempt: str, *, stored: bool = True) -> None:
        """Note that the database has it, which must be so."""
        self._books.forgotten(attempt)
        await super().settled(attempt, stored=stored)

    def _take_lock(self) -> None:
        """Do nothing: only one process is ever started on a disk."""

    def _read_owner(self) -> str:
        if not self._disk.owner:
            self._disk.owner = self._entropy(9).hex()
        return self._disk.owner


def access_token_in(body: bytes) -> str | None:
    """Return the access token of a reply, where it can be read at all."""
    try:
        token = orjson.loads(body).get("access_token")
    except (orjson.JSONDecodeError, AttributeError):
        return None
    return token if isinstance(token, str) else None
