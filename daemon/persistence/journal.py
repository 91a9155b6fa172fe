"""The journal: token replies on this machine's disk before anybody looks at them.

From a reply's last byte to the database's commit the only copy of a rotated refresh token would
be in memory. So the raw reply is appended here, encrypted and checksummed, and ``fdatasync``
returns before the reply is parsed. Space is reserved before a request is sent: a full disk stops
sending, never storing.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

from daemon.domain.clock import Clock, Entropy
from daemon.domain.errors import JournalError
from daemon.domain.journal import JournaledReply
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.journal_files import JournalFiles
from daemon.persistence.journal_keys import JournalKeys
from daemon.persistence.journal_reading import read_at_start, read_backwards
from daemon.persistence.journal_sealing import seal_reply
from daemon.persistence.journal_writing import JournalWriter
from daemon.persistence.segments import (
    Kind,
    Record,
    Segment,
    encode,
    segment_files,
    segment_number,
)

# A reservation holds a reply of about 48 KiB with its envelope; replies have 1 to 8 KiB.
RESERVATION = 64 * 1024
# Room for 128 attempts in flight: twice the default concurrency.
SEGMENT_SIZE = 8 * 1024 * 1024
_OWNER_BYTES = 9


class Journal:
    """The journal of one state directory. One process at a time; one event loop.

    ``open`` before anything else; ``pending`` is what was there and is not settled.
    """

    def __init__(
        self,
        state_dir: Path,
        cipher: TokenCipher,
        *,
        clock: Clock,
        entropy: Entropy,
        segment_size: int = SEGMENT_SIZE,
        begin_segment: Callable[[Path, int, int], Segment] = Segment,
    ) -> None:
        """``begin_segment`` makes a file of a directory, with a number and a size in bytes."""
        self._directory = state_dir / "journal"
        self._cipher = cipher
        self._entropy = entropy
        self._lock: int | None = None
        self._files = JournalFiles(
            self._directory, segment_size=segment_size, begin_segment=begin_segment, clock=clock
        )
        self._writer = JournalWriter(self._directory, self._files.write)
        self.owner = ""

    def __len__(self) -> int:
        """Return how many replies are not settled."""
        return len(self._files.unsettled)

    @property
    def keys(self) -> JournalKeys:
        """Return which keys its files need."""
        return self._files.keys

    def open(self) -> list[JournaledReply]:
        """Take the journal and return the replies that were not settled, oldest first. Blocks.

        Raises:
            JournalError: another process has it, or the directory cannot be used.
        """
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._take_lock()
            self.owner = self._read_owner()
            found = read_at_start(self._directory, self._cipher)
            self._files.begin(found)
        except OSError as error:
            raise JournalError(
                f"the journal in {self._directory} cannot be used: {error.strerror}. It needs a "
                "disk with room that survives a restart"
            ) from error
        return list(found.pending.values())

    async def close(self) -> None:
        """Write what waits and let go. What is pending stays for the next ``open``."""
        if self._files.is_open:
            await self._writer.write_notes()
        await self._writer.close()
        self._files.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def reserved(self) -> AbstractAsyncContextManager[None]:
        """Hold room for one reply, from before its request is sent until it is kept.

        Entering raises JournalError where there is no room: nothing may be sent.
        """
        return _Reservation(self)

    async def reserve(self) -> None:
        """Hold room for one more reply. Raises JournalError where there is none."""
        self._files.reserved += RESERVATION
        try:
            if not self._files.has_room():
                await self._writer.in_thread(self._files.make_room)
        except BaseException:
            self.give_back()
            raise

    def give_back(self) -> None:
        """Hold room for one reply less."""
        self._files.reserved -= RESERVATION

    async def keep(self, entry: JournaledReply) -> bool:
        """Return once the reply is on the disk. Replies that come together share one sync.

        ``False`` where the disk refused it: then memory has the only copy, and what follows must
        go on to store it in the database.
        """
        payload = seal_reply(entry, self._cipher)
        try:
            await self._writer.append(
                encode(Record(kind=Kind.REPLY, payload=payload)), entry.attempt, payload
            )
        except JournalError:
            return False
        return True

    async def settled(self, attempt: str, *, stored: bool = True) -> None:
        """Note that the database has what ``keep`` was given, or (not ``stored``) must not have it.

        The note goes to the disk with the next reply: one that is lost only costs a look at the
        next start, and no attempt should wait for it.
        """
        if self._files.unsettled.pop(attempt, None) is not None:
            kind = Kind.SETTLED if stored else Kind.DISCARDED
            self._writer.note(encode(Record(kind=kind, payload=attempt.encode())))

    def is_settled(self, attempt: str) -> bool:
        """Tell whether an attempt's reply is settled, as far as the disk or this process knows."""
        return attempt not in self._files.unsettled

    async def replies(self) -> AsyncIterator[JournaledReply]:
        """Return what the journal still has, newest first, settled or not; one file at a time.

        Without what was discarded, and of several replies to one attempt the last one only.
        """
        await self._writer.write_notes()
        done: set[str] = set()
        for path in reversed(segment_files(self._directory)):
            reading = partial(read_backwards, path, self._cipher, done)
            for entry in await self._writer.in_thread(reading):
                yield entry

    async def clean(self) -> None:
        """Remove old segments that hold nothing unsettled, and write down what is settled."""
        await self._writer.write_notes()
        await self._writer.in_thread(self._files.clean)

    async def closed_file(self, number: int) -> Path | None:
        """Return a file that nothing will be appended to; ``None`` where it is gone.

        Raises:
            JournalError: it is the current one, and there is no room for another.
        """
        if self._files.is_current(number):
            await self._writer.in_thread(self._files.begin_another)
        files = await asyncio.to_thread(segment_files, self._directory)
        return next((path for path in files if segment_number(path) == number), None)

    def _take_lock(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._lock = os.open(self._directory / "lock", flags, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JournalError(
                f"another tokenward uses the journal in {self._directory}. Stop it, or give this "
                "one a state_dir of its own"
            ) from error

    def _read_owner(self) -> str:
        """Return the name under which this journal's claims are taken; the same after a restart."""
        path = self._directory / "owner"
        try:
            return path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            owner = self._entropy(_OWNER_BYTES).hex()
            draft = path.with_suffix(".new")
            draft.unlink(missing_ok=True)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(owner + "\n")
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
            return owner


class _Reservation(AbstractAsyncContextManager[None]):
    """Room for one reply. No generator: every refresh would pay for making one."""

    __slots__ = ("_journal",)

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def __aenter__(self) -> None:
        await self._journal.reserve()

    async def __aexit__(self, *_: object) -> None:
        self._journal.give_back()
