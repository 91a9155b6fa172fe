"""Encryption at rest: AES-256-GCM, each ciphertext bound to the place it was made for.

Its hard idea: whoever can write the database but has no key must not be able to move a
ciphertext, say somebody else's token into their own connection, or an old one back. Connection,
column and generation are therefore authenticated with it (associated data).

A blob is: version (1 byte), length of the key id (1 byte), key id, nonce (12 bytes), ciphertext
and tag. Nonces are random: one key may make 2^32 ciphertexts before the odds of a repeated one
reach 2^-33 (NIST SP 800-38D 8.3). A thousand refreshes a second, two ciphertexts each, take 24
days; ten a second, seven years. Rotate keys accordingly.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from daemon.config.settings import EncryptionKey
from daemon.domain.clock import Entropy
from daemon.domain.errors import DecryptionError, KeyringError

_VERSION = 1
_NONCE_BYTES = 12
_TAG_BYTES = 16
_KEY_BYTES = 32
_MAX_KEY_ID_BYTES = 255


@dataclass(frozen=True, slots=True)
class _Key:
    aead: AESGCM = field(repr=False)
    header: bytes


class TokenCipher:
    """Encrypts with the primary key, at first the first one, and decrypts with any.

    One for the whole process: ``replace`` and ``encrypt_with`` change it for all who have it. Any
    thread may decrypt; everything else belongs to one. Raises ``KeyringError`` for unusable keys.
    """

    def __init__(self, keys: Sequence[EncryptionKey], *, entropy: Entropy) -> None:
        self._entropy = entropy
        self._keys: Mapping[str, _Key] = {}
        self._primary = ""
        self.replace(keys)

    def replace(self, keys: Sequence[EncryptionKey], *, primary: str | None = None) -> None:
        """Have these keys and no others from now on; ``primary`` or the first one encrypts.

        Raises:
            KeyringError: they cannot be used; nothing was changed.
        """
        if not keys:
            raise KeyringError("there is no encryption key")
        prepared = {key.id: _prepare(key) for key in keys}
        if len(prepared) != len(keys):
            raise KeyringError("encryption.keys: two keys have the same id")
        self._keys = prepared
        self._primary = primary or keys[0].id

    def encrypt_with(self, key_id: str) -> None:
        """Make a key that is at hand the primary one."""
        if key_id not in self._keys:
            raise KeyringError(f"encryption key {key_id!r} is not at hand")
        self._primary = key_id

    @property
    def primary(self) -> str:
        """Return the id of the key that encrypts."""
        return self._primary

    def encrypt(
        self, plaintext: str, *, connection: str, column: str, generation: int, key_id: str = ""
    ) -> bytes:
        """Return ``plaintext`` as a blob that opens only with the same place.

        ``key_id`` names a key other than the primary one. Every ``str`` comes back as it was,
        lone surrogates of a careless JSON reply included.
        """
        return self.seal(
            plaintext.encode("utf-8", "surrogatepass"),
            connection=connection,
            column=column,
            generation=generation,
            key_id=key_id,
        )

    def decrypt(self, blob: bytes, *, connection: str, column: str, generation: int) -> str:
        """Return what was encrypted for this place.

        Raises:
            DecryptionError: changed, moved, or made by a key that is not at hand.
        """
        opened = self.open(blob, connection=connection, column=column, generation=generation)
        return opened.decode("utf-8", "surrogatepass")

    def seal(
        self, plaintext: bytes, *, connection: str, column: str, generation: int, key_id: str = ""
    ) -> bytes:
        """Do as ``encrypt``, for bytes."""
        key = self._keys[key_id or self._primary]
        nonce = self._entropy(_NONCE_BYTES)
        data = _associated_data(key.header, connection, column, generation)
        return key.header + nonce + key.aead.encrypt(nonce, plaintext, data)

    def open(self, blob: bytes, *, connection: str, column: str, generation: int) -> bytes:
        """Do as ``decrypt``, for bytes."""
        key_id = key_id_of(blob)
        key = self._keys.get(key_id) if key_id is not None else None
        if key is None:
            reason = "it is not a ciphertext" if key_id is None else "that key is not configured"
            raise DecryptionError(reason, connection=connection, column=column, key_id=key_id)
        start = len(key.header)
        nonce, body = blob[start : start + _NONCE_BYTES], blob[start + _NONCE_BYTES :]
        data = _associated_data(key.header, connection, column, generation)
        try:
            return key.aead.decrypt(nonce, body, data)
        except InvalidTag as error:
            raise DecryptionError(
                "it was changed, moved from elsewhere, or made with another key of that id",
                connection=connection,
                column=column,
                key_id=key_id,
            ) from error

    def reseal(self, blob: bytes, *, connection: str, column: str, generation: int) -> bytes:
        """Return ``blob`` encrypted with the primary key; itself where it is already.

        Raises:
            DecryptionError: as ``open``.
        """
        if key_id_of(blob) == self._primary:
            return blob
        opened = self.open(blob, connection=connection, column=column, generation=generation)
        return self.seal(opened, connection=connection, column=column, generation=generation)


def header_of(key_id: str) -> bytes:
    """Return what every ciphertext of a key begins with."""
    name = key_id.encode()
    return bytes((_VERSION, len(name))) + name


def key_id_of(blob: bytes) -> str | None:
    """Return the id of the key that made ``blob``; ``None`` where it is no blob of ours."""
    if len(blob) < 2 or blob[0] != _VERSION:  # noqa: PLR2004 # the two bytes before the key id
        return None
    end = 2 + blob[1]
    if len(blob) < end + _NONCE_BYTES + _TAG_BYTES:
        return None
    try:
        return blob[2:end].decode()
    except UnicodeDecodeError:
        return None


def _prepare(key: EncryptionKey) -> _Key:
    name = key.id.encode()
    if not 0 < len(name) <= _MAX_KEY_ID_BYTES:
        raise KeyringError(f"encryption.keys: an id has 1 to {_MAX_KEY_ID_BYTES} bytes")
    if len(key.secret) != _KEY_BYTES:
        raise KeyringError(f"encryption.keys: the secret of {key.id!r} is not 32 bytes in base64")
    return _Key(AESGCM(key.secret), header_of(key.id))


def _associated_data(header: bytes, connection: str, column: str, generation: int) -> bytes:
    # Every part carries its length, so that no two places have the same encoding.
    place, name = connection.encode(), column.encode()
    return b"".join(
        (
            header,
            struct.pack(">I", len(place)),
            place,
            struct.pack(">I", len(name)),
            name,
            struct.pack(">q", generation),
        )
    )
