"""A machine's disk: what was not synced is gone when the power goes.

Zeros behind the last record are not kept, but are there when a file is read.
"""

from __future__ import annotations

import errno
import random  # noqa: TID251 - a simulation's chance is its seed
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

_ZEROS = bytes(64)
_PREALLOCATED = ".journal"


class PowerGoneError(BaseException):
    """The machine stopped in the middle of a write. Nothing may catch it."""


@dataclass
class StoredFile:
    """A file: as programs see it, and as a power failure would leave it."""

    content: bytearray
    durable: bytes
    modified: float


class Disk:
    """One volume. ``failing_syncs``: how many of the next syncs end with EIO."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.files: dict[str, StoredFile] = {}
        self.owner = ""
        self.is_full = False
        self.failing_syncs = 0
        self.is_tearing = False
        self.skips_sync = False

    def create(self, name: str, now: float) -> StoredFile:
        """Make a file that is there for good, if there is room."""
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        file = self.files[name] = StoredFile(content=bytearray(), durable=b"", modified=now)
        return file

    def write(self, file: StoredFile, place: int, content: bytes, now: float) -> None:
        """Write and sync."""
        if self.is_tearing:
            content = content[: self._chance.randrange(len(content) + 1)]
        file.content[place:] = content
        file.modified = now
        if self.is_tearing:
            raise PowerGoneError
        if self.failing_syncs > 0:
            self.failing_syncs -= 1
            raise OSError(errno.EIO, "Input/output error")
        if not self.skips_sync:
            file.durable = bytes(file.content)

    def lose_power(self) -> None:
        """Forget what was not synced, all of it or but for its beginning."""
        for file in self.files.values():
            unsynced = bytes(file.content[len(file.durable) :])
            kept = self._chance.choice((0, 0, len(unsynced) // 2, len(unsynced)))
            if not file.content.startswith(file.durable):
                kept = 0
            file.content = bytearray(file.durable + unsynced[:kept])
            file.durable = bytes(file.content)

    def holds(self, pattern: re.Pattern[bytes]) -> bool:
        """Tell whether such bytes are on the disk."""
        return any(pattern.search(file.content) for file in self.files.values())


@dataclass(frozen=True, slots=True)
class Stat:
    """What ``stat`` says."""

    st_size: int
    st_mtime: float


class DiskPath:
    """A path on a disk: as much of ``pathlib.Path`` as the journal uses."""

    def __init__(self, disk: Disk, name: str = "") -> None:
        self._disk = disk
        self.name = name

    def __truediv__(self, name: str) -> DiskPath:
        return DiskPath(self._disk, name)

    def __lt__(self, other: DiskPath) -> bool:
        return self.name < other.name

    def __str__(self) -> str:
        return self.name

    def mkdir(self, **_: object) -> None:
        """Do nothing: there are no directories."""

    def glob(self, pattern: str) -> Iterator[DiskPath]:
        """Yield the files that end so."""
        for name in list(self._disk.files):
            if name.endswith(pattern.lstrip("*")):
                yield DiskPath(self._disk, name)

    def read_bytes(self) -> bytes:
        """Return the content with zeros behind it."""
        if self.name not in self._disk.files:
            raise FileNotFoundError(self.name)
        behind = _ZEROS if self.name.endswith(_PREALLOCATED) else b""
        return bytes(self._disk.files[self.name].content) + behind

    def write_bytes(self, content: bytes) -> None:
        """Make the file what it is to be; nothing is synced."""
        file = self._disk.create(self.name, 0.0)
        file.content[:] = content

    def replace(self, target: DiskPath) -> None:
        """Give the file another's name."""
        self._disk.files[target.name] = self._disk.files.pop(self.name)

    def stat(self) -> Stat:
        """Return size and time."""
        file = self._disk.files[self.name]
        return Stat(len(file.content) + len(_ZEROS), file.modified)

    def unlink(self, **_: object) -> None:
        """Remove the file."""
        del self._disk.files[self.name]

    def open(self, _: str) -> ShrunkFile:
        """Open, to be shrunk."""
        return ShrunkFile(self._disk.files[self.name])


class ShrunkFile(BytesIO):
    """An open file that can only be shrunk."""

    def __init__(self, file: StoredFile) -> None:
        super().__init__()
        self._file = file

    def truncate(self, size: int | None = None) -> int:
        """Cut the file off."""
        assert size is not None
        del self._file.content[size:]
        self._file.durable = self._file.durable[:size]
        return size
