"""How long a provider asks us to wait, from every form of the header."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.oauth.retry_after import http_date, retry_after

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("120", 120.0),
        (" 120\t", 120.0),
        ("0", 1.0),
        ("1", 1.0),
        ("00120", 120.0),
        ("3600", 3600.0),
        ("3601", 3600.0),
        ("9" * 20, 3600.0),
        ("9" * 5_000, 3600.0),
        (None, None),
        ("", None),
        (" ", None),
        ("-5", None),
        ("+5", None),
        ("1e3", None),
        ("0x10", None),
        ("1.5", None),
        ("1_0", None),
        ("\u0661\u0662\u0660", None),
        ("\u00b2", None),
        ("120, 60", None),
        ("120 s", None),
        ("120\n", None),
        ("soon", None),
        ("Sat, 21 Nov 2026 12:02:00 GMT", 120.0),
        ("Saturday, 21-Nov-26 12:02:00 GMT", 120.0),
        ("Sat Nov 21 12:02:00 2026", 120.0),
        ("Sat Nov  7 12:02:00 2026", 1.0),
        ("Sat, 21 Nov 2026 11:00:00 GMT", 1.0),
        ("Sat, 21 Nov 1970 11:00:00 GMT", 1.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0),
        ("Sat, 21 Nov 2026 12:01:60 GMT", 119.0),
        ("Sat, 31 Feb 2026 12:00:00 GMT", None),
        ("Sat, 21 Nov 2026 25:00:00 GMT", None),
        ("Sat, 21 Nov 0000 12:00:00 GMT", 1.0),
        ("Sat, 21 Nov 2026 12:02:00", None),
        ("Sat, 21 Nov 2026 12:02:00 +0100", None),
        ("21 Nov 2026 12:02:00 GMT", None),
        ("sat, 21 nov 2026 12:02:00 gmt", None),
        ("2026-11-21T12:02:00Z", None),
        ("Sat, 21 Nov 2026 12:02:00 GMT, Sat, 21 Nov 2026 12:03:00 GMT", None),
    ],
)
def test_the_wait(value: str | None, wait: float | None) -> None:
    """T7: ASCII digits or an HTTP-date give 1 s to 1 h; anything else gives nothing."""
    assert retry_after(value, None, NOW) == wait


@pytest.mark.parametrize(
    ("date", "wait"),
    [
        ("Sat, 21 Nov 2026 07:00:00 GMT", 300.0),
        ("Saturday, 21-Nov-26 07:00:00 GMT", 300.0),
        ("Sat Nov 21 07:00:00 2026", 300.0),
        ("junk", 1.0),
        (None, 1.0),
    ],
)
def test_a_date_counts_from_the_servers_own(date: str | None, wait: float) -> None:
    """A server whose clock is five hours behind still means five minutes."""
    assert retry_after("Sat, 21 Nov 2026 07:05:00 GMT", date, NOW) == wait


@pytest.mark.parametrize(
    ("text", "year"),
    [
        ("Sunday, 06-Nov-94 08:49:37 GMT", 1994),
        ("Sunday, 06-Nov-26 08:49:37 GMT", 2026),
        ("Sunday, 06-Nov-76 08:49:37 GMT", 2076),
        ("Sunday, 06-Nov-77 08:49:37 GMT", 1977),
    ],
)
def test_a_two_digit_year_is_near(text: str, year: int) -> None:
    """RFC 9110 5.6.7: more than fifty years ahead is past."""
    assert http_date(text, NOW) == datetime(year, 11, 6, 8, 49, 37, tzinfo=UTC)


@given(value=st.text() | st.from_regex(r"[A-Za-z]{3}, \d\d [A-Z][a-z]{2} \d{4} .*"), date=st.text())
def test_any_text_is_a_wait_or_nothing(value: str, date: str) -> None:
    """No text raises, and every wait is between a second and an hour."""
    wait = retry_after(value, date, NOW)
    assert wait is None or 1 <= wait <= 3600
