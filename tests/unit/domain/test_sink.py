"""When a sink's file is written, kept and removed, as a table."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from pathlib import Path

import pytest

from daemon.domain.sink import (
    LOOK_AGAIN,
    Action,
    Held,
    Left,
    Nothing,
    Present,
    Sink,
    Unknown,
    Wanted,
    decide,
)

NOW = 1000.0
SINK = Sink(connection="acme-1", path=Path("/run/app/token"), mode=0o640)
GOOD = Wanted(content=b"new", until=NOW + 600)
RIGHT = Present(content=b"new", mode=0o640, owner=1, group=2)
OLD = replace(RIGHT, content=b"old")
OPEN = replace(RIGHT, mode=0o644)


@pytest.mark.parametrize(
    ("held", "present", "left", "expected"),
    [
        # A good token: the file is made, replaced or left alone.
        (GOOD, None, None, (Action.WRITE, LOOK_AGAIN)),
        (GOOD, OLD, None, (Action.WRITE, LOOK_AGAIN)),
        (GOOD, RIGHT, None, (Action.KEEP, LOOK_AGAIN)),
        (GOOD, OPEN, None, (Action.WRITE, LOOK_AGAIN)),
        (replace(GOOD, until=inf), RIGHT, None, (Action.KEEP, LOOK_AGAIN)),
        # A file system that has no modes: what was written is as right as it gets.
        (GOOD, OPEN, Left(present=OPEN, until=NOW + 600), (Action.KEEP, LOOK_AGAIN)),
        (GOOD, OLD, Left(present=OLD, until=NOW + 600), (Action.WRITE, LOOK_AGAIN)),
        # The look at the expiry is never late.
        (replace(GOOD, until=NOW + 3), RIGHT, None, (Action.KEEP, 3)),
        (replace(GOOD, until=NOW), RIGHT, None, (Action.REMOVE, LOOK_AGAIN)),
        (replace(GOOD, until=NOW - 1), RIGHT, None, (Action.REMOVE, LOOK_AGAIN)),
        (replace(GOOD, until=NOW - 1), None, None, (Action.KEEP, LOOK_AGAIN)),
        # No token: no file, whoever made it.
        (Nothing(), RIGHT, None, (Action.REMOVE, LOOK_AGAIN)),
        (Nothing(), None, None, (Action.KEEP, LOOK_AGAIN)),
        # Nobody knows: as it is, but never past an expiry that is known.
        (Unknown(), RIGHT, None, (Action.KEEP, LOOK_AGAIN)),
        (Unknown(), None, None, (Action.KEEP, LOOK_AGAIN)),
        (Unknown(), RIGHT, Left(present=RIGHT, until=NOW + 2), (Action.KEEP, 2)),
        (Unknown(), RIGHT, Left(present=RIGHT, until=NOW), (Action.REMOVE, LOOK_AGAIN)),
        (Unknown(), None, Left(present=RIGHT, until=NOW), (Action.KEEP, LOOK_AGAIN)),
    ],
)
def test_decide(
    held: Held, present: Present | None, left: Left | None, expected: tuple[Action, float]
) -> None:
    """What is held and what is there decide what happens, and when to look again."""
    decision = decide(SINK, held, present, now=NOW, left=left)
    assert (decision.action, decision.look_in) == expected


@pytest.mark.parametrize(
    ("owner", "group", "action"),
    [
        (None, None, Action.KEEP),
        (1, 2, Action.KEEP),
        (3, None, Action.WRITE),
        (None, 3, Action.WRITE),
    ],
)
def test_owner_and_group(owner: int | None, group: int | None, action: Action) -> None:
    """A file that belongs to somebody else than configured is replaced."""
    sink = replace(SINK, owner=owner, group=group)
    assert decide(sink, GOOD, RIGHT, now=NOW, left=None).action is action


def test_no_token_is_shown() -> None:
    """What a file holds is in no printed form."""
    assert "new" not in f"{GOOD!r} {RIGHT!r} {Left(present=RIGHT, until=0)!r}"
