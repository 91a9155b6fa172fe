"""The public keys that a cluster signs service account tokens with (RFC 7517), and the signature.

The one hard idea: the algorithm belongs to the key, never to the token. A key of the set is good
for exactly one, so ``none`` and HMAC with a public key have nothing to be verified with.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import orjson
from cryptography.exceptions import UnsupportedAlgorithm
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from daemon.sidecar.service_account_token import OF_CURVE, RS256, Presented, Reason, refused

# NIST SP 800-131A.
_SHORTEST_RSA_BITS = 2048
# A cluster has one or two, and some more while it rotates.
_MOST_KEYS = 64
_UNUSABLE = (JoseError, UnsupportedAlgorithm, ValueError, TypeError, KeyError, AttributeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """A public key and the one algorithm it is good for."""

    algorithm: str
    key: RSAKey | ECKey = field(repr=False)


def read_key_set(document: bytes) -> Mapping[str, SigningKey]:
    """Return the keys of a JWK Set by their ids; those that cannot be used are left out.

    Of two keys with one id the first counts.

    Raises:
        ValueError: it is no JWK Set, or has no usable key.
    """
    try:
        members = orjson.loads(document)
    except orjson.JSONDecodeError as error:
        raise ValueError("is not JSON") from error
    entries = members.get("keys") if isinstance(members, dict) else None
    if not isinstance(entries, list):
        raise ValueError("is not a JWK Set: it has no list of keys")  # noqa: TRY004 - one error
    found = dict(_usable(reversed(entries[:_MOST_KEYS])))
    if not found:
        raise ValueError("has no RSA key (2048 bits or more) and no P-256, P-384 or P-521 key")
    return found


def verify(presented: Presented, key: SigningKey) -> None:
    """Return where ``key`` has signed the token.

    Raises:
        Problem: 401, for another algorithm than the key's, or a wrong signature.
    """
    if presented.algorithm != key.algorithm:
        raise refused(Reason.ALGORITHM)
    try:
        is_good = jws.validate_compact(presented.signed, key.key, [key.algorithm])
    except (JoseError, ValueError) as error:
        raise refused(Reason.SIGNATURE) from error
    if not is_good:
        raise refused(Reason.SIGNATURE)


def _usable(entries: Iterable[object]) -> Iterable[tuple[str, SigningKey]]:
    for entry in entries:
        key_id = entry.get("kid") if isinstance(entry, dict) else None
        if isinstance(entry, dict) and isinstance(key_id, str) and key_id:
            key = _key(entry)
            if key is not None and entry.get("alg", key.algorithm) == key.algorithm:
                yield key_id, key


def _key(entry: dict[str, object]) -> SigningKey | None:
    """Return one key (RFC 7517 4); ``None``: of another kind or use, too short, or broken."""
    if entry.get("use", "sig") != "sig" or "d" in entry:
        return None
    # Only what makes the key: certificates and URLs beside it are nothing to us.
    try:
        match entry.get("kty"):
            case "RSA":
                modulus = urlsafe_b64decode(f"{entry['n']}==")
                if int.from_bytes(modulus).bit_length() < _SHORTEST_RSA_BITS:
                    return None
                rsa = RSAKey.import_key({name: str(entry[name]) for name in ("kty", "n", "e")})
                return SigningKey(algorithm=RS256, key=rsa)
            case "EC":
                names = ("kty", "crv", "x", "y")
                curve = ECKey.import_key({name: str(entry[name]) for name in names})
                return SigningKey(algorithm=OF_CURVE[str(entry["crv"])], key=curve)
            case _:
                return None
    except _UNUSABLE:
        return None
