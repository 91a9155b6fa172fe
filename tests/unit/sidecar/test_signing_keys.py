"""JWK Sets: which keys of a cluster count, and for what."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc.jwk import OctKey, RSAKey

from daemon.sidecar.signing_keys import read_key_set
from tests.support.service_account_tokens import Signer

EC, RSA = Signer.of_curve(), Signer.of_rsa()
OCT = {**OctKey.generate_key(256).as_dict(), "kid": "oct"}
PUBLIC = EC.public()


def read(*entries: object) -> dict[str, str]:
    """Return ids and algorithms of the keys that count, beside one that always does."""
    document = orjson.dumps({"keys": [*entries, RSA.public()]})
    found = {key_id: key.algorithm for key_id, key in read_key_set(document).items()}
    assert found.pop(RSA.key_id) == "RS256"
    return found


@pytest.mark.parametrize("curve", ["P-256", "P-384", "P-521"])
def test_a_curve_is_good_for_one_algorithm(curve: str) -> None:
    """The key decides its algorithm, named in the set or not."""
    signer = Signer.of_curve("k", curve)
    for entry in (signer.public(), {**signer.public(), "alg": signer.algorithm}):
        assert read(entry) == {"k": signer.algorithm}
    bare = {name: value for name, value in signer.public().items() if name not in ("alg", "use")}
    assert read(bare) == {"k": signer.algorithm}


@pytest.mark.parametrize(
    "entry",
    [
        {},
        "text",
        None,
        [],
        OCT,
        {**PUBLIC, "kid": None},
        {**PUBLIC, "kid": ""},
        {**PUBLIC, "kid": 7},
        {**PUBLIC, "kty": "oct", "k": "c2VjcmV0"},
        {**PUBLIC, "kty": "OKP"},
        {**PUBLIC, "kty": "EC2"},
        {**PUBLIC, "use": "enc"},
        {**PUBLIC, "alg": "HS256"},
        {**PUBLIC, "alg": "ES384"},
        {**PUBLIC, "crv": "secp256k1"},
        {**PUBLIC, "crv": "P-384"},
        {**PUBLIC, "x": "AAAA"},
        {**PUBLIC, "y": 5},
        {**PUBLIC, "y": PUBLIC["x"]},
        {"kty": "EC", "kid": "k"},
        {"kty": "RSA", "kid": "k"},
        {"kty": "RSA", "kid": "k", "n": "!!", "e": "AQAB"},
        {"kty": "RSA", "kid": "k", "n": RSA.public()["n"], "e": ""},
        {**RSA.public(alg="PS256"), "kid": "k"},
        {**RSA.public(alg="RS512"), "kid": "k"},
        {**EC.key.as_dict(private=True), "kid": "private"},
    ],
)
def test_keys_that_do_not_count(entry: Any) -> None:
    """A key of another kind or use, broken or secret, is left out and spoils nothing."""
    assert read(entry) == {}


def test_a_short_key_does_not_count() -> None:
    """RSA needs 2048 bits, leading zeros not counted."""
    with pytest.warns(UserWarning, match="2048"):
        short = RSAKey.generate_key(1024).as_dict(private=False)
    padded = "A" * 200 + str(short["n"])
    assert read({**short, "kid": "a"}, {**short, "kid": "b", "n": padded}) == {}


def test_the_first_of_two_keys_with_one_id_counts() -> None:
    """What comes later cannot take an id that is taken."""
    other = Signer.of_curve(EC.key_id, "P-384")
    assert read(EC.public(), other.public()) == {EC.key_id: "ES256"}


@pytest.mark.parametrize(
    "document",
    [
        *(b"", b"{", b"null", b"[]", b"{}", b'{"keys":{}}', b'{"keys":[]}', b"<html>"),
        orjson.dumps({"keys": [OCT]}),
        b"[" * 5000,
    ],
    # A key is another one in each process, and names must not be.
    ids=range(10),
)
def test_what_is_no_key_set(document: bytes) -> None:
    """A document without a usable key is an error in words."""
    with pytest.raises(ValueError, match=r"^(is not|has no)"):
        read_key_set(document)


_NAMES = st.sampled_from(["kty", "kid", "use", "alg", "crv", "x", "y", "n", "e", "k", "x5c"])
_VALUES = (
    st.sampled_from(["RSA", "EC", "oct", "P-256", "AQAB", "sig", *map(str, PUBLIC.values())])
    | st.none()
    | st.integers()
    | st.text(max_size=20)
    | st.lists(st.text(max_size=3), max_size=2)
)


@settings(deadline=None)
@given(st.lists(st.dictionaries(_NAMES, _VALUES, max_size=8), max_size=4))
def test_any_key_set(entries: list[dict[str, object]]) -> None:
    """Nothing that a cluster publishes makes reading it fail in another way."""
    try:
        document = orjson.dumps({"keys": entries})
    except TypeError:
        return
    try:
        assert read_key_set(document)
    except ValueError as error:
        assert str(error)  # noqa: PT017 - either end is right
