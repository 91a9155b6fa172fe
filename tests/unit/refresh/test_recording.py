"""What history keeps of refreshes, and what a reply changes beside its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import pytest

from daemon.config.settings import Refresh
from daemon.domain.claim import Abandoned, Claim
from daemon.domain.connection import Status
from daemon.domain.history import EventType, NewEvent
from daemon.domain.outcome import FailureReason, Granted, Outcome, OutcomeKind
from daemon.domain.provider import Provider, Rotation
from daemon.refresh import policy
from daemon.refresh.recording import changed_values, events_of, is_told, of_abandoned
from tests.support.clock import START
from tests.support.refreshing import tokens

ACME = Provider(name="acme", client_id="us")
CLAIM = Claim(
    connection_id="acme-1",
    provider="acme",
    attempt="attempt",
    status=Status.ACTIVE,
    tokens=tokens(),
    requested_scopes=(),
    was_in_doubt=False,
    failures=0,
    planned_at=START,
    delay=0.0,
)
FAILING = replace(CLAIM, status=Status.FAILING, failures=3)
GRANTED = Outcome(
    kind=OutcomeKind.OK, granted=Granted(access_token="new-canary", expires_in=3600.0)
)
DEAD = Outcome(
    kind=OutcomeKind.REAUTHORIZE,
    reason=FailureReason.INVALID_GRANT,
    error="invalid_grant",
    description="It is over.",
)
DOWN = Outcome(kind=OutcomeKind.NOT_SENT, reason=FailureReason.NETWORK, description="No route.")


def recorded(
    outcome: Outcome, claim: Claim = CLAIM, provider: Provider = ACME
) -> tuple[NewEvent, ...]:
    """Return what is recorded of an attempt that was sent half a second ago."""
    decision = policy.decide(
        claim, outcome, provider, Refresh(), sent_at=START, now=START, chance=1.0
    )
    return events_of(claim, outcome, decision.settlement, now=START, duration=0.51234)


def test_a_refresh() -> None:
    """Its generation, how long the new token is good, and how long the provider took."""
    (event,) = recorded(GRANTED)
    assert event == NewEvent(
        type=EventType.REFRESHED,
        connection="acme-1",
        provider="acme",
        at=START,
        detail={"generation": 2, "expires_at": "2026-11-21T13:00:00Z", "duration": 0.512},
    )


def test_a_refresh_without_an_end() -> None:
    """A token that does not expire has no expiry to tell."""
    silent = replace(GRANTED, granted=Granted(access_token="new-canary"))
    (event,) = recorded(silent, provider=replace(ACME, tokens_never_expire=True))
    assert event.detail == {"generation": 2, "duration": 0.512}


def test_a_recovery() -> None:
    """The first success after failures says how many there were."""
    refreshed, recovered = recorded(GRANTED, FAILING)
    assert (refreshed.type, recovered.type) == (EventType.REFRESHED, EventType.RECOVERED)
    assert recovered.detail == {"failures": 3}


def test_a_failure() -> None:
    """What it was, which one in a row, and when it is tried again."""
    (event,) = recorded(DOWN)
    assert event.type is EventType.REFRESH_FAILED
    assert event.detail == {
        "reason": "network",
        "outcome": "not_sent",
        "failures": 1,
        "retry_at": "2026-11-21T12:00:02Z",
    }


def test_only_some_of_many_failures_are_kept() -> None:
    """The first, second, fourth, …: a long outage does not flood the history."""
    kept = [
        failures + 1 for failures in range(200) if recorded(DOWN, replace(CLAIM, failures=failures))
    ]
    assert kept == [1, 2, 4, 8, 16, 32, 64, 128]
    assert [number for number in range(1, 200) if is_told(number)] == kept


@pytest.mark.parametrize("failures", [0, 2, 4])
def test_the_end_of_a_grant(failures: int) -> None:
    """It is always told, with the failure that showed it."""
    failed, ended = recorded(DEAD, replace(CLAIM, failures=failures))
    assert (failed.type, ended.type) == (
        EventType.REFRESH_FAILED,
        EventType.REAUTHORIZATION_REQUIRED,
    )
    assert failed.detail == {
        "reason": "invalid_grant",
        "error": "invalid_grant",
        "outcome": "reauthorize",
        "failures": failures + 1,
    }
    assert ended.detail == {"cause": "invalid_grant"}


def test_the_end_of_a_grant_whose_reply_was_lost() -> None:
    """The cause is ours: the answer that had the next token never came here."""
    failed, ended = recorded(DEAD, replace(CLAIM, was_in_doubt=True))
    assert ended.detail == {"cause": "reply_lost"}
    assert failed.detail["error"] == "invalid_grant"


def test_a_salvaged_token_is_a_failure() -> None:
    """A refresh token in an unusable reply is stored, but nothing was refreshed."""
    outcome = Outcome(
        kind=OutcomeKind.IN_DOUBT,
        reason=FailureReason.MALFORMED_RESPONSE,
        salvaged_refresh_token="canary",
    )
    (event,) = recorded(outcome)
    assert event.type is EventType.REFRESH_FAILED
    assert "canary" not in repr(event)


@pytest.mark.parametrize(("failures", "kept"), [(0, True), (1, True), (2, False), (3, True)])
def test_a_vanished_owner(failures: int, kept: bool) -> None:  # noqa: FBT001 - of a table
    """A claim that is put in doubt counts as a failure like others."""
    claim = Abandoned(
        connection_id="acme-1",
        provider="acme",
        attempt="attempt",
        failures=failures,
        generation=1,
        issued_at=START,
        expires_at=None,
        overdue=timedelta(seconds=1),
    )
    settlement = policy.abandoned(claim, Rotation(), START, 1.0, hold=timedelta(minutes=2))
    events = of_abandoned(claim, settlement).events
    assert [event.detail["error"] for event in events] == ["in_doubt"] * kept
    assert [event.detail["failures"] for event in events] == [failures + 1] * kept
    assert of_abandoned(claim, replace(settlement, last_error=None)).events == ()


@pytest.mark.parametrize(
    ("members", "changed"),
    [
        ({}, {}),
        ({"host": "https://a.example"}, {}),
        ({"host": "https://b.example"}, {"token.host": "https://b.example"}),
        ({"host": None, "other": "x"}, {}),
        ({"host": "a\x00b"}, {}),
        ({"host": "https://b.example", "team": {"id": 7}}, {"token.host": "https://b.example"}),
    ],
)
def test_what_a_reply_changes(members: Mapping[str, object], changed: Mapping[str, str]) -> None:
    """Only what templates need and what is another value now; what is not said stays."""
    provider = replace(ACME, reply_names=frozenset({"token.host", "me.id", "callback.shop"}))
    claim = replace(CLAIM, reply_values={"token.host": "https://a.example", "me.id": "7"})
    outcome = replace(GRANTED, granted=Granted(access_token="a", members=members))
    assert changed_values(claim, outcome, provider) == changed
    assert changed_values(claim, outcome, ACME) == {}
    assert changed_values(claim, DOWN, provider) == {}
