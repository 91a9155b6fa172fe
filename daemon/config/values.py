"""Pure readers of single values: a plain YAML value in, a typed value out or the reason why not.

A reason never repeats the value: it may be a secret that stands in the wrong place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum
from ipaddress import ip_address
from typing import TypeVar

from daemon.config.settings import Address

E = TypeVar("E", bound=StrEnum)

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ufeff\ud800-\udfff]")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smh]?)", re.ASCII)
_RATE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)/([smh])", re.ASCII)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
# Longer than any token lives; keeps every sum of a time and a duration inside datetime's range.
_LONGEST_DURATION = timedelta(days=3650)
_DURATION_WORDS = (
    "must be a duration such as 90s, 15m or 2h (the units are s, m and h), or a number of seconds"
)
# An IPv4 address in disguise (127.1, 0x7f000001) is no name: its last label begins with a digit.
_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*"
    r"[A-Za-z_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?",
    re.ASCII,
)
_ADDRESS = re.compile(
    r"(?:\[(?P<six>[^\[\]]*)\]|(?P<host>[^\[\]:]*)):(?P<port>[0-9]{1,5})", re.ASCII
)
_ADDRESS_WORDS = "must be HOST:PORT, such as 127.0.0.1:7420, localhost:7420 or '[::1]:7420'"
_HIGHEST_PORT = 65535


class InvalidValueError(Exception):
    """A value cannot be used; the text says what it must be, and never what it was."""


def text(value: object) -> str:
    """Return non-empty text without control characters."""
    if value is None or value == "":
        raise InvalidValueError("must not be empty")
    if isinstance(value, bool | int | float):
        raise InvalidValueError("must be text; put it in quotes")
    if not isinstance(value, str):
        raise InvalidValueError("must be text")
    if _CONTROL.search(value):
        raise InvalidValueError("must not contain line breaks or other control characters")
    return value


def boolean(value: object) -> bool:
    """Return ``true`` or ``false``."""
    if not isinstance(value, bool):
        raise InvalidValueError("must be true or false")
    return value


def whole_number(minimum: int, maximum: int) -> Callable[[object], int]:
    """Return a reader of whole numbers from ``minimum`` to ``maximum``."""

    def read(value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum:
            return value
        raise InvalidValueError(f"must be a whole number from {minimum} to {maximum}")

    return read


def fraction(value: object) -> float:
    """Return a finite number; its bounds are the key's own."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidValueError("must be a number such as 0.75")
    return float(value)


def duration(value: object) -> timedelta:
    """Return a duration of zero or more."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise InvalidValueError(_DURATION_WORDS)
    seconds = _seconds(value) if isinstance(value, str) else value
    if not 0 <= seconds <= _LONGEST_DURATION.total_seconds():
        raise InvalidValueError("must be a duration from 0 to ten years")
    return timedelta(seconds=seconds)


def _seconds(value: str) -> float:
    match = _DURATION.fullmatch(value)
    if match is None:
        raise InvalidValueError(_DURATION_WORDS)
    return float(match[1]) * _SECONDS[match[2]]


def positive_duration(value: object) -> timedelta:
    """Return a duration longer than zero."""
    length = duration(value)
    if not length:
        raise InvalidValueError("must be longer than zero")
    return length


def rate(value: object) -> float:
    """Return events a second from ``10/s``, ``600/m`` or ``1000/h``."""
    match = _RATE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise InvalidValueError(
            "must be a rate such as 10/s, 600/m or 1000/h (per second, minute or hour)"
        )
    number = float(match[1])
    if not number:
        raise InvalidValueError("must be more than zero")
    return number / _SECONDS[match[2]]


def one_of(kind: type[E]) -> Callable[[object], E]:
    """Return a reader of one of an enumeration's words."""

    def read(value: object) -> E:
        for member in kind:
            if value == member.value:
                return member
        raise InvalidValueError(f"must be one of {', '.join(kind)}")

    return read


def address(value: object) -> Address:
    """Return where to listen."""
    match = _ADDRESS.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise InvalidValueError(_ADDRESS_WORDS)
    host = match["host"] if match["six"] is None else match["six"]
    port = int(match["port"])
    if port > _HIGHEST_PORT or not _may_listen(host, bracketed=match["six"] is not None):
        raise InvalidValueError(_ADDRESS_WORDS)
    return Address(host, port)


def _may_listen(host: str, *, bracketed: bool) -> bool:
    if not bracketed and is_host_name(host):
        return True
    try:
        return (ip_address(host).version == 6) is bracketed  # noqa: PLR2004 - the protocol's number
    except ValueError:
        return False


def is_host_name(host: str) -> bool:
    """Tell whether ``host`` is a DNS name, and not an address in any notation."""
    return _HOST_NAME.fullmatch(host) is not None


def is_loopback(host: str) -> bool:
    """Tell whether ``host`` can only be this machine. Names are not resolved."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
