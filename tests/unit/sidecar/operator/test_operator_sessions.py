"""Sessions of the operator pages: who they are of, how long they are good, how they end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from daemon.domain.clock import system_entropy
from daemon.sidecar.access import Callers
from daemon.sidecar.operator.sessions import (
    FAILURE_WINDOW,
    LIFETIME,
    MOST_FAILURES,
    LoginLimit,
    Session,
    Sessions,
    clear_cookie,
    is_own_form,
    set_cookie,
)
from tests.support.clock import FakeClock
from tests.support.operator_stage import ADMIN, KEYS, VIEWER


class Desk:
    """Sessions with a clock and callers that a test may change."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.callers = Callers([ADMIN, VIEWER])
        self.sessions = Sessions(self.callers, clock=self.clock, entropy=system_entropy)

    def opened(self, name: str = "admin") -> Session:
        """Return a new session."""
        session = self.sessions.open(KEYS[name])
        assert session is not None
        return session


@pytest.fixture
def desk() -> Desk:
    """A desk."""
    return Desk()


def test_a_key_opens_a_session_of_its_caller(desk: Desk) -> None:
    """The cookie leads back to the caller, with the rights of now."""
    found = desk.sessions.read(desk.opened("viewer").cookie)
    assert found is not None
    assert found.identity.name == "viewer"


@pytest.mark.parametrize("key", ["", "wrong", KEYS["admin"] + " ", KEYS["admin"][:-1], "\udcff"])
def test_a_wrong_key_opens_nothing(desk: Desk, key: str) -> None:
    """Byte for byte."""
    assert desk.sessions.open(key) is None


def test_the_cookie_says_nothing(desk: Desk) -> None:
    """Neither name nor key nor digest can be read in it, and no two are alike."""
    cookie = desk.opened().cookie
    assert "admin" not in cookie
    assert ADMIN.key_sha256.hex() not in cookie
    assert cookie != desk.opened().cookie
    assert cookie not in repr(desk.opened())


def test_a_session_ends_after_its_time(desk: Desk) -> None:
    """And not before."""
    cookie = desk.opened().cookie
    desk.clock.advance(LIFETIME.total_seconds() - 1)
    assert desk.sessions.read(cookie) is not None
    desk.clock.advance(1)
    assert desk.sessions.read(cookie) is None


def test_a_removed_caller_has_no_session(desk: Desk) -> None:
    """From the next request on."""
    cookie = desk.opened().cookie
    desk.callers.replace([VIEWER])
    assert desk.sessions.read(cookie) is None


def test_a_changed_key_ends_the_sessions_of_the_old_one(desk: Desk) -> None:
    """Also where the name stays; and a key that changed hands is nobody else's session."""
    cookie = desk.opened().cookie
    for changed in (replace(VIEWER, name="admin"), replace(ADMIN, name="other")):
        desk.callers.replace([changed])
        assert desk.sessions.read(cookie) is None


def test_narrower_permissions_hold_at_once(desk: Desk) -> None:
    """A session has no rights of its own."""
    cookie = desk.opened().cookie
    desk.callers.replace([replace(ADMIN, permissions=VIEWER.permissions)])
    found = desk.sessions.read(cookie)
    assert found is not None
    assert found.identity.permissions == VIEWER.permissions


def test_logging_out_ends_every_copy_of_the_cookie(desk: Desk) -> None:
    """In each spelling; other sessions of the caller go on."""
    one, other = desk.opened(), desk.opened()
    desk.sessions.end(one)
    for spelling in (one.cookie, one.cookie + "=", one.cookie + "==", one.cookie + "!"):
        assert desk.sessions.read(spelling) is None
    assert desk.sessions.read(other.cookie) is not None


def test_another_process_knows_no_cookie_of_ours(desk: Desk) -> None:
    """The key is drawn at each start."""
    assert Desk().sessions.read(desk.opened().cookie) is None


@pytest.mark.parametrize("cookie", [None, "", "x", "a" * 200, "a" * 5000, "ä", "=" * 40, "a" * 17])
def test_what_is_no_cookie_is_no_session(desk: Desk, cookie: str | None) -> None:
    """And no error either."""
    assert desk.sessions.read(cookie) is None


def test_one_changed_character_ends_it(desk: Desk) -> None:
    """Sealed as a whole."""
    cookie = desk.opened().cookie
    for place in range(0, len(cookie), 7):
        other = "A" if cookie[place] != "A" else "B"
        assert desk.sessions.read(cookie[:place] + other + cookie[place + 1 :]) is None


def test_a_form_belongs_to_one_session(desk: Desk) -> None:
    """Not to another one of the same caller, and it is the same at each request."""
    one, other = desk.opened(), desk.opened()
    again = desk.sessions.read(one.cookie)
    assert again is not None
    assert is_own_form(one, again.csrf)
    for csrf in ("", other.csrf, one.csrf[:-1], "ä", "\udcff"):
        assert not is_own_form(one, csrf)


def test_the_cookies_attributes(desk: Desk) -> None:
    """No script reads it, no other site sends it, and it goes when it is over."""
    cookie = set_cookie(desk.opened())
    assert cookie.startswith("tokenward_session=")
    assert cookie.endswith("; Max-Age=43200; Path=/; HttpOnly; SameSite=Strict")
    assert clear_cookie() == "tokenward_session=; Max-Age=0; Path=/; HttpOnly; SameSite=Strict"


def test_wrong_keys_are_limited() -> None:
    """Some within a minute; after that, one for each that is older than a minute."""
    clock = FakeClock()
    limit = LoginLimit(clock)
    for _ in range(MOST_FAILURES):
        assert limit.wait() == 0
        limit.failed()
        clock.advance(1)
    assert limit.wait() == FAILURE_WINDOW - MOST_FAILURES
    clock.advance(limit.wait())
    assert limit.wait() == 0
    limit.failed()
    assert limit.wait() == 1
