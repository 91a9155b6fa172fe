"""Waiting for a condition in a test: looks often, gives up loudly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

_LOOK_EVERY = 0.02


async def eventually(
    look: Callable[[], Awaitable[T | None]], *, within: float = 20.0, what: str = "the condition"
) -> T:
    """Return the first thing that ``look`` returns and that is true; fail after ``within`` s."""
    give_up = time.monotonic() + within
    while True:
        found = await look()
        if found:
            return found
        if time.monotonic() > give_up:
            raise AssertionError(f"{what} did not come about within {within} s")
        await asyncio.sleep(_LOOK_EVERY)
