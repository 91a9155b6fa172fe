"""An event as others see it: the body of the API, the stream and the webhook (contract 4)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC
from typing import Any

from daemon.domain.history import Event

# A bigint has 19 digits at most; 18 of them fit whatever they are.
_NAME = re.compile(r"evt_(0|[1-9][0-9]{0,17})", re.ASCII)


def event_name(number: int) -> str:
    """Return an event's id as text: ``evt_7``."""
    return f"evt_{number}"


def event_number(name: str) -> int | None:
    """Return the number of an event's id; ``None`` for what is none."""
    match = _NAME.fullmatch(name)
    return None if match is None else int(match[1])


def event_body(event: Event) -> Mapping[str, Any]:
    """Return the members of an event, to be written as JSON."""
    at = event.at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {
        "id": event_name(event.id),
        "at": at,
        "connection": event.connection,
        "provider": event.provider,
        "type": event.type.value,
        "detail": dict(event.detail),
    }
