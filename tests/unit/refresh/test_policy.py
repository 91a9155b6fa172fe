"""When a connection is refreshed next: due times, backoff and resends."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.config.settings import Refresh
from daemon.domain.claim import Abandoned, Claim, ClaimState
from daemon.domain.connection import Status
from daemon.domain.provider import Rotation, RotationKind
from daemon.domain.tokens import TokenSet
from daemon.refresh.policy import (
    Life,
    abandoned,
    backoff,
    comes_too_late,
    due_at,
    resend_at,
    share,
)
from tests.support.clock import START

SETTINGS = Refresh()
STATIC, OVERLAP, STRICT = (
    Rotation(kind) for kind in (RotationKind.STATIC, RotationKind.OVERLAP, RotationKind.STRICT)
)


def grace(seconds: float) -> Rotation:
    """Return a profile with a grace period."""
    return Rotation(RotationKind.GRACE, timedelta(seconds=seconds))


def at(seconds: float) -> datetime:
    """Return the time so long after the start."""
    return START + timedelta(seconds=seconds)


def tokens(lifetime: float | None, *, refreshable: bool = True) -> TokenSet:
    """Return tokens issued at the start."""
    return TokenSet(
        generation=1,
        access_token="a",
        refresh_token="r" if refreshable else None,
        token_type="Bearer",
        scopes=("read",),
        issued_at=START,
        expires_at=None if lifetime is None else at(lifetime),
    )


def planned(lifetime: float, connection: str = "c", settings: Refresh = SETTINGS) -> float:
    """Return how many seconds after issue tokens are due."""
    due = due_at(tokens(lifetime), connection, settings)
    assert due is not None
    return (due - START).total_seconds()


@pytest.mark.parametrize(
    ("lifetime", "earliest", "latest"),
    [
        (-1, 30, 30),
        (0, 30, 30),
        (1, 1, 1),
        (2, 1, 1),
        (5, 2, 2.5),
        (60, 24, 30),
        (120, 48, 60),
        (300, 210, 240),
        (3600, 2520, 2880),
        (86400, 60480, 69120),
    ],
)
def test_due(lifetime: float, earliest: float, latest: float) -> None:
    """At three quarters, five per cent to either side, and never into the margin."""
    times = [planned(lifetime, f"acme-{number}") for number in range(200)]
    assert earliest <= min(times)
    assert max(times) <= latest


@pytest.mark.parametrize(
    ("lifetime", "refreshable", "due"),
    [(3600, False, 3600), (0, False, 0), (None, True, None), (None, False, None)],
)
def test_due_without_refreshing(
    lifetime: float | None, *, refreshable: bool, due: float | None
) -> None:
    """Without a refresh token a person is needed at the expiry; without an expiry never."""
    found = due_at(tokens(lifetime, refreshable=refreshable), "c", SETTINGS)
    assert found == (None if due is None else at(due))


def test_without_jitter_all_are_due_at_once() -> None:
    """A jitter of 0 plans every connection at the same point of its life."""
    settings = Refresh(at=0.5, jitter=0)
    assert {planned(3600, str(number), settings) for number in range(50)} == {1800}


def test_due_is_spread_evenly_and_stays() -> None:
    """Each tenth of the ids falls into each tenth of the window, the same at every call."""
    shares = [share(f"con_{number}") for number in range(10_000)]
    assert shares == [share(f"con_{number}") for number in range(10_000)]
    counts = [sum(int(one * 10) == tenth for one in shares) for tenth in range(10)]
    assert min(counts) > 880
    assert max(counts) < 1120


FRACTIONS = st.floats(min_value=0.01, max_value=0.99)


@given(
    lifetime=st.floats(min_value=2.001, max_value=10**8),
    fraction=FRACTIONS,
    jitter=st.floats(min_value=0, max_value=0.5),
    margin=st.floats(min_value=0, max_value=10**6),
    connection=st.text(max_size=5),
)
def test_due_is_always_within_the_life(
    *, lifetime: float, fraction: float, jitter: float, margin: float, connection: str
) -> None:
    """Whatever is configured, tokens are due after their issue and before their expiry."""
    settings = Refresh(at=fraction, jitter=jitter, margin=timedelta(seconds=margin))
    due = planned(lifetime, connection, settings)
    assert 1 <= due < lifetime
    assert due <= max(lifetime - min(margin, lifetime / 2), 1.0) + 1e-5


@given(lifetime=st.floats(min_value=-(10**6), max_value=2))
def test_tiny_lifetimes_do_not_loop(lifetime: float) -> None:
    """However short or wrong a lifetime, the next refresh is at least a second away."""
    assert planned(lifetime) >= 1


@pytest.mark.parametrize(
    ("failures", "shortest", "longest"),
    [(1, 1, 2), (2, 2, 4), (3, 4, 8), (5, 16, 32), (6, 30, 60), (9, 30, 60), (10**6, 30, 60)],
)
def test_backoff(failures: int, shortest: float, longest: float) -> None:
    """The wait doubles with each failure up to a minute, with jitter over its upper half."""
    assert backoff(failures, 0.0, None) == shortest
    assert backoff(failures, 0.999999, None) == pytest.approx(longest, rel=1e-5)


@pytest.mark.parametrize(
    ("remaining", "wait"), [(None, 45), (600, 45), (100, 25), (8, 2), (1, 1), (0, 45), (-5, 45)]
)
def test_backoff_is_shorter_as_expiry_nears(remaining: float | None, wait: float) -> None:
    """Several tries fit into what is left of a life; without any left there is no hurry."""
    assert backoff(9, 0.5, remaining) == wait


@given(
    failures=st.integers(min_value=1, max_value=10**9),
    chance=st.floats(min_value=0, max_value=1, exclude_max=True),
    remaining=st.one_of(st.none(), st.floats(min_value=-(10**9), max_value=10**9)),
)
def test_backoff_keeps_its_bounds(failures: int, chance: float, remaining: float | None) -> None:
    """No wait is shorter than a second or longer than a minute."""
    assert 1 <= backoff(failures, chance, remaining) <= 60


@pytest.mark.parametrize(
    ("rotation", "expires", "again", "expected"),
    [
        # Old tokens stay alive: an ordinary retry.
        (STATIC, 3600, False, 2),
        (OVERLAP, 3600, True, 2),
        # Within half the grace, and sooner where the retry is.
        (grace(30), 3600, False, 2),
        (grace(30), 3600, True, 2),
        # A grace that cannot be told from a network delay is none.
        (grace(19.9), 3600, False, 3480),
        (Rotation(RotationKind.GRACE), 3600, False, 3480),
        # Shortly before the expiry: two minutes, or a tenth of a short life.
        (STRICT, 3600, False, 3480),
        (STRICT, 600, False, 540),
        (STRICT, 60, False, 54),
        # A second doubt: not before there is nothing left to lose.
        (STRICT, 3600, True, 3600),
        # Nothing to lose: an ordinary retry.
        (STRICT, 0, False, 2),
        (STRICT, -10, True, 2),
        (STRICT, None, False, 2),
        # A retry that is later anyway.
        (STRICT, 1, False, 2),
    ],
)
def test_resend(*, rotation: Rotation, expires: float | None, again: bool, expected: float) -> None:
    """A token of unknown fate is sent again when the profile says that it is safe."""
    life = Life(issued_at=START, expires_at=None if expires is None else at(expires))
    assert (resend_at(rotation, life, sent_at=START, now=START, retry=at(2), again=again)) == at(
        expected
    )


def test_resend_within_half_the_grace_beats_a_long_backoff() -> None:
    """The end of a grace period does not wait for a backoff."""
    life = Life(issued_at=START, expires_at=at(3600))
    assert resend_at(grace(30), life, sent_at=START, now=START, retry=at(60)) == at(15)


@pytest.mark.parametrize(
    ("waited", "expected"), [(0, 2), (20, 22), (24, 26), (26, 3480), (61, 3480), (4000, 4002)]
)
def test_a_grace_counts_from_the_send(waited: float, expected: float) -> None:
    """It may have begun with the request: what a timeout has used up is gone, then it is strict."""
    life = Life(issued_at=START, expires_at=at(3600))
    resend = resend_at(grace(30), life, sent_at=START, now=at(waited), retry=at(waited + 2))
    assert resend == at(expected)


@pytest.mark.parametrize(
    ("rotation", "overdue", "due"),
    [
        (STATIC, 0, 1.5),
        (OVERLAP, 0, 1.5),
        (STRICT, -120, 3480),
        # Found by its own owner seconds after the send, or by another when its time has passed.
        (grace(30), -115, 1.5),
        (grace(30), 1, 3480),
        (grace(600), 1, 1.5),
    ],
)
def test_abandoned(rotation: Rotation, overdue: float, due: float) -> None:
    """A claim whose owner vanished is in doubt, and resent when the profile says so."""
    claim = Abandoned(
        connection_id="acme-1",
        provider="acme",
        attempt="attempt",
        failures=0,
        generation=7,
        issued_at=START,
        expires_at=at(3600),
        overdue=timedelta(seconds=overdue),
    )
    settlement = abandoned(claim, rotation, START, 0.5, hold=timedelta(seconds=120))
    assert (settlement.connection_id, settlement.attempt) == ("acme-1", "attempt")
    assert (settlement.generation, settlement.tokens) == (7, None)
    assert settlement.state is ClaimState.IN_DOUBT
    assert settlement.status is Status.FAILING
    assert settlement.failures == 1
    assert settlement.due_at == at(due)
    assert settlement.touches_connection
    assert settlement.last_error is not None
    assert settlement.last_error.code == "in_doubt"


@pytest.mark.parametrize(("since", "due"), [(None, 1.5), (-125, 1.5), (-620, 3480), (40, 1.5)])
def test_an_abandoned_claim_may_be_older_than_it_looks(since: float | None, due: float) -> None:
    """Its owner may have held it for longer, or repeated a request; a wrong clock only shortens."""
    claim = Abandoned(
        connection_id="acme-1",
        provider="acme",
        attempt="attempt",
        failures=0,
        generation=7,
        issued_at=START,
        expires_at=at(3600),
        overdue=timedelta(seconds=1),
        doubted_since=None if since is None else at(since),
    )
    settlement = abandoned(claim, grace(600), START, 0.5, hold=timedelta(seconds=120))
    assert settlement.due_at == at(due)
    assert settlement.doubted_since == at(min(since or 0, -121))


@pytest.mark.parametrize(
    ("rotation", "since", "now", "late"),
    [
        (grace(30), 0, 20, False),
        (grace(30), 0, 26, True),
        (grace(30), 0, 3479, True),
        (grace(30), 0, 3480, False),
        (grace(30), 0, 3700, False),
        (grace(30), 500, 20, False),
        (grace(30), None, 1000, False),
        (STRICT, 0, 1000, True),
        (STRICT, 0, 3480, False),
        (STATIC, 0, 1000, False),
        (OVERLAP, 0, 1000, False),
    ],
)
def test_a_resend_may_come_too_late(
    *, rotation: Rotation, since: float | None, now: float, late: bool
) -> None:
    """What was due within the grace is not sent after it, while the access token lives."""
    claim = Claim(
        connection_id="acme-1",
        provider="acme",
        attempt="attempt",
        status=Status.FAILING,
        tokens=tokens(3600),
        requested_scopes=(),
        was_in_doubt=True,
        failures=1,
        planned_at=None,
        delay=0.0,
        doubted_since=None if since is None else at(since),
    )
    assert comes_too_late(claim, rotation, at(now)) is late


def test_a_claim_taken_over_by_another_rests_before_any_resend() -> None:
    """Its owner may be about to store the reply; where the profile waits longer, that counts."""
    claim = Abandoned(
        connection_id="acme-1",
        provider="acme",
        attempt="attempt",
        failures=0,
        generation=7,
        issued_at=START,
        expires_at=at(3600),
        overdue=timedelta(seconds=1),
    )
    for rotation, due in ((STATIC, 10), (STRICT, 3480)):
        settlement = abandoned(
            claim,
            rotation,
            START,
            0.5,
            hold=timedelta(seconds=120),
            rests=timedelta(seconds=10),
        )
        assert (settlement.due_at, settlement.rests) == (at(due), timedelta(seconds=10))
