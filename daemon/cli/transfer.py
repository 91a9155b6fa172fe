"""``tokenward import`` and ``export``: coming from another system, and seeing what is there.

Importing is repeatable: a line's connection has the id that the line gives, or one that is drawn
from the line itself, so that a line which was imported before is found to be there already.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

from daemon.cli.caller import open_client
from daemon.cli.calls import all_connections
from daemon.cli.client import ApiClient, RefusedError, connection_path
from daemon.cli.exits import CommandError, Exit
from daemon.cli.invocation import Invocation
from daemon.cli.printing import complain, console_for, say, say_json
from daemon.domain.connection import new_connection_id

# A body may be 64 KiB; a longer line is not one.
_LONGEST_LINE = 64 * 1024
# The database may be starting again; longer than this a person should look.
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)


class Fate(Enum):
    """What became of a line."""

    IMPORTED = "imported"
    THERE = "there already"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the file. ``number`` counts from 1, ``end`` in bytes from the file's start."""

    number: int
    text: bytes
    end: int


def import_file(call: Invocation, file: str) -> None:
    """Import every line; what is wrong with one does not stop the others.

    Raises:
        CommandError: the file cannot be read, the daemon went away, or lines failed.
    """
    client = open_client(call)
    counts: Counter[Fate] = Counter()
    with ExitStack() as stack:
        source, size = _open(call, file, stack)
        advance = _progress_bar(size, stack)
        for line in _lines(source):
            if line.text.strip():
                fate, message = _import_line(client, line)
                counts[fate] += 1
                if message:
                    complain(f"line {line.number}: {message}")
            advance(line.end)
    _summarize(call, counts)
    if counts[Fate.FAILED]:
        raise CommandError(
            "Correct the lines named above and import the same file again: what is there already "
            "is left alone."
        )


def export(call: Invocation) -> None:
    """Print each connection as one line of JSON: everything but secrets."""
    for connection in all_connections(open_client(call), {}):
        say(json.dumps(connection, ensure_ascii=False))


def read_line(line: Line) -> dict[str, Any]:
    """Return the body that a line holds, with an id drawn from it where it has none. Pure.

    Raises:
        CommandError: it is no JSON object; the text never repeats the line, which holds tokens.
    """
    if len(line.text) > _LONGEST_LINE:
        raise CommandError(f"is longer than {_LONGEST_LINE} bytes; it must be one JSON object.")
    try:
        body = json.loads(line.text)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise CommandError(
            "is not a JSON object; write one POST /v1/connections body on each line, such as "
            '{"provider": "acme", "tokens": {"refresh_token": "…"}}.'
        )
    if body.get("id") is None:
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
        body["id"] = new_connection_id(lambda count: digest[:count])
    return body


def _import_line(client: ApiClient, line: Line) -> tuple[Fate, str | None]:
    try:
        body = read_line(line)
    except CommandError as error:
        return Fate.FAILED, str(error)
    try:
        _post_patiently(client, body)
    except RefusedError as error:
        if error.code == "connection_exists":
            return _look_at(client, body)
        return Fate.FAILED, str(error)
    except CommandError as error:
        raise CommandError(
            f"Stopped before line {line.number}: {error}\nImport the same file again later; it "
            "goes on where it stopped.",
            error.exit_code,
        ) from error
    return Fate.IMPORTED, None


def _look_at(client: ApiClient, body: Mapping[str, Any]) -> tuple[Fate, str | None]:
    """Tell whether the connection that has the id is the one that the line means."""
    connection_id = str(body["id"])
    try:
        there = client.get(connection_path(connection_id))
    except RefusedError as error:
        return Fate.FAILED, str(error)
    if there["provider"] != body.get("provider"):
        return Fate.FAILED, (
            f"{connection_id} is a connection of the provider {there['provider']}. Choose another "
            "id for this line."
        )
    return Fate.THERE, None


def _post_patiently(client: ApiClient, body: Mapping[str, Any]) -> None:
    """Create a connection, and again while the daemon or its database is away.

    Raises:
        RefusedError: the listener said no, and would say so again.
        CommandError: it stayed away.
    """
    for pause in (*_PAUSES, None):
        try:
            client.post("/v1/connections", body)
        except CommandError as error:
            if error.exit_code is not Exit.UNAVAILABLE:
                raise
            if pause is None:
                raise CommandError(str(error), Exit.UNAVAILABLE) from error
            time.sleep(pause)
        else:
            return


def _open(call: Invocation, file: str, stack: ExitStack) -> tuple[BinaryIO, int | None]:
    if file == "-":
        return sys.stdin.buffer, None
    path = call.working_directory / Path(file).expanduser()
    try:
        size = path.stat().st_size
        return stack.enter_context(path.open("rb")), size
    except OSError as error:
        raise CommandError(
            f"{path} cannot be read ({(error.strerror or 'unknown').lower()}). Name a file of "
            "JSON lines, or - for stdin.",
            Exit.USAGE,
        ) from error


def _lines(source: BinaryIO) -> Iterator[Line]:
    end = 0
    for number, text in enumerate(source, start=1):
        end += len(text)
        yield Line(number, text, end)


def _progress_bar(size: int | None, stack: ExitStack) -> Any:
    """Return what is told how many bytes are done; a bar where a person watches stderr."""
    if not sys.stderr.isatty():
        return lambda _done: None
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("Importing"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console_for(sys.stderr),
        transient=True,
    )
    stack.enter_context(bar)
    task = bar.add_task("import", total=size)
    return lambda done: bar.update(task, completed=done)


def _summarize(call: Invocation, counts: Counter[Fate]) -> None:
    if call.as_json:
        say_json({fate.name.lower(): counts[fate] for fate in Fate})
    else:
        say(", ".join(f"{counts[fate]} {fate.value}" for fate in Fate) + ".")
