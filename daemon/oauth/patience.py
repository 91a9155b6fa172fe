"""[exchange] The end of a request's time, in a process that may have stood still meanwhile.

Its hard idea: a process that was stopped (SIGSTOP, a frozen machine) wakes up past its deadline
with the reply already in its socket. The timer would run first and throw away a refresh token that
nobody else has; so a deadline that comes late leaves a moment to read what has arrived.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

# More than an event loop is late for in a healthy process, less than any deadline of ours.
_LATE = 0.1
# To read what has arrived takes milliseconds; others that woke up with us want to run, too.
_TO_READ = 2.0


@asynccontextmanager
async def patience(seconds: float, *, has_sent: Callable[[], bool]) -> AsyncIterator[None]:
    """Raise ``TimeoutError`` in the body after ``seconds``.

    Where that moment is noticed late, a body that ``has_sent`` something gets 2 s more.
    """
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + seconds
    async with asyncio.timeout(None) as limit:

        def end() -> None:
            stood_still = loop.time() - ends_at > _LATE
            limit.reschedule(loop.time() + (_TO_READ if stood_still and has_sent() else 0.0))

        timer = loop.call_at(ends_at, end)
        try:
            yield
        finally:
            timer.cancel()
