"""How far a follower of the history may go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.history import passable


@pytest.mark.parametrize(
    ("position", "ids", "settled", "taken"),
    [
        (0, [], 0, 0),
        (0, [1, 2, 3], 0, 3),
        (5, [6, 7], 0, 2),
        (0, [2], 0, 0),
        (5, [6, 8, 9], 0, 1),
        (5, [6, 8, 9], 6, 1),
        (5, [6, 8, 9], 7, 3),
        (5, [6, 8, 9], 9, 3),
        (5, [6, 8, 10], 9, 3),
        (5, [8, 10, 13], 9, 2),
        (5, [100], 98, 0),
        (5, [100], 99, 1),
    ],
)
def test_gaps_hold_back_until_they_are_old(
    position: int, ids: list[int], settled: int, taken: int
) -> None:
    """What follows a missing id is taken once that id can never come."""
    assert passable(ids, position=position, settled=settled) == taken


@given(
    st.sets(st.integers(1, 40)),
    st.integers(0, 40),
    st.integers(0, 40),
)
def test_nothing_that_may_still_come_is_passed(
    present: set[int], position: int, settled: int
) -> None:
    """Every id that is passed over is settled, and all that can be taken is."""
    ids = sorted(number for number in present if number > position)
    taken = passable(ids, position=position, settled=settled)
    until = ids[taken - 1] if taken else position
    assert all(number <= settled for number in range(position + 1, until) if number not in present)
    if taken < len(ids):
        assert any(number > settled for number in range(until + 1, ids[taken]))
