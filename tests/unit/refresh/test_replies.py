"""What replies that the journal kept amount to."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest

from daemon.domain.claim import Standing
from daemon.domain.connection import Status
from daemon.domain.journal import JournaledReply, Purpose
from daemon.domain.outcome import Granted, Outcome, OutcomeKind
from daemon.domain.reply import RawReply
from daemon.refresh.replies import KeptReply, folded, is_forgotten, since_exchange
from tests.support.clock import START

GRANTED = "granted"
SALVAGED = "salvaged"


def kept(
    generation: int, access: str | None, refresh: str | None, *, purpose: Purpose = Purpose.REFRESH
) -> KeptReply:
    """Return a reply with these tokens; without an access token it was salvaged."""
    entry = JournaledReply(
        attempt=f"attempt {generation}",
        purpose=purpose,
        connection_id="a",
        provider="acme",
        generation=generation,
        scopes=(),
        sent_at=START + timedelta(minutes=generation),
        reply=RawReply(status=200, headers={}, body=b""),
    )
    if access is None:
        outcome = Outcome(kind=OutcomeKind.IN_DOUBT, salvaged_refresh_token=refresh)
    else:
        granted = Granted(access_token=access, refresh_token=refresh)
        outcome = Outcome(kind=OutcomeKind.OK, granted=granted)
    return KeptReply(entry=entry, outcome=outcome)


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        ([kept(1, "a1", "r1"), kept(2, "a2", "r2")], ("a2", "r2", 2)),
        ([kept(1, "a1", "r1"), kept(2, "a2", None)], ("a2", "r1", 2)),
        ([kept(1, "a1", None), kept(2, "a2", None)], ("a2", None, 2)),
        ([kept(1, "a1", "r1"), kept(2, None, "r2")], ("a1", "r2", 1)),
        ([kept(1, "a1", "r1"), kept(2, None, "r2"), kept(3, "a3", None)], ("a3", "r2", 3)),
    ],
)
def test_folding(replies: Sequence[KeptReply], expected: tuple[str, str | None, int]) -> None:
    """The newest reply counts; what it does not say is that of the one before it."""
    found = folded(replies)
    granted = found.outcome.granted
    assert granted is not None
    access, refresh, minutes = expected
    assert (granted.access_token, granted.refresh_token) == (access, refresh)
    assert found.entry.generation == replies[-1].entry.generation
    assert found.entry.attempt == replies[-1].entry.attempt
    # A lifetime counts from the request that brought the access token.
    assert found.entry.sent_at == START + timedelta(minutes=minutes)


def test_folding_a_refresh_token_alone() -> None:
    """Without any access token it is stored as what it is."""
    only = kept(2, None, "r2")
    assert folded([only]) == only


def test_what_is_older_than_an_exchange_is_of_another_grant() -> None:
    """Only the last exchange counts, and the refreshes after it."""
    first = kept(0, "a", "r", purpose=Purpose.EXCHANGE)
    second = kept(2, "a", "r", purpose=Purpose.EXCHANGE)
    before, after = kept(1, "a", "r"), kept(3, "a", "r")
    assert since_exchange([first, before, second, after]) == (second, [after])
    assert since_exchange([before, after]) == (None, [before, after])
    assert since_exchange([before, first]) == (first, [])


@pytest.mark.parametrize(
    ("generation", "epoch", "granted_after", "expected"),
    [
        (2, 0, None, True),
        (1, 0, None, True),
        (3, 0, None, False),
        (1, 1, None, False),
        (1, 0, 0, True),
        (1, 0, 9, True),
        (1, 0, 60, False),
    ],
)
def test_what_a_database_has_forgotten(
    *, generation: int, epoch: int, granted_after: float | None, expected: bool
) -> None:
    """Not what came before a newer generation, a disconnect, or another grant."""
    entry = kept(2, "a", "r").entry
    granted_at = None if granted_after is None else entry.sent_at + timedelta(seconds=granted_after)
    standing = Standing(
        status=Status.ACTIVE, generation=generation, epoch=epoch, granted_at=granted_at
    )
    assert is_forgotten(entry, standing) is expected
