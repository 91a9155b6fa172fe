"""Parameters and cursors of a listing."""

from __future__ import annotations

import base64
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import MultiDict

from daemon.domain.connection import ID_LETTERS, Connection, Status
from daemon.domain.errors import Problem
from daemon.sidecar.listing import Listing, cursor_after, read_listing
from tests.support.clock import START


def read(*pairs: tuple[str, str]) -> Listing:
    """Read parameters."""
    return read_listing(MultiDict(pairs))


def cursor(text: str) -> str:
    """Encode a cursor's text."""
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def test_nothing_asked() -> None:
    """Without parameters the first hundred of all are shown."""
    assert read() == Listing(
        provider=None, status=None, text=None, metadata={}, limit=100, before=None
    )


def test_everything_asked() -> None:
    """Each parameter narrows the listing; metadata may be asked for by several keys."""
    listing = read(
        ("provider", "acme"),
        ("status", "failing"),
        ("q", "Ünï %_"),
        ("metadata.team", "billing"),
        ("metadata.a.b", ""),
        ("limit", "7"),
    )
    assert (listing.provider, listing.status, listing.text) == ("acme", "failing", "Ünï %_")
    assert listing.metadata == {"team": "billing", "a.b": ""}
    assert listing.limit == 7


@pytest.mark.parametrize(("text", "limit"), [("1", 1), ("1000", 1000), ("999999999", 1000)])
def test_limits(text: str, limit: int) -> None:
    """More than a thousand are never shown at once."""
    assert read(("limit", text)).limit == limit


@pytest.mark.parametrize(
    "pairs",
    [
        [("limit", "0")],
        [("limit", "-1")],
        [("limit", "1.5")],
        [("limit", "")],
        [("limit", "\u0661")],
        [("limit", "9" * 10)],
        [("status", "alive")],
        [("status", "")],
        [("colour", "red")],
        [("Provider", "acme")],
        [("q", "a"), ("q", "b")],
        [("metadata.a", "1"), ("metadata.a", "2")],
        [("q", "a\0")],
        [("cursor", "")],
        [("cursor", "x")],
        [("cursor", "ä")],
        [("cursor", "////")],
        [("cursor", cursor("yesterday acme-1"))],
        [("cursor", cursor("2026-11-21T12:00:00 acme-1"))],
        [("cursor", cursor("2026-11-21T12:00:00+00:00"))],
        [("cursor", cursor("2026-11-21T12:00:00+00:00 "))],
        [("cursor", cursor("2026-11-21T12:00:00+00:00 a\0b"))],
        [("cursor", cursor("0001-01-01T00:00:00+14:00 acme-1"))],
        [("cursor", cursor("9999-12-31T23:59:59-14:00 acme-1"))],
        [("cursor", base64.urlsafe_b64encode(b"\xff\xfe").decode())],
    ],
)
def test_bad_parameters(pairs: list[tuple[str, str]]) -> None:
    """What cannot be understood is refused with what may be asked."""
    with pytest.raises(Problem) as caught:
        read(*pairs)
    assert (caught.value.status, caught.value.code) == (400, "bad_request")


@given(
    created_at=st.datetimes(
        min_value=datetime(1970, 1, 2),  # noqa: DTZ001 - hypothesis adds the zone
        timezones=st.just(UTC),
    ),
    name=st.text(alphabet=ID_LETTERS, max_size=127),
)
def test_a_cursor_says_where_a_page_ended(created_at: datetime, name: str) -> None:
    """A cursor comes back as exactly the place it was made from, and fits into a URL."""
    last = Connection(
        id=f"a{name}",
        provider="acme",
        grant="authorization_code",
        status=Status.ACTIVE,
        created_at=created_at,
        updated_at=created_at,
    )
    text = cursor_after(last)
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    assert read(("cursor", text)).before == (created_at, f"a{name}")


def test_a_cursor_in_another_zone() -> None:
    """A time is a time, whatever its offset."""
    moment = START.astimezone(timezone(timedelta(hours=2)))
    position = read(("cursor", cursor(f"{moment.isoformat()} acme-1"))).before
    assert position == (START, "acme-1")


@given(st.text(max_size=40))
def test_no_cursor_is_a_crash(text: str) -> None:
    """Whatever stands there, it is a place or a problem."""
    with suppress(Problem):
        read(("cursor", text))
