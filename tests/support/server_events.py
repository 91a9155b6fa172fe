"""What an authorization server has seen: the evidence that a test counts."""

from __future__ import annotations

import hashlib
from collections import Counter

from daemon.demo.authorization_server.child import Event


def digest(token: str) -> str:
    """Return how a token is named in events."""
    return hashlib.sha256(token.encode()).hexdigest()


class EventLog:
    """Events in the order in which they happened. ``record`` may be called from any thread."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def record(self, event: Event) -> None:
        """Keep an event."""
        self._events.append(event)

    def named(self, *names: str) -> list[Event]:
        """Return the events with these names; all, where none is given."""
        return [event for event in list(self._events) if not names or event.name in names]

    def refresh_requests(self) -> Counter[str]:
        """Count the refresh requests that arrived, by digest of the refresh token presented.

        A value above 1 is a refresh token that was sent twice. Requests are counted before the
        server looks at them, so one that it refused or that a fault swallowed counts too.
        """
        return Counter(
            str(event.members["refresh_token"])
            for event in self.named("token_request.received")
            if event.members["grant_type"] == "refresh_token"
        )
