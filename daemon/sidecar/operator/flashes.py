"""What a page says after something was done: a fixed code in the URL, never free text."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from daemon.sidecar.operator.words import Badge, Tone

PARAMETER = "said"

FLASHES: Mapping[str, Badge] = MappingProxyType(
    {
        "test_passed": Badge(Tone.GOOD, "The test passed: the provider accepts the token."),
        "test_failed": Badge(Tone.BAD, "The test failed. Below is why."),
        "not_tested": Badge(Tone.BAD, "There is no good token to test with. Below is why."),
        "refreshed": Badge(Tone.GOOD, "The token was refreshed."),
        "not_refreshed": Badge(Tone.BAD, "The token could not be refreshed. Below is why."),
        "disconnected_revoked": Badge(
            Tone.GOOD, "Disconnected. The provider has revoked the tokens."
        ),
        "disconnected_queued": Badge(
            Tone.WARN,
            "Disconnected here. The provider could not be told yet; it is tried again for 7 days.",
        ),
        "disconnected_unsupported": Badge(
            Tone.WARN,
            "Disconnected here. The provider has no way to be told: where that matters, withdraw"
            " the access in the account's settings there.",
        ),
        "removed": Badge(Tone.GOOD, "The connection and its history are removed."),
        "created": Badge(Tone.GOOD, "The connection was created."),
        "logged_out": Badge(Tone.IDLE, "You are logged out."),
        "session_over": Badge(Tone.IDLE, "Your session is over. Log in to go on."),
        "form_outdated": Badge(
            Tone.WARN, "Nothing was done: that page was from another session. Do it again here."
        ),
    }
)


def with_flash(url: str, code: str) -> str:
    """Return an own address, without query, that says ``code`` when it is opened."""
    return f"{url}?{PARAMETER}={code}"


def flash_of(query: Mapping[str, str]) -> Badge | None:
    """Return what a page is to say; nothing for a code that nobody set."""
    return FLASHES.get(query.get(PARAMETER, ""))
