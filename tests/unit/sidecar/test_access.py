"""Who may ask: keys, uids, patterns, permissions, and the generated key."""

from __future__ import annotations

import hashlib
import stat
import threading
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.config.settings import Caller, Permission
from daemon.domain.clock import system_entropy
from daemon.domain.errors import ConfigurationError, Problem
from daemon.sidecar.access import (
    API_KEY_FILE,
    Callers,
    Identity,
    ensure_api_key,
    read_api_key,
    unknown_connection,
)
from daemon.sidecar.problems import problem_response

KEY = "tw_billing-key-of-more-than-32-characters"


def _caller(key: str = KEY, *connections: str, name: str = "billing") -> Caller:
    return Caller(
        name=name,
        key_sha256=hashlib.sha256(key.encode()).digest(),
        connections=connections,
        permissions=frozenset({Permission.TOKEN, Permission.READ}),
    )


@pytest.mark.parametrize(
    "authorization", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER {KEY}", f"Bearer   {KEY}"]
)
def test_a_known_key_identifies_its_caller(authorization: str) -> None:
    """A configured key is accepted, the scheme's case and the number of spaces aside."""
    callers = Callers([_caller(), _caller("another-key", name="other")])
    for _ in range(2):
        assert callers.authenticate(authorization, None).name == "billing"


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY.upper()}",
        f"Basic {KEY}",
        f"Bearer\t{KEY}",
        f"Bearer {KEY} {KEY}",
        f"{KEY}",
        "Bearer \udcff\udcfe",
        "Bearer " + "x" * 8000,
    ],
)
def test_a_wrong_key_is_unauthenticated(authorization: str) -> None:
    """Everything but a configured key is a 401 with a challenge, also where the uid is allowed."""
    callers = Callers([_caller()], allowed_uids=[1000])
    for uid in (None, 1000):
        with pytest.raises(Problem) as caught:
            callers.authenticate(authorization, uid)
        assert (caught.value.status, caught.value.code) == (401, "unauthenticated")
        challenge = caught.value.headers["WWW-Authenticate"]
        assert challenge.startswith("Bearer")
        assert 'error="invalid_token"' in challenge
        assert KEY not in str(caught.value)


@pytest.mark.parametrize("uid", [None, 0, 1001])
def test_no_key_and_no_allowed_uid_is_unauthenticated(uid: int | None) -> None:
    """Without a key only an allowed uid is somebody; RFC 6750 3 wants no error code then."""
    with pytest.raises(Problem) as caught:
        Callers([_caller()], allowed_uids=[1000]).authenticate(None, uid)
    assert caught.value.status == 401
    assert "error=" not in caught.value.headers["WWW-Authenticate"]


def test_an_allowed_uid_may_do_everything() -> None:
    """The Unix socket's allowed uids need no key and have every right on every connection."""
    identity = Callers([], allowed_uids=[1000]).authenticate(None, 1000)
    assert identity.name == "uid:1000"
    assert identity.may_see("anything")
    for permission in Permission:
        identity.require(permission, "anything")


def test_replaced_callers_hold_from_the_next_request() -> None:
    """After a reload old keys and uids are forgotten, remembered headers included."""
    callers = Callers([_caller()], allowed_uids=[1000])
    assert callers.authenticate(f"Bearer {KEY}", None).name == "billing"
    callers.replace([_caller("new-key", name="new")])
    for authorization, uid in ((f"Bearer {KEY}", None), (None, 1000)):
        with pytest.raises(Problem):
            callers.authenticate(authorization, uid)
    assert callers.authenticate("Bearer new-key", None).name == "new"


def test_a_caller_with_two_keys_may_rotate() -> None:
    """Two entries of one name are both valid: a key is replaced without downtime."""
    callers = Callers([_caller("old"), _caller("new")])
    assert callers.authenticate("Bearer old", None).name == "billing"
    assert callers.authenticate("Bearer new", None).name == "billing"


@pytest.mark.parametrize(
    ("patterns", "connection_id", "visible"),
    [
        ((), "acme-1", False),
        (("acme-*",), "acme-1", True),
        (("acme-*",), "acme-", True),
        (("acme-*",), "xacme-1", False),
        (("acme-*",), "Acme-1", False),
        (("acme-?",), "acme-12", False),
        (("acme-[12]",), "acme-2", True),
        (("acme-[!12]",), "acme-2", False),
        (("a.c",), "abc", False),
        (("one", "two"), "two", True),
        (("one", "two"), "onetwo", False),
        (("*",), "anything", True),
    ],
)
def test_patterns_decide_what_a_caller_sees(
    patterns: tuple[str, ...], connection_id: str, *, visible: bool
) -> None:
    """Glob patterns over the whole id, case included; none sees nothing; asked twice, same."""
    identity = Identity("x", connections=patterns, permissions=frozenset(Permission))
    assert identity.may_see(connection_id) is visible
    assert identity.may_see(connection_id) is visible


@given(
    st.lists(st.text("ab*?[]!-.", max_size=6), max_size=4), st.text("ab.-", min_size=1, max_size=6)
)
def test_patterns_agree_with_fnmatch(patterns: list[str], connection_id: str) -> None:
    """The compiled patterns mean what fnmatch says, one by one."""
    identity = Identity("x", connections=patterns, permissions=frozenset())
    expected = any(fnmatchcase(connection_id, pattern) for pattern in patterns)
    assert identity.may_see(connection_id) is expected


def test_what_is_remembered_of_patterns_stays_bounded() -> None:
    """Asking for ever new ids does not grow a caller without limit, and answers stay right."""
    identity = Identity("x", connections=["a*"], permissions=frozenset())
    for number in range(20_000):
        assert identity.may_see(f"a{number}")
        assert not identity.may_see(f"b{number}")
    assert len(identity._remembered) <= 4096


def test_what_is_remembered_of_headers_stays_bounded() -> None:
    """One key in ever new spellings does not grow the callers without limit."""
    callers = Callers([_caller()])
    for spaces in range(1, 3000):
        assert callers.authenticate("Bearer" + " " * spaces + KEY, None).name == "billing"
    assert len(callers._by_header) <= 1024


def test_a_missing_permission_is_denied_whatever_the_connection() -> None:
    """403 comes before any look at the connection, so it tells nothing of what exists."""
    identity = Callers([_caller(KEY, "acme-*")]).authenticate(f"Bearer {KEY}", None)
    for connection_id in ("acme-1", "foreign", None):
        with pytest.raises(Problem) as caught:
            identity.require(Permission.MANAGE, connection_id)
        assert (caught.value.status, caught.value.code) == (403, "permission_denied")
        assert "manage" in caught.value.detail


def test_a_foreign_connection_looks_like_an_unknown_one() -> None:
    """The refusal of another's connection is, byte for byte, that of an unknown one (P1)."""
    identity = Callers([_caller(KEY, "acme-*")]).authenticate(f"Bearer {KEY}", None)
    identity.require(Permission.TOKEN, "acme-1")
    with pytest.raises(Problem) as caught:
        identity.require(Permission.TOKEN, "foreign")
    foreign, unknown = (
        problem_response(problem) for problem in (caught.value, unknown_connection("foreign"))
    )
    assert foreign.body == unknown.body
    assert (foreign.status, foreign.headers) == (unknown.status, unknown.headers)


def test_an_id_that_cannot_be_is_not_repeated() -> None:
    """A malformed id, however long, is not reflected into the answer."""
    assert unknown_connection("<script>" * 1000).members == {}
    assert unknown_connection("acme-1").members == {"connection": "acme-1"}


def test_nothing_shows_a_key() -> None:
    """Neither callers nor identities print a key or its digest."""
    configured = _caller()
    callers = Callers([configured])
    shown = repr(configured) + repr(callers) + repr(callers.authenticate(f"Bearer {KEY}", None))
    assert KEY not in shown
    assert configured.key_sha256.hex() not in shown


def test_the_first_start_writes_a_key(tmp_path: Path) -> None:
    """With no callers a key with all rights is written, mode 0600, and works."""
    state_dir = tmp_path / "state" / "tokenward"
    made, path = ensure_api_key(state_dir, system_entropy)
    key = read_api_key(state_dir)
    assert path == state_dir / API_KEY_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(state_dir.stat().st_mode) == 0o700
    assert key.startswith("tw_")
    assert len(key) == 46
    assert path.read_text() == key + "\n"
    identity = Callers([made]).authenticate(f"Bearer {key}", None)
    assert identity.permissions == frozenset(Permission)
    assert identity.may_see("anything")
    assert list(state_dir.iterdir()) == [path]


def test_a_later_start_reuses_the_key(tmp_path: Path) -> None:
    """The key of the first start stays."""
    first, _ = ensure_api_key(tmp_path, system_entropy)
    second, _ = ensure_api_key(tmp_path, system_entropy)
    assert first == second


def test_starts_at_once_agree_on_one_key(tmp_path: Path) -> None:
    """Of many that start together one writes, and all use what it wrote."""
    barrier = threading.Barrier(8)
    made: list[bytes] = []

    def start() -> None:
        barrier.wait()
        made.append(ensure_api_key(tmp_path, system_entropy)[0].key_sha256)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert len(set(made)) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / API_KEY_FILE]


def test_an_open_key_file_is_closed_to_others(tmp_path: Path) -> None:
    """A mode that lets others read is narrowed."""
    _, path = ensure_api_key(tmp_path, system_entropy)
    path.chmod(0o664)
    ensure_api_key(tmp_path, system_entropy)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", ["", "\n", "short", "with space " * 5, "é" * 40])
def test_a_file_without_a_key_is_an_error_that_says_what_to_do(
    tmp_path: Path, content: str
) -> None:
    """What is no key is neither used nor overwritten."""
    (tmp_path / API_KEY_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(ConfigurationError, match="delete it"):
        ensure_api_key(tmp_path, system_entropy)
    assert (tmp_path / API_KEY_FILE).read_text(encoding="utf-8") == content


def test_a_key_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    """The key is never read through a symbolic link."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("k" * 43)
    (tmp_path / API_KEY_FILE).symlink_to(elsewhere)
    with pytest.raises(ConfigurationError, match="API key"):
        ensure_api_key(tmp_path, system_entropy)
