"""How connections are told to operators."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from daemon.domain.connection import Connection, Status, TestResult
from daemon.domain.history import Event, EventType
from daemon.sidecar.operator.flashes import FLASHES, flash_of
from daemon.sidecar.operator.words import (
    Tone,
    advice_of,
    badge_of,
    history_line,
    moment_of,
    relative,
)
from tests.support.operator_stage import NOW, connection, every_kind, failure

USED = connection("a", last_used_at=NOW)
EXPIRED = NOW - timedelta(seconds=1)
PASSED = TestResult(ok=True, status=200, checked_at=NOW)
FAILED = TestResult(ok=False, status=401, checked_at=NOW, error=failure("unauthorized", "Refused."))


@pytest.mark.parametrize(
    ("one", "tone", "text"),
    [
        (USED, Tone.GOOD, "Active, in use"),
        (replace(USED, last_test=PASSED), Tone.GOOD, "Active, in use"),
        (replace(USED, expires_at=None), Tone.GOOD, "Active, in use"),
        (replace(USED, expires_at=EXPIRED), Tone.GOOD, "Active, in use"),
        (connection("a"), Tone.WARN, "Active, not used yet"),
        (replace(USED, last_test=FAILED), Tone.WARN, "Active, last test failed"),
        (
            replace(USED, expires_at=EXPIRED, has_refresh_token=False),
            Tone.BAD,
            "Expired, reconnect",
        ),
        (connection("a", Status.FAILING), Tone.WARN, "Refresh is failing"),
        (
            connection("a", Status.FAILING, expires_at=EXPIRED),
            Tone.WARN,
            "Failing, token expired",
        ),
        (connection("a", Status.REAUTHORIZATION_REQUIRED), Tone.BAD, "Reconnect needed"),
        (connection("a", Status.PENDING), Tone.IDLE, "Not authorized yet"),
        (connection("a", Status.DISCONNECTED), Tone.IDLE, "Disconnected"),
    ],
)
def test_each_state_has_a_colour_and_words(one: Connection, tone: Tone, text: str) -> None:
    """Green is used and working, yellow unused or failing, red needs a person (S20)."""
    badge = badge_of(one, NOW)
    assert (badge.tone, badge.text) == (tone, text)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "now"),
        (0.4, "now"),
        (-0.4, "now"),
        (1, "in 1 s"),
        (-90, "90 s ago"),
        (120, "in 2 min"),
        (-3600, "60 min ago"),
        (7200, "in 2 h"),
        (-26 * 3600, "26 h ago"),
        (86400 * 3, "in 3 days"),
        (-86400 * 400, "400 days ago"),
    ],
)
def test_times_are_told_as_people_do(seconds: float, words: str) -> None:
    """The nearest unit that says enough."""
    assert relative(NOW + timedelta(seconds=seconds), NOW) == words


def test_a_time_is_exact_for_whoever_looks_closer() -> None:
    """In UTC, to the second."""
    moment = moment_of(NOW + timedelta(microseconds=5), NOW)
    assert (moment.iso, moment.exact) == ("2026-11-21T12:00:00Z", "2026-11-21 12:00:00 UTC")


@pytest.mark.parametrize("one", every_kind(), ids=lambda one: one.id)
def test_advice_says_what_to_do(one: Connection) -> None:
    """Whatever is not green has a sentence on what happened and one on what to do."""
    advice = advice_of(one, NOW)
    if badge_of(one, NOW).tone in {Tone.BAD, Tone.IDLE}:
        assert advice is not None
    if advice is not None:
        assert advice.what.endswith(".")
        assert advice.action.endswith(".")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("invalid_client", "client_secret"),
        ("invalid_scope", "configuration"),
        ("decrypt_error", "encryption key"),
        ("in_doubt", "not used twice"),
        ("server_error", "tried again in 4 min"),
    ],
)
def test_advice_depends_on_the_error(code: str, words: str) -> None:
    """Our configuration, our keys, or weather: each has its own treatment."""
    one = connection(
        "a",
        Status.FAILING,
        refresh_at=NOW + timedelta(minutes=4),
        last_error=failure(code, "Something."),
    )
    advice = advice_of(one, NOW)
    assert advice is not None
    assert words in advice.action
    assert advice.code == code


def test_a_connection_without_refresh_token_is_told_of_in_time() -> None:
    """Before its token expires (S7)."""
    advice = advice_of(replace(USED, has_refresh_token=False), NOW)
    assert advice is not None
    assert "no refresh token" in advice.what
    forever = replace(USED, has_refresh_token=False, expires_at=None)
    assert advice_of(forever, NOW) is None


@pytest.mark.parametrize("kind", list(EventType))
def test_every_event_has_words(kind: EventType) -> None:
    """Details are shown by name, empty ones are left out."""
    event = Event(
        id=1,
        type=kind,
        connection="a",
        provider="acme",
        at=NOW,
        detail={"has_refresh_token": True, "scopes": ["a", "b"], "code": None, "n": 0},
    )
    line = history_line(event, NOW)
    assert line.text
    assert line.details == (("has refresh token", "yes"), ("scopes", "a, b"), ("n", "0"))


@pytest.mark.parametrize(("ok", "text"), [(True, "Tested"), (False, "Test failed")])
def test_a_test_is_told_by_its_end(*, ok: bool, text: str) -> None:
    """In words, so that no detail needs to repeat it."""
    event = Event(
        id=1,
        type=EventType.TESTED,
        connection="a",
        provider="acme",
        at=NOW,
        detail={"ok": ok, "status": 200},
    )
    line = history_line(event, NOW)
    assert line.text == text
    assert line.details == (("status", "200"),)


def test_a_page_says_only_what_we_wrote() -> None:
    """A code in a URL chooses among fixed sentences."""
    assert flash_of({"said": "Your account is locked, call us"}) is None
    assert flash_of({"said": "refreshed"}) is FLASHES["refreshed"]
