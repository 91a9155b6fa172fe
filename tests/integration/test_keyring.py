"""Keys in a file and keys against a real database."""

from __future__ import annotations

import asyncio
import base64
import os
import stat
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from daemon.config.settings import EncryptionKey
from daemon.domain.clock import SystemClock, system_entropy
from daemon.domain.errors import KeyringError
from daemon.persistence.agreement import KeyAgreement
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.dialing import TimelyConnection, hang_up
from daemon.persistence.keyring import Keyring, find_keyring, open_keyring, stored_keys
from daemon.persistence.migrations import bundled, migrate
from daemon.persistence.postgres import Database

A, B, C = (EncryptionKey(id=name, secret=name.encode() * 32) for name in "ABC")


def opened(state_dir: Path, *keys: EncryptionKey) -> Keyring:
    """Open a keyring as the daemon does."""
    return open_keyring(keys, state_dir=state_dir, entropy=system_entropy)


def test_configured_keys_need_no_file(tmp_path: Path) -> None:
    """Configured keys are used as they are; nothing is written or warned of."""
    keyring = opened(tmp_path, A, B)
    assert keyring.ids == ("A", "B")
    assert keyring.warning is None
    assert list(tmp_path.iterdir()) == []


def test_a_generated_key_is_private_and_stays(tmp_path: Path) -> None:
    """Without keys one is made, mode 0600, with advice, and is the same at the next start."""
    state_dir = tmp_path / "new" / "state"
    assert find_keyring((), state_dir=state_dir) is None
    keyring = opened(state_dir)
    path = state_dir / "encryption.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(state_dir.stat().st_mode) == 0o700
    assert [file.name for file in state_dir.iterdir()] == ["encryption.key"]
    assert keyring.warning is not None
    assert "keys generate" in keyring.warning
    assert path.read_text().strip() not in keyring.warning
    assert opened(state_dir) == keyring == find_keyring((), state_dir=state_dir)


def test_a_generated_file_can_be_configured_as_it_stands(tmp_path: Path) -> None:
    """The file holds just the secret, and the advice names the id that it must keep."""
    keyring = opened(tmp_path)
    secret = base64.b64decode((tmp_path / "encryption.key").read_text())
    (key,) = keyring.keys
    assert key.secret == secret
    assert keyring.warning is not None
    assert f"its id is {key.id}" in keyring.warning
    assert f"{tmp_path}/encryption.key" in keyring.warning


def test_many_that_start_at_once_get_one_key(tmp_path: Path) -> None:
    """Whoever makes the file first wins; nobody sees half of it; no draft is left."""
    with ThreadPoolExecutor(max_workers=16) as threads:
        keyrings = list(threads.map(lambda _: opened(tmp_path), range(16)))
    assert len({keyring.ids for keyring in keyrings}) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["encryption.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    """A file open to group or others is refused with the command that repairs it."""
    opened(tmp_path)
    path = tmp_path / "encryption.key"
    path.chmod(mode)
    with pytest.raises(KeyringError, match=f"chmod 600 {path}"):
        opened(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not base64!", base64.b64encode(b"short"), b"\xff"])
def test_a_damaged_key_file_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    """A file that holds no key is never replaced: a backup of it may be all there is."""
    path = tmp_path / "encryption.key"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(KeyringError, match="damaged"):
        opened(tmp_path)
    assert path.read_bytes() == content


def test_an_unusable_state_dir_is_a_clear_error(tmp_path: Path) -> None:
    """Where no file can be made the error names the path and the way out."""
    (tmp_path / "file").touch()
    with pytest.raises(KeyringError, match=r"encryption\.key.*configure encryption\.keys"):
        opened(tmp_path / "file")


def test_the_umask_does_not_matter(tmp_path: Path) -> None:
    """Whatever the umask allows, the key is nobody else's."""
    before = os.umask(0)
    try:
        opened(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "encryption.key").stat().st_mode) == 0o600


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[TimelyConnection]:
    """Open a connection to a database with the schema."""
    connection = await Database(url, clock=SystemClock(), entropy=system_entropy).connect()
    try:
        await migrate(connection, bundled(), clock=SystemClock())
        yield connection
    finally:
        await hang_up(connection)


async def join(
    connection: TimelyConnection, *keys: EncryptionKey, owner: str = "one"
) -> tuple[str, ...]:
    """Join the others with ``keys`` as a daemon does at its start; return the keys in use."""
    agreement = KeyAgreement(
        Keyring(keys=keys),
        TokenCipher(keys, entropy=system_entropy),
        owner=owner,
        journal_keys=frozenset,
        clock=SystemClock(),
        entropy=system_entropy,
    )
    await agreement.join(connection)
    return tuple(sorted((await stored_keys(connection)).in_use))


async def test_each_key_leaves_a_canary_once(database_url: str) -> None:
    """New keys are added, known ones found, and a rotation keeps the old one required."""
    async with connected(database_url) as connection:
        assert await join(connection, A) == ("A",)
        assert await join(connection, A) == ("A",)
        assert await join(connection, B, A) == ("A", "B")
        assert list((await stored_keys(connection)).canaries) == ["A", "B"]
        with pytest.raises(KeyringError, match="not at hand: A"):
            await join(connection, B)


async def test_a_key_that_was_announced_only_binds_nobody(database_url: str) -> None:
    """A replica that has a further key does not stop one that does not from starting again."""
    async with connected(database_url) as connection:
        assert await join(connection, A, B, owner="one") == ("A",)
        assert await join(connection, A, owner="two") == ("A",)


@pytest.mark.parametrize("keys", [(B,), (EncryptionKey(id="A", secret=B.secret),), (C, B)])
async def test_wrong_keys_touch_nothing(database_url: str, keys: tuple[EncryptionKey, ...]) -> None:
    """A missing or wrong key is refused and not one row changes."""
    tables = ("encryption_keys", "replica_keys")
    async with connected(database_url) as connection:
        await join(connection, A)
        before = [await connection.fetch(f"SELECT xmin, * FROM {table}") for table in tables]
        with pytest.raises(KeyringError):
            await join(connection, *keys, owner="two")
        assert before == [
            await connection.fetch(f"SELECT xmin, * FROM {table}") for table in tables
        ]


async def test_two_daemons_with_keys_of_their_own_do_not_mix(database_url: str) -> None:
    """Of two that find the database empty at once, the second is refused."""
    async with connected(database_url) as one, connected(database_url) as other:
        found = await asyncio.gather(
            join(one, A, owner="one"), join(other, B, owner="two"), return_exceptions=True
        )
        assert sorted(isinstance(result, KeyringError) for result in found) == [False, True]
        assert len((await stored_keys(one)).canaries) == 1


async def test_two_daemons_with_one_key_both_start(database_url: str) -> None:
    """Of two that bring the same new key at once, both pass and one canary is left."""
    async with connected(database_url) as one, connected(database_url) as other:
        found = await asyncio.gather(join(one, A, owner="one"), join(other, A, owner="two"))
        assert list(found) == [("A",), ("A",)]
