"""A connection: one owner's grant at one provider, and the names of the states it goes through."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from daemon.domain.clock import Entropy

CONNECTION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}", re.ASCII)
ID_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:@-"
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# 22 characters of base 62 carry 131 bits: as unguessable as a UUID, and one word to select.
_ID_CHARACTERS = 22


class Status(StrEnum):
    """Where a connection stands."""

    PENDING = "pending"
    """Not authorized yet."""
    ACTIVE = "active"
    """Authorized; refreshing works."""
    FAILING = "failing"
    """The last refresh failed and will be tried again; the token may still be good."""
    REAUTHORIZATION_REQUIRED = "reauthorization_required"
    """The grant is dead; a person must connect again."""
    DISCONNECTED = "disconnected"
    """Tokens erased."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The last thing that went wrong with a connection, in words safe to show."""

    code: str
    description: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TestResult:
    """How the provider's test request went. ``status`` is the HTTP status, where there was one.

    ``error`` is ``None`` exactly where ``ok``; it is a code and a sentence safe to show.
    """

    __test__ = False  # not a test of ours

    ok: bool
    status: int | None
    checked_at: datetime
    error: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """A connection without its tokens: what may be shown. All times are aware UTC.

    ``reply_values`` are values of the provider's replies that templates need, by full name
    (``token.instance_url``); they are never shown.
    """

    id: str
    provider: str
    grant: str
    status: Status
    label: str | None = None
    account_id: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    scopes: tuple[str, ...] = ()
    requested_scopes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    generation: int = 0
    expires_at: datetime | None = None
    refresh_at: datetime | None = None
    has_refresh_token: bool = False
    last_refreshed_at: datetime | None = None
    last_used_at: datetime | None = None
    last_tested_at: datetime | None = None
    last_error: Failure | None = None
    created_at: datetime
    updated_at: datetime
    return_url: str | None = None
    created_by: str = ""
    reply_values: Mapping[str, str] = field(default_factory=dict, repr=False)
    last_test: TestResult | None = None


def is_connection_id(text: str) -> bool:
    """Tell whether ``text`` may name a connection."""
    return CONNECTION_ID.fullmatch(text) is not None


def new_connection_id(entropy: Entropy) -> str:
    """Return ``con_`` and 22 base-62 characters drawn from ``entropy``."""
    number = int.from_bytes(entropy(17), "big")
    characters: list[str] = []
    for _ in range(_ID_CHARACTERS):
        number, digit = divmod(number, 62)
        characters.append(_BASE62[digit])
    return "con_" + "".join(characters)
