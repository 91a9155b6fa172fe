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


@pytest.mark.parametrize(
    ("role", "cached", "is_ready"),
    [
        (Role.ALL, 0, False),
        (Role.ALL, 1, True),
        (Role.SERVE, 0, False),
        (Role.SERVE, 1, True),
        (Role.REFRESH, 0, True),
    ],
)
def test_without_a_key_that_others_use(role: Role, cached: int, *, is_ready: bool) -> None:
    """What is cached can be served, key or no key; who has nothing says which key is missing."""
    health = DaemonHealth(
        cached=lambda: cached,
        database=lambda: None,
        serves=role.serves,
        keys=lambda: "keys are not at hand: N",
    )
    health.has_started()
    reasons = [] if is_ready else ["no token is cached, and keys are not at hand: N"]
    assert health.ready() == reasons


def test_without_the_database_and_a_key() -> None:
    """Who has nothing says all that is in the way."""
    health = DaemonHealth(cached=lambda: 0, database=lambda: "gone", keys=lambda: "no N")
    health.has_started()
    assert health.ready() == [
        "no token is cached and the database is away: gone",
        "no token is cached, and no N",
    ]


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
