"""What a sink's file holds of a connection. Pure.

The one hard idea: nothing that ages while it lies there, so that equal bytes mean an equal token.
"""

from __future__ import annotations

import orjson

from daemon.domain.sink import Held, Nothing, SinkFormat, Wanted
from daemon.refresh.cache import SHORTEST_LIFE, Entry

_AGEING = frozenset({"expires_in", "warning"})


def held_of(entry: Entry, form: SinkFormat) -> Held:
    """Return what a file should hold of a connection."""
    if entry.expires_at <= 0:
        return Nothing()
    return Wanted(content=_content(entry, form), until=entry.expires_at - SHORTEST_LIFE)


def _content(entry: Entry, form: SinkFormat) -> bytes:
    kind, token = entry.token()
    match form:
        case SinkFormat.TOKEN:
            return token.encode()
        case SinkFormat.HEADER:
            # Servers that say ``bearer`` mean RFC 6750's ``Bearer``.
            scheme = "Bearer" if kind.lower() == "bearer" else kind
            return f"Authorization: {scheme} {token}\n".encode()
        case SinkFormat.JSON:
            members = orjson.loads(entry.body(0))
            kept = {k: v for k, v in members.items() if k not in _AGEING}
            return orjson.dumps(kept) + b"\n"
