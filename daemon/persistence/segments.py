"""The journal's files: how records lie in a segment, and how a segment is read after a crash.

A record is a header (magic, kind, length, CRC-32) and a payload; a segment is one preallocated
file of them, zeros behind the last. Zeros end the reading. A torn last record has a wrong CRC and
nothing behind it; a wrong CRC with records behind it is damage, which is told, not hidden.
"""

from __future__ import annotations

import os
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

_HEADER = struct.Struct(">4sBII")
_MAGIC = b"TWJ1"
_SUFFIX = ".journal"


class Kind(IntEnum):
    """What a record is."""

    REPLY = 1
    SETTLED = 2
    DISCARDED = 3
    """Settled, and never to be stored: something else came first."""


_KINDS = frozenset(Kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record. ``payload`` of a reply is a ciphertext."""

    kind: Kind
    payload: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a segment holds.

    ``damaged`` counts places that could not be read, a torn tail apart; ``end`` is where the last
    readable record ends.
    """

    records: tuple[Record, ...]
    damaged: int
    end: int


def encode(record: Record) -> bytes:
    """Return a record's bytes. Pure."""
    checksum = zlib.crc32(record.payload, zlib.crc32(bytes([record.kind])))
    return _HEADER.pack(_MAGIC, record.kind, len(record.payload), checksum) + record.payload


def scan(content: bytes) -> Contents:
    """Return the records in a segment's bytes, whatever they are. Pure; never raises."""
    records: list[Record] = []
    damaged = unread = end = 0
    place = content.find(_MAGIC)
    while place >= 0:
        record = _at(content, place)
        if record is None:
            unread += 1
            place = content.find(_MAGIC, place + 1)
            continue
        # What cannot be read with nothing readable behind it is a torn tail.
        damaged, unread = damaged + unread, 0
        records.append(record)
        end = place + _HEADER.size + len(record.payload)
        place = content.find(_MAGIC, end)
    return Contents(records=tuple(records), damaged=damaged, end=end)


def _at(content: bytes, place: int) -> Record | None:
    start = place + _HEADER.size
    if len(content) < start:
        return None
    _, kind, length, checksum = _HEADER.unpack_from(content, place)
    if kind not in _KINDS or len(content) < start + length:
        return None
    payload = content[start : start + length]
    if zlib.crc32(payload, zlib.crc32(bytes([kind]))) != checksum:
        return None
    return Record(kind=Kind(kind), payload=payload)


class Segment:
    """One preallocated file that is appended to. All methods block; all raise OSError."""

    def __init__(self, directory: Path, number: int, size: int) -> None:
        self.path = directory / f"{number:012d}{_SUFFIX}"
        self.number = number
        self._size = size
        self._end = 0
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = os.open(self.path, flags, 0o600)
        try:
            os.posix_fallocate(self._file, 0, size)
            os.fsync(self._file)
            _sync_directory(directory)
        except OSError:
            os.close(self._file)
            self.path.unlink()
            raise

    @property
    def room(self) -> int:
        """Return the bytes that are left."""
        return self._size - self._end

    def append(self, content: bytes) -> None:
        """Write at the end and return when it is on the disk.

        After an OSError the file must not be used again: what a later sync says is worthless.
        """
        view = memoryview(content)
        place = self._end
        while view:
            written = os.pwrite(self._file, view, place)
            view, place = view[written:], place + written
        os.fdatasync(self._file)
        self._end = place

    def close(self) -> None:
        """Close the file, and give back what it has preallocated and not used."""
        with suppress(OSError):
            os.ftruncate(self._file, self._end)
        os.close(self._file)


def segment_files(directory: Path) -> list[Path]:
    """Return the segments in a directory, oldest first."""
    return sorted(directory.glob(f"*{_SUFFIX}"))


def segment_number(path: Path) -> int:
    """Return the number in a segment's name; the higher, the newer."""
    return int(path.name.split(".")[0])


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
