"""Which keys may be used with which database."""

from __future__ import annotations

import base64

import pytest

from daemon.config.settings import EncryptionKey
from daemon.domain.clock import system_entropy
from daemon.domain.errors import KeyringError
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.keyring import Keyring, generate_key, judge

A, B, C = (EncryptionKey(id=name, secret=name.encode() * 32) for name in "ABC")


def canary(key: EncryptionKey, text: str = "tokenward") -> bytes:
    """Return the canary that ``key`` leaves in a database."""
    return TokenCipher([key], entropy=system_entropy).encrypt(
        text, connection="", column="encryption_keys.canary", generation=0
    )


def judged(*keys: EncryptionKey, known: dict[str, bytes]) -> tuple[str, ...]:
    """Judge ``keys`` against a database that has the canaries ``known``."""
    return judge(Keyring(keys=keys), TokenCipher(keys, entropy=system_entropy), known)


@pytest.mark.parametrize(
    ("keys", "known", "new"),
    [
        ((A,), (), ("A",)),
        ((B, A), (), ("B", "A")),
        ((A,), (A,), ()),
        ((B, A), (A,), ("B",)),
        ((B, A), (A, B), ()),
    ],
)
def test_known_keys_pass_and_new_ones_are_named(
    keys: tuple[EncryptionKey, ...], known: tuple[EncryptionKey, ...], new: tuple[str, ...]
) -> None:
    """Keys whose canaries open pass; those without one are returned as new."""
    assert judged(*keys, known={key.id: canary(key) for key in known}) == new


@pytest.mark.parametrize(("keys", "known"), [((A,), "B"), ((C, A), "AB"), ((C,), "AB")])
def test_a_missing_key_is_named(keys: tuple[EncryptionKey, ...], known: str) -> None:
    """A database that needs a key that is not at hand is refused, by that key's id."""
    by_id = {key.id: canary(key) for key in (A, B, C) if key.id in known}
    missing = sorted(set(known) - {key.id for key in keys})
    with pytest.raises(KeyringError, match="not at hand: " + ", ".join(missing)):
        judged(*keys, known=by_id)


def test_a_wrong_secret_under_a_known_id_is_refused() -> None:
    """A key that does not open its own canary is refused, new keys beside it notwithstanding."""
    wrong = EncryptionKey(id="A", secret=B.secret)
    with pytest.raises(KeyringError, match="'A' is not the key"):
        judged(B, wrong, known={"A": canary(A)})


def test_a_damaged_canary_is_refused() -> None:
    """A canary that opens to something else is no proof."""
    with pytest.raises(KeyringError, match="damaged"):
        judged(A, known={"A": canary(A, text="another")})


def test_a_generated_key_is_32_bytes_in_base64() -> None:
    """What ``keys generate`` prints decodes to the 32 bytes that chance gave."""
    assert base64.b64decode(generate_key(lambda size: b"\x01" * size)) == b"\x01" * 32


@pytest.mark.parametrize(
    ("keys", "known", "in_use", "new"),
    [((A,), (A, B), "A", ()), ((C, A), (A, B), "A", ("C",)), ((A,), (B,), "", ("A",))],
)
def test_a_key_that_nothing_needs_may_be_missing(
    keys: tuple[EncryptionKey, ...],
    known: tuple[EncryptionKey, ...],
    in_use: str,
    new: tuple[str, ...],
) -> None:
    """Only keys in use must be at hand: others were announced, or rotated away from."""
    cipher = TokenCipher(keys, entropy=system_entropy)
    canaries = {key.id: canary(key) for key in known}
    assert judge(Keyring(keys=keys), cipher, canaries, in_use=set(in_use)) == new


def test_an_id_is_for_one_key_for_ever() -> None:
    """Another secret under the id of a key that was rotated away from is refused, too."""
    wrong = EncryptionKey(id="A", secret=B.secret)
    cipher = TokenCipher([C, wrong], entropy=system_entropy)
    with pytest.raises(KeyringError, match="'A' is not the key"):
        judge(Keyring(keys=(C, wrong)), cipher, {"A": canary(A)}, in_use=())
