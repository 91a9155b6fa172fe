"""What only the garbage collector would free: everybody waits while it does."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def circles_of(*kinds: type) -> Iterator[list[object]]:
    """Gather, at the end of the block, what is left over of these kinds in circles."""
    found: list[object] = []
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        found += [left for left in gc.garbage if isinstance(left, kinds)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
