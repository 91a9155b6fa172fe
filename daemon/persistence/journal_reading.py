"""Reads the journal's files: forwards at a start, for what is not settled; backwards for history.

The hard idea: this reads what a crash has left, and no record may stop it. What is damaged, or
does not open, is told and remembered: its file is not taken for settled.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import structlog

from daemon.domain.journal import JournaledReply
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.journal_keys import JournalKeys
from daemon.persistence.journal_mark import read_mark
from daemon.persistence.journal_sealing import unseal_reply
from daemon.persistence.segments import Kind, scan, segment_files, segment_number

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the files of the processes before hold.

    ``marked`` is the last file that the mark names, ``pending`` are the replies that are not
    settled, oldest first, by attempt, and ``unsettled`` says which file has each of them.
    ``unread`` are files with what could not be read.
    """

    marked: int
    keys: JournalKeys = field(default_factory=JournalKeys)
    pending: dict[str, JournaledReply] = field(default_factory=dict)
    unsettled: dict[str, int] = field(default_factory=dict)
    unread: set[int] = field(default_factory=set)


def read_at_start(directory: Path, cipher: TokenCipher) -> Found:
    """Read all files but those that the mark says are settled. Blocks; raises OSError."""
    mark = read_mark(directory)
    found = Found(marked=mark.through)
    for path in segment_files(directory):
        number = segment_number(path)
        if number <= mark.through and number in mark.keys:
            found.keys.replace(number, mark.keys[number])
        else:
            _read_file(path, number, cipher, found)
    return found


def _read_file(path: Path, number: int, cipher: TokenCipher, found: Found) -> None:
    contents = scan(path.read_bytes())
    if contents.damaged:
        found.unread.add(number)
        log.error("journal_damaged", file=str(path), places=contents.damaged)
    else:
        _shrink(path, contents.end)
    for record in contents.records:
        if record.kind is not Kind.REPLY:
            attempt = record.payload.decode("ascii", "replace")
            found.pending.pop(attempt, None)
            found.unsettled.pop(attempt, None)
            continue
        found.keys.note(number, record.payload)
        entry = unseal_reply(record.payload, cipher, path)
        if entry is None:
            found.unread.add(number)
            continue
        found.pending[entry.attempt] = entry
        found.unsettled[entry.attempt] = number


def read_backwards(path: Path, cipher: TokenCipher, done: set[str]) -> list[JournaledReply]:
    """Return a file's replies, newest first, without those to attempts that are ``done``.

    Adds to ``done`` what it returns and what was discarded: the files before are read with it
    next. Blocks; raises OSError.
    """
    found: list[JournaledReply] = []
    try:
        content = path.read_bytes()
    except FileNotFoundError:  # old, and cleaned up meanwhile
        return found
    for record in reversed(scan(content).records):
        if record.kind is Kind.REPLY:
            entry = unseal_reply(record.payload, cipher, path)
            if entry is not None and entry.attempt not in done:
                done.add(entry.attempt)
                found.append(entry)
        elif record.kind is Kind.DISCARDED:
            done.add(record.payload.decode("ascii", "replace"))
    return found


def _shrink(path: Path, end: int) -> None:
    """Give back what was preallocated and never used: a crash loop must not fill the disk."""
    if end == 0:
        path.unlink()
    elif path.stat().st_size > end:
        with path.open("r+b") as file:
            file.truncate(end)
