"""Values in few words, and nothing that a terminal would obey."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from daemon.cli.printing import cell, plain, relative, say_table

NOW = datetime(2026, 11, 21, 18, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (None, "-"),
        ("2026-11-21T18:00:00Z", "in 0 s"),
        ("2026-11-21T18:01:59Z", "in 119 s"),
        ("2026-11-21T18:02:00Z", "in 2 min"),
        ("2026-11-21T19:59:59Z", "in 119 min"),
        ("2026-11-21T17:59:18Z", "42 s ago"),
        ("2026-11-20T18:00:00Z", "24 h ago"),
        ("2026-11-11T18:00:00Z", "10 days ago"),
    ],
)
def test_relative_times(moment: str | None, expected: str) -> None:
    """A time is told by its distance, in the unit that says enough."""
    assert relative(moment, NOW) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "-"),
        ("", "-"),
        ([], "-"),
        ({}, "-"),
        (0, "0"),
        (True, "yes"),
        (False, "no"),
        (["a", "b"], "a b"),
        ({"team": "7"}, "team=7"),
        ("text", "text"),
    ],
)
def test_cells(value: object, expected: str) -> None:
    """JSON values become words; what is empty becomes a dash."""
    assert cell(value) == expected


def test_control_characters_are_escaped() -> None:
    """Neither an escape sequence nor a direction mark reaches the terminal."""
    assert plain("a\x1b[31mb\u202ec\n", keep="\n") == "a\\x1b[31mb\\u202ec\n"


def test_piped_tables_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """Where stdout is no terminal nothing is cut, coloured or padded, and markup is text."""
    say_table(("ID", "NOTE"), [("x" * 200, "[red]active[/red]"), ("y", "")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.rstrip() == line for line in lines] == [True] * 3
    assert lines[1] == "x" * 200 + "  [red]active[/red]"
