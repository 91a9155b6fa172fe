"""The history of connections: how long it is kept, and the webhook that hears of it."""

from __future__ import annotations

import base64
import binascii
from datetime import timedelta

from daemon.config import references
from daemon.config.hosts import is_private_host
from daemon.config.reading import OpenSection
from daemon.config.schema import WEBHOOK
from daemon.config.settings import EventSettings, Webhook
from daemon.config.urls import webhook_url
from daemon.config.values import InvalidValueError, boolean, duration, text
from daemon.domain.allowed_hosts import read_target

# Long enough for a delivery to be tried again through a night.
SHORTEST_RETENTION = timedelta(hours=24)
# The Standard Webhooks form of a symmetric secret, and its bounds in bytes.
_PREFIX = "whsec_"
_SHORTEST, _LONGEST = 24, 64
_SECRET_WORDS = (
    "must be whsec_ and the base64 of 24 to 64 bytes (`tokenward keys generate` prints such "
    "base64), or any other text of at least 24 bytes"
)


def events(section: OpenSection, default: EventSettings) -> EventSettings:
    """Return the settings under ``events``."""
    return EventSettings(
        webhook=_webhook(section.within("webhook", WEBHOOK)),
        retention=section.get("retention", _retention, default.retention),
    )


def _webhook(section: OpenSection) -> Webhook | None:
    reading = section.reading
    if not reading.role.refreshes:
        for key in ("url", "secret"):
            references.mention(reading, section.raw(key))
        return None
    url = _resolved(section, "url")
    is_private = url is not None and is_private_host(read_target(url).host)
    # Whoever writes a private address has said so. A name that leads to one needs a second word.
    is_open = section.get("allow_private_hosts", boolean, default=is_private)
    secret = _secret(section)
    if section.raw("url") is None:
        if section.raw("secret") is not None:
            message = "has no effect without url; set that, too, or remove this"
            reading.warn(section.at("secret"), message)
        return None
    if section.raw("secret") is None:
        message = (
            "is missing, and deliveries are signed with it; write {file: PATH} or {env: NAME} of "
            "whsec_ and what `tokenward keys generate` prints"
        )
        reading.find(section.at("secret"), message)
    if url is None:
        return None
    if is_private and not is_open:
        message = (
            "is at a private or loopback host, where nothing is delivered; remove "
            "allow_private_hosts: false beside it"
        )
        reading.find(section.at("url"), message)
    return Webhook(url=url, secret=secret or b"", allow_private_hosts=is_open)


def _resolved(section: OpenSection, key: str) -> str | None:
    """Return the URL, which may stand elsewhere: many have a key in their path."""
    value = section.raw(key)
    if value is None:
        return None
    found = references.resolved(section.reading, section.at(key), value)
    return None if found is None else section.reading.read(section.at(key), found, webhook_url)


def _secret(section: OpenSection) -> bytes | None:
    value = section.raw("secret")
    if value is None:
        return None
    found = references.secret(section.reading, section.at("secret"), value)
    return None if found is None else section.reading.read(section.at("secret"), found, _key)


def _key(value: object) -> bytes:
    secret = text(value)
    key = _decoded(secret.removeprefix(_PREFIX))
    if key is not None and _SHORTEST <= len(key) <= _LONGEST:
        return key
    key = secret.encode()
    if secret.startswith(_PREFIX) or len(key) < _SHORTEST:
        raise InvalidValueError(_SECRET_WORDS)
    return key


def _decoded(text: str) -> bytes | None:
    """Return the bytes of base64, which receivers' libraries decode with and without the prefix."""
    bare = text.rstrip("=")
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def _retention(value: object) -> timedelta:
    retention = duration(value)
    if retention < SHORTEST_RETENTION:
        raise InvalidValueError("must be at least 24h")
    return retention
