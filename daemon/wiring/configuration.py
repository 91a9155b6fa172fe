"""The configuration in force: one holder that everything asks, and that SIGHUP changes."""

from __future__ import annotations

from collections.abc import Sequence

from daemon.config.settings import Settings, Webhook
from daemon.domain.provider import Provider


class Configuration:
    """Holds the settings in force. Readers ask at each use, so a reload reaches all at once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def get(self, name: str) -> Provider | None:
        """Return a provider as configured now."""
        return self.settings.providers.get(name)

    def providers(self) -> Sequence[Provider]:
        """Return all providers."""
        return tuple(self.settings.providers.values())

    def concurrency_of(self, name: str) -> int:
        """Return how many refreshes may be in flight at a provider; 0 where it is not known."""
        provider = self.settings.providers.get(name)
        return 0 if provider is None else provider.concurrency

    def webhook(self) -> Webhook | None:
        """Return where events are delivered, if anywhere."""
        return self.settings.events.webhook
