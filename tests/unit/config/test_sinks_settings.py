"""Sinks in the configuration: what loads, and what is refused with its path."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.config.reload import changes
from daemon.domain.sink import PidFileSignal, Sink, SinkFormat, SinkSignal
from tests.support.configuration import Desk

_LEAST = "connection: acme-1, path: /run/a/token"


def test_a_sink_with_everything(desk: Desk) -> None:
    """Each key becomes what it says."""
    settings = desk.load(
        "sinks: [{connection: acme-1, path: /run/a/token, format: json, mode: '0640', owner: 5,"
        " group: 6, allow_shared_directory: true, command: [/bin/true, -a, -a]}]"
    )
    assert settings.warnings == ()
    assert settings.sinks == (
        Sink(
            connection="acme-1",
            path=Path("/run/a/token"),
            format=SinkFormat.JSON,
            mode=0o640,
            owner=5,
            group=6,
            allow_shared_directory=True,
            command=("/bin/true", "-a", "-a"),
        ),
    )


def test_a_sink_with_the_least(desk: Desk) -> None:
    """Connection and path are enough; a signal is SIGHUP unless it says otherwise."""
    settings = desk.load(f"sinks: [{{{_LEAST}, signal: {{pid_file: /run/a.pid}}}}]")
    (sink,) = settings.sinks
    assert sink.signal == PidFileSignal(pid_file=Path("/run/a.pid"), signal=SinkSignal.HUP)
    assert (sink.format, sink.mode, sink.command) == (SinkFormat.TOKEN, 0o600, ())
    assert (sink.owner, sink.group, sink.allow_shared_directory) == (None, None, False)


@pytest.mark.parametrize(
    ("entry", "path"),
    [
        ("path: /run/a/token", "sinks[0].connection"),
        ("connection: acme-1", "sinks[0].path"),
        ("connection: 'acme-*', path: /run/a/token", "sinks[0].connection"),
        ("connection: acme-1, path: token", "sinks[0].path"),
        ("connection: acme-1, path: ~/token", "sinks[0].path"),
        ("connection: acme-1, path: /run/../token", "sinks[0].path"),
        ("connection: acme-1, path: /run//token", "sinks[0].path"),
        ("connection: acme-1, path: //run/token", "sinks[0].path"),
        ("connection: acme-1, path: /run/a/", "sinks[0].path"),
        ("connection: acme-1, path: /", "sinks[0].path"),
        (f"connection: acme-1, path: /run/{'n' * 241}", "sinks[0].path"),
        ("connection: acme-1, path: /somewhere/state/token", "sinks[0].path"),
        (f"{_LEAST}, mode: 640", "sinks[0].mode"),
        (f"{_LEAST}, mode: '0646'", "sinks[0].mode"),
        (f"{_LEAST}, mode: '0700'", "sinks[0].mode"),
        (f"{_LEAST}, mode: '0240'", "sinks[0].mode"),
        (f"{_LEAST}, mode: '4600'", "sinks[0].mode"),
        (f"{_LEAST}, format: yaml", "sinks[0].format"),
        (f"{_LEAST}, owner: root", "sinks[0].owner"),
        (f"{_LEAST}, group: -1", "sinks[0].group"),
        (f"{_LEAST}, command: reload", "sinks[0].command"),
        (f"{_LEAST}, command: [systemctl]", "sinks[0].command"),
        (f"{_LEAST}, command: [/bin/a, 5]", "sinks[0].command[1]"),
        (f"{_LEAST}, signal: {{signal: SIGHUP}}", "sinks[0].signal.pid_file"),
        (f"{_LEAST}, signal: {{pid_file: a.pid}}", "sinks[0].signal.pid_file"),
        (f"{_LEAST}, signal: {{pid_file: /a.pid, signal: SIGKILL}}", "sinks[0].signal.signal"),
        (f"{_LEAST}, signal: {{pid_file: /a.pid}}, command: [/a]", "sinks[0].command"),
        (f"{_LEAST}, shell: true", "sinks[0].shell"),
    ],
)
def test_refused(desk: Desk, entry: str, path: str) -> None:
    """What cannot work, or would be unsafe, is a finding at its path."""
    found = desk.findings(f"state_dir: /somewhere/state\nsinks: [{{{entry}}}]")
    assert [finding.path for finding in found] == [path]


def test_one_file_has_one_sink(desk: Desk) -> None:
    """Two sinks at one path would write over each other."""
    (found,) = desk.findings(f"sinks: [{{{_LEAST}}}, {{{_LEAST}}}]")
    assert (found.path, "sinks[0].path" in found.message) == ("sinks[1].path", True)


def test_a_token_for_everybody_is_a_warning(desk: Desk) -> None:
    """Others may be let in, and that is said."""
    (warning,) = desk.load(f"sinks: [{{{_LEAST}, mode: '0644'}}]").warnings
    assert warning.startswith("sinks[0].mode: lets every user")


def test_a_reload_takes_sinks(desk: Desk) -> None:
    """They apply at once."""
    found = changes(desk.load(""), desk.load(f"sinks: [{{{_LEAST}}}]"))
    assert (found.applied, found.restart) == (("sinks",), ())
    assert len(found.settings.sinks) == 1
