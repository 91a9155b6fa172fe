"""The stop: nothing new begins, what is in flight ends and is stored; only then anything closes.

The hard idea: stopping is tried more than once, also after a failure, and each try has only what
is left of one grace.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

import structlog

from daemon.domain.errors import DatabaseUnavailableError
from daemon.wiring.assembly import Daemon

log = structlog.get_logger()

# Kubernetes' terminationGracePeriodSeconds should be 120: the hard end of a request and the time to
# store its reply, then the listeners' own grace for open requests, and the rest of the stop.
_GRACE = 70.0


@dataclass(slots=True)
class Grace:
    """The time that stopping may take, counted once however often it is tried."""

    ends_at: float | None = None

    def timeout(self) -> asyncio.Timeout:
        """Return what ends at the end of the grace, which begins with the first call."""
        if self.ends_at is None:
            self.ends_at = asyncio.get_running_loop().time() + _GRACE
        return asyncio.timeout_at(self.ends_at)


async def drain(daemon: Daemon, grace: Grace) -> None:
    """Begin nothing more, and wait for what is in flight to be stored. May be repeated."""
    daemon.health.is_stopping()
    # Open streams would hold up the listener until its grace is over.
    daemon.upkeep.feed.close()
    daemon.refreshing.scheduler.stop()
    try:
        async with grace.timeout():
            # A sweep that was cut after its claims would leave them to be taken over.
            await daemon.refreshing.scheduler.stopped()
            await asyncio.gather(
                daemon.refreshing.refresher.drain(),
                daemon.refreshing.asking.drain(),
                daemon.uncut.drain(),
            )
            is_drained = True
    except TimeoutError:
        is_drained = False
        log.warning("stopped_with_requests_in_flight", grace=_GRACE)
    try:
        await daemon.housekeeping.remember_use()
        # What only this journal has must still be waited for where the database forgets.
        if daemon.role.refreshes and is_drained:
            await daemon.storage.incarnations.leave()
        await daemon.keys.leave()
    except DatabaseUnavailableError:
        return


async def end_exchanges(daemon: Daemon, grace: Grace) -> None:
    """Wait for exchanges that began while all else was drained, within the same grace."""
    with suppress(TimeoutError):
        async with grace.timeout():
            await daemon.uncut.drain()
