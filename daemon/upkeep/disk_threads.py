"""[serve] Blocking work on disks that may hang, in threads that nothing has to wait for.

The one hard idea: a call to a dead network disk cannot be interrupted. So nobody but its own
thread waits for it for ever: not the event loop, and not the end of the process, which the threads
of the standard library's executors hold up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


class DiskThreads:
    """Runs at most ``number`` pieces of work at once; others wait for one of these to end."""

    def __init__(self, number: int) -> None:
        self._places = asyncio.Semaphore(number)
        self._abandoned = asyncio.Event()

    async def run(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns, or raise what it raises.

        Cancelled, this ends only when ``work`` has, or once that was abandoned: else it might still
        be at it while somebody begins the next piece.
        """
        async with self._places:
            loop = asyncio.get_running_loop()
            done: asyncio.Future[T] = loop.create_future()
            Thread(target=_do, args=(work, loop, done), name="disk", daemon=True).start()
            try:
                return await asyncio.shield(done)
            except asyncio.CancelledError:
                await self._until_done_or_abandoned(done)
                raise

    def abandon(self) -> None:
        """Wait no more for work whose wait was cancelled: the process is about to end."""
        self._abandoned.set()

    async def _until_done_or_abandoned(self, done: asyncio.Future[T]) -> None:
        abandoned = asyncio.ensure_future(self._abandoned.wait())
        either: set[asyncio.Future[Any]] = {done, abandoned}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            abandoned.cancel()
        if done.done():
            done.exception()  # Seen: whoever wanted to know has gone.


def _do(work: Callable[[], T], loop: asyncio.AbstractEventLoop, done: asyncio.Future[T]) -> None:
    """Do it in this thread, and tell the loop's."""
    tell: Callable[[], None]
    try:
        tell = partial(done.set_result, work())
    except Exception as error:  # noqa: BLE001 - a thread's end: its caller gets what it died of
        tell = partial(done.set_exception, error)
    with suppress(RuntimeError):  # The loop is closed: it was abandoned.
        loop.call_soon_threadsafe(tell)
