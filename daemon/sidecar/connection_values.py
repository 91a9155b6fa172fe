"""A connection's fields and reply values for the proxy, without a query for each request.

What is known is used for one second, and only for the token's generation that it was read with: a
``PATCH`` at any replica, or a reconnect, holds within that time. Providers whose templates have no
names are never looked up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from daemon.domain.allowed_hosts import template_values
from daemon.domain.clock import Clock
from daemon.domain.connection import Connection
from daemon.domain.errors import DatabaseUnavailableError
from daemon.domain.provider import Provider
from daemon.refresh.cache import Entry
from daemon.sidecar.request_values import TOKEN_NAMES, has_values

_GOOD_FOR = 1.0
# At some hundred bytes each, a few megabytes.
_LARGEST = 4096
_NOTHING: Mapping[str, str] = MappingProxyType({})


class StoredConnections(Protocol):
    """Where connections are read from."""

    async def get(self, connection_id: str) -> Connection | None:
        """Return one connection; may raise DatabaseUnavailableError."""


@dataclass(slots=True)
class _Known:
    generation: int
    asked_at: float
    values: Mapping[str, str]


class ConnectionValues:
    """What templates may use of connections, by full name. Bounded."""

    def __init__(
        self, connections: StoredConnections, *, clock: Clock, largest: int = _LARGEST
    ) -> None:
        self._connections = connections
        self._clock = clock
        self._largest = largest
        self._known: dict[str, _Known] = {}

    async def of(self, entry: Entry, provider: Provider) -> Mapping[str, str]:
        """Return the values of the connection of ``entry``; empty where no template needs any.

        While the database is away, what was known last is used.

        Raises:
            DatabaseUnavailableError: it is away, and nothing is known.
        """
        if not needs_values(provider):
            return _NOTHING
        now = self._clock.boottime()
        known = self._known.get(entry.connection)
        if known is not None and known.generation == entry.generation:
            if now - known.asked_at < _GOOD_FOR:
                return known.values
            # Whoever comes while this one asks uses what is known.
            known.asked_at = now
        return await self._read(entry, known, now)

    async def _read(self, entry: Entry, known: _Known | None, now: float) -> Mapping[str, str]:
        try:
            connection = await self._connections.get(entry.connection)
        except DatabaseUnavailableError:
            if known is None:
                raise
            return known.values
        values = _NOTHING if connection is None else template_values(connection)
        self._known.pop(entry.connection, None)
        self._known[entry.connection] = _Known(entry.generation, now, values)
        if len(self._known) > self._largest:
            self._known.pop(next(iter(self._known)))
        return values


def needs_values(provider: Provider) -> bool:
    """Tell whether any template of a proxied request has names, the token's aside.

    Bodies are not looked into: one is rare, and a look-up too many is cheap.
    """
    request, base = provider.request, provider.api_base_url
    if not has_values(provider):
        return base is not None and bool(base.names)
    templates = (*request.headers.values(), *request.query.values())
    return bool(
        (base is not None and base.names)
        or request.body
        or any(set(template.names).difference(TOKEN_NAMES) for template in templates)
    )
