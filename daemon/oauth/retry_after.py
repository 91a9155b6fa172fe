"""``Retry-After`` and ``Date`` as servers really write them (RFC 9110 10.2.3 and 5.6.7). Pure.

Strict on purpose: ``int()`` and ``str.isdigit()`` accept Arabic digits, underscores and signs.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

_SHORTEST, _LONGEST = 1.0, 3600.0
# More digits than any sensible wait has: a longer one is the longest wait, whatever it says.
_MAX_DIGITS = 9
_DIGITS = re.compile(r"[0-9]+", re.ASCII)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH = rf"(?P<month>{'|'.join(_MONTHS)})"
_TIME = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
_DAY_NAME = r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_LONG_DAY_NAME = r"(?:Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)"
_FORMATS = tuple(
    re.compile(pattern, re.ASCII)
    for pattern in (
        rf"{_DAY_NAME}, (?P<day>\d\d) {_MONTH} (?P<year>\d{{4}}) {_TIME} GMT",
        rf"{_LONG_DAY_NAME}, (?P<day>\d\d)-{_MONTH}-(?P<year>\d\d) {_TIME} GMT",
        rf"{_DAY_NAME} {_MONTH} (?P<day>[ \d]\d) {_TIME} (?P<year>\d{{4}})",
    )
)
_CENTURY = 100
_FAR_FUTURE = 50


def retry_after(value: str | None, date: str | None, now: datetime) -> float | None:
    """Return the seconds to wait, between 1 s and 1 h; ``None`` where ``value`` is unusable.

    A date counts from the server's own ``Date`` header where that is readable, else from ``now``:
    a provider whose clock is off by hours still means minutes. Two values are none.
    """
    if value is None:
        return None
    text = value.strip(" \t")
    if _DIGITS.fullmatch(text):
        seconds = float(text) if len(text) <= _MAX_DIGITS else _LONGEST
        return _clamped(seconds)
    until = http_date(text, now)
    if until is None:
        return None
    sent = http_date(date, now) if date is not None else None
    return _clamped((until - (sent or now)).total_seconds())


def http_date(text: str, now: datetime) -> datetime | None:
    """Read any of the three HTTP-date formats; ``now`` places a two-digit year."""
    for pattern in _FORMATS:
        match = pattern.fullmatch(text.strip(" \t"))
        if match is not None:
            return _moment(match, now)
    return None


def _moment(match: re.Match[str], now: datetime) -> datetime | None:
    year = int(match["year"])
    if year < _CENTURY:
        # RFC 9110 5.6.7: more than 50 years ahead means the last past year with those digits.
        year += now.year // _CENTURY * _CENTURY
        if year > now.year + _FAR_FUTURE:
            year -= _CENTURY
    try:
        return datetime(
            year,
            _MONTHS.index(match["month"]) + 1,
            int(match["day"]),
            int(match["hour"]),
            int(match["minute"]),
            # A leap second is a second like the one before it.
            min(int(match["second"]), 59),
            tzinfo=UTC,
        )
    except ValueError:
        return None


def _clamped(seconds: float) -> float:
    return min(max(seconds, _SHORTEST), _LONGEST)
