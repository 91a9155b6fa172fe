"""One load in progress: sections are opened, keys are read, findings and warnings pile up.

A wrong value is noted and its default takes its place, so that reading always reaches the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from daemon.config.schema import Section
from daemon.config.trail import Trail, render
from daemon.config.values import InvalidValueError
from daemon.config.vocabulary import unknown_key
from daemon.domain.errors import Finding
from daemon.domain.role import Role

T = TypeVar("T")

FLAG = "a command-line flag"


@dataclass(slots=True, kw_only=True)
class Reading:
    """What one load knows and has found so far.

    ``directory`` is that of the configuration file, ``working_directory`` that of the process:
    a relative path belongs to the one where it was written. ``origins`` names the environment
    variable or flag that set a trail; what is not in it stands in the file. ``referenced`` are the
    environment variables that ``{env: NAME}`` points to. ``role`` says for whom: secrets that it
    does not need are not looked for.
    """

    environ: Mapping[str, str]
    directory: Path
    working_directory: Path
    origins: Mapping[Trail, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    referenced: set[str] = field(default_factory=set)
    role: Role = Role.ALL

    def find(self, trail: Trail, message: str) -> None:
        """Note what is wrong at ``trail``, with the variable or flag it came from."""
        origin = self.origin(trail)
        source = f" (set by {origin})" if origin else ""
        self.findings.append(Finding(render(trail), message + source))

    def warn(self, trail: Trail, message: str) -> None:
        """Note what is allowed at ``trail`` and unwise."""
        self.warnings.append(f"{render(trail)}: {message}")

    def origin(self, trail: Trail) -> str | None:
        """Return the variable or flag that set ``trail`` or what contains it."""
        for length in range(len(trail), 0, -1):
            if (origin := self.origins.get(trail[:length])) is not None:
                return origin
        return None

    def read(self, trail: Trail, value: object, reader: Callable[[object], T]) -> T | None:
        """Return what ``reader`` makes of ``value``, or ``None`` and a finding."""
        try:
            return reader(value)
        except InvalidValueError as error:
            self.find(trail, str(error))
            return None

    def entries(self, trail: Trail, value: object) -> Iterator[tuple[Trail, object]]:
        """Yield each entry of a list with its trail; an empty key is an empty list."""
        if value is None:
            return
        if not isinstance(value, list | tuple):
            self.find(trail, "must be a list: [first, second]")
            return
        for position, entry in enumerate(value):
            yield (*trail, position), entry

    def members(self, trail: Trail, value: object) -> Iterator[tuple[Trail, str, object]]:
        """Yield each member of a mapping with trail and name; an empty key is an empty one."""
        if value is None:
            return
        if not isinstance(value, Mapping):
            self.find(trail, "must be a mapping of keys to values")
            return
        for name, member in value.items():
            if isinstance(name, str):
                yield (*trail, name), name, member
            else:
                self.find(trail, "has a key that is not text; put every key in quotes")


class OpenSection:
    """A section of the configuration, its unknown keys already reported."""

    def __init__(self, reading: Reading, trail: Trail, value: object, form: Section) -> None:
        self.reading = reading
        self.trail = trail
        self._values: dict[str, object] = {}
        for place, name, member in reading.members(trail, value):
            if name in form.keys:
                self._values[name] = member
            else:
                reading.find(place, unknown_key(name, form))

    def __contains__(self, key: str) -> bool:
        """Tell whether ``key`` is there, ``null`` or not."""
        return key in self._values

    def raw(self, key: str) -> object:
        """Return the plain value of ``key``; ``None`` where absent."""
        return self._values.get(key)

    def at(self, key: str) -> Trail:
        """Return the trail of ``key``."""
        return (*self.trail, key)

    def get(self, key: str, reader: Callable[[object], T], default: T) -> T:
        """Return the value of ``key``, or ``default`` where absent or (with a finding) wrong."""
        if key not in self._values:
            return default
        value = self.reading.read(self.at(key), self._values[key], reader)
        return default if value is None else value

    def optional(self, key: str, reader: Callable[[object], T]) -> T | None:
        """Return the value of ``key``; ``None`` where absent, ``null`` or, with a finding, bad."""
        value = self._values.get(key)
        return None if value is None else self.reading.read(self.at(key), value, reader)

    def required(self, key: str, reader: Callable[[object], T], message: str) -> T | None:
        """Return the value of ``key``; ``None`` with a finding where absent or wrong."""
        if self._values.get(key) is None:
            self.reading.find(self.at(key), message)
            return None
        return self.reading.read(self.at(key), self._values[key], reader)

    def each(self, key: str, reader: Callable[[object], T]) -> tuple[T, ...]:
        """Return the entries of the list ``key`` that can be read, each once, in order."""
        entries = self.reading.entries(self.at(key), self._values.get(key))
        read = (self.reading.read(trail, entry, reader) for trail, entry in entries)
        return tuple(dict.fromkeys(entry for entry in read if entry is not None))

    def within(self, key: str, form: Section) -> OpenSection:
        """Return the section under ``key``; an empty one where absent."""
        return OpenSection(self.reading, self.at(key), self._values.get(key), form)
