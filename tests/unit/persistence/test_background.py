"""Waits between tries, and how background tasks end."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.clock import SystemClock
from daemon.persistence.background import backoff, ended, pause, stop


@given(st.integers(min_value=0, max_value=10_000), st.binary(min_size=4, max_size=4))
def test_backoff_stays_within_its_bounds(failures: int, chance: bytes) -> None:
    """A wait is at least half of the doubled first one and never above the cap."""
    ceiling = min(5.0, 0.1 * 2 ** min(failures, 30))
    assert ceiling / 2 <= backoff(failures, lambda _: chance) <= ceiling <= 5.0


def test_backoff_doubles() -> None:
    """Without luck the waits double up to the cap."""
    waits = [backoff(failures, lambda _: b"\0" * 4) for failures in range(8)]
    assert waits == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.5, 2.5])


async def test_a_pause_ends_at_its_event() -> None:
    """A set event ends a long pause; a short one passes without it."""
    event = asyncio.Event()
    assert not await pause(SystemClock(), 0, event)
    waiting = asyncio.create_task(pause(SystemClock(), 3600, event))
    event.set()
    assert await waiting


async def test_the_end_of_a_task_is_told() -> None:
    """Waiting for a task's end raises what it died of, but not that it was stopped."""

    async def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await ended(asyncio.create_task(fail()))
    await stop(None)
    await ended(None)
    sleeper = asyncio.create_task(SystemClock().sleep(3600))
    await stop(sleeper)
    await ended(sleeper)
