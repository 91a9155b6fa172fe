"""Work that several want at once and that is done once, whoever of them stays to see its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Flights(Generic[K, V]):
    """Runs one piece of work for each key at a time, in a task of its own."""

    def __init__(self) -> None:
        self._tasks: dict[K, asyncio.Task[V]] = {}

    def __len__(self) -> int:
        """Return how many are under way."""
        return len(self._tasks)

    def __contains__(self, key: K) -> bool:
        """Tell whether this one is under way."""
        return key in self._tasks

    async def join(self, key: K, work: Callable[[], Coroutine[Any, Any, V]]) -> V:
        """Return what ``work`` returns, or what the one under way does.

        ``work`` must not raise: there may be nobody left to hear of it. Cancelling this wait leaves
        the work alone.
        """
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.create_task(work())
            self._tasks[key] = task
            task.add_done_callback(partial(self._landed, key))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Cancel what is under way and wait for its end."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _landed(self, key: K, task: asyncio.Task[V]) -> None:
        del task
        self._tasks.pop(key, None)
