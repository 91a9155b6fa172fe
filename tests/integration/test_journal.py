"""The journal on a real disk: what was kept is there again, whatever happened in between."""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest

from daemon.config.settings import EncryptionKey
from daemon.domain.clock import SystemClock, system_entropy
from daemon.domain.errors import JournalError
from daemon.domain.journal import JournaledReply, Purpose
from daemon.domain.reply import RawReply
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.journal import RESERVATION, Journal
from daemon.persistence.journal_mark import read_mark
from daemon.persistence.segments import Kind, Record, Segment, encode, segment_files

MARK = "tw-canary-refresh-token"
ENTRY = JournaledReply(
    attempt="attempt-1",
    purpose=Purpose.REFRESH,
    connection_id="acme-1",
    provider="acme",
    generation=7,
    scopes=("read",),
    sent_at=datetime(2026, 11, 21, 18, 0, tzinfo=UTC),
    reply=RawReply(
        status=200,
        headers={"content-type": "application/json", "x-odd": "caf\udce9"},
        body=b'{"refresh_token": "' + MARK.encode() + b'"}\xff\x00',
    ),
)

LARGE = RawReply(status=200, headers={}, body=b"x" * 20_000)


def journal_in(directory: Path, *, key: bytes = b"k" * 32, size: int = 4 * RESERVATION) -> Journal:
    """Return a journal that is not open yet."""
    cipher = TokenCipher([EncryptionKey(id="k1", secret=key)], entropy=system_entropy)
    return Journal(
        directory, cipher, clock=SystemClock(), entropy=system_entropy, segment_size=size
    )


async def test_a_kept_reply_is_there_after_a_restart(tmp_path: Path) -> None:
    """Byte for byte, and under the same owner."""
    journal = journal_in(tmp_path)
    assert journal.open() == []
    async with journal.reserved():
        await journal.keep(ENTRY)
    owner = journal.owner
    await journal.close()

    again = journal_in(tmp_path)
    assert again.open() == [ENTRY]
    assert (again.owner, len(again)) == (owner, 1)
    await again.close()


async def test_a_reply_keeps_what_a_later_disconnect_is_judged_by(tmp_path: Path) -> None:
    """The connection's epoch, the fields of the request and what the redirect said come back."""
    entry = replace(
        ENTRY,
        purpose=Purpose.EXCHANGE,
        epoch=3,
        fields={"region": "é \u2028"},
        caller="billing",
        callback={"realmId": "4 é"},
    )
    journal = journal_in(tmp_path)
    journal.open()
    await journal.keep(entry)
    await journal.close()
    again = journal_in(tmp_path)
    assert again.open() == [entry]
    await again.close()


async def test_segments_of_the_version_before_are_read(tmp_path: Path) -> None:
    """What was kept without epoch, fields and callback has none."""
    body = {
        "attempt": "attempt-1",
        "purpose": "refresh",
        "connection": "acme-1",
        "provider": "acme",
        "generation": 7,
        "scopes": ["read"],
        "sent_at": "2026-11-21T18:00:00+00:00",
        "status": 200,
        "headers": {},
        "body": "{}",
    }
    journal = journal_in(tmp_path)
    journal.open()
    cipher = TokenCipher([EncryptionKey(id="k1", secret=b"k" * 32)], entropy=system_entropy)
    sealed = cipher.seal(orjson.dumps(body), connection="", column="journal", generation=0)
    await journal.close()
    (tmp_path / "journal" / "000000000009.journal").write_bytes(
        encode(Record(kind=Kind.REPLY, payload=sealed))
    )
    again = journal_in(tmp_path)
    (entry,) = again.open()
    assert (entry.epoch, entry.fields) == (0, {})
    assert entry == replace(ENTRY, reply=RawReply(status=200, headers={}, body=b"{}"))
    await again.close()


async def test_a_settled_reply_is_not_pending(tmp_path: Path) -> None:
    """What the database has is not offered again."""
    journal = journal_in(tmp_path)
    journal.open()
    await journal.keep(ENTRY)
    await journal.settled(ENTRY.attempt)
    await journal.settled("never kept")
    assert len(journal) == 0
    await journal.close()

    again = journal_in(tmp_path)
    assert again.open() == []
    await again.close()


async def test_many_replies_at_once_are_all_kept(tmp_path: Path) -> None:
    """A hundred that come together fill several segments and all come back in order."""
    journal = journal_in(tmp_path)
    journal.open()
    entries = [
        replace(ENTRY, attempt=f"attempt-{n}", reply=replace(ENTRY.reply, body=b"x" * 9000))
        for n in range(100)
    ]
    for first in range(0, 100, 25):
        await asyncio.gather(*(journal.keep(entry) for entry in entries[first : first + 25]))
    await journal.close()

    again = journal_in(tmp_path)
    assert again.open() == entries
    assert len(segment_files(tmp_path / "journal")) > 2
    await again.close()


async def test_a_torn_tail_costs_nothing_before_it(tmp_path: Path) -> None:
    """A record cut in the middle of its write is dropped; those before it stay."""
    journal = journal_in(tmp_path)
    journal.open()
    await journal.keep(ENTRY)
    await journal.keep(replace(ENTRY, attempt="attempt-2"))
    await journal.close()
    file = segment_files(tmp_path / "journal")[0]
    content = file.read_bytes().rstrip(b"\0")
    file.write_bytes(content[:-10])

    again = journal_in(tmp_path)
    assert again.open() == [ENTRY]
    await again.close()


async def test_a_flipped_bit_costs_one_record(tmp_path: Path) -> None:
    """Damage in one record leaves the one behind it readable."""
    journal = journal_in(tmp_path)
    journal.open()
    await journal.keep(ENTRY)
    await journal.keep(replace(ENTRY, attempt="attempt-2"))
    await journal.close()
    file = segment_files(tmp_path / "journal")[0]
    content = bytearray(file.read_bytes())
    content[60] ^= 1
    file.write_bytes(content)

    again = journal_in(tmp_path)
    assert [entry.attempt for entry in again.open()] == ["attempt-2"]
    await again.close()


async def test_a_second_process_is_refused(tmp_path: Path) -> None:
    """Two daemons cannot share a journal, and the second is told what to do."""
    journal = journal_in(tmp_path)
    journal.open()
    with pytest.raises(JournalError, match="another tokenward"):
        journal_in(tmp_path).open()
    await journal.close()


async def test_no_token_lies_on_the_disk_in_clear(tmp_path: Path) -> None:
    """Nothing below the state directory holds the token; nor is it open to others."""
    journal = journal_in(tmp_path)
    journal.open()
    await journal.keep(ENTRY)
    await journal.close()
    for path in (tmp_path / "journal").iterdir():
        assert MARK.encode() not in path.read_bytes()
        assert path.stat().st_mode & 0o077 == 0, path
    assert (tmp_path / "journal").stat().st_mode & 0o077 == 0


async def test_another_key_opens_nothing_and_loses_nothing(tmp_path: Path) -> None:
    """With the wrong key the record stays; with the right one it is there again."""
    journal = journal_in(tmp_path)
    journal.open()
    await journal.keep(ENTRY)
    await journal.close()
    wrong = journal_in(tmp_path, key=b"w" * 32)
    assert wrong.open() == []
    await wrong.close()

    right = journal_in(tmp_path)
    assert right.open() == [ENTRY]
    await right.close()


async def test_a_full_disk_stops_sending_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without room for a reply there is no reservation; with room again there is."""
    journal = journal_in(tmp_path, size=2 * RESERVATION)
    journal.open()

    def full(_file: int, _offset: int, _length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with journal.reserved(), journal.reserved():
        with monkeypatch.context() as patched:
            patched.setattr(os, "posix_fallocate", full)
            with pytest.raises(JournalError, match="No space left"):
                async with journal.reserved():
                    pytest.fail("nothing may be sent")
    async with journal.reserved():
        await journal.keep(ENTRY)
    await journal.close()


async def test_a_file_whose_sync_failed_is_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply goes to a new file, and the old one is never synced again."""
    journal = journal_in(tmp_path)
    journal.open()
    synced: list[str] = []
    original = Segment.append

    def fails_once(segment: Segment, content: bytes) -> None:
        synced.append(segment.path.name)
        if len(synced) == 1:
            raise OSError(errno.EIO, "Input/output error")
        original(segment, content)

    monkeypatch.setattr(Segment, "append", fails_once)
    await journal.keep(ENTRY)
    await journal.keep(replace(ENTRY, attempt="attempt-2"))
    await journal.close()
    assert synced[0] not in synced[1:]

    again = journal_in(tmp_path)
    assert [entry.attempt for entry in again.open()] == ["attempt-1", "attempt-2"]
    await again.close()


async def test_what_was_preallocated_is_given_back_at_the_next_start(tmp_path: Path) -> None:
    """A crash loop leaves no files behind that hold nothing, and no zeros."""
    for _ in range(3):
        journal = journal_in(tmp_path)
        journal.open()
        await journal.close()
    journal = journal_in(tmp_path)
    journal.open()
    await journal.keep(ENTRY)
    await journal.close()
    again = journal_in(tmp_path)
    assert again.open() == [ENTRY]
    used, fresh = segment_files(tmp_path / "journal")
    assert used.stat().st_size < RESERVATION < fresh.stat().st_size
    await again.close()


async def test_more_in_flight_than_a_segment_holds(tmp_path: Path) -> None:
    """High concurrency makes one larger segment, not another one for each attempt."""
    journal = journal_in(tmp_path)
    journal.open()
    async with AsyncExitStack() as stack:
        for _ in range(20):
            await stack.enter_async_context(journal.reserved())
        before = len(segment_files(tmp_path / "journal"))
        for _ in range(20):
            async with journal.reserved():
                pass
        assert len(segment_files(tmp_path / "journal")) <= before + 1
    await journal.close()


async def test_what_is_settled_is_still_there_for_a_day(tmp_path: Path) -> None:
    """Newest first, over segments and restarts, the last of one attempt, nothing discarded."""
    journal = journal_in(tmp_path, size=RESERVATION)
    journal.open()
    body = replace(ENTRY.reply, body=b"x" * 9000)
    for number in range(20):
        await journal.keep(replace(ENTRY, attempt=f"attempt-{number}", generation=number))
        again = replace(ENTRY, attempt=f"attempt-{number}", generation=number, reply=body)
        await journal.keep(again)
        if number != 19:
            await journal.settled(f"attempt-{number}", stored=number % 2 == 0)
    expected = [19, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0]
    kept = [entry async for entry in journal.replies()]
    assert [entry.generation for entry in kept] == expected
    assert all(entry.reply == body for entry in kept)
    await journal.close()
    assert len(segment_files(tmp_path / "journal")) > 2

    reopened = journal_in(tmp_path)
    assert [entry.generation for entry in reopened.open()] == [19]
    assert [entry.generation async for entry in reopened.replies()] == expected
    await reopened.close()


async def fill(journal: Journal, directory: Path, files: int) -> list[str]:
    """Keep and settle replies until so many files were begun; return their attempts."""
    attempts: list[str] = []
    first = len(segment_files(directory))
    while len(segment_files(directory)) < first + files:
        attempt = f"attempt-{len(attempts)}"
        async with journal.reserved():
            await journal.keep(replace(ENTRY, attempt=attempt, reply=LARGE))
        attempts.append(attempt)
        await journal.settled(attempt)
    return attempts


async def test_a_start_skips_files_in_which_all_is_settled(tmp_path: Path) -> None:
    """Nothing is read of them, their keys are known all the same, and history still has them."""
    journal = journal_in(tmp_path)
    journal.open()
    attempts = await fill(journal, tmp_path / "journal", 4)
    await journal.close()
    files = segment_files(tmp_path / "journal")
    content = files[0].read_bytes()
    files[0].write_bytes(b"cannot be read" + content)
    again = journal_in(tmp_path, key=b"o" * 32)
    again.open()
    assert again.keys.ids == {"k1"}
    await again.close()
    files[0].write_bytes(content)
    again = journal_in(tmp_path)
    assert again.open() == []
    assert [entry.attempt async for entry in again.replies()] == attempts[::-1]
    await again.close()


async def test_what_is_not_settled_is_found_however_old_its_file(tmp_path: Path) -> None:
    """The mark stops before it, and moves on once it is settled."""
    journal = journal_in(tmp_path)
    journal.open()
    await journal.keep(replace(ENTRY, attempt="old"))
    await fill(journal, tmp_path / "journal", 5)
    await journal.close()
    again = journal_in(tmp_path)
    assert [entry.attempt for entry in again.open()] == ["old"]
    assert read_mark(tmp_path / "journal").through == 0
    await again.settled("old")
    await fill(again, tmp_path / "journal", 3)
    await again.close()
    assert read_mark(tmp_path / "journal").through > 5


async def test_a_reply_whose_key_is_missing_is_never_marked_as_settled(tmp_path: Path) -> None:
    """It is pending again when the key is back."""
    journal = journal_in(tmp_path)
    journal.open()
    await journal.keep(replace(ENTRY, attempt="old"))
    await journal.close()
    other = journal_in(tmp_path, key=b"o" * 32)
    assert other.open() == []
    await fill(other, tmp_path / "journal", 5)
    await other.close()
    again = journal_in(tmp_path)
    assert "old" in [entry.attempt for entry in again.open()]
    await again.close()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"through": "x", "keys": {}}', b"{}"])
async def test_a_mark_that_cannot_be_read_marks_nothing(tmp_path: Path, content: bytes) -> None:
    """Everything is read."""
    journal = journal_in(tmp_path)
    journal.open()
    await journal.keep(ENTRY)
    await journal.close()
    (tmp_path / "journal" / "settled").write_bytes(content)
    again = journal_in(tmp_path)
    assert again.open() == [ENTRY]
    await again.close()


async def test_numbers_are_not_used_again_below_the_mark(tmp_path: Path) -> None:
    """Also where somebody has removed the files."""
    journal = journal_in(tmp_path)
    journal.open()
    await fill(journal, tmp_path / "journal", 5)
    await journal.close()
    for path in segment_files(tmp_path / "journal"):
        path.unlink()
    again = journal_in(tmp_path)
    again.open()
    await again.keep(ENTRY)
    await again.close()
    once_more = journal_in(tmp_path)
    assert once_more.open() == [ENTRY]
    await once_more.close()
