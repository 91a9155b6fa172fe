"""Takes secrets out of what is about to be logged: by name, by shape, and whatever cannot be read.

Pure, and the last line of defence only: secret fields have ``repr=False`` and events never hand
secrets over. It errs on the side of hiding too much, and it never raises.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from typing import TypeAlias, TypeVar

Plain: TypeAlias = bool | int | float | str | list["Plain"] | dict[str, "Plain"] | None
"""What JSON can hold."""

_T = TypeVar("_T")
_Key = TypeVar("_Key")

REDACTED = "[redacted]"

# Names are compared in lower case with everything but letters and digits taken out, so that
# access_token, Access-Token and accessToken are one name.
_SECRET_ENDINGS = (
    "token",
    "secret",
    "password",
    "passwd",
    "passphrase",
    "verifier",
    "assertion",
    "cookie",
    "apikey",
    "privatekey",
    "authorization",
    "ticket",
    "jwt",
)
_SECRET_NAMES = frozenset({"code", "devicecode", "usercode", "state", "nonce", "key", "keys"})

# A longer text is cut before it is searched: an event loop is waiting.
_TEXT_LIMIT = 16_384
_DEPTH_LIMIT = 4
# Python refuses to write out integers of thousands of digits; readers lose digits far earlier.
_INTEGER_BITS = 64
_ITEM_LIMIT = 50

# Every match of a rule below has one of these; names and ids have none and end here, in 0.3 µs.
_SUSPECT = re.compile(r"[=:%\s/+]|eyJ")

# Repetitions are bounded, or consume what they have matched, so that no input is quadratic.
_SCHEME = re.compile(r"(?i)\b(bearer|basic|dpop|negotiate)(\s{1,4}|%20|\+)[A-Za-z0-9._~+/=%-]{8,}")
_JWT = re.compile(r"(?<![\w-])eyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*){0,3}")
_HEADER = re.compile(
    r"""(?ix) (authorization|cookie) (["']?\s{0,4}[:=]\s{0,4}) (?!["'\s(\[{]) [^\r\n"']+"""
)
_NAMES = (
    "token|secret|password|passwd|passphrase|verifier|assertion|cookie|api[_-]?key|private[_-]?key"
    "|authorization|ticket|jwt|device_code|user_code|input_value"
)
# A colon after a path ("POST https://as.example/token: connection reset") assigns nothing, and
# the four short words are names only where something is visibly assigned to them.
_ASSIGNED = re.compile(
    rf"""(?ix)
    (   (?: {_NAMES} ) \\* ["']? \s{{0,4}} (?: = | %3D | %3A )
      | (?<!/) (?: {_NAMES} ) \\* ["']? \s{{0,4}} :
      | (?: (?<![a-z0-9_-]) | (?<=%3F) | (?<=%26) | (?<=%23) ) (?: code|state|nonce|key )
        (?: \\* ["'] \s{{0,4}} [:=] | \s{{0,4}} = | %3D )
    )
    ( \s{{0,4}} )
    (   \\* b? "(?:[^"\\]|\\.)*"?
      | \\* b? '(?:[^'\\]|\\.)*'?
      | [\[({{] [^\])}}]* [\])}}]?
      | [^\s&,;<>)\]}}]+ )"""
)
# A connect URL carries its ticket in the path. 20 characters leave /connect/authorize alone,
# the endpoint of a widespread authorization server.
_CONNECT_PATH = re.compile(r"(/connect/)[\w~.%-]{20,}")
_USERINFO = re.compile(r"(://)[^\s/@]{1,2048}@")
# People forget to percent-encode the slash in a database password.
_DATABASE_USERINFO = re.compile(r"(?i)(postgres(?:ql)?://)\S{1,2048}@")
_FAILING_ROW = re.compile(r"(Failing row contains )\(.*")

_ASSIGNED_WORDS = (
    *("token", "secret", "passw", "passphrase", "verifier", "assertion", "cookie", "key"),
    *("authorization", "ticket", "jwt", "code", "state", "nonce", "input_value"),
)
# Each rule with the words of which its text has at least one, in lower case: looking for a word
# costs 50 ns, a search 10 µs.
_RULES: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = (
    (("postgres",), _DATABASE_USERINFO, rf"\1{REDACTED}@"),
    (("://",), _USERINFO, rf"\1{REDACTED}@"),
    (("authorization", "cookie"), _HEADER, rf"\1\2{REDACTED}"),
    (("bearer", "basic", "dpop", "negotiate"), _SCHEME, rf"\1\2{REDACTED}"),
    (_ASSIGNED_WORDS, _ASSIGNED, rf"\1\2{REDACTED}"),
    (("eyj",), _JWT, REDACTED),
    (("/connect/",), _CONNECT_PATH, rf"\1{REDACTED}"),
    (("row contains",), _FAILING_ROW, rf"\1{REDACTED}"),
)


def is_secret_name(name: str) -> bool:
    """Tell whether what is filed under ``name`` must not be shown."""
    bare = "".join(filter(str.isalnum, name.lower()))
    return bare in _SECRET_NAMES or bare.endswith(_SECRET_ENDINGS)


def redact_text(text: str) -> str:
    """Return ``text`` without credentials, tokens after a name, and userinfo in URLs.

    A secret that stands alone in a sentence cannot be told from a word: do not log such texts.
    """
    if len(text) > _TEXT_LIMIT:
        text = f"{text[:_TEXT_LIMIT]}… ({len(text)} characters)"
    if _SUSPECT.search(text) is None:
        return text
    lower = text.lower()
    for words, pattern, replacement in _RULES:
        if any(word in lower for word in words):
            text = pattern.sub(replacement, text)
    return text


def redact_fields(fields: Mapping[_Key, object], *, depth: int = 0) -> dict[str, Plain]:
    """Return ``fields`` as JSON can hold them, secrets replaced by name and by shape."""
    shown: dict[str, Plain] = {}
    for key, value in _first(fields.items()):
        name, is_secret = _judged(_text(key))
        shown[name] = _hidden(value) if is_secret else redact_value(value, depth)
    return shown


def redact_value(value: object, depth: int = 0) -> Plain:
    """Return ``value`` as JSON can hold it; other objects by their redacted ``repr``."""
    match value:
        case None | bool() | int() if (value or 0).bit_length() <= _INTEGER_BITS:
            return value
        case str():
            return redact_text(_text(value))
        case float():
            return value if math.isfinite(value) else repr(value)
        case Mapping() if depth < _DEPTH_LIMIT:
            return redact_fields(value, depth=depth + 1)
        case list() | tuple() | set() | frozenset() if depth < _DEPTH_LIMIT:
            return [redact_value(item, depth + 1) for item in _first(value)]
        case _:
            return redact_text(_described(value))


def _described(value: object) -> str:
    match value:
        case bytes() | bytearray() | memoryview():
            return f"<{len(value)} bytes>"
        case datetime():
            return _moment(value)
        case BaseException():
            return f"{type(value).__name__}: {_text(value)}"
        case _:
            return _text(value, repr)


@lru_cache(maxsize=512)
def _judged(name: str) -> tuple[str, bool]:
    # Log lines have few names, over and over.
    return redact_text(name), is_secret_name(name)


def _first(items: Iterable[_T]) -> Iterable[_T]:
    return islice(items, _ITEM_LIMIT)


def _hidden(value: object) -> Plain:
    # A flag such as has_refresh_token tells nothing.
    return value if value is None or isinstance(value, bool) else REDACTED


def _moment(value: datetime) -> str:
    if value.tzinfo is None:
        return value.isoformat()
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _text(value: object, render: Callable[[object], str] = str) -> str:
    try:
        return render(value)
    except Exception:  # noqa: BLE001 - whatever a stranger's __repr__ raises, the line is written
        return f"<unprintable {type(value).__name__}>"
