"""A child that speaks JSON lines: commands, events, and every way in which it can end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from daemon.demo.authorization_server.child import Event, LineChild
from daemon.demo.authorization_server.node import AuthorizationServerError

_PRELUDE = """
import json, os, sys
def emit(event, **members):
    print(json.dumps({"event": event, "at": 1.5, **members}), flush=True)
configuration = json.loads(sys.stdin.readline())
"""
_ECHO = """
emit("listening", told=configuration["word"])
for line in sys.stdin:
    message = json.loads(line)
    emit("asked", command=message["command"])
    emit("command.done", id=message["id"], result=message["word"])
"""

Start = Callable[..., tuple[LineChild, list[Event]]]


@pytest.fixture
def make() -> Iterator[Start]:
    """Make a child from the text of its program; it is stopped with the test."""
    with ExitStack() as running:

        def made(program: str) -> tuple[LineChild, list[Event]]:
            events: list[Event] = []
            command = [sys.executable, "-c", _PRELUDE + program]
            child = LineChild("echo", command, on_event=events.append)
            running.callback(child.stop)
            return child, events

        yield made


def test_configuration_commands_and_events(make: Start) -> None:
    """A command's result comes after the events that happened before it."""
    child, events = make(_ECHO)
    assert child.start({"word": "first"}).members == {"told": "first"}
    assert child.command("say", word="second") == "second"
    assert events == [Event("asked", 1.5, {"command": "say"})]


def test_stop_and_start_again(make: Start) -> None:
    """A stopped child refuses commands, stopping twice is harmless, and it can start again."""
    child, _ = make(_ECHO)
    child.stop()
    child.start({"word": "one"})
    child.stop()
    child.stop()
    with pytest.raises(AuthorizationServerError, match="not running"):
        child.command("say", word="two")
    assert child.start({"word": "three"}).members == {"told": "three"}


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ('print("wrong key", file=sys.stderr); sys.exit(1)', "ended unexpectedly. wrong key"),
        ('emit("failed", error="EADDRINUSE")', "port is in use"),
        ('emit("failed", error="no such thing")', "refused: no such thing"),
    ],
)
def test_a_start_that_fails(make: Start, program: str, message: str) -> None:
    """A child that ends or refuses at its start is an error with its own words."""
    child, _ = make(program)
    with pytest.raises(AuthorizationServerError, match=message):
        child.start({})


def test_a_child_that_dies_later(make: Start) -> None:
    """A command to a child that has died is an error, not a wait."""
    child, _ = make('emit("listening"); sys.stdin.readline(); os._exit(3)')
    child.start({})
    with pytest.raises(AuthorizationServerError, match="ended unexpectedly"):
        child.command("say")
    with pytest.raises(AuthorizationServerError, match="ended unexpectedly"):
        child.command("say")


def test_a_refused_command(make: Start) -> None:
    """A command that fails is an error, and the child goes on."""
    child, _ = make(
        'emit("listening")\n'
        "for line in sys.stdin:\n"
        '    emit("command.failed", id=json.loads(line)["id"], error="no")'
    )
    child.start({})
    for _ in range(2):
        with pytest.raises(AuthorizationServerError, match="refused: no"):
            child.command("say")
