"""Which keys a journal's records need, and writing its files again with the key that encrypts now.

Its hard idea: a file that is not appended to any more can be replaced whole. The new one is on the
disk before it takes the name of the old one, keeps its records in their order and its age, and
whoever is reading the old one goes on reading that.
"""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from contextlib import suppress
from pathlib import Path

from daemon.domain.errors import DecryptionError, JournalError
from daemon.persistence.cipher import TokenCipher, key_id_of
from daemon.persistence.segments import Kind, Record, encode, scan, segment_files

COLUMN = "journal"


class JournalKeys:
    """Which keys the records of each file need. Any thread."""

    def __init__(self) -> None:
        self._of_file: dict[int, frozenset[str]] = {}

    @property
    def ids(self) -> frozenset[str]:
        """Return the ids of all keys that a record needs."""
        return frozenset().union(*list(self._of_file.values()))

    def note(self, number: int, payload: bytes) -> None:
        """Note a reply's record in a file."""
        key_id, known = key_id_of(payload), self._of_file.get(number, frozenset())
        if key_id is not None and key_id not in known:
            self._of_file[number] = known | {key_id}

    def replace(self, number: int, ids: frozenset[str]) -> None:
        """Note what a file needs now."""
        self._of_file[number] = ids

    def through(self, number: int) -> dict[int, frozenset[str]]:
        """Return what each file up to this one needs."""
        return {n: ids for n, ids in list(self._of_file.items()) if n <= number}

    def forget(self, number: int) -> None:
        """Note that a file is gone."""
        self._of_file.pop(number, None)

    def files_beside(self, key_id: str) -> list[int]:
        """Return the files that need another key than this one."""
        return sorted(n for n, ids in list(self._of_file.items()) if ids - {key_id})


def count_records(directory: Path) -> Counter[str]:
    """Return how many replies in a journal's files need each key. Blocks; needs no key.

    Raises:
        JournalError: the files cannot be read.
    """
    counts: Counter[str] = Counter()
    try:
        for path in segment_files(directory):
            with suppress(FileNotFoundError):  # cleaned up meanwhile
                for record in scan(path.read_bytes()).records:
                    if record.kind is Kind.REPLY:
                        counts[key_id_of(record.payload) or "?"] += 1
    except OSError as error:
        raise JournalError(
            f"the journal in {directory} cannot be read: {error.strerror}"
        ) from error
    return counts


def reseal_file(path: Path, cipher: TokenCipher) -> frozenset[str]:
    """Write a closed file again with the cipher's primary key; return the keys it then needs.

    Blocks. Records that do not open stay as they are, and so does a file with damaged places:
    somebody may want to look at it. Raises OSError; the file is then as it was.
    """
    stat = path.stat()
    contents = scan(path.read_bytes())
    records = [
        record if record.kind is not Kind.REPLY else _resealed(record, cipher)
        for record in contents.records
    ]
    if contents.damaged or records == list(contents.records):
        return _keys_of(contents.records)
    draft = path.with_suffix(".resealed")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(b"".join(map(encode, records)))
            file.flush()
            # As old as before: a day after its last reply the journal removes it.
            os.utime(file.fileno(), ns=(stat.st_atime_ns, stat.st_mtime_ns))
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    _sync(path.parent)
    return _keys_of(records)


def reseal_unused(directory: Path, cipher: TokenCipher) -> bool:
    """Write a journal's files again where no daemon has it; ``False``: one has. Blocks.

    Raises:
        JournalError: the files cannot be written.
    """
    try:
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for path in segment_files(directory):
            reseal_file(path, cipher)
    except BlockingIOError:
        return False
    except OSError as error:
        raise JournalError(
            f"the journal in {directory} cannot be written: {error.strerror}"
        ) from error
    finally:
        os.close(lock)
    return True


def _resealed(record: Record, cipher: TokenCipher) -> Record:
    try:
        payload = cipher.reseal(record.payload, connection="", column=COLUMN, generation=0)
    except DecryptionError:
        return record
    return Record(kind=record.kind, payload=payload)


def _keys_of(records: list[Record] | tuple[Record, ...]) -> frozenset[str]:
    replies = (key_id_of(record.payload) for record in records if record.kind is Kind.REPLY)
    return frozenset(key_id for key_id in replies if key_id is not None)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
