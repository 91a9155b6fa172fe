"""What the probes are told, for each kind of process and state of the database."""

from __future__ import annotations

import pytest

from daemon.domain.role import Role
from daemon.wiring.health import DaemonHealth


@pytest.mark.parametrize(
    ("role", "cached", "is_ready"),
    [
        (Role.ALL, 0, False),
        (Role.ALL, 1, True),
        (Role.SERVE, 0, False),
        (Role.SERVE, 1, True),
        (Role.REFRESH, 0, True),
        (Role.REFRESH, 1, True),
    ],
)
def test_without_the_database(role: Role, cached: int, *, is_ready: bool) -> None:
    """Who is there for callers is ready with something to serve, who refreshes in any case."""
    health = DaemonHealth(cached=lambda: cached, database=lambda: "gone", serves=role.serves)
    health.has_started()
    assert (health.ready() == []) is is_ready
    assert health.alive() == []


@pytest.mark.parametrize("role", list(Role))
def test_before_and_after(role: Role) -> None:
    """Nobody is ready before the start is done, nor once it is to end."""
    away: list[str | None] = ["the schema is older"]
    health = DaemonHealth(cached=lambda: 9, database=lambda: away[-1], serves=role.serves)
    assert health.ready() == ["starting: the schema is older"]
    away.append(None)
    health.has_started()
    assert health.ready() == []
    health.is_stopping()
    assert health.ready() == ["stopping"]
