"""Which keys there are, and the proof that they are the ones this database was encrypted with.

Its hard idea: a daemon with a wrong key would make every connection unreadable for the right
one. So each key leaves a canary in the database before it encrypts, and nothing is written before
the keys at hand have opened those of all keys in use.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from daemon.config.settings import EncryptionKey
from daemon.domain.clock import Entropy
from daemon.domain.errors import DecryptionError, KeyringError
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.dialing import DatabaseConnection

KEY_FILE = "encryption.key"
_KEY_BYTES = 32
_CANARY = "tokenward"
_COLUMN = "encryption_keys.canary"


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyring:
    """The keys, the one that encrypts first. ``warning`` says what to do about a generated key."""

    keys: tuple[EncryptionKey, ...] = field(repr=False)
    warning: str | None = None

    @property
    def ids(self) -> tuple[str, ...]:
        """Return the ids, the encrypting one first."""
        return tuple(key.id for key in self.keys)


def generate_key(entropy: Entropy) -> str:
    """Return a new secret: 32 bytes in base64, as the configuration takes it."""
    return base64.b64encode(entropy(_KEY_BYTES)).decode()


def open_keyring(
    configured: Sequence[EncryptionKey], *, state_dir: Path, entropy: Entropy
) -> Keyring:
    """Return the configured keys, else the one in ``state_dir``, else a new one, written there.

    Of processes that start at once on one ``state_dir`` all get the same key.

    Raises:
        KeyringError: the key file cannot be written or read, or others may read it.
    """
    found = find_keyring(configured, state_dir=state_dir)
    if found is not None:
        return found
    path = state_dir / KEY_FILE
    with _file_errors(path):
        _write_once(path, generate_key(entropy) + "\n", entropy)
        return _generated(path)


def find_keyring(configured: Sequence[EncryptionKey], *, state_dir: Path) -> Keyring | None:
    """Do as ``open_keyring``, but return ``None`` instead of making a key."""
    if configured:
        return Keyring(keys=tuple(configured))
    path = state_dir / KEY_FILE
    with _file_errors(path):
        try:
            return _generated(path)
        except FileNotFoundError:
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKeys:
    """What the database knows of keys.

    ``canaries``, oldest first, are of every key that it was told of; nobody may do without those
    ``in_use``.
    """

    canaries: Mapping[str, bytes] = field(repr=False)
    in_use: frozenset[str]


def judge(
    keyring: Keyring,
    cipher: TokenCipher,
    canaries: Mapping[str, bytes],
    in_use: Collection[str] | None = None,
) -> tuple[str, ...]:
    """Return the ids of keys that are new to a database with these ``canaries``.

    ``in_use`` are those of the canaries' keys that something needs; ``None``: all.

    Raises:
        KeyringError: a key is missing, or is another one than that which encrypted there.
    """
    missing = missing_keys(keyring.ids, canaries if in_use is None else in_use)
    if missing:
        raise KeyringError(
            f"the database was encrypted with keys that are not at hand: {', '.join(missing)}. "
            f"Add each to encryption.keys (after the first it only decrypts). A key whose id "
            f"begins with 'generated-' is the file {KEY_FILE} of the state_dir that made it"
        )
    for key_id, canary in canaries.items():
        if key_id in keyring.ids:
            _open_canary(cipher, key_id, canary)
    return tuple(key_id for key_id in keyring.ids if key_id not in canaries)


def missing_keys(at_hand: Iterable[str], needed: Iterable[str]) -> tuple[str, ...]:
    """Return the ids of keys that are needed and not at hand, sorted."""
    return tuple(sorted(set(needed) - set(at_hand)))


async def stored_keys(connection: DatabaseConnection) -> StoredKeys:
    """Return what the database knows of keys. Asyncpg's errors pass through."""
    rows = await connection.fetch(
        "SELECT key_id, canary, in_use FROM encryption_keys ORDER BY created_at, key_id"
    )
    return StoredKeys(
        canaries={row["key_id"]: row["canary"] for row in rows},
        in_use=frozenset(row["key_id"] for row in rows if row["in_use"]),
    )


async def announce(
    connection: DatabaseConnection, cipher: TokenCipher, key_ids: Iterable[str]
) -> None:
    """Leave the canaries of keys that ``judge`` has found new, none of them in use yet."""
    await connection.executemany(
        "INSERT INTO encryption_keys (key_id, canary, in_use) VALUES ($1, $2, false)",
        [(key_id, _canary(cipher, key_id)) for key_id in key_ids],
    )


def _canary(cipher: TokenCipher, key_id: str) -> bytes:
    return cipher.encrypt(_CANARY, connection="", column=_COLUMN, generation=0, key_id=key_id)


def _open_canary(cipher: TokenCipher, key_id: str, canary: bytes) -> None:
    try:
        opened = cipher.decrypt(canary, connection="", column=_COLUMN, generation=0)
    except DecryptionError as error:
        raise KeyringError(
            f"encryption key {key_id!r} is not the key of that id with which this database was "
            f"encrypted: restore the right secret. Nothing was written"
        ) from error
    if opened != _CANARY:
        raise KeyringError(f"the canary of encryption key {key_id!r} is damaged")


def _generated(path: Path) -> Keyring:
    key = _read(path)
    return Keyring(
        keys=(key,),
        warning=(
            f"tokens are encrypted with a key generated in {path}: whoever copies the state "
            f"directory has both. For production run 'tokenward keys generate', keep the result "
            f"in a secret store, and make it the first of encryption.keys. The second is the "
            f"generated one, for what is encrypted already: its id is {key.id} and its file that "
            f"one. Every replica needs the same keys"
        ),
    )


def _read(path: Path) -> EncryptionKey:
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        content = file.read(1024)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeyringError(
            f"{path} may be read by others (mode {mode:04o}): run 'chmod 600 {path}', and "
            f"replace the key if somebody may have"
        )
    try:
        secret = base64.b64decode(content.strip(), validate=True)
    except binascii.Error:
        secret = b""
    if len(secret) != _KEY_BYTES:
        raise KeyringError(f"{path} is damaged: it is not 32 bytes in base64; restore a backup")
    # The id is the key's own fingerprint, so that the file can be configured as it stands and
    # a wrong file is told from a missing one.
    fingerprint = hashlib.sha256(b"tokenward encryption key\0" + secret).hexdigest()
    return EncryptionKey(id=f"generated-{fingerprint[:12]}", secret=secret)


def _write_once(path: Path, content: str, entropy: Entropy) -> None:
    """Make ``path`` appear whole and durable, unless another has made it first."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{entropy(8).hex()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # A link, unlike a rename, replaces nothing.
        os.link(draft, path)
    except FileExistsError:
        return
    finally:
        draft.unlink()
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise KeyringError(
            f"the encryption key {path} cannot be used: {error.strerror}. state_dir must be a "
            f"directory that tokenward may write, or configure encryption.keys"
        ) from error
