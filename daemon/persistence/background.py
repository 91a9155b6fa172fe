"""The background tasks that keep something connected: their waits and their ends."""

from __future__ import annotations

import asyncio

from daemon.domain.clock import Clock, Entropy

# A first retry soon, because most losses are a restart or a failover that is already over; the
# cap low, because the daemon must be ready within 10 s of the database's return.
_FIRST = 0.1
_CAP = 5.0


def backoff(failures: int, entropy: Entropy, *, first: float = _FIRST, cap: float = _CAP) -> float:
    """Return the seconds to wait after ``failures`` failed tries in a row.

    Doubles from ``first`` to ``cap``; the upper half is chance, so that replicas that lost one
    database do not come back to it in step.
    """
    ceiling = min(cap, first * 2.0 ** min(failures, 30))
    chance = int.from_bytes(entropy(4), "big") / 2**32
    return ceiling * (0.5 + 0.5 * chance)


async def pause(clock: Clock, seconds: float, until: asyncio.Event) -> bool:
    """Wait for ``seconds`` or for ``until``; tell whether ``until`` is set."""
    waits = {
        asyncio.ensure_future(clock.sleep(seconds)),
        asyncio.ensure_future(until.wait()),
    }
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
    return until.is_set()


async def ended(task: asyncio.Task[None] | None) -> None:
    """Return when ``task`` was cancelled or has returned; raise what it died of.

    Cancelling this wait leaves ``task`` alone.
    """
    if task is None:
        return
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()


async def stop(task: asyncio.Task[None] | None) -> None:
    """Cancel ``task`` and wait for its end, whatever that is."""
    if task is not None:
        task.cancel()
        await asyncio.wait({task})
