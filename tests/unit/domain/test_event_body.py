"""An event's body and id, as everybody sees them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.event_body import event_body, event_name, event_number
from daemon.domain.history import Event, EventType


def test_the_body() -> None:
    """Contract 4: id, at, connection, provider, type, detail; the time in UTC."""
    at = datetime(2026, 11, 21, 13, 0, 0, 5_999, tzinfo=timezone(timedelta(hours=1)))
    event = Event(
        id=7,
        type=EventType.REFRESHED,
        connection="con_1",
        provider="acme",
        at=at,
        detail={"generation": 4},
    )
    assert event_body(event) == {
        "id": "evt_7",
        "at": "2026-11-21T12:00:00.005Z",
        "connection": "con_1",
        "provider": "acme",
        "type": "token.refreshed",
        "detail": {"generation": 4},
    }


@given(number=st.integers(0, 10**18 - 1))
def test_an_id_comes_back(number: int) -> None:
    """What was given out is understood."""
    assert event_number(event_name(number)) == number


@pytest.mark.parametrize(
    "name",
    ["", "7", "evt_", "evt_-1", "evt_07", "evt_1 ", "evt_\u0667", "EVT_1", "evt_" + "9" * 19],
)
def test_what_is_no_id(name: str) -> None:
    """Nothing else is an id."""
    assert event_number(name) is None
