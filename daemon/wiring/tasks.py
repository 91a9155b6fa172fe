"""Tasks that must end by themselves: what neither a caller nor SIGTERM may cut."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Uncut:
    """Runs work to its end whoever stops waiting for it; ``drain`` waits for all of it."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __call__(self, work: Coroutine[Any, Any, T], /) -> T:
        """Run ``work`` and return its result. Cancelling this call leaves the work running."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def drain(self) -> None:
        """Return when all work has ended."""
        while self._tasks:
            await asyncio.wait(self._tasks)
