"""Where a proxied request goes and with which token: found in memory, nearly always.

The one hard idea: what was rendered and judged once is used again as long as the very objects it
was made of are in force: the provider, the connection's values, the token's entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from daemon.domain.allowed_hosts import Target
from daemon.domain.clock import Clock
from daemon.domain.provider import Provider
from daemon.refresh.cache import Entry, TokenCache
from daemon.refresh.ports import Providers
from daemon.refresh.reading import TokenReader
from daemon.sidecar.access import Identity
from daemon.sidecar.connection_values import ConnectionValues
from daemon.sidecar.proxy_target import destination, prefix_of
from daemon.sidecar.request_route import provider_not_configured
from daemon.sidecar.request_values import Added, Credential, added, has_values
from daemon.sidecar.routing import Survivor, gone

# Bases that are kept rendered: a few hundred bytes each.
_REMEMBERED = 4096
# Each holds a token a second time.
_REMEMBERED_TOKENS = 256


class Wanted(Protocol):
    """What a caller asks for. ``path`` is empty or begins with ``/``."""

    connection_id: str
    path: str
    origins: Sequence[str]
    provider: str


@dataclass(slots=True)
class Way:
    """Where one request goes and with which token."""

    entry: Entry
    provider: Provider
    values: Mapping[str, str]
    place: Target
    url: str
    """Without the query."""


@dataclass(slots=True)
class _Base:
    """An ``api_base_url`` for one set of values; ``prefix`` is what paths are put behind."""

    provider: Provider
    values: Mapping[str, str]
    place: Target
    prefix: str


class Ways:
    """Finds ways."""

    def __init__(
        self,
        *,
        cache: TokenCache,
        reader: TokenReader,
        providers: Providers,
        values: ConnectionValues,
        survivor_of: Survivor,
        clock: Clock,
    ) -> None:
        self._cache = cache
        self._reader = reader
        self._providers = providers
        self._values = values
        self._survivor_of = survivor_of
        self._clock = clock
        self._bases: dict[str, _Base] = {}
        self._tokens: dict[str, tuple[Entry, Added]] = {}

    async def find(self, wanted: Wanted, identity: Identity) -> Way:
        """Return how a request goes out; ``wanted.provider`` is set as soon as it is known.

        Raises:
            Problem: 404, 409, 503 as the token route; 403 ``host_not_allowed``.
        """
        entry = self._cache.get(wanted.connection_id)
        if entry is None or not entry.is_good(self._clock.now().timestamp()):
            entry = await self._entry(wanted.connection_id, identity)
        entry.used = True
        wanted.provider = entry.provider
        provider = self._providers.get(entry.provider)
        if provider is None:
            raise provider_not_configured(entry.provider, entry.connection)
        values = await self._values.of(entry, provider)
        if wanted.origins:
            place = destination(provider, values, wanted.origins)
            return Way(entry, provider, values, place, prefix_of(place) + wanted.path)
        base = self._base(entry, provider, values)
        url = base.prefix + wanted.path if wanted.path else base.place.url
        return Way(entry, provider, values, base.place, url)

    def additions(self, way: Way) -> Added:
        """Return what is added to a request; where that is the token alone, as made before."""
        entry, provider = way.entry, way.provider
        if has_values(provider):
            return added(provider, way.values, Credential(*entry.token()))
        known = self._tokens.get(entry.connection)
        if known is None or known[0] is not entry:
            if len(self._tokens) >= _REMEMBERED_TOKENS:
                self._tokens.clear()
            known = (entry, added(provider, way.values, Credential(*entry.token())))
            self._tokens[entry.connection] = known
        return known[1]

    async def _entry(self, connection_id: str, identity: Identity) -> Entry:
        reading = await self._reader.read(connection_id)
        if reading is None:
            raise await gone(connection_id, identity, self._survivor_of)
        return reading.entry

    def _base(self, entry: Entry, provider: Provider, values: Mapping[str, str]) -> _Base:
        """Return ``api_base_url``, rendered and checked, as long as nothing in it changes."""
        key = entry.connection if values else provider.name
        base = self._bases.get(key)
        if base is None or base.provider is not provider or base.values is not values:
            if len(self._bases) >= _REMEMBERED:
                self._bases.clear()
            place = destination(provider, values, ())
            base = _Base(provider, values, place, prefix_of(place))
            self._bases[key] = base
        return base
