"""The journal's files and their keys: what needs which, and writing them again, on a real disk."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from daemon.config.settings import EncryptionKey
from daemon.domain.clock import SystemClock, system_entropy
from daemon.domain.errors import JournalError
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.journal import RESERVATION, Journal
from daemon.persistence.journal_keys import count_records, reseal_file, reseal_unused
from daemon.persistence.segments import segment_files
from tests.support.journalled import entry

OLD, NEW = (EncryptionKey(id=name, secret=name.encode() * 32) for name in "ON")


def journal_in(directory: Path, cipher: TokenCipher) -> Journal:
    """Return a journal that is not open yet."""
    return Journal(
        directory,
        cipher,
        clock=SystemClock(),
        entropy=system_entropy,
        segment_size=4 * RESERVATION,
    )


def cipher_of(*keys: EncryptionKey) -> TokenCipher:
    """Return a cipher; the first key encrypts."""
    return TokenCipher(keys, entropy=system_entropy)


async def filled(directory: Path, cipher: TokenCipher) -> Path:
    """Keep three replies, the second settled and the third discarded; return the one file."""
    journal = journal_in(directory, cipher)
    journal.open()
    for number in (1, 2, 3):
        await journal.keep(entry(number))
    await journal.settled("attempt-2")
    await journal.settled("attempt-3", stored=False)
    await journal.close()
    (path,) = segment_files(directory / "journal")
    return path


async def test_a_file_is_written_again_as_it_was(tmp_path: Path) -> None:
    """Only the key is another one: replies, notes, their order and the file's age are the same."""
    path = await filled(tmp_path, cipher_of(OLD))
    os.utime(path, ns=(1, 1_600_000_000_123_456_789))
    assert count_records(path.parent) == {"O": 3}
    assert reseal_file(path, cipher_of(NEW, OLD)) == {"N"}
    assert path.stat().st_mtime_ns == 1_600_000_000_123_456_789
    assert path.stat().st_mode & 0o777 == 0o600
    assert count_records(path.parent) == {"N": 3}
    assert sorted(each.name for each in path.parent.iterdir()) == [path.name, "lock", "owner"]
    again = journal_in(tmp_path, cipher_of(NEW))
    assert again.open() == [entry(1)]
    assert [each.attempt async for each in again.replies()] == ["attempt-2", "attempt-1"]
    await again.close()


async def test_what_does_not_open_stays(tmp_path: Path) -> None:
    """Without its key a record is left alone, for the key may come back."""
    path = await filled(tmp_path, cipher_of(OLD))
    before = path.read_bytes()
    assert reseal_file(path, cipher_of(NEW)) == {"O"}
    assert path.read_bytes() == before


async def test_a_damaged_file_stays(tmp_path: Path) -> None:
    """A file with a place that cannot be read is evidence: it is not written again."""
    path = await filled(tmp_path, cipher_of(OLD))
    content = bytearray(path.read_bytes())
    content[40] ^= 0xFF
    path.write_bytes(content)
    assert reseal_file(path, cipher_of(NEW, OLD)) == {"O"}
    assert path.read_bytes() == content


async def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    """Where the new file cannot be made the old one is as it was."""
    path = await filled(tmp_path, cipher_of(OLD))
    before = path.read_bytes()
    draft = path.with_suffix(".resealed")
    draft.mkdir()
    with pytest.raises(OSError) as raised:  # noqa: PT011 - any of them
        reseal_file(path, cipher_of(NEW, OLD))
    assert raised.value.errno in {errno.EISDIR, errno.EPERM}
    assert path.read_bytes() == before


async def test_a_journal_in_use_begins_a_new_file(tmp_path: Path) -> None:
    """What is appended to is never replaced: after a change of keys another file is begun."""
    cipher = cipher_of(NEW, OLD)
    cipher.encrypt_with("O")
    journal = journal_in(tmp_path, cipher)
    journal.open()
    await journal.keep(entry(1))
    assert journal.keys.ids == {"O"}
    cipher.encrypt_with("N")
    await journal.keep(entry(2))
    assert journal.keys.ids == {"O", "N"}
    files = journal.keys.files_beside("N")
    for number in files:
        path = await journal.closed_file(number)
        if path is None:
            journal.keys.forget(number)
        else:
            journal.keys.replace(number, reseal_file(path, cipher))
    assert journal.keys.ids == {"N"}
    await journal.keep(entry(3))
    assert [each.attempt async for each in journal.replies()] == [
        "attempt-3",
        "attempt-2",
        "attempt-1",
    ]
    assert len(journal) == 3
    await journal.close()
    again = journal_in(tmp_path, cipher_of(NEW))
    assert [each.attempt for each in again.open()] == ["attempt-1", "attempt-2", "attempt-3"]
    assert again.keys.ids == {"N"}
    await again.close()


async def test_replies_are_kept_while_files_are_written_again(tmp_path: Path) -> None:
    """None is lost that comes meanwhile."""
    cipher = cipher_of(NEW, OLD)
    cipher.encrypt_with("O")
    journal = journal_in(tmp_path, cipher)
    journal.open()

    async def keep() -> None:
        for number in range(100):
            if number == 50:
                cipher.encrypt_with("N")
            assert await journal.keep(entry(number))

    async def reseal() -> None:
        while journal.keys.ids != {"N"} or len(journal) < 100:
            for number in journal.keys.files_beside(cipher.primary):
                path = await journal.closed_file(number)
                if path is not None:
                    journal.keys.replace(number, await asyncio.to_thread(reseal_file, path, cipher))
                else:
                    journal.keys.forget(number)
            await asyncio.sleep(0)

    await asyncio.gather(keep(), reseal())
    await journal.close()
    again = journal_in(tmp_path, cipher_of(NEW))
    assert [each.attempt for each in again.open()] == [f"attempt-{n}" for n in range(100)]
    await again.close()


async def test_a_journal_that_nobody_uses(tmp_path: Path) -> None:
    """The command writes it again, but not while a daemon has it; none is well, too."""
    assert reseal_unused(tmp_path / "journal", cipher_of(NEW))
    await filled(tmp_path, cipher_of(OLD))
    journal = journal_in(tmp_path, cipher_of(OLD))
    journal.open()
    assert not reseal_unused(tmp_path / "journal", cipher_of(NEW, OLD))
    await journal.close()
    assert reseal_unused(tmp_path / "journal", cipher_of(NEW, OLD))
    assert count_records(tmp_path / "journal") == {"N": 3}


def test_a_journal_that_cannot_be_read(tmp_path: Path) -> None:
    """It is an error with the path in it."""
    folder = tmp_path / "journal" / "000000000001.journal"
    folder.mkdir(parents=True)
    with pytest.raises(JournalError, match="cannot be read"):
        count_records(tmp_path / "journal")


async def test_a_reply_is_noted_for_the_file_that_has_it(tmp_path: Path) -> None:
    """Also where another file has begun before somebody hears that the reply is kept."""
    journal = journal_in(tmp_path, cipher_of(OLD))
    journal.open()
    keeping = asyncio.create_task(journal.keep(entry(1)))
    await asyncio.sleep(0)
    # Places for many more are taken, file after file, in the thread that has just written.
    places = [journal.reserved() for _ in range(12)]
    await asyncio.gather(*(place.__aenter__() for place in places))
    assert await keeping
    holding = journal.keys.files_beside("N")
    files = {int(path.name.split(".")[0]) for path in segment_files(tmp_path / "journal")}
    assert holding == [min(files)]
    assert len(files) > 1
    await journal.close()
