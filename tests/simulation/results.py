"""What a run comes to, and the log while it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog

from tests.simulation.trace import ViolationError


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run came to. ``tail`` are the last lines of its trace."""

    seed: int
    digest: str
    met: Counter[str] = field(default_factory=Counter)
    violation: ViolationError | None = None
    tail: tuple[str, ...] = ()
    steps: int = 0


@contextmanager
def silent_logs() -> Iterator[None]:
    """Drop what the daemon logs, after a look whether a token is in it (PO10)."""

    def drop(_: Any, __: str, event: Any) -> Any:
        if any("RT-" in str(value) or "AT-" in str(value) for value in event.values()):
            raise ViolationError("PO10", f"a token is logged by {event.get('event')}")
        if event.get("event") == "refresh_crashed":
            raise ViolationError("PO8", f"a refresh of {event['connection']} crashed: {event}")
        raise structlog.DropEvent

    before = structlog.get_config()["processors"]
    structlog.configure(processors=[drop])
    try:
        yield
    finally:
        structlog.configure(processors=before)
