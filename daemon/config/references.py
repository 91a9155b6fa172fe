"""Secrets and paths: values that stand for something outside the configuration."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from daemon.config.reading import FLAG, Reading
from daemon.config.trail import Trail
from daemon.config.values import InvalidValueError, text

_LARGEST_SECRET = 64 * 1024
_REFERENCE_WORDS = "must be {file: PATH} or {env: NAME}"
# What a person puts after env: may be the secret itself by mistake; such a thing is not printed.
_USUAL_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}", re.ASCII)
_INLINE = (
    "a secret stands in the configuration itself; put it into a file and write {file: PATH}, or "
    "into the environment and write {env: NAME}"
)


def secret(reading: Reading, trail: Trail, value: object) -> str | None:
    """Return the secret that ``value`` is or refers to; ``None`` and a finding where there is none.

    A trailing line break is removed. A secret written inline gives a warning.
    """
    found = resolved(reading, trail, value)
    if found is not None:
        warn_if_inline(reading, trail, value)
    return found


def resolved(reading: Reading, trail: Trail, value: object) -> str | None:
    """Return what ``secret`` does, without its warning."""
    if isinstance(value, Mapping):
        return _referenced(reading, trail, value)
    if isinstance(value, list | tuple):
        reading.find(trail, _REFERENCE_WORDS)
        return None
    return reading.read(trail, value, text)


def mention(reading: Reading, value: object) -> None:
    """Note which variables are referred to by secrets that nobody here needs: they are known."""
    for entry in value if isinstance(value, list | tuple) else [value]:
        name = entry.get("env") if isinstance(entry, Mapping) else None
        if isinstance(name, str):
            reading.referenced.add(name)


def warn_if_inline(reading: Reading, trail: Trail, value: object) -> None:
    """Warn where a secret stands in the file or on the command line; the environment is fine."""
    if isinstance(value, str) and reading.origin(trail) in {None, FLAG}:
        reading.warn(trail, _INLINE)


def path(reading: Reading, trail: Trail, value: object) -> Path | None:
    """Return the absolute path that ``value`` names; ``None`` and a finding where it names none.

    ``~`` is expanded. A relative path in the configuration file is relative to that file's
    directory, elsewhere to the working directory.
    """
    name = reading.read(trail, value, text)
    if name is None:
        return None
    try:
        expanded = expand(name, reading.environ)
    except InvalidValueError as error:
        reading.find(trail, str(error))
        return None
    in_file = reading.origin(trail) is None
    return (reading.directory if in_file else reading.working_directory) / expanded


def expand(name: str, environ: Mapping[str, str]) -> Path:
    """Return ``name`` as a path, a leading ``~`` replaced by the home directory.

    Raises:
        InvalidValueError: there is no home directory.
    """
    home = environ.get("HOME", "")
    if (name == "~" or name.startswith("~/")) and home.startswith("/"):
        return Path(home + name[1:])
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise InvalidValueError("there is no such home directory; write the path in full") from None


def _referenced(reading: Reading, trail: Trail, value: Mapping[object, object]) -> str | None:
    if len(value) != 1:
        reading.find(trail, _REFERENCE_WORDS)
        return None
    if "file" in value:
        return _from_file(reading, trail, value["file"])
    if "env" in value:
        return _from_environment(reading, trail, value["env"])
    reading.find(trail, _REFERENCE_WORDS)
    return None


def _from_environment(reading: Reading, trail: Trail, value: object) -> str | None:
    name = reading.read(trail, value, text)
    if name is None:
        return None
    reading.referenced.add(name)
    content = reading.environ.get(name)
    if not content:
        shown = f"variable {name}" if _USUAL_NAME.fullmatch(name) else "variable named here"
        state = "not set" if content is None else "empty"
        reading.find(trail, f"the environment {shown} is {state}; set it to the secret")
        return None
    return reading.read(trail, _without_line_break(content), text)


def content_of(file: Path) -> str:
    """Return the secret in a file. Raises OSError, UnicodeDecodeError or InvalidValueError."""
    return text(_without_line_break(_content(file)[0].decode()))


def _from_file(reading: Reading, trail: Trail, value: object) -> str | None:
    file = path(reading, trail, value)
    if file is None:
        return None
    try:
        content, mode = _content(file)
        decoded = content.decode()
    except FileNotFoundError:
        reading.find(trail, f"there is no file {file}")
    except UnicodeDecodeError:
        reading.find(trail, f"the file {file} is not UTF-8 text")
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        reading.find(trail, f"the file {file} cannot be read ({reason})")
    except InvalidValueError as error:
        reading.find(trail, f"the file {file} {error}")
    else:
        if mode & stat.S_IROTH:
            reading.warn(trail, f"everybody may read {file}; chmod o-r it")
        return _file_secret(reading, trail, _without_line_break(decoded), file)
    return None


def _file_secret(reading: Reading, trail: Trail, content: str, file: Path) -> str | None:
    try:
        return text(content)
    except InvalidValueError as error:
        reading.find(trail, f"the content of {file} {error}")
        return None


def _content(file: Path) -> tuple[bytes, int]:
    """Return the bytes and the mode of a regular file. Never waits for a pipe or a device."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise InvalidValueError("is not a regular file")
        content = os.read(descriptor, _LARGEST_SECRET + 1)
    finally:
        os.close(descriptor)
    if len(content) > _LARGEST_SECRET:
        raise InvalidValueError("is larger than 64 KiB; that is no secret")
    return content, mode


def _without_line_break(content: str) -> str:
    return content.removesuffix("\n").removesuffix("\r")
