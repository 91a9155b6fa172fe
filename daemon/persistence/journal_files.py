"""Which file the journal appends to, what each file holds, and which are not needed any more.

The hard idea: a file whose sync has failed is never trusted again, for the kernel may have dropped
its dirty pages and call the next sync a success. What it was to have goes to a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from daemon.domain.clock import Clock
from daemon.persistence.journal_keys import JournalKeys
from daemon.persistence.journal_mark import Mark, settled_through, write_mark
from daemon.persistence.journal_reading import Found
from daemon.persistence.segments import Segment, segment_files, segment_number

log = structlog.get_logger()

# A database may lose acknowledged commits in a failover, or be restored from last night's backup:
# settled replies are kept for as long as it takes to notice.
KEEP_SETTLED = 24 * 3600.0


class JournalFiles:
    """The files of one journal.

    Methods block and raise OSError. Between ``begin`` and ``close`` they run in the journal's
    thread, but for ``is_open``, ``is_current`` and ``has_room``. ``reserved`` are the bytes that
    are held for replies on their way; ``unsettled`` says which file has the reply of an attempt
    that is not settled.
    """

    def __init__(
        self,
        directory: Path,
        *,
        segment_size: int,
        begin_segment: Callable[[Path, int, int], Segment],
        clock: Clock,
    ) -> None:
        self._directory = directory
        self._segment_size = segment_size
        self._begin_segment = begin_segment
        self._clock = clock
        self._segment: Segment | None = None
        self._marked = 0
        # Files with what could not be read: a key may come back.
        self._unread: set[int] = set()
        self.keys = JournalKeys()
        self.unsettled: dict[str, int] = {}
        self.reserved = 0

    def begin(self, found: Found) -> None:
        """Go on behind what was found, with a new file."""
        self._marked = found.marked
        self._unread = found.unread
        self.keys = found.keys
        self.unsettled = found.unsettled
        self._segment = self._new_segment()

    def close(self) -> None:
        """Let go of the current file. For when the journal's thread has ended."""
        self._mark()
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    @property
    def is_open(self) -> bool:
        """Tell whether there is a file to append to."""
        return self._segment is not None

    def is_current(self, number: int) -> bool:
        """Tell whether it is this file that is appended to."""
        segment = self._segment
        return segment is not None and segment.number == number

    def has_room(self) -> bool:
        """Tell whether the current file has room for all that is held."""
        # Read once: the journal's thread may be replacing it.
        segment = self._segment
        return segment is not None and segment.room >= self.reserved

    def make_room(self) -> None:
        """Begin a file with room for all that is held, unless the current one has it."""
        # Many may have found the same segment full: the first to come here makes a new one.
        if not self.has_room():
            self._roll(at_least=self.reserved)

    def begin_another(self) -> None:
        """Append to another file from now on, or raise and stay with the current one."""
        # The new one first: replies are on their way, for which the old one has room.
        old, self._segment = self._segment, self._new_segment(at_least=self.reserved)
        if old is not None:
            old.close()

    def write(self, content: bytes, replies: Iterable[tuple[str, bytes]]) -> None:
        """Append to the segment; after a failure to a new one, once.

        ``replies`` are attempt and payload of those in ``content``. Which file has them is noted
        here and not when somebody hears of it: by then this thread may be some files further, and
        what is noted for a later file is not looked for.
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
        for attempt, payload in replies:
            self.unsettled[attempt] = number
            self.keys.note(number, payload)

    def clean(self) -> None:
        """Remove old files that hold nothing unsettled."""
        holding = set(self.unsettled.values())
        oldest = self._clock.now().timestamp() - KEEP_SETTLED
        for path in segment_files(self._directory):
            number = segment_number(path)
            current = self.is_current(number)
            if not current and number not in holding and path.stat().st_mtime < oldest:
                path.unlink()
                self.keys.forget(number)
                self._unread.discard(number)

    @property
    def _current(self) -> Segment:
        if self._segment is None:
            raise OSError("there is no segment")
        return self._segment

    def _roll(self, at_least: int = 0) -> None:
        old, self._segment = self._segment, None
        if old is not None:
            old.close()
        self._segment = self._new_segment(at_least)
        self._mark()

    def _new_segment(self, at_least: int = 0) -> Segment:
        files = segment_files(self._directory)
        # Also where the files are gone: below the mark nothing is read.
        number = max(segment_number(files[-1]) + 1 if files else 1, self._marked + 1)
        return self._begin_segment(self._directory, number, max(self._segment_size, at_least))

    def _mark(self) -> None:
        """Note for the next start which files it need not read."""
        if self._segment is None:
            return
        holding = {*list(self.unsettled.values()), *self._unread}
        through = settled_through(self._segment.number, holding)
        if through > self._marked:
            self._marked = through
            write_mark(self._directory, Mark(through=through, keys=self.keys.through(through)))
