"""How items are gathered into notifications."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.clock import SystemClock, system_entropy
from daemon.persistence.notifications import Notifier, next_batch
from daemon.persistence.postgres import Database

items = st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1, max_size=20)


@given(st.lists(items, min_size=1), st.integers(min_value=80, max_value=200))
def test_a_batch_is_as_long_as_fits(pending: list[str], limit: int) -> None:
    """A batch begins with the first item, fits, and takes one more only if that fits too."""
    batch = next_batch(pending, limit=limit)
    assert batch
    assert batch == pending[: len(batch)]
    assert len("\n".join(batch).encode()) <= limit
    if len(batch) < len(pending):
        assert len("\n".join(pending[: len(batch) + 1]).encode()) > limit


@pytest.mark.parametrize("item", ["", "two\nlines", "nul\0", "é" * 4000, "\ud800"])
async def test_an_item_that_no_notification_can_carry_is_refused(item: str) -> None:
    """An item that is no line of 1 to 7999 bytes is the caller's mistake."""
    clock = SystemClock()
    database = Database("postgresql:///x", clock=clock, entropy=system_entropy)
    with pytest.raises(ValueError):  # noqa: PT011 # the codec's own text for a lone surrogate
        Notifier(database, clock=clock, entropy=system_entropy).publish(item)
