"""What lies on disk and in the database: the journal's segments, and ciphertexts."""

from __future__ import annotations

import asyncio
import shutil
import struct
import tempfile
import zlib
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from structlog.testing import capture_logs

from daemon.config.settings import EncryptionKey
from daemon.domain.clock import SystemClock
from daemon.domain.errors import DecryptionError
from daemon.domain.journal import JournaledReply, Purpose
from daemon.domain.reply import RawReply
from daemon.persistence.cipher import TokenCipher, key_id_of
from daemon.persistence.journal import Journal
from daemon.persistence.segments import Kind, Record, encode, scan, segment_files

CANARY = "reply-canary-0123456789"
_SMALL = 64 * 1024
_HEADER = struct.Struct(">4sBII")


def _cipher() -> TokenCipher:
    keys = [EncryptionKey(id="k1", secret=bytes(32)), EncryptionKey(id="k2", secret=b"2" * 32)]
    return TokenCipher(keys, entropy=lambda count: bytes(range(count)))


def _journal(directory: Path) -> Journal:
    return Journal(
        directory,
        _cipher(),
        clock=SystemClock(),
        entropy=bytes,
        segment_size=_SMALL,
    )


@cache
def real_records() -> tuple[bytes, ...]:
    """Return records as a journal writes them: three replies, and that one of them is stored."""
    directory = Path(tempfile.mkdtemp(prefix="fuzz-journal-"))
    try:
        asyncio.run(_write(directory))
        content = b"".join(path.read_bytes() for path in segment_files(directory / "journal"))
    finally:
        shutil.rmtree(directory)
    return tuple(encode(record) for record in scan(content).records)


async def _write(directory: Path) -> None:
    journal = _journal(directory)
    journal.open()
    for number in range(3):
        await journal.keep(
            JournaledReply(
                attempt=f"attempt-{number}",
                purpose=Purpose.REFRESH if number else Purpose.EXCHANGE,
                connection_id=f"c-{number}",
                provider="acme",
                generation=number,
                scopes=("read",),
                sent_at=datetime(2026, 11, 21, tzinfo=UTC),
                reply=RawReply(
                    status=200,
                    headers={"x": "\udcff"},
                    body=b'{"access_token":"%b"}' % CANARY.encode(),
                ),
            )
        )
    await journal.settled("attempt-1")
    await journal.close()


def journal(data: bytes) -> None:
    """A segment built by a script: real records, damaged ones, any others with a right checksum.

    Never an error, never a wrong record; what was written before the first damage is read.
    """
    content, whole = _segment(data)
    found = scan(content)
    assert found.end <= len(content)
    assert found.damaged >= 0
    for record in found.records:
        assert encode(record) in content
    read = [encode(record) for record in found.records]
    assert read[: len(whole)] == whole, "a record before all damage was not read"
    _open(content)


def raw_segment(data: bytes) -> None:
    """Any bytes as a segment file: read in time that grows with their length, without an error."""
    found = scan(data)
    assert all(encode(record) in data for record in found.records)
    _open(data)


def _open(content: bytes) -> None:
    directory = Path(tempfile.mkdtemp(prefix="fuzz-journal-", dir=_memory()))
    try:
        (directory / "journal").mkdir()
        (directory / "journal" / "000000000001.journal").write_bytes(content)
        with capture_logs() as logs:
            journal = _journal(directory)
            pending = journal.open()
            assert len(journal) == len({entry.attempt for entry in pending})
            asyncio.run(journal.close())
        assert CANARY not in repr(logs) + repr(pending)
    finally:
        shutil.rmtree(directory)


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - only for speed


def _segment(data: bytes) -> tuple[bytes, list[bytes]]:
    """Return what a script of (letter, number, bytes) makes, and the records before all damage."""
    parts: list[bytes] = []
    whole: list[bytes] = []
    damaged = False
    real = real_records()
    for step in data.split(b"\n")[:64]:
        letter, argument = step[:1], step[1:]
        match letter:
            case b"r":
                parts.append(real[(argument or b"\0")[0] % len(real)])
            case b"p":
                kind = Kind.REPLY if len(argument) % 2 else Kind.SETTLED
                parts.append(encode(Record(kind=kind, payload=argument)))
            case b"k":
                # Any kind at all, with a checksum that is right for it.
                kind_byte, payload = (argument or b"\0")[:1], argument[1:]
                checksum = zlib.crc32(payload, zlib.crc32(kind_byte))
                parts.append(_HEADER.pack(b"TWJ1", kind_byte[0], len(payload), checksum) + payload)
                damaged |= kind_byte[0] not in set(Kind)
            case b"t" if parts:
                parts[-1] = parts[-1][: len(parts[-1]) * (argument or b"\0")[0] // 256]
                damaged = True
                whole = whole[: len(parts) - 1]
            case b"f" if parts and parts[-1]:
                place = (argument or b"\0")[0] % len(parts[-1])
                flipped = bytearray(parts[-1])
                flipped[place] ^= 1
                parts[-1] = bytes(flipped)
                damaged = True
                whole = whole[: len(parts) - 1]
            case _:
                parts.append(step)
                damaged = True
        if not damaged:
            whole = list(parts)
    return b"".join(parts), whole


def envelope(data: bytes) -> None:
    """A ciphertext opens where it was made, unchanged, and nowhere else; the first byte picks."""
    cipher = _cipher()
    blob = cipher.encrypt(CANARY, connection="c", column="access_token", generation=7)
    assert cipher.decrypt(blob, connection="c", column="access_token", generation=7) == CANARY
    pick, rest = data[:1], data[1:]
    candidates = [data, _xored(blob, rest), blob[: len(rest)] + rest, blob + rest]
    candidate = candidates[pick[0] % len(candidates)] if pick else b""
    key_id_of(candidate)
    places = [("c", "access_token", 7), ("c", "refresh_token", 7), ("c", "access_token", 8)]
    for connection, column, generation in places:
        here = candidate == blob and (column, generation) == ("access_token", 7)
        try:
            opened = cipher.decrypt(
                candidate, connection=connection, column=column, generation=generation
            )
        except DecryptionError as error:
            assert not here
            assert CANARY not in str(error)
        else:
            assert here
            assert opened == CANARY


def _xored(blob: bytes, mask: bytes) -> bytes:
    padded = mask[: len(blob)].ljust(len(blob), b"\0")
    return bytes(a ^ b for a, b in zip(blob, padded, strict=True))
