"""Files for applications that only read files: where a token is written, and who hears of it."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from daemon.config.reading import OpenSection, Reading
from daemon.config.schema import PID_FILE_SIGNAL, SINK
from daemon.config.trail import Trail, render
from daemon.config.values import InvalidValueError, boolean, one_of, text, whole_number
from daemon.domain.connection import is_connection_id
from daemon.domain.sink import DEFAULT_MODE, PidFileSignal, Sink, SinkFormat, SinkSignal

_MODE = re.compile(r"0?[0-7]{3}", re.ASCII)
# Nothing may be executed, and nobody but the owner and the group may write.
_ALLOWED = 0o664
_OTHERS = 0o007
_OWNER_READS = 0o400
# The file's name gets a dot and a suffix while it is written, and names end at 255 bytes.
_LONGEST_NAME = 240
_LONGEST_PATH = 4000
_HIGHEST_ID = 2**32 - 2
_PATH_WORDS = "must be an absolute path to a file, without .. and such as /run/app/token"
_MODE_WORDS = (
    'must be permission bits in quotes that let nobody execute and others not write, such as "0640"'
)


def sinks(reading: Reading, trail: Trail, value: object, *, state_dir: Path) -> tuple[Sink, ...]:
    """Return the sinks; two with one path, or one inside ``state_dir``, are findings."""
    found: list[Sink] = []
    paths: dict[Path, Trail] = {}
    for place, entry in reading.entries(trail, value):
        section = OpenSection(reading, place, entry, SINK)
        connection = section.required("connection", _connection, "is missing; give its exact id")
        path = section.required("path", _file, f"is missing; it {_PATH_WORDS}")
        mode = section.get("mode", _mode, DEFAULT_MODE)
        sink = Sink(
            connection=connection or "",
            path=path or Path("/"),
            format=section.get("format", one_of(SinkFormat), SinkFormat.TOKEN),
            mode=mode,
            owner=section.optional("owner", whole_number(0, _HIGHEST_ID)),
            group=section.optional("group", whole_number(0, _HIGHEST_ID)),
            allow_shared_directory=section.get("allow_shared_directory", boolean, default=False),
            command=_command(section),
            signal=_signal(section),
        )
        if path is not None:
            first = paths.setdefault(path, section.at("path"))
            _check_path(section, path, first=first, state_dir=state_dir)
        _check(section, sink)
        found.append(sink)
    return tuple(found)


def _check_path(section: OpenSection, path: Path, *, first: Trail, state_dir: Path) -> None:
    trail = section.at("path")
    if first != trail:
        message = f"is the same file as {render(first)}; give each sink its own"
        section.reading.find(trail, message)
    if path.is_relative_to(state_dir):
        message = "is inside state_dir, where keys and the database are; choose another directory"
        section.reading.find(trail, message)


def _check(section: OpenSection, sink: Sink) -> None:
    if sink.command and sink.signal is not None:
        message = "stands beside signal; choose one of them"
        section.reading.find(section.at("command"), message)
    if sink.mode & _OTHERS:
        message = "lets every user of the machine read the token; use owner and group instead"
        section.reading.warn(section.at("mode"), message)


def _connection(value: object) -> str:
    name = text(value)
    if not is_connection_id(name):
        raise InvalidValueError("must be the exact id of one connection; patterns are not allowed")
    return name


def _absolute(value: object, words: str) -> Path:
    name = text(value)
    is_plain = str(PurePosixPath(name)) == name and ".." not in PurePosixPath(name).parts
    if not is_plain or not name.startswith("/") or name.startswith("//"):
        raise InvalidValueError(words)
    path = Path(name)
    if not path.name or len(name.encode()) > _LONGEST_PATH:
        raise InvalidValueError(words)
    return path


def _file(value: object) -> Path:
    path = _absolute(value, _PATH_WORDS)
    if len(path.name.encode()) > _LONGEST_NAME:
        raise InvalidValueError(f"must have a name of at most {_LONGEST_NAME} bytes")
    return path


def _mode(value: object) -> int:
    if not isinstance(value, str) or not _MODE.fullmatch(value):
        raise InvalidValueError(_MODE_WORDS)
    mode = int(value, 8)
    if mode & ~_ALLOWED or not mode & _OWNER_READS:
        raise InvalidValueError(_MODE_WORDS)
    return mode


def _command(section: OpenSection) -> tuple[str, ...]:
    # Not ``each``, which leaves out what stands there twice.
    entries = section.reading.entries(section.at("command"), section.raw("command"))
    words = [section.reading.read(trail, entry, text) for trail, entry in entries]
    if words and words[0] is not None and not words[0].startswith("/"):
        message = "must begin with the absolute path of a program; there is no shell and no PATH"
        section.reading.find(section.at("command"), message)
    return tuple(word for word in words if word is not None)


def _signal(section: OpenSection) -> PidFileSignal | None:
    if section.raw("signal") is None:
        return None
    inside = section.within("signal", PID_FILE_SIGNAL)
    words = "must be an absolute path such as /run/app.pid"
    path = inside.required(
        "pid_file", lambda value: _absolute(value, words), f"is missing; it {words}"
    )
    kind = inside.get("signal", one_of(SinkSignal), SinkSignal.HUP)
    return None if path is None else PidFileSignal(pid_file=path, signal=kind)
