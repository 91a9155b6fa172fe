"""Whose process is it: decided from /proc's words alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.persistence.embedded.processes import PidFile, is_foreign, is_ours, parse_pid_file

NAME = "tokenward-fd00-2a"
DATA = Path("/state/postgres/cluster/data")
LINES = ["4711", str(DATA), "1700000000", "5432", "/s", "", "  123  456", "ready   "]


def words(*arguments: str) -> bytes:
    """Return what /proc/PID/cmdline would hold."""
    return b"".join(argument.encode() + b"\0" for argument in arguments)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n".join(LINES), PidFile(pid=4711, ready=True)),
        ("\n".join([*LINES[:7], "starting"]), PidFile(pid=4711, ready=False)),
        ("\n".join(LINES[:7]), PidFile(pid=4711, ready=False)),
        ("4711\n", PidFile(pid=4711, ready=False)),
        ("", None),
        ("-4711\n/single/user", None),
        ("garbage\0", None),
    ],
)
def test_pid_file_is_read_as_far_as_it_was_written(text: str, expected: PidFile | None) -> None:
    """A pid file counts as ready only once its eighth line says so; a foreign one is nothing."""
    assert parse_pid_file(text) == expected


@pytest.mark.parametrize(
    ("command_line", "ours", "foreign"),
    [
        (words("/usr/bin/postgres", "-D", str(DATA), "-c", f"cluster_name={NAME}"), True, False),
        (words("/usr/bin/python", "launch.py", "-c", f"cluster_name={NAME}"), True, False),
        (f"postgres: {NAME}: checkpointer ".encode() + b"\0" * 20, True, False),
        (f"postgres: {NAME}0: checkpointer ".encode(), False, False),
        (words("postgres", "-D", "/other", "-c", f"cluster_name={NAME}0"), False, False),
        (words("/usr/bin/postgres", "-D", str(DATA)), False, True),
        (words("postmaster", "--single", "-D", str(DATA), "postgres"), False, True),
        (words("/usr/bin/postgres", "-D", "/other"), False, False),
        (words("vim", str(DATA)), False, False),
        (words("sleep", "60"), False, False),
        (b"", False, False),
    ],
)
def test_processes_are_told_apart_by_their_words(
    command_line: bytes,
    ours: bool,  # noqa: FBT001 - a column of the table
    foreign: bool,  # noqa: FBT001 - a column of the table
) -> None:
    """Ours carry the cluster's whole name; somebody else's PostgreSQL names the directory."""
    assert is_ours(command_line, NAME) is ours
    assert is_foreign(command_line, NAME, DATA) is foreign
