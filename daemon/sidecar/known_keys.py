"""The cluster's public keys, as last read: kept through outages, read again for a new key's sake.

The one hard idea: an unknown key id is either a rotation or junk, and nobody can tell which without
asking. So it causes a fetch, but not more than one in ten seconds, however many ids are made up.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import structlog

from daemon.domain.clock import Clock
from daemon.domain.errors import VerificationUnavailableError
from daemon.sidecar.flights import Flights
from daemon.sidecar.service_account_token import Reason, refused, unavailable
from daemon.sidecar.signing_keys import SigningKey, read_key_set

log = structlog.get_logger()

# Seconds without a fetch after a fetch, where ids that nobody knows want one.
QUIET = 10.0


class KnownKeys:
    """Holds the keys. ``source`` is how a JWK Set is had; it raises where it is not.

    A key that the cluster has withdrawn counts until the next :meth:`refresh`.
    """

    def __init__(self, source: Callable[[], Awaitable[bytes]], *, clock: Clock) -> None:
        self._source = source
        self._clock = clock
        self._flights: Flights[str, None] = Flights()
        self._keys: Mapping[str, SigningKey] = {}
        self._trouble: str | None = None
        self._quiet_until = 0.0
        self._epoch = 0

    @property
    def are_good(self) -> bool:
        """Tell whether the last fetch brought keys."""
        return self._trouble is None and bool(self._keys)

    async def find(self, key_id: str) -> SigningKey:
        """Return the key with this id, having looked for new ones where it is unknown.

        Raises:
            Problem: 401, there is none; 503, that cannot be found out now.
        """
        key = self._keys.get(key_id)
        if key is None and (self._flights or self._clock.boottime() >= self._quiet_until):
            await self.refresh()
            key = self._keys.get(key_id)
        if key is not None:
            return key
        raise refused(Reason.UNKNOWN_KEY) if self._trouble is None else unavailable()

    async def refresh(self) -> None:
        """Read the keys again; where that fails, the old ones stay. Never raises."""
        await self._flights.join("keys", self._fetch)

    def forget(self) -> None:
        """Know no key any more: the configuration names another cluster."""
        self._epoch += 1
        self._keys, self._trouble, self._quiet_until = {}, None, 0.0

    async def close(self) -> None:
        """End a fetch that is under way."""
        await self._flights.close()

    async def _fetch(self) -> None:
        while True:
            epoch = self._epoch
            try:
                found, trouble = read_key_set(await self._source()), None
            except VerificationUnavailableError as error:
                found, trouble = None, str(error)
            except ValueError as error:
                found, trouble = None, f"what was read {error}"
            if epoch == self._epoch:
                # Else it is the answer of the cluster that was configured before.
                break
        self._tell(found, trouble)
        self._keys = self._keys if found is None else found
        self._trouble = trouble
        self._quiet_until = self._clock.boottime() + QUIET

    def _tell(self, found: Mapping[str, SigningKey] | None, trouble: str | None) -> None:
        """Log what is new: a trouble once, and keys that came or went."""
        if trouble is not None and trouble != self._trouble:
            known = len(self._keys)
            log.warning("service_account_keys_unavailable", reason=trouble, still_known=known)
        elif found is not None and (self._trouble is not None or found.keys() != self._keys.keys()):
            log.info("service_account_keys_read", count=len(found))
