"""Time and chance, as arguments: everything that asks for either receives it by constructor.

Two clocks exist because they answer different questions. Wall time decides whether a token is
expired (the provider's promise is about the world). Boot time (``CLOCK_BOOTTIME``) decides how
long something has taken, and unlike ``time.monotonic`` it goes on while the machine is suspended.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

Entropy = Callable[[int], bytes]
"""``entropy(n)`` returns ``n`` unpredictable bytes."""


class Clock(Protocol):
    """What the daemon knows of time."""

    def now(self) -> datetime:
        """Return wall time, aware, in UTC."""

    def boottime(self) -> float:
        """Return seconds since boot; counts through suspend and never steps."""

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds`` (at once where 0 or less). Cancellation ends it early."""


class SystemClock:
    """The clock of the machine."""

    def now(self) -> datetime:
        """Return wall time, aware, in UTC."""
        return datetime.now(UTC)  # noqa: TID251 - the one place that knows real time

    def boottime(self) -> float:
        """Return ``CLOCK_BOOTTIME`` in seconds."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        """Sleep on the running event loop."""
        await asyncio.sleep(max(0.0, seconds))


def system_entropy(size: int) -> bytes:
    """Return ``size`` bytes of the operating system's randomness."""
    # What ``secrets`` asks, too, by way of a class that makes it twice as dear.
    return os.urandom(size)
