"""Callers' keys in files that change: known within seconds, the key before for a minute more."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from daemon.config.settings import Caller
from daemon.wiring.caller_keys import CallerKeys
from tests.support.clock import FakeClock

FIRST, SECOND, THIRD, STRANGER = (f"tw_{letter * 40}" for letter in "abcd")


def digest(key: str) -> bytes:
    """Return how a key is known."""
    return hashlib.sha256(key.encode()).digest()


class Desk:
    """Two callers with a key in a file, and one without; ``known`` are those that may ask."""

    def __init__(self, directory: Path) -> None:
        self.file, self.other = directory / "billing", directory / "reports"
        self.file.write_text(FIRST + "\n")
        self.other.write_text(STRANGER)
        self.clock = FakeClock()
        self.callers: tuple[Caller, ...] = (
            Caller(name="billing", key_sha256=digest(FIRST), key_file=self.file),
            Caller(name="reports", key_sha256=digest(STRANGER), key_file=self.other),
            Caller(name="fixed", key_sha256=digest("fixed")),
        )
        self.applied: list[set[tuple[str, bytes]]] = []
        self.keys = CallerKeys(configured=lambda: self.callers, apply=self._apply, clock=self.clock)

    def _apply(self, callers: Sequence[Caller]) -> None:
        self.applied.append({(caller.name, caller.key_sha256) for caller in callers})

    def good(self, name: str = "billing") -> set[bytes]:
        """Return the digests with which a caller may ask, by what was applied last."""
        return {key for caller, key in self.applied[-1] if caller == name}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A configuration that was just loaded."""
    return Desk(tmp_path)


def test_nothing_changes_while_no_file_does(desk: Desk) -> None:
    """Looking alone applies nothing; a file that is only touched neither."""
    desk.keys.look()
    desk.file.write_text(FIRST)
    desk.keys.look()
    assert desk.applied == []


def test_a_new_key_is_good_at_once_and_the_old_one_for_a_minute(desk: Desk) -> None:
    """Both are good for the time in which writer and reader of the file may differ."""
    desk.keys.look()
    desk.file.write_text(SECOND)
    desk.keys.look()
    assert desk.good() == {digest(FIRST), digest(SECOND)}
    assert desk.good("reports") == {digest(STRANGER)}
    assert desk.good("fixed") == {digest("fixed")}
    desk.clock.advance(59)
    desk.keys.look()
    assert len(desk.applied) == 1
    desk.clock.advance(2)
    desk.keys.look()
    assert desk.good() == {digest(SECOND)}


def test_a_change_between_loading_and_looking_is_seen(desk: Desk) -> None:
    """What the file held when the configuration was read does not hide what it holds now."""
    desk.file.write_text(SECOND)
    desk.keys.look()
    assert digest(SECOND) in desk.good()


def test_a_link_that_is_swapped(desk: Desk, tmp_path: Path) -> None:
    """Secrets in a pod are links that are replaced, not files that are written."""
    (tmp_path / "next").write_text(SECOND)
    (tmp_path / "link").symlink_to(desk.file)
    desk.callers = (Caller(name="billing", key_sha256=digest(FIRST), key_file=tmp_path / "link"),)
    desk.keys.look()
    (tmp_path / "swap").symlink_to(tmp_path / "next")
    (tmp_path / "swap").replace(tmp_path / "link")
    desk.keys.look()
    assert digest(SECOND) in desk.good()


@pytest.mark.parametrize("content", ["", "short", STRANGER, "\N{SNOWMAN}" * 30])
def test_a_bad_key_changes_nothing(desk: Desk, content: str) -> None:
    """One that cannot be used, or is another caller's, is refused, told once, and not shown."""
    desk.keys.look()
    desk.file.write_text(content)
    with capture_logs() as logs:
        desk.keys.look()
        desk.keys.look()
    assert desk.applied == []
    (told,) = logs
    assert (told["event"], told["caller"]) == ("caller_key_refused", "billing")
    assert not content or content not in str(told)
    desk.file.write_text(THIRD)
    desk.keys.look()
    assert desk.good() == {digest(FIRST), digest(THIRD)}


def test_a_file_that_is_gone_or_no_text(desk: Desk) -> None:
    """Between two versions nothing changes, and bytes that are no text are no key."""
    desk.keys.look()
    desk.file.unlink()
    desk.keys.look()
    desk.file.write_bytes(b"\xff" * 40)
    desk.keys.look()
    assert desk.applied == []


def test_a_reload_begins_anew(desk: Desk) -> None:
    """After SIGHUP the keys are those that it has read, and no key before them is good."""
    desk.keys.look()
    desk.file.write_text(SECOND)
    desk.keys.look()
    desk.callers = (Caller(name="billing", key_sha256=digest(SECOND), key_file=desk.file),)
    desk.clock.advance(100)
    desk.keys.look()
    assert len(desk.applied) == 1
    desk.file.write_text(THIRD)
    desk.keys.look()
    assert desk.good() == {digest(SECOND), digest(THIRD)}
