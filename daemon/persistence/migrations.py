"""Bringing the database's schema forward: plain SQL files, in order, each once.

Its hard idea: replicas of two versions share a database while an upgrade rolls out. A newer
schema of the same *major* only added things and is fine for older code; a newer major is not.

A file is named ``NNNN_words.sql`` and begins with ``-- major: N``. It runs in a transaction of
its own, together with its row in ``schema_migrations``. Where the second line is
``-- transaction: none`` (an index is built CONCURRENTLY) each statement runs by itself, and all of
them again after a failure. There is no way back but a backup. docs/upgrading.md has the rules.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable

import asyncpg

from daemon.domain.clock import Clock
from daemon.domain.errors import DatabaseUnavailableError, SchemaError, SchemaTooNewError
from daemon.persistence.dialing import DatabaseConnection
from daemon.persistence.statements import statements
from daemon.persistence.unavailable import LIBRARY_ERRORS, classify, unavailable

_FILE_NAME = re.compile(r"(?P<version>[0-9]{4})_(?P<name>[a-z0-9_]+)\.sql")
_HEADER = re.compile(r"-- major: (?P<major>[1-9][0-9]*)\r?\n(?P<alone>-- transaction: none\r?\n)?")
# In a file these would end the transaction that makes it all or nothing.
_TRANSACTION = re.compile(
    r"^\s*(?:BEGIN|START\s+TRANSACTION|COMMIT|ROLLBACK)\s*;", re.IGNORECASE | re.MULTILINE
)

# Any number will do as long as it stays the same; this is "tokenwar" in ASCII.
_LOCK = 0x746F6B656E776172
_LOCK_POLL_SECONDS = 0.25
_PATIENCE_SECONDS = 60.0
# The server's limit is lifted for a migration, so the client's is what remains.
_MIGRATION_SECONDS = 3600.0
# Whoever comes after a statement that waits for a table's lock waits behind it. So it gives up
# soon, lets them pass, and comes back.
_LOCK_TIMEOUT = "2s"
_LOCK_PAUSE_SECONDS = 1.0

_COLUMNS = ("version", "name", "major", "checksum", "applied_at")
_BOOKKEEPING = """
CREATE TABLE schema_migrations (
    version integer PRIMARY KEY,
    name text NOT NULL,
    major integer NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One file. ``checksum`` is the SHA-256 of its bytes, in hexadecimal.

    ``alone``: its statements run outside a transaction, and each bears to be run again.
    """

    version: int
    name: str
    major: int
    checksum: str
    sql: str = field(repr=False)
    alone: bool = False

    def __str__(self) -> str:
        """Return ``NNNN_name``."""
        return f"{self.version:04}_{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """One row of ``schema_migrations``."""

    version: int
    name: str
    major: int
    checksum: str


def bundled() -> tuple[Migration, ...]:
    """Return the migrations that come with this version."""
    return read_folder(resources.files("daemon.persistence") / "schema")


def read_folder(folder: Traversable) -> tuple[Migration, ...]:
    """Return the migrations of a folder in order.

    Raises:
        SchemaError: a ``.sql`` file is misnamed, lacks its header, controls transactions, or
            the numbers do not run from 1 without gap.
    """
    files = sorted(
        (file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda f: f.name
    )
    migrations = tuple(parse(file.name, file.read_bytes()) for file in files)
    for number, migration in enumerate(migrations, start=1):
        if migration.version != number:
            raise SchemaError(f"migration {number:04} is missing or there twice")
    return migrations


def parse(file_name: str, content: bytes) -> Migration:
    """Return one file as a migration."""
    named = _FILE_NAME.fullmatch(file_name)
    if named is None:
        raise SchemaError(f"{file_name}: a migration is named NNNN_words.sql")
    sql = content.decode()
    header = _HEADER.match(sql)
    if header is None:
        raise SchemaError(f"{file_name}: the first line must be '-- major: N'")
    if _TRANSACTION.search(sql):
        raise SchemaError(f"{file_name}: a migration must not begin or end transactions")
    return Migration(
        version=int(named["version"]),
        name=named["name"],
        major=int(header["major"]),
        checksum=hashlib.sha256(content).hexdigest(),
        sql=sql,
        alone=header["alone"] is not None,
    )


def plan(known: Sequence[Migration], applied: Iterable[Applied]) -> tuple[Migration, ...]:
    """Return which of the ``known`` migrations are still to be applied, in order.

    Raises:
        SchemaTooNewError: one of a newer major than any known was applied.
        SchemaError: what was applied is not a beginning of what is known, nor the other way
            round: a file was changed afterwards, or the database has another history.
    """
    rows = sorted(applied, key=lambda row: row.version)
    major = max((migration.major for migration in known), default=0)
    newest = max((row.major for row in rows), default=0)
    if newest > major:
        raise SchemaTooNewError(
            f"the database has schema {newest}.{rows[-1].version}, made by a newer tokenward; "
            f"this one knows major {major}: run a newer version, or restore a backup from before"
        )
    for number, row in enumerate(rows, start=1):
        if row.version != number:
            raise SchemaError(f"the database lacks migration {number:04} but has later ones")
    for migration, row in zip(known, rows, strict=False):
        if migration.checksum != row.checksum:
            raise SchemaError(
                f"migration {migration} was applied as {row.version:04}_{row.name} with other "
                f"content: use the tokenward that made this database, or a database of its own"
            )
    return tuple(known[len(rows) :])


async def pending(
    connection: DatabaseConnection, known: Sequence[Migration]
) -> tuple[Migration, ...]:
    """Return what ``migrate`` would apply. Only reads; raises as ``plan`` and ``migrate`` do."""
    return plan(known, await applied(connection))


async def applied(connection: DatabaseConnection) -> list[Applied]:
    """Return what was applied, in no order. Only reads; raises as ``migrate`` does."""
    async with _translated("reading schema_migrations"):
        return await _applied(connection)


async def migrate(
    connection: DatabaseConnection,
    known: Sequence[Migration],
    *,
    clock: Clock,
    patience: float = _PATIENCE_SECONDS,
) -> tuple[Migration, ...]:
    """Apply what is pending and return it; of many at once exactly one applies.

    ``connection`` is one of its own (``Database.connect``, or the one ``prepare`` receives), for
    the lock belongs to its session. ``patience`` is how many seconds to wait for another that is
    migrating, and then for transactions that hold a table.

    Raises:
        DatabaseUnavailableError: away, or another is still at it; try again.
        SchemaTooNewError: nothing was written.
        SchemaError: nothing was written, or the named migration failed and was rolled back,
            those before it staying applied.
    """
    if not await pending(connection, known):
        return ()
    async with _locked(connection, clock, patience):
        todo = await pending(connection, known)
        for migration in todo:
            async with _translated(f"migration {migration}"):
                await _apply_patiently(connection, migration, clock, patience)
    return todo


@asynccontextmanager
async def _translated(what: str) -> AsyncIterator[None]:
    try:
        yield
    except asyncpg.InsufficientPrivilegeError as error:
        raise SchemaError(
            f"{what}: {error}. Make tokenward's role the owner of its database, or let it "
            f"create tables there (GRANT CREATE ON SCHEMA)"
        ) from error
    except (asyncpg.DuplicateTableError, asyncpg.DuplicateObjectError) as error:
        raise SchemaError(
            f"{what}: {error}. The database holds something that tokenward did not make: "
            f"give it a database of its own"
        ) from error
    except LIBRARY_ERRORS as error:
        if classify(error) is None:
            raise SchemaError(f"{what} failed and was rolled back: {error}") from error
        raise unavailable(error) from error


async def _applied(connection: DatabaseConnection) -> list[Applied]:
    columns = await connection.fetch(
        "SELECT attname FROM pg_catalog.pg_attribute"
        " WHERE attrelid = to_regclass('schema_migrations') AND attnum > 0 AND NOT attisdropped"
    )
    if not columns:
        return []
    if not {column["attname"] for column in columns}.issuperset(_COLUMNS):
        raise SchemaError(
            "the table schema_migrations of this database belongs to another program: "
            "give tokenward a database of its own"
        )
    rows = await connection.fetch("SELECT version, name, major, checksum FROM schema_migrations")
    return [Applied(**row) for row in rows]


@asynccontextmanager
async def _locked(
    connection: DatabaseConnection, clock: Clock, patience: float
) -> AsyncIterator[None]:
    # Polled: a statement that waits holds a snapshot, which the migration might have to wait for.
    deadline = clock.boottime() + patience
    async with _translated("waiting for the migration lock"):
        while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
            if clock.boottime() >= deadline:
                raise DatabaseUnavailableError(
                    f"another process has been migrating the database for more than "
                    f"{patience:.0f} s: wait for it, or end it (pg_locks, locktype advisory)"
                )
            await clock.sleep(_LOCK_POLL_SECONDS)
    try:
        yield
    finally:
        if not connection.is_closed():
            async with _translated("releasing the migration lock"):
                await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK)


async def _apply_patiently(
    connection: DatabaseConnection, migration: Migration, clock: Clock, patience: float
) -> None:
    deadline = clock.boottime() + patience
    while True:
        try:
            await (_apply_alone if migration.alone else _apply)(connection, migration)
        except asyncpg.LockNotAvailableError as error:
            if clock.boottime() >= deadline:
                raise DatabaseUnavailableError(
                    f"migration {migration} has waited {patience:.0f} s for a table that a long "
                    f"transaction holds: end it (pg_stat_activity, oldest xact_start), or wait"
                ) from error
        else:
            return
        await clock.sleep(_LOCK_PAUSE_SECONDS)


async def _apply(connection: DatabaseConnection, migration: Migration) -> None:
    async with connection.transaction():
        await connection.execute("SET LOCAL statement_timeout = 0")
        await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
        if migration.version == 1:
            await connection.execute(_BOOKKEEPING)
        await connection.execute(migration.sql, timeout=_MIGRATION_SECONDS)
        await _note(connection, migration)


async def _apply_alone(connection: DatabaseConnection, migration: Migration) -> None:
    # CONCURRENTLY waits for transactions while it stands in nobody's way: no lock timeout.
    await connection.execute("SET statement_timeout = 0; SET lock_timeout = 0")
    try:
        for statement in statements(migration.sql):
            await connection.execute(statement, timeout=_MIGRATION_SECONDS)
    finally:
        if not connection.is_closed():
            await connection.execute("RESET statement_timeout; RESET lock_timeout")
    await _note(connection, migration)


async def _note(connection: DatabaseConnection, migration: Migration) -> None:
    await connection.execute(
        "INSERT INTO schema_migrations (version, name, major, checksum) VALUES ($1, $2, $3, $4)",
        migration.version,
        migration.name,
        migration.major,
        migration.checksum,
    )
