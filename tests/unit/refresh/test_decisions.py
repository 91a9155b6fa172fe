"""What follows from the outcome of a refresh."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.config.settings import Refresh
from daemon.domain.claim import Claim, ClaimState
from daemon.domain.connection import Status
from daemon.domain.outcome import FailureReason, Granted, Outcome, OutcomeKind
from daemon.domain.provider import Provider, Rotation, RotationKind
from daemon.domain.tokens import TokenSet, current_of
from daemon.refresh.policy import Decision, decide
from tests.support.clock import START

ACME = Provider(name="acme", client_id="us")
LENIENT = replace(ACME, rotation=Rotation(RotationKind.STATIC))
SETTINGS = Refresh()


def at(seconds: float) -> datetime:
    """Return the time so long after the start."""
    return START + timedelta(seconds=seconds)


CLAIM = Claim(
    connection_id="acme-1",
    provider="acme",
    attempt="attempt",
    status=Status.ACTIVE,
    tokens=TokenSet(
        generation=4,
        access_token="old access",
        refresh_token="old refresh",
        token_type="Bearer",
        scopes=("read",),
        issued_at=at(-2700),
        expires_at=at(900),
    ),
    requested_scopes=("read",),
    was_in_doubt=False,
    failures=0,
    planned_at=START,
    delay=0.0,
)
DOUBTED = replace(CLAIM, was_in_doubt=True, status=Status.FAILING, failures=1)
GRANTED = Outcome(
    kind=OutcomeKind.OK,
    granted=Granted(access_token="new access", refresh_token="new refresh", expires_in=3600.0),
)


def failed(kind: OutcomeKind, **details: object) -> Outcome:
    """Return an outcome without tokens."""
    return replace(Outcome(kind=kind, description="It failed."), **details)  # type: ignore[arg-type] # members by name


def decided(
    outcome: Outcome, claim: Claim = CLAIM, provider: Provider = ACME, *, chance: float = 0.0
) -> Decision:
    """Decide one second after the request was sent."""
    return decide(claim, outcome, provider, SETTINGS, sent_at=at(-1), now=START, chance=chance)


def test_granted() -> None:
    """New tokens are stored one generation up, with their due time; nothing else changes."""
    settlement = decided(GRANTED).settlement
    tokens = settlement.tokens
    assert tokens == TokenSet(
        generation=5,
        access_token="new access",
        refresh_token="new refresh",
        token_type="Bearer",
        scopes=("read",),
        issued_at=at(-1),
        expires_at=at(3599),
    )
    assert (settlement.connection_id, settlement.attempt) == ("acme-1", "attempt")
    assert settlement.generation == 4
    assert settlement.state is ClaimState.IDLE
    assert (settlement.status, settlement.failures) == (Status.ACTIVE, 0)
    assert settlement.last_error is None
    assert not settlement.touches_connection
    assert settlement.due_at is not None
    assert at(2519) <= settlement.due_at <= at(2879)
    assert decided(GRANTED).retry_in == (settlement.due_at - START).total_seconds()


@pytest.mark.parametrize(
    "claim", [DOUBTED, replace(CLAIM, failures=3), replace(CLAIM, status=Status.FAILING)]
)
def test_a_recovery_is_written_to_the_connection(claim: Claim) -> None:
    """After failures a success clears them where they are shown."""
    settlement = decided(GRANTED, claim).settlement
    assert settlement.touches_connection
    assert (settlement.state, settlement.status) == (ClaimState.IDLE, Status.ACTIVE)
    assert (settlement.failures, settlement.last_error) == (0, None)


def test_tokens_that_never_expire_are_never_due() -> None:
    """Without an end in the reply there is nothing to plan, where the provider is known for it."""
    silent = Outcome(kind=OutcomeKind.OK, granted=Granted(access_token="a"))
    decision = decided(silent, provider=replace(ACME, tokens_never_expire=True))
    assert decision.settlement.tokens is not None
    assert decision.settlement.tokens.expires_at is None
    assert (decision.settlement.due_at, decision.retry_in) == (None, None)


@pytest.mark.parametrize("kind", list(OutcomeKind))
def test_a_settlement_has_what_a_late_revocation_needs(kind: OutcomeKind) -> None:
    """Where its tokens came from, and since when a disconnect counts."""
    claim = replace(CLAIM, epoch=3, fields={"region": "us"})
    outcome = GRANTED if kind is OutcomeKind.OK else failed(kind)
    settlement = decided(outcome, claim).settlement
    assert (settlement.provider, settlement.fields, settlement.epoch) == (
        "acme",
        {"region": "us"},
        3,
    )


def test_the_providers_default_lifetime_comes_first() -> None:
    """A reply without a lifetime gets the provider's default, else the general one."""
    silent = Outcome(kind=OutcomeKind.OK, granted=Granted(access_token="a"))
    general = decided(silent).settlement.tokens
    own = decided(silent, provider=replace(ACME, default_lifetime=timedelta(minutes=5)))
    assert general is not None
    assert general.expires_at == at(3599)
    assert own.settlement.tokens is not None
    assert own.settlement.tokens.expires_at == at(299)


RETRIED = [OutcomeKind.NOT_SENT, OutcomeKind.REFUSED, OutcomeKind.MISCONFIGURED]


@pytest.mark.parametrize("kind", RETRIED)
@pytest.mark.parametrize("salvaged", [None, "salvaged refresh"])
@pytest.mark.parametrize("claim", [CLAIM, replace(CLAIM, failures=2, status=Status.FAILING)])
def test_what_was_not_processed_is_tried_again(
    kind: OutcomeKind, salvaged: str | None, claim: Claim
) -> None:
    """The connection fails for now, keeps its tokens and is tried again after a backoff."""
    outcome = failed(kind, salvaged_refresh_token=salvaged, reason=FailureReason.NETWORK)
    settlement = decided(outcome, claim).settlement
    assert settlement.state is ClaimState.IDLE
    assert settlement.status is Status.FAILING
    assert settlement.failures == claim.failures + 1
    assert settlement.due_at == at(1 if claim.failures == 0 else 4)
    assert settlement.touches_connection
    assert settlement.last_error is not None
    assert settlement.last_error.code == "network"
    assert (settlement.tokens is None) == (salvaged is None)


@pytest.mark.parametrize("kind", [*RETRIED, OutcomeKind.IN_DOUBT])
@pytest.mark.parametrize("claim", [CLAIM, DOUBTED])
def test_a_salvaged_refresh_token_ends_all_doubt(kind: OutcomeKind, claim: Claim) -> None:
    """A refresh token in an unusable reply replaces the old one; the access token stays."""
    outcome = failed(kind, salvaged_refresh_token="salvaged refresh")
    settlement = decided(outcome, claim).settlement
    assert settlement.tokens == replace(
        CLAIM.tokens, generation=5, refresh_token="salvaged refresh"
    )
    assert settlement.state is ClaimState.IDLE
    assert settlement.due_at is not None
    assert settlement.due_at <= at(2)


@pytest.mark.parametrize(
    ("kind", "claim", "provider", "state", "due"),
    [
        (OutcomeKind.IN_DOUBT, CLAIM, ACME, ClaimState.IN_DOUBT, 780),
        (OutcomeKind.IN_DOUBT, CLAIM, LENIENT, ClaimState.IN_DOUBT, 1),
        (OutcomeKind.IN_DOUBT, DOUBTED, ACME, ClaimState.IN_DOUBT, 900),
        (OutcomeKind.IN_DOUBT, DOUBTED, LENIENT, ClaimState.IN_DOUBT, 2),
        # A try that was not processed says nothing about the one in doubt before it.
        (OutcomeKind.NOT_SENT, DOUBTED, ACME, ClaimState.IN_DOUBT, 780),
        (OutcomeKind.NOT_SENT, DOUBTED, LENIENT, ClaimState.IN_DOUBT, 2),
        (OutcomeKind.REFUSED, DOUBTED, ACME, ClaimState.IN_DOUBT, 780),
        (OutcomeKind.MISCONFIGURED, DOUBTED, ACME, ClaimState.IN_DOUBT, 780),
        (OutcomeKind.NOT_SENT, CLAIM, ACME, ClaimState.IDLE, 1),
    ],
)
def test_doubt(
    *, kind: OutcomeKind, claim: Claim, provider: Provider, state: ClaimState, due: float
) -> None:
    """A token that may be spent stays in doubt, and waits for the time that is safe."""
    settlement = decided(failed(kind), claim, provider).settlement
    assert (settlement.state, settlement.due_at) == (state, at(due))
    assert settlement.status is Status.FAILING


def test_doubt_after_expiry_is_retried_with_backoff() -> None:
    """With nothing left to lose a strict provider is asked like any other."""
    spent = replace(CLAIM.tokens, expires_at=at(-5))
    outcome = failed(OutcomeKind.IN_DOUBT)
    settlement = decided(outcome, replace(DOUBTED, tokens=spent)).settlement
    assert settlement.due_at == at(2)


@pytest.mark.parametrize(
    ("claim", "error", "code"),
    [
        (CLAIM, "invalid_grant", "invalid_grant"),
        (CLAIM, None, "invalid_grant"),
        (CLAIM, "bad_refresh_token", "bad_refresh_token"),
        (DOUBTED, "invalid_grant", "reply_lost"),
    ],
)
def test_a_dead_grant(claim: Claim, error: str | None, code: str) -> None:
    """One refusal of the grant is final; after a lost reply it is told apart from a revocation."""
    decision = decided(failed(OutcomeKind.REAUTHORIZE, error=error), claim)
    settlement = decision.settlement
    assert decision.retry_in is None
    assert settlement.status is Status.REAUTHORIZATION_REQUIRED
    assert (settlement.state, settlement.due_at) == (ClaimState.IDLE, None)
    assert settlement.tokens is None
    assert settlement.touches_connection
    assert settlement.last_error is not None
    assert settlement.last_error.code == code
    assert settlement.last_error.at == START


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (failed(OutcomeKind.REFUSED, error="slow_down", reason=FailureReason.OTHER), "slow_down"),
        (failed(OutcomeKind.IN_DOUBT, reason=FailureReason.TIMEOUT), "timeout"),
        (failed(OutcomeKind.NOT_SENT), "not_sent"),
    ],
)
def test_what_is_shown(outcome: Outcome, code: str) -> None:
    """The provider's code is shown, else the reason, else the kind; the words are ours."""
    error = decided(outcome).settlement.last_error
    assert error is not None
    assert (error.code, error.description, error.at) == (code, "It failed.", START)


@pytest.mark.parametrize(("retry_after", "due"), [(120.0, 120), (0.0, 1), (-3.0, 1), (None, 1)])
def test_retry_after(retry_after: float | None, due: float) -> None:
    """A stated time is kept, whatever the backoff would be, but never less than a second."""
    outcome = failed(OutcomeKind.REFUSED, retry_after=retry_after)
    assert decided(outcome).settlement.due_at == at(due)
    assert decided(outcome).retry_in == due


def test_what_is_served_after_an_authorization() -> None:
    """A connection and its new tokens make up what serving needs, without the refresh token."""
    current = current_of(CLAIM.tokens, connection="acme-1", provider="acme", status=Status.ACTIVE)
    assert (current.connection, current.provider) == ("acme-1", "acme")
    assert (current.generation, current.access_token) == (4, "old access")
    assert current.refreshable
    assert "old refresh" not in str([getattr(current, name) for name in current.__slots__])


TOKEN = st.text(alphabet="ab", min_size=1, max_size=3)
OUTCOMES = st.one_of(
    st.builds(
        lambda **members: Outcome(kind=OutcomeKind.OK, granted=Granted(**members)),
        access_token=TOKEN,
        refresh_token=st.one_of(st.none(), st.just(""), TOKEN),
        expires_in=st.one_of(st.none(), st.floats(min_value=-1e6, max_value=1e9)),
        scopes=st.one_of(st.none(), st.just(("x",))),
    ),
    st.builds(
        Outcome,
        kind=st.sampled_from(list(OutcomeKind)),
        error=st.one_of(st.none(), st.just("oops")),
        retry_after=st.one_of(st.none(), st.floats(min_value=0, max_value=3600)),
        salvaged_refresh_token=st.one_of(st.none(), TOKEN),
    ),
)
ROTATIONS = st.one_of(
    st.builds(Rotation, st.sampled_from([k for k in RotationKind if k != RotationKind.GRACE])),
    st.builds(
        Rotation,
        st.just(RotationKind.GRACE),
        st.one_of(st.none(), st.builds(timedelta, seconds=st.integers(1, 3600))),
    ),
)


@given(
    outcome=OUTCOMES,
    rotation=ROTATIONS,
    was_in_doubt=st.booleans(),
    failures=st.integers(min_value=0, max_value=50),
    expires=st.one_of(st.none(), st.floats(min_value=-1e5, max_value=1e7)),
    chance=st.floats(min_value=0, max_value=1, exclude_max=True),
)
def test_no_decision_loses_a_refresh_token(
    *,
    outcome: Outcome,
    rotation: Rotation,
    was_in_doubt: bool,
    failures: int,
    expires: float | None,
    chance: float,
) -> None:
    """Stored tokens have a refresh token and the next generation; nobody is left without a time."""
    claim = replace(
        CLAIM,
        was_in_doubt=was_in_doubt,
        failures=failures,
        tokens=replace(CLAIM.tokens, expires_at=None if expires is None else at(expires)),
    )
    decision = decided(outcome, claim, replace(ACME, rotation=rotation), chance=chance)
    settlement = decision.settlement
    if settlement.tokens is not None:
        assert settlement.tokens.refresh_token
        assert settlement.tokens.generation == claim.tokens.generation + 1
    assert settlement.generation == claim.tokens.generation
    assert settlement.state is not ClaimState.SENDING
    dead = settlement.status is Status.REAUTHORIZATION_REQUIRED
    assert (settlement.due_at is None) == dead == (decision.retry_in is None)
    if settlement.due_at is not None:
        assert settlement.due_at >= at(0 if outcome.granted else 1)
    doubt = was_in_doubt or outcome.kind is OutcomeKind.IN_DOUBT
    if settlement.state is ClaimState.IDLE and doubt:
        assert dead or settlement.tokens is not None
