"""The database from the command line, whether the daemon runs or not.

The embedded one belongs to one process at a time: while a daemon has it, that one is asked.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from daemon.cli.invocation import Invocation
from daemon.cli.printing import say, say_json
from daemon.config.loading import find_config, load_settings
from daemon.config.settings import Settings
from daemon.domain.clock import SystemClock, system_entropy
from daemon.domain.role import Role
from daemon.persistence import migrations
from daemon.persistence.dialing import DatabaseConnection, Dialer, Limits, hang_up
from daemon.persistence.embedded.layout import Layout
from daemon.persistence.embedded.server import EmbeddedPostgres
from daemon.persistence.migrations import Migration
from daemon.persistence.statements import steps

# A statement on one line of a terminal.
_LINE = 96


@dataclass(frozen=True, slots=True)
class Reached:
    """A connection to the database, and how it was had, in words."""

    connection: DatabaseConnection
    how: str


def load(call: Invocation, role: Role = Role.ALL) -> Settings:
    """Return the settings that ``call`` names, for ``role``. Raises ConfigurationError."""
    path = find_config(call.config, call.environ, call.working_directory)
    return load_settings(path=path, environ=call.environ, role=role)


def exists(settings: Settings) -> bool:
    """Tell whether there is a database to ask: the embedded one is made at the first start."""
    return settings.database_url is not None or Layout(settings.state_dir).cluster.exists()


def user_of_embedded(state_dir: Path) -> str | None:
    """Return the process id of the daemon that has the embedded database; ``None``: nobody."""
    try:
        handle = os.open(Layout(state_dir).lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
    finally:
        os.close(handle)
    return None


@asynccontextmanager
async def reach(settings: Settings) -> AsyncIterator[Reached]:
    """Connect to the configured database; start the embedded one where no daemon has it.

    For the main thread. Raises StorageError.
    """
    if settings.database_url is not None:
        async with _dialed(settings.database_url) as connection:
            yield Reached(connection, "database.url")
        return
    postgres = EmbeddedPostgres(settings.state_dir, entropy=system_entropy, clock=SystemClock())
    owner = user_of_embedded(settings.state_dir)
    if owner is not None:
        async with _dialed(SecretStr(postgres.url())) as connection:
            yield Reached(connection, f"embedded, in use by the daemon (process {owner})")
        return
    async with postgres, _dialed(SecretStr(postgres.url())) as connection:
        yield Reached(connection, "embedded, started for this command")


async def migrate(call: Invocation) -> None:
    """``tokenward migrate``: apply what is pending. Raises StorageError."""
    settings = load(call)
    async with reach(settings) as database:
        applied = await migrations.migrate(
            database.connection, migrations.bundled(), clock=SystemClock()
        )
    if call.as_json:
        say_json({"applied": [str(migration) for migration in applied]})
        return
    for migration in applied:
        say(f"applied {migration}")
    if not applied:
        say("The database is up to date; nothing was applied.")


async def foresee(call: Invocation) -> None:
    """``tokenward migrate --dry-run``: print what would be applied, and change nothing.

    Raises StorageError as ``migrate`` does: a newer major, a changed file, another's database.
    """
    settings, known = load(call), migrations.bundled()
    newer = 0
    if exists(settings):
        async with reach(settings) as database:
            pending = await migrations.pending(database.connection, known)
            newer = len(await migrations.applied(database.connection)) - len(known)
    else:
        pending = known
    if call.as_json:
        say_json({"pending": [_outlook(one) for one in pending], "newer": max(0, newer)})
        return
    for migration in pending:
        say(f"would apply {migration}")
        for step in steps(migration.sql):
            say(f"  {_cut(step.text)}\n    {step.waits}")
    if newer > 0:
        say(
            f"The database has {newer} newer migrations of the same major, which only add: this "
            "version works with them. Nothing would be applied."
        )
    elif not pending:
        say("The database is up to date; nothing would be applied.")


def _outlook(migration: Migration) -> dict[str, object]:
    return {
        "migration": str(migration),
        "in_transaction": not migration.alone,
        "statements": [
            {"statement": step.text, "table": step.table, "waits": step.waits}
            for step in steps(migration.sql)
        ],
    }


def _cut(text: str) -> str:
    return text if len(text) <= _LINE else text[: _LINE - 2] + " …"


@asynccontextmanager
async def _dialed(url: SecretStr) -> AsyncIterator[DatabaseConnection]:
    connection = await Dialer(url, Limits()).connect()
    try:
        yield connection
    finally:
        await hang_up(connection)
