"""The members of a successful token reply (RFC 6749 5.1) as values that are safe to use. Pure.

Each reader takes whatever JSON had in that place and returns a value or ``None``, with the names
of what was odd. Nothing here fails: a silly lifetime must not cost anybody a token.
"""

from __future__ import annotations

import json
import math
import re
from base64 import urlsafe_b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any, Generic, TypeVar

from daemon.domain.provider import Provider
from daemon.oauth.reply_body import json_object

_T = TypeVar("_T")

# Larger than any token in the wild, small enough for any header that still gets through.
_MAX_TOKEN = 32_768
_MAX_SCOPE = 16_384
# An access token goes into a header: RFC 6749 A.12 less the space. A refresh token does not.
_ACCESS_TOKEN = re.compile(r"[\x21-\x7E]+")
_REFRESH_TOKEN = re.compile(r"[\x20-\x7E]+")
_SCOPE_TOKEN = re.compile(r"[\x21\x23-\x5B\x5D-\x7E]+")
_SECONDS = re.compile(r"-?[0-9]{1,20}(?:\.[0-9]{0,20})?", re.ASCII)
_JWT = re.compile(r"[A-Za-z0-9_-]+\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]*", re.ASCII)
# What the key of a secret looks like, in lower case without "_" and "-": refresh_token, botToken,
# client_secret, client_assertion, password. "token_type" and "country_code" are none.
_SECRET_KEY = re.compile(
    r".*(?:tokens?|jwt|verifier|apikey|privatekey)|(?:authorization|device|user)?code"
    r"|.*(?:secret|assertion|passw|credential).*",
    re.ASCII | re.DOTALL,
)
# A shorter one may well be part of a word; it is left out where it is the whole value.
_TOKEN_LENGTH = 8
_DEEPEST = 16
_MAX_REST = 16_384
_MOST_SECRETS = 100
_DAY = 86_400.0
# Nobody means ten years: such a number is a mistake (nanoseconds, a date, "for ever").
_LONGEST_LIFETIME = 3_650 * _DAY
_CLAMPED_LIFETIME = 30 * _DAY


@dataclass(frozen=True, slots=True)
class Reading(Generic[_T]):
    """A member's value, ``None`` where there is none that can be used, and what was odd."""

    value: _T | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()


def read_access_token(value: object) -> str | None:
    """Return a token that may stand in a header (RFC 6750 2.1), never one that breaks out of it."""
    if not isinstance(value, str) or len(value) > _MAX_TOKEN:
        return None
    return value if _ACCESS_TOKEN.fullmatch(value) else None


def read_refresh_token(value: object) -> Reading[str]:
    """Return a new refresh token; without one the token in hand stays (RFC 6749 6)."""
    if value is None or value == "":
        return Reading()
    if not isinstance(value, str) or len(value) > _MAX_TOKEN or not value.strip():
        return Reading(None, ("refresh_token_unusable",))
    usable = _REFRESH_TOKEN.fullmatch(value)
    return Reading(value) if usable else Reading(None, ("refresh_token_unusable",))


def read_token_type(value: object) -> Reading[str]:
    """Return ``Bearer``, in whatever case it came or left out; no other type can be served."""
    if value is None or value == "":
        return Reading("Bearer", ("token_type_missing",))
    if isinstance(value, str) and value.strip().lower() == "bearer":
        return Reading("Bearer")
    return Reading(None, ("token_type_unknown",))


def read_lifetime(value: object, access_token: str, now: datetime) -> Reading[float]:
    """Return ``expires_in`` in whole seconds; 0 or less says that the token has expired already.

    Where there is none, the ``exp`` of a JWT access token counts; it is trusted for nothing else.
    """
    seconds = _seconds(value)
    if seconds is not None:
        return _clamped(seconds)
    odd = "expires_in_missing" if value is None else "expires_in_unusable"
    seconds = _jwt_lifetime(access_token, now)
    if seconds is None:
        return Reading(None, (odd,))
    reading = _clamped(seconds)
    return Reading(reading.value, (odd, *reading.warnings))


def read_scopes(value: object, provider: Provider) -> Reading[tuple[str, ...]]:
    """Return the granted scopes: from a string, however separated, or an array."""
    if value is None:
        return Reading()
    names = _scope_names(value, provider)
    if names is None or not all(_SCOPE_TOKEN.fullmatch(name) for name in names):
        return Reading(None, ("scope_unusable",))
    return Reading(tuple(dict.fromkeys(names)))


def read_rest(document: Mapping[str, object], tokens: Sequence[str]) -> Reading[dict[str, Any]]:
    """Return all members of a reply that are no secrets: what ``token.`` stands for.

    Left out, at every depth: members whose key says that they are secret, and whatever holds one
    of ``tokens`` or the value of such a member, wherever it stands. More than 16 KiB is nothing.
    """
    # Each member takes two characters at least: so many are not even compared with the secrets.
    if sum(islice(_members(document, 0), _MAX_REST)) > _MAX_REST // 2:
        return Reading({}, ("reply_members_too_large",))
    further = list(islice(_secret_values(document, 0), _MOST_SECRETS + 1))
    if len(further) > _MOST_SECRETS:
        return Reading({}, ("reply_members_too_large",))
    secrets = _Secrets([text for text in (*tokens, *further) if text])
    rest: dict[str, Any] = _without(document, secrets, 0, by_key=True)
    if len(json.dumps(rest)) > _MAX_REST:
        return Reading({}, ("reply_members_too_large",))
    return Reading(rest)


def without_tokens(value: object, tokens: Sequence[str]) -> Any:
    """Return JSON with ``None`` for whatever repeats one of ``tokens`` or is 16 levels down."""
    return _without(value, _Secrets(tokens), 0, by_key=False)


def _clamped(seconds: float) -> Reading[float]:
    if seconds > _LONGEST_LIFETIME:
        return Reading(_CLAMPED_LIFETIME, ("expires_in_clamped",))
    return Reading(max(seconds, -_LONGEST_LIFETIME))


def _seconds(value: object) -> float | None:
    """Read a number or a decimal string, floored; anything else, or no finite number, is none."""
    if isinstance(value, str) and _SECONDS.fullmatch(value.strip(" ")):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(math.floor(value))


def _jwt_lifetime(access_token: str, now: datetime) -> float | None:
    """Return what is left until ``exp``. One that lies in the past tells of clocks: none."""
    match = _JWT.fullmatch(access_token)
    if match is None:
        return None
    payload = match[1]
    try:
        claims = json_object(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, RecursionError):
        return None
    expires_at = claims.get("exp")
    seconds = None if isinstance(expires_at, str) else _seconds(expires_at)
    if seconds is None or seconds <= now.timestamp():
        return None
    return float(math.floor(seconds - now.timestamp()))


def _scope_names(value: object, provider: Provider) -> list[str] | None:
    if isinstance(value, list):
        names = [name for name in value if isinstance(name, str)]
        fits = len(names) == len(value) and sum(map(len, names)) <= _MAX_SCOPE
        return names if fits else None
    if not isinstance(value, str) or len(value) > _MAX_SCOPE:
        return None
    # RFC 6749 3.3 allows a comma within a scope: where we ask for such a one it separates nothing.
    if provider.scope_separator == "," or not any("," in scope for scope in provider.scopes):
        value = value.replace(",", " ")
    return value.replace(provider.scope_separator or " ", " ").split()


class _Secrets:
    """What must not be kept, each as it is; long ones also as a part of something."""

    __slots__ = ("_long", "_whole")

    def __init__(self, secrets: Sequence[str]) -> None:
        self._whole = frozenset(secrets)
        self._long = [one for one in self._whole if len(one) >= _TOKEN_LENGTH]

    def are_in(self, value: object) -> bool:
        """Tell whether a key or a scalar repeats a secret."""
        text = value if isinstance(value, str) else json.dumps(value)
        return text in self._whole or any(one in text for one in self._long)


def _is_secret_key(key: str) -> bool:
    return _SECRET_KEY.fullmatch(re.sub(r"[_\W]", "", key.lower())) is not None


def _secret_values(value: object, depth: int) -> Iterator[str]:
    """Yield the texts below secret keys; a short one, such as "yes", is nobody's secret."""
    if depth > _DEEPEST:
        return
    if isinstance(value, Mapping):
        for key, member in value.items():
            if _is_secret_key(str(key)):
                yield from _texts(member, depth)
            else:
                yield from _secret_values(member, depth + 1)
    elif isinstance(value, list):
        for member in value:
            yield from _secret_values(member, depth + 1)


def _members(value: object, depth: int) -> Iterator[int]:
    """Yield 1 for each member of an object or a list, however deep, but for those of secrets."""
    if depth > _DEEPEST:
        return
    if isinstance(value, Mapping):
        for key, member in value.items():
            yield 1
            if isinstance(member, Mapping | list) and not _is_secret_key(str(key)):
                yield from _members(member, depth + 1)
    elif isinstance(value, list):
        for member in value:
            yield 1
            yield from _members(member, depth + 1)


def _texts(value: object, depth: int) -> Iterator[str]:
    if isinstance(value, str):
        if len(value) >= _TOKEN_LENGTH:
            yield value
    elif depth <= _DEEPEST and isinstance(value, Mapping | list):
        for member in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(member, depth + 1)


def _without(value: object, secrets: _Secrets, depth: int, *, by_key: bool) -> Any:
    """Return ``value`` without secrets; ``None`` where nothing of it may be kept."""
    if isinstance(value, Mapping | list) and depth > _DEEPEST:
        return None
    if isinstance(value, Mapping):
        return {
            key: _without(member, secrets, depth + 1, by_key=by_key)
            for key, member in value.items()
            if not (by_key and _is_secret_key(key)) and not secrets.are_in(key)
        }
    if isinstance(value, list):
        return [_without(member, secrets, depth + 1, by_key=by_key) for member in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return None if secrets.are_in(value) else value
