"""Encryption at rest: what opens, and all that must not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from daemon.config.settings import EncryptionKey
from daemon.domain.clock import system_entropy
from daemon.domain.errors import DecryptionError, KeyringError
from daemon.persistence.cipher import TokenCipher, key_id_of

OLD = EncryptionKey(id="2025-01", secret=bytes(range(32)))
NEW = EncryptionKey(id="2026-11", secret=bytes(range(32, 64)))

# Any character, lone surrogates of a careless JSON reply included.
plaintexts = st.text(st.characters())
places = st.fixed_dictionaries(
    {
        "connection": st.text(max_size=128),
        "column": st.text(max_size=32),
        "generation": st.integers(min_value=0, max_value=2**63 - 1),
    }
)


def cipher(*keys: EncryptionKey, entropy: Callable[[int], bytes] = system_entropy) -> TokenCipher:
    """Return a cipher with ``keys``."""
    return TokenCipher(keys, entropy=entropy)


@given(plaintexts, places)
def test_every_text_comes_back_at_its_place(plaintext: str, place: dict[str, object]) -> None:
    """Every text, lone surrogates included, comes back where it was made for."""
    blob = cipher(NEW).encrypt(plaintext, **place)  # type: ignore[arg-type] # a drawn place
    assert cipher(NEW).decrypt(blob, **place) == plaintext  # type: ignore[arg-type] # the same


@given(places, places)
def test_no_two_places_open_each_others_ciphertext(
    here: dict[str, object], there: dict[str, object]
) -> None:
    """A ciphertext opens at another place only if that is the same place."""
    blob = cipher(NEW).encrypt("rt-1", **here)  # type: ignore[arg-type] # a drawn place
    if here != there:
        with pytest.raises(DecryptionError):
            cipher(NEW).decrypt(blob, **there)  # type: ignore[arg-type] # another one


@pytest.mark.parametrize(
    ("connection", "column", "generation"),
    [
        ("acme-2", "refresh_token", 7),
        ("acme-1", "access_token", 7),
        ("acme-1", "refresh_token", 6),
        ("acme-1", "refresh_token", 8),
        # The same characters, cut elsewhere.
        ("acme-1r", "efresh_token", 7),
        ("acme-", "1refresh_token", 7),
    ],
)
def test_a_moved_ciphertext_does_not_open(connection: str, column: str, generation: int) -> None:
    """A ciphertext moved to another connection, column or generation is refused."""
    blob = cipher(NEW).encrypt("rt-1", connection="acme-1", column="refresh_token", generation=7)
    with pytest.raises(DecryptionError) as raised:
        cipher(NEW).decrypt(blob, connection=connection, column=column, generation=generation)
    assert (raised.value.connection, raised.value.column) == (connection, column)
    assert raised.value.key_id == "2026-11"


def test_no_bit_of_a_ciphertext_can_be_changed() -> None:
    """Flipping any single bit of a blob, header included, makes it unreadable."""
    box = cipher(NEW)
    blob = box.encrypt("at-1", connection="c", column="access_token", generation=1)
    for position in range(len(blob) * 8):
        changed = bytearray(blob)
        changed[position // 8] ^= 1 << position % 8
        with pytest.raises(DecryptionError):
            box.decrypt(bytes(changed), connection="c", column="access_token", generation=1)


def test_no_beginning_of_a_ciphertext_opens() -> None:
    """A blob cut off anywhere, down to nothing, is refused with a typed error."""
    box = cipher(NEW)
    blob = box.encrypt("at-1", connection="c", column="access_token", generation=1)
    for length in range(len(blob)):
        with pytest.raises(DecryptionError):
            box.decrypt(blob[:length], connection="c", column="access_token", generation=1)


@given(st.binary(max_size=64))
def test_arbitrary_bytes_are_refused_with_a_typed_error(blob: bytes) -> None:
    """Whatever stands in the column, the only error is DecryptionError."""
    with pytest.raises(DecryptionError):
        cipher(NEW).open(blob, connection="c", column="x", generation=1)


def test_the_format_stays_as_it_is() -> None:
    """The blob's layout and associated data are those that earlier versions wrote."""
    box = cipher(OLD, entropy=lambda size: b"\x07" * size)
    blob = box.seal(b"secret", connection="con", column="access_token", generation=258)
    header = b"\x01\x07" + b"2025-01"
    data = (
        header
        + (b"\x00\x00\x00\x03" + b"con")
        + (b"\x00\x00\x00\x0c" + b"access_token")
        + b"\x00\x00\x00\x00\x00\x00\x01\x02"
    )
    assert blob == header + b"\x07" * 12 + AESGCM(OLD.secret).encrypt(b"\x07" * 12, b"secret", data)


def test_each_encryption_draws_its_own_nonce() -> None:
    """Encrypting the same twice gives two different blobs."""
    box = cipher(NEW)
    first, second = (box.seal(b"x", connection="c", column="x", generation=1) for _ in range(2))
    assert first != second


def test_the_first_key_encrypts_and_all_decrypt() -> None:
    """After a new key is put first, what the old one encrypted still opens."""
    blob = cipher(OLD).encrypt("rt-1", connection="c", column="refresh_token", generation=1)
    both = cipher(NEW, OLD)
    assert both.primary == "2026-11"
    assert both.decrypt(blob, connection="c", column="refresh_token", generation=1) == "rt-1"
    fresh = both.encrypt("rt-2", connection="c", column="refresh_token", generation=2)
    assert (key_id_of(blob), key_id_of(fresh)) == ("2025-01", "2026-11")


def test_a_missing_key_is_named_and_the_content_is_not() -> None:
    """The error names connection, column and key id, and nothing of the plaintext."""
    blob = cipher(OLD).encrypt("rt-hush", connection="acme-1", column="refresh_token", generation=1)
    with pytest.raises(DecryptionError, match="2025-01") as raised:
        cipher(NEW).decrypt(blob, connection="acme-1", column="refresh_token", generation=1)
    assert "acme-1" in str(raised.value)
    assert "refresh_token" in str(raised.value)
    assert "hush" not in str(raised.value)


def test_another_key_of_the_same_id_does_not_open() -> None:
    """A wrong secret under a right id is found by the tag."""
    blob = cipher(NEW).encrypt("at", connection="c", column="access_token", generation=1)
    impostor = EncryptionKey(id="2026-11", secret=OLD.secret)
    with pytest.raises(DecryptionError):
        cipher(impostor).decrypt(blob, connection="c", column="access_token", generation=1)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ([], "no encryption key"),
        ([OLD, EncryptionKey(id="2025-01", secret=NEW.secret)], "same id"),
        ([EncryptionKey(id="short", secret=b"x" * 31)], "32 bytes"),
        ([EncryptionKey(id="", secret=b"x" * 32)], "1 to 255 bytes"),
        ([EncryptionKey(id="é" * 128, secret=b"x" * 32)], "1 to 255 bytes"),
    ],
)
def test_unusable_keys_are_refused(keys: list[EncryptionKey], said: str) -> None:
    """Keys that could not be told apart or used are refused when the cipher is made."""
    with pytest.raises(KeyringError, match=said):
        cipher(*keys)


def test_no_repr_shows_a_secret() -> None:
    """Neither a key nor the cipher's own values print the secret."""
    marked = EncryptionKey(id="k", secret=b"marked-secret-of-thirty-two-byte")
    box = cipher(marked)
    assert "marked" not in repr(marked) + repr(box) + repr(vars(box))
