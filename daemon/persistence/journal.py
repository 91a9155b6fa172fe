"""The journal: token replies on this machine's disk before anybody looks at them.

From a reply's last byte to the database's commit the only copy of a rotated refresh token would
be in memory. So the raw reply is appended here, encrypted and checksummed, and ``fdatasync``
returns before the reply is parsed. Space is reserved before a request is sent: a full disk stops
sending, never storing. A file whose sync has failed is never trusted again, for the kernel may
have dropped its dirty pages and call the next sync a success.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import structlog

from daemon.domain.clock import Clock, Entropy
from daemon.domain.errors import DecryptionError, JournalError
from daemon.domain.journal import JournaledReply, Purpose
from daemon.domain.reply import RawReply
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.journal_keys import COLUMN, JournalKeys
from daemon.persistence.journal_mark import Mark, read_mark, settled_through, write_mark
from daemon.persistence.segments import Kind, Record, Segment, encode, scan, segment_files

log = structlog.get_logger()

# A reservation holds a reply of about 48 KiB with its envelope; replies have 1 to 8 KiB.
RESERVATION = 64 * 1024
# Room for 128 attempts in flight: twice the default concurrency.
SEGMENT_SIZE = 8 * 1024 * 1024
# A database may lose acknowledged commits in a failover, or be restored from last night's backup:
# settled replies are kept for as long as it takes to notice.
KEEP_SETTLED = 24 * 3600.0
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
    ) -> None:
        self._directory = state_dir / "journal"
        self._cipher = cipher
        self._clock = clock
        self._entropy = entropy
        self._segment_size = segment_size
        self._segment: Segment | None = None
        self._lock: int | None = None
        self._reserved = 0
        self._marked = 0
        # Files with what could not be read: a key may come back.
        self._unread: set[int] = set()
        # Whose replies are in which file: attempts of a segment that are not settled.
        self._unsettled: dict[str, int] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._waiting: list[_Part] = []
        # What is settled and not written down yet.
        self._notes: list[bytes] = []
        self._writer: asyncio.Task[None] | None = None
        self.keys = JournalKeys()
        self.owner = ""

    def __len__(self) -> int:
        """Return how many replies are not settled."""
        return len(self._unsettled)

    def open(self) -> list[JournaledReply]:
        """Take the journal and return the replies that were not settled, oldest first. Blocks.

        Raises:
            JournalError: another process has it, or the directory cannot be used.
        """
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._take_lock()
            self.owner = self._read_owner()
            pending = self._read_all()
            self._segment = self._new_segment()
        except OSError as error:
            raise JournalError(
                f"the journal in {self._directory} cannot be used: {error.strerror}. It needs a "
                "disk with room that survives a restart"
            ) from error
        return pending

    async def close(self) -> None:
        """Write what waits and let go. What is pending stays for the next ``open``."""
        if self._notes and self._segment is not None:
            with suppress(JournalError):
                await self._append(b"")
        if self._writer is not None:
            await self._writer
        self._thread.shutdown(wait=True)
        self._mark()
        if self._segment is not None:
            self._segment.close()
            self._segment = None
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
        self._reserved += RESERVATION
        try:
            if not self._has_room():
                await self._in_thread(self._make_room)
        except BaseException:
            self.give_back()
            raise

    def give_back(self) -> None:
        """Hold room for one reply less."""
        self._reserved -= RESERVATION

    async def keep(self, entry: JournaledReply) -> bool:
        """Return once the reply is on the disk. Replies that come together share one sync.

        ``False`` where the disk refused it: then memory has the only copy, and what follows must
        go on to store it in the database.
        """
        payload = self._seal(entry)
        try:
            await self._append(
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
        if self._unsettled.pop(attempt, None) is not None:
            kind = Kind.SETTLED if stored else Kind.DISCARDED
            self._notes.append(encode(Record(kind=kind, payload=attempt.encode())))

    def is_settled(self, attempt: str) -> bool:
        """Tell whether an attempt's reply is settled, as far as the disk or this process knows."""
        return attempt not in self._unsettled

    async def replies(self) -> AsyncIterator[JournaledReply]:
        """Return what the journal still has, newest first, settled or not; one file at a time.

        Without what was discarded, and of several replies to one attempt the last one only.
        """
        await self._write_notes()
        done: set[str] = set()
        for path in reversed(segment_files(self._directory)):
            found: list[JournaledReply] = []
            await self._in_thread(partial(self._read_backwards, path, done, found))
            for entry in found:
                yield entry

    def _read_backwards(self, path: Path, done: set[str], found: list[JournaledReply]) -> None:
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # old, and cleaned up meanwhile
            return
        for record in reversed(scan(content).records):
            if record.kind is Kind.REPLY:
                entry = self._unseal(record.payload, path)
                if entry is not None and entry.attempt not in done:
                    done.add(entry.attempt)
                    found.append(entry)
            elif record.kind is Kind.DISCARDED:
                done.add(record.payload.decode("ascii", "replace"))

    async def clean(self) -> None:
        """Remove old segments that hold nothing unsettled, and write down what is settled."""
        await self._write_notes()
        await self._in_thread(self._clean)

    async def closed_file(self, number: int) -> Path | None:
        """Return a file that nothing will be appended to; ``None`` where it is gone.

        Raises:
            JournalError: it is the current one, and there is no room for another.
        """
        if self._segment is not None and self._segment.number == number:
            await self._in_thread(self._begin_file)
        files = await asyncio.to_thread(segment_files, self._directory)
        return next((path for path in files if int(path.name.split(".")[0]) == number), None)

    def _begin_file(self) -> None:
        # The new one first: replies are on their way, for which the old one has room.
        old, self._segment = self._segment, self._new_segment(at_least=self._reserved)
        if old is not None:
            old.close()

    async def _write_notes(self) -> None:
        if self._notes:
            with suppress(JournalError):
                await self._append(b"")

    async def _append(self, content: bytes, attempt: str = "", payload: bytes = b"") -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Part(content, done, attempt, payload))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all(), name="journal")
        await done

    async def _write_all(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            notes, self._notes = self._notes, []
            content = b"".join((*notes, *(part.content for part in group)))
            try:
                await self._in_thread(partial(self._write, content, group))
            except JournalError as error:
                for part in group:
                    if not part.done.done():
                        part.done.set_exception(error)
            else:
                for part in group:
                    if not part.done.done():
                        part.done.set_result(None)

    async def _in_thread(self, work: Callable[[], None]) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except OSError as error:
            log.warning("journal_failed", error=error.strerror)
            raise JournalError(
                f"the journal in {self._directory} cannot be written: {error.strerror}. Give its "
                "disk room, or move state_dir to a sound one"
            ) from error

    def _write(self, content: bytes, group: Sequence[_Part]) -> None:
        """Append to the segment; after a failure to a new one, once.

        Which replies it holds is noted here and not when somebody hears of it: by then this
        thread may be some files further, and what is noted for a later file is not looked for.
        """
        if self._segment is None or self._segment.room < len(content):
            self._roll(at_least=len(content))
        try:
            self._current.append(content)
        except OSError as error:
            log.warning("journal_file_abandoned", error=error.strerror)
            self._roll(at_least=len(content))
            self._current.append(content)
        number = self._current.number
        for part in group:
            if part.attempt:
                self._unsettled[part.attempt] = number
                self.keys.note(number, part.payload)

    @property
    def _current(self) -> Segment:
        if self._segment is None:
            raise OSError("there is no segment")
        return self._segment

    def _has_room(self) -> bool:
        # Read once: the journal's thread may be replacing it.
        segment = self._segment
        return segment is not None and segment.room >= self._reserved

    def _make_room(self) -> None:
        # Many may have found the same segment full: the first to come here makes a new one.
        if not self._has_room():
            self._roll(at_least=self._reserved)

    def _roll(self, at_least: int = 0) -> None:
        old, self._segment = self._segment, None
        if old is not None:
            old.close()
        self._segment = self._new_segment(at_least)
        self._mark()

    def _new_segment(self, at_least: int = 0) -> Segment:
        files = segment_files(self._directory)
        # Also where the files are gone: below the mark nothing is read.
        number = max(int(files[-1].name.split(".")[0]) + 1 if files else 1, self._marked + 1)
        return Segment(self._directory, number, max(self._segment_size, at_least))

    def _mark(self) -> None:
        """Note for the next start which files it need not read. In the journal's thread only."""
        if self._segment is None:
            return
        holding = {*list(self._unsettled.values()), *self._unread}
        through = settled_through(self._segment.number, holding)
        if through > self._marked:
            self._marked = through
            write_mark(self._directory, Mark(through=through, keys=self.keys.through(through)))

    def _clean(self) -> None:
        holding = set(self._unsettled.values())
        oldest = self._clock.now().timestamp() - KEEP_SETTLED
        for path in segment_files(self._directory):
            number = int(path.name.split(".")[0])
            current = self._segment is not None and self._segment.number == number
            if not current and number not in holding and path.stat().st_mtime < oldest:
                path.unlink()
                self.keys.forget(number)
                self._unread.discard(number)

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

    def _read_all(self) -> list[JournaledReply]:
        pending: dict[str, JournaledReply] = {}
        mark = read_mark(self._directory)
        self._marked = mark.through
        for path in segment_files(self._directory):
            number = int(path.name.split(".")[0])
            if number <= mark.through and number in mark.keys:
                self.keys.replace(number, mark.keys[number])
                continue
            contents = scan(path.read_bytes())
            if contents.damaged:
                self._unread.add(number)
                log.error("journal_damaged", file=str(path), places=contents.damaged)
            else:
                _shrink(path, contents.end)
            for record in contents.records:
                if record.kind is not Kind.REPLY:
                    attempt = record.payload.decode("ascii", "replace")
                    pending.pop(attempt, None)
                    self._unsettled.pop(attempt, None)
                    continue
                self.keys.note(number, record.payload)
                entry = self._unseal(record.payload, path)
                if entry is None:
                    self._unread.add(number)
                    continue
                pending[entry.attempt] = entry
                self._unsettled[entry.attempt] = number
        return list(pending.values())

    def _seal(self, entry: JournaledReply) -> bytes:
        body = orjson.dumps(
            {
                "attempt": entry.attempt,
                "purpose": entry.purpose.value,
                "connection": entry.connection_id,
                "provider": entry.provider,
                "generation": entry.generation,
                "scopes": list(entry.scopes),
                "sent_at": entry.sent_at.isoformat(),
                "status": entry.reply.status,
                "headers": {n: _bytes_as_text(v) for n, v in entry.reply.headers.items()},
                "body": entry.reply.body.decode("latin-1"),
                "epoch": entry.epoch,
                "fields": dict(entry.fields),
                "was_in_doubt": entry.was_in_doubt,
                "caller": entry.caller,
                "callback": None if entry.callback is None else dict(entry.callback),
            }
        )
        return self._cipher.seal(body, connection="", column=COLUMN, generation=0)

    def _unseal(self, payload: bytes, path: Path) -> JournaledReply | None:
        try:
            opened = self._cipher.open(payload, connection="", column=COLUMN, generation=0)
        except DecryptionError as error:
            log.warning("journal_record_not_opened", file=str(path), error=str(error))
            return None
        values: dict[str, Any] = orjson.loads(opened)
        return JournaledReply(
            attempt=values["attempt"],
            purpose=Purpose(values["purpose"]),
            connection_id=values["connection"],
            provider=values["provider"],
            generation=values["generation"],
            scopes=tuple(values["scopes"]),
            sent_at=datetime.fromisoformat(values["sent_at"]),
            reply=RawReply(
                status=values["status"],
                headers={n: _text_of_bytes(v) for n, v in values["headers"].items()},
                body=values["body"].encode("latin-1"),
            ),
            # Segments of versions before lack some; nothing could be disconnected then.
            epoch=values.get("epoch", 0),
            fields=values.get("fields", {}),
            was_in_doubt=values.get("was_in_doubt", False),
            caller=values.get("caller", ""),
            callback=values.get("callback"),
        )


@dataclass(frozen=True, slots=True)
class _Part:
    """What waits to be written; ``attempt`` and ``payload`` are a reply's, else empty."""

    content: bytes = field(repr=False)
    done: asyncio.Future[None]
    attempt: str
    payload: bytes = field(repr=False)


class _Reservation(AbstractAsyncContextManager[None]):
    """Room for one reply. No generator: every refresh would pay for making one."""

    __slots__ = ("_journal",)

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def __aenter__(self) -> None:
        await self._journal.reserve()

    async def __aexit__(self, *_: object) -> None:
        self._journal.give_back()


def _shrink(path: Path, end: int) -> None:
    """Give back what was preallocated and never used: a crash loop must not fill the disk."""
    if end == 0:
        path.unlink()
    elif path.stat().st_size > end:
        with path.open("r+b") as file:
            file.truncate(end)


def _bytes_as_text(value: str) -> str:
    """Return a header value so that JSON takes it: its bytes, one letter each."""
    return value.encode("utf-8", "surrogateescape").decode("latin-1")


def _text_of_bytes(value: str) -> str:
    return value.encode("latin-1").decode("utf-8", "surrogateescape")
