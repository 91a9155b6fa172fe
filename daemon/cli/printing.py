"""What reaches the terminal: tables for people, JSON for programs, errors on stderr.

Texts that came from elsewhere lose their control characters: terminals obey them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Piped output is not cut at 80 columns: what follows in the pipe wants whole ids.
_UNLIMITED = 10_000
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400

_COLOURS: Mapping[str, str] = {
    "active": "green",
    "failing": "yellow",
    "reauthorization_required": "bold red",
    "pending": "cyan",
    "disconnected": "dim",
    "ok": "green",
    "warning": "yellow",
    "error": "bold red",
}


def say(text: str = "") -> None:
    """Write a line to stdout, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """Write a line to stderr, after everything that was said before."""
    sys.stdout.flush()
    sys.stderr.write(plain(text, keep="\n") + "\n")
    sys.stderr.flush()


def say_json(value: object) -> None:
    """Write ``value`` as JSON, indented for a terminal's reader."""
    say(json.dumps(value, indent=2 if sys.stdout.isatty() else None))


def plain(text: str, *, keep: str = "") -> str:
    """Return ``text`` with control and other invisible characters escaped."""
    return "".join(
        letter
        if letter.isprintable() or letter in keep
        else letter.encode("unicode_escape", "backslashreplace").decode("ascii")
        for letter in text
    )


def say_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table. The first column is never cut; words that are states are coloured."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for position, column in enumerate(columns):
        table.add_column(column, no_wrap=position == 0, overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell), style=_COLOURS.get(cell, "")) for cell in row))
    _say_table(table)


def say_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Write names and values, one pair a line."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(Text(name), Text(plain(value), style=_COLOURS.get(value, "")))
    _say_table(table)


def console_for(stream: TextIO) -> Console:
    """Return a console that cuts nothing where it is no terminal, and colours only where it is."""
    from rich.console import Console

    return Console(
        file=stream,
        width=None if stream.isatty() else _UNLIMITED,
        highlight=False,
        markup=False,
        emoji=False,
    )


def _say_table(table: Table) -> None:
    console = console_for(sys.stdout)
    with console.capture() as capture:
        console.print(table)
    # Padded cells would make every line as long as the longest.
    for line in capture.get().splitlines():
        say(line.rstrip())


def relative(moment: object, now: datetime) -> str:
    """Return an RFC 3339 time as ``in 42 s`` or ``3 min ago``; ``-`` for ``None``. Pure."""
    if not isinstance(moment, str):
        return "-"
    seconds = round((datetime.fromisoformat(moment) - now).total_seconds())
    length = span(abs(seconds))
    return f"in {length}" if seconds >= 0 else f"{length} ago"


def span(seconds: int) -> str:
    """Return a length of time in its largest unit that says enough."""
    if seconds < 2 * _MINUTE:
        return f"{seconds} s"
    if seconds < 2 * _HOUR:
        return f"{seconds // _MINUTE} min"
    if seconds < 2 * _DAY:
        return f"{seconds // _HOUR} h"
    return f"{seconds // _DAY} days"


def _member(name: str, value: Any) -> str:
    """Return a member in few words; what is nested stands in brackets, without what is empty."""
    if not isinstance(value, dict):
        return f"{name}={cell(value)}"
    inner = {key: entry for key, entry in value.items() if entry not in (None, "", [], {}, False)}
    return f"{name} ({cell(inner)})" if inner else name


def cell(value: Any) -> str:
    """Return a JSON value in few words."""
    if value is None or value in ("", [], {}):
        return "-"
    match value:
        case bool():
            return "yes" if value else "no"
        case list():
            return " ".join(str(entry) for entry in value)
        case dict():
            return ", ".join(_member(str(name), entry) for name, entry in value.items())
        case _:
            return str(value)
