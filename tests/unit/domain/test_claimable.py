"""Whether one connection's refresh may be claimed now."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import product

import pytest

from daemon.domain.claim import ClaimState, RefusalReason
from daemon.domain.claimable import ScheduleRow, Wanted, refusal
from daemon.domain.connection import Status
from tests.support.clock import START

SOON = timedelta(seconds=1)
WANTED = Wanted(connection_id="acme-1", provider="acme", generation=3, rate=10)
ROW = ScheduleRow(
    status=Status.ACTIVE,
    state=ClaimState.IDLE,
    due_at=START + SOON,
    failures=0,
    generation=3,
    has_refresh_token=True,
)
DEAD = {Status.PENDING, Status.REAUTHORIZATION_REQUIRED, Status.DISCONNECTED}


def test_nobody() -> None:
    """A connection that does not exist is unknown."""
    assert refusal(None, WANTED, START) is RefusalReason.UNKNOWN


def expected(row: ScheduleRow, *, forced: bool) -> RefusalReason | None:
    """Return the table's answer, in the words of the contract instead of in code."""
    rules = [
        (row.status in DEAD or not row.has_refresh_token, RefusalReason.NOT_REFRESHABLE),
        (row.generation > WANTED.generation, RefusalReason.SUPERSEDED),
        (row.state is ClaimState.SENDING or row.rests, RefusalReason.SENDING),
        (
            (row.state is ClaimState.IN_DOUBT or row.failures > 0 or row.arrived_expired)
            and row.due_at != START
            and not forced,
            RefusalReason.BACKING_OFF,
        ),
    ]
    return next((reason for holds, reason in rules if holds), None)


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("state", list(ClaimState))
@pytest.mark.parametrize("status", list(Status))
def test_the_whole_table(status: Status, state: ClaimState, forced: bool) -> None:  # noqa: FBT001
    """Every combination is refused for the first reason that holds, or not at all."""
    wanted = replace(WANTED, forced=forced)
    either = (True, False)
    rows = product((None, START, START + SOON), (0, 1, 7), (2, 3, 4), either, either, either)
    for due_at, failures, generation, has_refresh_token, arrived_expired, rests in rows:
        row = ScheduleRow(
            status=status,
            state=state,
            due_at=due_at,
            failures=failures,
            generation=generation,
            has_refresh_token=has_refresh_token,
            arrived_expired=arrived_expired,
            rests=rests,
        )
        assert refusal(row, wanted, START) is expected(row, forced=forced), row


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (ROW, None),
        (replace(ROW, status=Status.FAILING, failures=1), RefusalReason.BACKING_OFF),
        (replace(ROW, status=Status.FAILING, failures=1, due_at=START), None),
        (replace(ROW, state=ClaimState.IN_DOUBT), RefusalReason.BACKING_OFF),
        (replace(ROW, state=ClaimState.IN_DOUBT, due_at=None), RefusalReason.BACKING_OFF),
        (replace(ROW, state=ClaimState.SENDING, due_at=START), RefusalReason.SENDING),
        (replace(ROW, generation=4), RefusalReason.SUPERSEDED),
        (replace(ROW, generation=2), None),
        (replace(ROW, has_refresh_token=False), RefusalReason.NOT_REFRESHABLE),
        (replace(ROW, arrived_expired=True), RefusalReason.BACKING_OFF),
    ],
)
def test_a_few_by_name(row: ScheduleRow, reason: RefusalReason | None) -> None:
    """A healthy connection may be refreshed before it is due; a failing one waits its time."""
    assert refusal(row, WANTED, START) is reason


@pytest.mark.parametrize("state", [ClaimState.IDLE, ClaimState.IN_DOUBT])
def test_a_person_passes_backoff_and_doubt_but_not_an_open_attempt(state: ClaimState) -> None:
    """Force is for waiting times only: it never sends beside another attempt."""
    forced = replace(WANTED, forced=True)
    row = replace(ROW, state=state, status=Status.FAILING, failures=3)
    assert refusal(row, forced, START) is None
    sending = replace(row, state=ClaimState.SENDING)
    assert refusal(sending, forced, START) is RefusalReason.SENDING
