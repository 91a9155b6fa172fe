"""When a person is back from the provider."""

from __future__ import annotations

import pytest

from daemon.cli.connecting import is_connected

EARLIER, NOW = "2026-11-21T18:00:00Z", "2026-11-21T18:05:00Z"


def body(
    status: str, generation: int, updated_at: str, refreshed_at: str | None
) -> dict[str, object]:
    """Return what matters of a connection body."""
    return {
        "status": status,
        "generation": generation,
        "updated_at": updated_at,
        "last_refreshed_at": refreshed_at,
    }


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (body("pending", 0, EARLIER, None), body("pending", 0, EARLIER, None), False),
        (body("pending", 0, EARLIER, None), body("active", 1, NOW, NOW), True),
        (body("pending", 0, NOW, None), body("active", 1, NOW, NOW), True),
        # Created and authorized within a second, and stored in the next.
        (body("pending", 0, EARLIER, None), body("active", 1, EARLIER, NOW), True),
        # A refresh, nothing else.
        (body("active", 3, EARLIER, EARLIER), body("active", 4, EARLIER, NOW), False),
        (body("active", 3, EARLIER, EARLIER), body("active", 4, NOW, NOW), True),
        # Authorized, then refreshed before anybody looked.
        (body("active", 3, EARLIER, EARLIER), body("active", 5, NOW, "2026-11-21T18:05:01Z"), True),
        (body("reauthorization_required", 3, EARLIER, EARLIER), body("active", 4, NOW, NOW), True),
        (body("active", 3, EARLIER, EARLIER), body("failing", 4, NOW, NOW), False),
    ],
)
def test_connected(before: dict[str, object], after: dict[str, object], *, expected: bool) -> None:
    """An authorization is told from the refreshes that go on meanwhile."""
    assert is_connected(before, after) is expected
