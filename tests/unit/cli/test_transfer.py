"""Importing lines: what becomes of each, and that a second time changes nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, cast

import pytest

from daemon.cli import transfer
from daemon.cli.client import ApiClient, RefusedError
from daemon.cli.exits import CommandError, Exit
from daemon.cli.transfer import Fate, Line
from daemon.domain.connection import is_connection_id

SECRET = "rt-planted-in-a-line"


class Listener:
    """What the api listener would say; connections by id."""

    def __init__(self) -> None:
        self.there: dict[str, dict[str, Any]] = {}
        self.away = 0

    def post(self, _path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create, unless the id is taken or the provider unknown."""
        if self.away:
            self.away -= 1
            raise CommandError("Nothing listens.", Exit.UNAVAILABLE)
        if body["id"] in self.there:
            raise RefusedError("There is one.", Exit.FAILED, code="connection_exists")
        if body.get("provider") != "acme":
            raise RefusedError("No such provider.", Exit.USAGE, code="invalid_request")
        self.there[body["id"]] = dict(body)
        return dict(body)

    def get(self, path: str) -> dict[str, Any]:
        """Return one that is there."""
        return self.there[path.rpartition("/")[2]]


def go(listener: Listener, text: str) -> tuple[Fate, str | None]:
    """Import one line."""
    line = Line(1, text.encode(), len(text))
    return transfer._import_line(cast("ApiClient", listener), line)


def body(**members: object) -> str:
    """A line."""
    return json.dumps({"provider": "acme", "tokens": {"refresh_token": SECRET}} | members)


def test_a_line_imported_twice_is_there_once() -> None:
    """A line without an id is recognized when it comes again, whatever the order of its members."""
    listener = Listener()
    assert go(listener, body())[0] is Fate.IMPORTED
    turned = json.dumps(dict(reversed(json.loads(body()).items())))
    assert [go(listener, text)[0] for text in (body(), turned)] == [Fate.THERE, Fate.THERE]
    (made,) = listener.there
    assert is_connection_id(made)
    assert go(listener, body(metadata={"team": "7"}))[0] is Fate.IMPORTED


def test_an_id_of_another_provider_is_no_success() -> None:
    """An id that is taken by another provider's connection fails, and says by which."""
    listener = Listener()
    listener.there["a"] = {"provider": "other"}
    fate, message = go(listener, body(id="a"))
    assert fate is Fate.FAILED
    assert "other" in str(message)


@pytest.mark.parametrize(
    "text",
    [SECRET, f'["{SECRET}"]', '{"provider": "acme"', "null", "[" * 100_000, "x" * 70_000],
    ids=["text", "list", "cut", "null", "deep", "long"],
)
def test_what_is_no_body_is_said_without_repeating_it(text: str) -> None:
    """A line that is no JSON object fails with what to write instead, and never with its text."""
    fate, message = go(Listener(), text)
    assert fate is Fate.FAILED
    assert "one" in str(message)
    assert SECRET not in str(message)


def test_a_line_that_is_refused_names_why() -> None:
    """What the listener says of a line is that line's error."""
    assert go(Listener(), body(provider="x")) == (Fate.FAILED, "No such provider.")


def test_the_daemon_may_go_away_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that is away for seconds delays the import; one that stays away stops it."""
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    listener = Listener()
    listener.away = 3
    assert go(listener, body())[0] is Fate.IMPORTED
    listener.away = 100
    with pytest.raises(CommandError, match="Import the same file again") as stopped:
        go(listener, body(id="b"))
    assert stopped.value.exit_code is Exit.UNAVAILABLE
