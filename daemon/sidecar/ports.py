"""What the api listener's routes need of those who do the work; the narrowest views of them."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from daemon.domain.connection import Connection, Failure
from daemon.domain.revocation import Initiator, RevocationResult


class Report(Protocol):
    """How a test request went, in words safe to show."""

    @property
    def ok(self) -> bool:
        """Return whether the token works."""

    @property
    def status(self) -> int | None:
        """Return the HTTP status, where there was an answer."""

    @property
    def account_id(self) -> str | None:
        """Return whose account it is, as far as known."""

    @property
    def label(self) -> str | None:
        """Return how the connection is called now."""

    @property
    def checked_at(self) -> datetime:
        """Return when."""

    @property
    def error(self) -> Failure | None:
        """Return what went wrong; ``None`` exactly where ``ok``."""


class Tests(Protocol):
    """Calls the provider's test request."""

    async def test(self, connection: Connection) -> Report:
        """Test now, store the result and return it."""


class Disconnects(Protocol):
    """Ends connections."""

    async def disconnect(
        self, connection: Connection, *, initiator: Initiator, purge: bool
    ) -> tuple[Connection, RevocationResult]:
        """Erase the tokens here at once, and revoke them at the provider as far as it goes."""
