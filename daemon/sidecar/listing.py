"""Listing connections: query parameters to a filter, and a cursor that survives new rows."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import UTC, datetime

from multidict import MultiMapping

from daemon.domain.connection import Connection, Status, is_connection_id
from daemon.domain.errors import Problem

_DEFAULT_LIMIT = 100
_LARGEST_LIMIT = 1000
_TOO_MANY_DIGITS = 10
_NAMES = {"provider", "status", "q", "limit", "cursor"}
_METADATA = "metadata."
_BAD_CURSOR = "cursor is the next_cursor of an earlier page, unchanged."


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What one page of a listing shows. ``before`` is where the page before it ended."""

    provider: str | None
    status: str | None
    text: str | None
    metadata: dict[str, str]
    limit: int
    before: tuple[datetime, str] | None


def read_listing(query: MultiMapping[str]) -> Listing:
    """Check the parameters of ``GET /v1/connections``.

    Raises:
        Problem: 400, naming the parameter.
    """
    names = set(query)
    strangers = [n for n in names if n not in _NAMES and not n.startswith(_METADATA)]
    if strangers or len(names) != len(query):
        raise _bad(
            "The parameters are provider, status, q, metadata.KEY, limit and cursor, each once."
        )
    status = query.get("status")
    if status is not None and status not in set(Status):
        raise _bad(f"status is one of {', '.join(Status)}.")
    if any("\0" in value for value in query.values()):
        raise _bad("Parameters cannot hold NUL.")
    return Listing(
        provider=query.get("provider"),
        status=status,
        text=query.get("q"),
        metadata={n.removeprefix(_METADATA): query[n] for n in names if n.startswith(_METADATA)},
        limit=_limit(query.get("limit")),
        before=_position(query.get("cursor")),
    )


def cursor_after(last: Connection) -> str:
    """Return the cursor of what follows ``last``."""
    text = f"{last.created_at.isoformat()} {last.id}"
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def _limit(text: str | None) -> int:
    if text is None:
        return _DEFAULT_LIMIT
    if not (text.isascii() and text.isdigit() and len(text) < _TOO_MANY_DIGITS and int(text) >= 1):
        raise _bad(f"limit is a number from 1 to {_LARGEST_LIMIT}.")
    return min(int(text), _LARGEST_LIMIT)


def _position(cursor: str | None) -> tuple[datetime, str] | None:
    if cursor is None:
        return None
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        moment, _, connection_id = base64.urlsafe_b64decode(padded).decode().partition(" ")
        position = datetime.fromisoformat(moment)
        if position.tzinfo is None or not is_connection_id(connection_id):
            raise _bad(_BAD_CURSOR)
        return position.astimezone(UTC), connection_id
    except (ValueError, OverflowError) as error:
        raise _bad(_BAD_CURSOR) from error


def _bad(detail: str) -> Problem:
    return Problem(400, "bad_request", detail)
