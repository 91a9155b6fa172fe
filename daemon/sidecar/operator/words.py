"""How a connection is told to an operator: a colour with words, times, errors, events. Pure.

Green is used and working, yellow is not used yet or failing, red needs a person, grey has no token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import assert_never

from daemon.domain.connection import Connection, Status
from daemon.domain.history import DetailValue, Event, EventType

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
# Up to these, the smaller unit says more: 90 min rather than 2 h.
_UNITS = ((2 * _MINUTE, 1, "s"), (2 * _HOUR, _MINUTE, "min"), (2 * _DAY, _HOUR, "h"))


class Tone(StrEnum):
    """The colour of a state, and the name of its style."""

    GOOD = "good"
    WARN = "warn"
    BAD = "bad"
    IDLE = "idle"


@dataclass(frozen=True, slots=True)
class Badge:
    """A state in a colour and in words; neither is shown without the other."""

    tone: Tone
    text: str


@dataclass(frozen=True, slots=True)
class Moment:
    """A time for people: ``iso`` for machines, ``exact`` for a closer look."""

    iso: str
    words: str
    exact: str


@dataclass(frozen=True, slots=True)
class Advice:
    """What is wrong, and what to do about it."""

    tone: Tone
    what: str
    action: str
    code: str | None = None
    at: Moment | None = None


@dataclass(frozen=True, slots=True)
class HistoryLine:
    """One event of a connection."""

    tone: Tone
    text: str
    at: Moment
    details: tuple[tuple[str, str], ...]


def badge_of(connection: Connection, now: datetime) -> Badge:
    """Return where a connection stands."""
    match connection.status:
        case Status.PENDING:
            return Badge(Tone.IDLE, "Not authorized yet")
        case Status.DISCONNECTED:
            return Badge(Tone.IDLE, "Disconnected")
        case Status.REAUTHORIZATION_REQUIRED:
            return Badge(Tone.BAD, "Reconnect needed")
        case Status.FAILING:
            expired = is_expired(connection, now)
            return Badge(Tone.WARN, "Failing, token expired" if expired else "Refresh is failing")
        case Status.ACTIVE:
            return _active(connection, now)
        case _:
            assert_never(connection.status)


def _active(connection: Connection, now: datetime) -> Badge:
    if is_expired(connection, now) and not connection.has_refresh_token:
        return Badge(Tone.BAD, "Expired, reconnect")
    if connection.last_test is not None and not connection.last_test.ok:
        return Badge(Tone.WARN, "Active, last test failed")
    if connection.last_used_at is None:
        return Badge(Tone.WARN, "Active, not used yet")
    return Badge(Tone.GOOD, "Active, in use")


def is_expired(connection: Connection, now: datetime) -> bool:
    """Tell whether the token in hand has expired."""
    return connection.expires_at is not None and connection.expires_at <= now


def relative(moment: datetime, now: datetime) -> str:
    """Return a time as seen from ``now``: ``in 42 min``, ``3 h ago``."""
    seconds = (moment - now).total_seconds()
    size = abs(seconds)
    for limit, unit, name in _UNITS:
        if size < limit:
            text = f"{round(size / unit)} {name}"
            break
    else:
        text = f"{round(size / _DAY)} days"
    if text == "0 s":
        return "now"
    return f"in {text}" if seconds > 0 else f"{text} ago"


def moment_of(moment: datetime, now: datetime) -> Moment:
    """Return a time for people."""
    utc = moment.astimezone(UTC).replace(microsecond=0)
    exact = utc.strftime("%Y-%m-%d %H:%M:%S UTC")
    return Moment(utc.isoformat().replace("+00:00", "Z"), relative(moment, now), exact)


_CONFIGURATION = (
    "This is about our registration at the provider, not about this connection. Check the"
    " provider's client_id, client_secret, scopes and endpoints in the configuration, then reload."
)
_ACTIONS: Mapping[str, str] = MappingProxyType(
    {
        "invalid_client": _CONFIGURATION,
        "unauthorized_client": _CONFIGURATION,
        "invalid_scope": _CONFIGURATION,
        "invalid_request": _CONFIGURATION,
        "unsupported_grant_type": _CONFIGURATION,
        "decrypt_error": "Bring back the encryption key that these tokens were stored with, or"
        " connect again.",
        "in_doubt": "Nothing yet. It is asked again as soon as that is safe, so that the refresh"
        " token is not used twice.",
    }
)
_RECONNECT = "Press Reconnect, or send the owner of the account a link to do so."


def advice_of(connection: Connection, now: datetime) -> Advice | None:
    """Return what is wrong with a connection, if something is."""
    error = connection.last_error
    at = None if error is None else moment_of(error.at, now)
    code = None if error is None else error.code
    match connection.status:
        case Status.REAUTHORIZATION_REQUIRED:
            what = error.description if error else "The grant has ended."
            return Advice(Tone.BAD, what, _ACTIONS.get(code or "", _RECONNECT), code, at)
        case Status.FAILING:
            what = error.description if error else "The last refresh did not succeed."
            return Advice(
                Tone.WARN, what, _ACTIONS.get(code or "", _retry(connection, now)), code, at
            )
        case Status.ACTIVE:
            return _advice_on_active(connection, now)
        case Status.PENDING:
            action = "Press Connect, or send the owner of the account a link to do so."
            return Advice(Tone.IDLE, "Nobody has authorized this connection yet.", action)
        case Status.DISCONNECTED:
            what = "The tokens of this connection are erased."
            return Advice(Tone.IDLE, what, "To use it again, press Reconnect.")
        case _:
            assert_never(connection.status)


def _advice_on_active(connection: Connection, now: datetime) -> Advice | None:
    test = connection.last_test
    if is_expired(connection, now) and not connection.has_refresh_token:
        what = "The token has expired, and the provider gave no refresh token to get another with."
        return Advice(
            Tone.BAD, what, f"{_RECONNECT} Ask for offline access where it has such a scope."
        )
    if test is not None and test.error is not None:
        action = "Press Test to see whether it still is so; if it is, press Reconnect."
        at = moment_of(test.checked_at, now)
        return Advice(Tone.WARN, test.error.description, action, test.error.code, at)
    if not connection.has_refresh_token and connection.expires_at is not None:
        what = "The provider gave no refresh token: this connection ends when its token expires."
        return Advice(
            Tone.WARN, what, "Ask for offline access where the provider has such a scope."
        )
    return None


def _retry(connection: Connection, now: datetime) -> str:
    if connection.refresh_at is None:
        return "Press Refresh to try now; if that does not help, press Reconnect."
    when = relative(connection.refresh_at, now)
    soon = "now" if connection.refresh_at <= now else when
    return f"Nothing yet: it is tried again {soon}. Press Refresh to try at once."


_EVENTS: Mapping[EventType, tuple[Tone, str]] = MappingProxyType(
    {
        EventType.CREATED: (Tone.IDLE, "Created"),
        EventType.AUTHORIZED: (Tone.GOOD, "Authorized"),
        EventType.AUTHORIZATION_FAILED: (Tone.BAD, "Authorization failed"),
        EventType.REFRESHED: (Tone.GOOD, "Token refreshed"),
        EventType.REFRESH_FAILED: (Tone.WARN, "Refresh failed"),
        EventType.REAUTHORIZATION_REQUIRED: (Tone.BAD, "Reconnect needed"),
        EventType.RECOVERED: (Tone.GOOD, "Works again"),
        EventType.TESTED: (Tone.GOOD, "Tested"),
        EventType.DISCONNECTED: (Tone.IDLE, "Disconnected"),
        EventType.REVOKED_AT_PROVIDER: (Tone.BAD, "Found revoked at the provider"),
    }
)


def history_line(event: Event, now: datetime) -> HistoryLine:
    """Return an event for people."""
    tone, text = _EVENTS[event.type]
    if event.type is EventType.TESTED and event.detail.get("ok") is False:
        tone, text = Tone.WARN, "Test failed"
    at = moment_of(event.at, now)
    details = tuple(
        (name.replace("_", " "), _text(value))
        for name, value in event.detail.items()
        if value not in (None, "", []) and (event.type is not EventType.TESTED or name != "ok")
    )
    return HistoryLine(tone, text, at, details)


def _text(value: DetailValue) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case str():
            return value
        case int() | float() | None:
            return str(value)
        case _:
            return ", ".join(value)
