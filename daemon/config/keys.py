"""Who may ask (callers with their keys) and what encrypts (the keyring)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from daemon.config import references
from daemon.config.kubernetes import service_account
from daemon.config.reading import OpenSection, Reading
from daemon.config.schema import CALLER, ENCRYPTION_KEY, SERVICE_ACCOUNT
from daemon.config.settings import Caller, EncryptionKey, Permission, ServiceAccount
from daemon.config.trail import Trail, render
from daemon.config.values import InvalidValueError, one_of, text

_CREDENTIALS = ("key_sha256", "key", "service_account")
_LONGEST_NAME = 128
# As short as a person may choose; `tokenward keys caller` makes better ones.
_SHORTEST_KEY = 20
_KEY_BYTES = 32
# What can be sent as a bearer token (RFC 6750 2.1).
_BEARER = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)
_SHA256 = re.compile(r"[0-9A-Fa-f]{64}", re.ASCII)
_KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,32}", re.ASCII)
# The characters of a connection id, and *, ? and [abc] or [!abc] of glob patterns.
_PATTERN = re.compile(r"(?:[A-Za-z0-9._:@*?-]|\[!?[A-Za-z0-9._:@-]+\])+", re.ASCII)
_LONGEST_PATTERN = 256


def callers(reading: Reading, trail: Trail, value: object) -> tuple[Caller, ...]:
    """Return the callers; two with one name or one key are findings."""
    found: list[Caller] = []
    names: dict[str, Trail] = {}
    known: dict[bytes | ServiceAccount, Trail] = {}
    for place, entry in reading.entries(trail, value):
        section = OpenSection(reading, place, entry, CALLER)
        name = section.required("name", _caller_name, "is missing; give the caller a name")
        credential = _credential(section)
        if name is not None and (first := names.setdefault(name, place)) != place:
            reading.find((*place, "name"), f"is the name of {render(first)} too; choose another")
        if credential is not None and (first := known.setdefault(credential, place)) != place:
            what = "key" if isinstance(credential, bytes) else "service account"
            reading.find(place, f"has the same {what} as {render(first)}; give each caller its own")
        found.append(_caller(section, name or "", credential or b""))
    return tuple(found)


def _caller(section: OpenSection, name: str, credential: bytes | ServiceAccount) -> Caller:
    caller = Caller(
        name=name,
        key_sha256=credential if isinstance(credential, bytes) else b"",
        key_file=_key_file(section) if credential else None,
        service_account=credential if isinstance(credential, ServiceAccount) else None,
        connections=section.each("connections", _pattern),
        permissions=frozenset(section.each("permissions", one_of(Permission))),
    )
    for key in ("connections", "permissions"):
        if not section.raw(key):
            section.reading.warn(section.at(key), "is empty, so this caller may do nothing")
    return caller


def _key_file(section: OpenSection) -> Path | None:
    """Return where the caller's key was read; the file itself was judged with the key."""
    key = section.raw("key")
    if not isinstance(key, Mapping) or not isinstance(key.get("file"), str):
        return None
    return references.path(section.reading, section.at("key"), key["file"])


def key_sha256_in(file: Path) -> bytes:
    """Return the digest of the caller key that a file holds now.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is no text.
        InvalidValueError: it is no key.
    """
    return _digest_of(references.content_of(file))


def _caller_name(value: object) -> str:
    name = text(value)
    if not name.isprintable() or name != name.strip() or len(name) > _LONGEST_NAME:
        raise InvalidValueError(
            f"must be at most {_LONGEST_NAME} printable characters without spaces around them"
        )
    return name


def _credential(section: OpenSection) -> bytes | ServiceAccount | None:
    """Return what the caller is known by: the digest of its key, or its service account."""
    reading = section.reading
    given = [name for name in _CREDENTIALS if section.raw(name) is not None]
    if len(given) != 1:
        message = (
            "needs exactly one of key_sha256 and key, or else a service_account; `tokenward keys "
            "caller NAME` makes a key and prints its key_sha256"
        )
        reading.find(section.trail, message)
        return None
    if given == ["service_account"]:
        return service_account(section.within("service_account", SERVICE_ACCOUNT))
    if given == ["key_sha256"]:
        return reading.read(section.at("key_sha256"), section.raw("key_sha256"), _digest)
    key = references.secret(reading, section.at("key"), section.raw("key"))
    return None if key is None else reading.read(section.at("key"), key, _digest_of)


def _digest(value: object) -> bytes:
    digest = text(value)
    if not _SHA256.fullmatch(digest):
        raise InvalidValueError("must be the 64 hexadecimal digits of the key's SHA-256")
    return bytes.fromhex(digest)


def _digest_of(value: object) -> bytes:
    key = text(value)
    if len(key) < _SHORTEST_KEY or not _BEARER.fullmatch(key):
        raise InvalidValueError(
            f"must be a key of at least {_SHORTEST_KEY} letters, digits or . _ ~ + / - characters; "
            "`tokenward keys caller NAME` makes one"
        )
    return hashlib.sha256(key.encode()).digest()


def _pattern(value: object) -> str:
    pattern = text(value)
    if not _PATTERN.fullmatch(pattern) or len(pattern) > _LONGEST_PATTERN:
        raise InvalidValueError(
            "must be a pattern of connection ids, such as acme-* or *: letters, digits, . _ : @ -, "
            "and *, ?, [abc]"
        )
    return pattern


def encryption_keys(reading: Reading, trail: Trail, value: object) -> tuple[EncryptionKey, ...]:
    """Return the keyring in order; the first key encrypts, all decrypt."""
    found: list[EncryptionKey] = []
    ids: dict[str, Trail] = {}
    for place, entry in reading.entries(trail, value):
        section = OpenSection(reading, place, entry, ENCRYPTION_KEY)
        key_id = section.required("id", _key_id, "is missing; give the key an id such as 2026-11")
        if key_id is not None and (first := ids.setdefault(key_id, place)) != place:
            reading.find((*place, "id"), f"is the id of {render(first)} too; choose another")
        found.append(EncryptionKey(id=key_id or "", secret=_encryption_secret(section) or b""))
    return tuple(found)


def _encryption_secret(section: OpenSection) -> bytes | None:
    trail, value = section.at("secret"), section.raw("secret")
    if value is None:
        section.reading.find(trail, "is missing; `tokenward keys generate` prints one")
        return None
    encoded = references.secret(section.reading, trail, value)
    return None if encoded is None else section.reading.read(trail, encoded, _key_bytes)


def _key_id(value: object) -> str:
    key_id = text(value)
    if not _KEY_ID.fullmatch(key_id):
        raise InvalidValueError("must be 1 to 32 letters, digits or . _ - characters")
    return key_id


def _key_bytes(value: object) -> bytes:
    """Return 32 bytes from base64 of either alphabet, padded or not."""
    encoded = text(value).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        secret = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if len(secret) != _KEY_BYTES:
        raise InvalidValueError(
            "must be exactly 32 bytes in base64; `tokenward keys generate` prints such a key"
        )
    return secret
