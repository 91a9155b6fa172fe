"""One PostgreSQL cluster: how it is made, and the settings it runs with.

A cluster is made beside its place and renamed into it, password and all: it is whole or absent.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from daemon.domain.clock import Clock
from daemon.domain.errors import StorageError
from daemon.persistence.embedded.binaries import Binaries
from daemon.persistence.embedded.identity import Identity, spawn
from daemon.persistence.embedded.layout import (
    Layout,
    complaint,
    log_size,
    open_log,
    sync,
    take_over,
    write_private,
)
from daemon.persistence.embedded.unix_socket import PORT

DATABASE = "tokenward"
ROLE = "tokenward"
SUPERUSER = "postgres"

_POLL = 0.01
_IO_METHOD_SINCE = 18
# One line is one statement in single-user mode. The role may do everything in its database and
# nothing outside; the superuser has the same password and is for the operator. Copying the SCRAM
# verifier keeps the password out of every statement, and so out of every log.
_PROVISION = f"""\
DO $$BEGIN EXECUTE format('CREATE ROLE {ROLE} LOGIN CREATEDB PASSWORD %L', \
(SELECT rolpassword FROM pg_authid WHERE rolname = '{SUPERUSER}')); END$$
CREATE DATABASE {DATABASE} OWNER {ROLE}
"""


def server_settings(*, major: int, name: str, sockets: Path, durable: bool) -> Mapping[str, str]:
    """Return what the server is started with; these override the cluster's own files."""
    settings = {
        "cluster_name": name,
        "listen_addresses": "",
        "port": str(PORT),
        "unix_socket_directories": str(sockets),
        "unix_socket_permissions": "0700",
        # The daemon's pool, its LISTEN connection, and room for an operator and for tests.
        "max_connections": "40",
        # A hundred thousand connections' rows are some 300 MB: the hot tenth of them fits, and
        # the operating system's cache holds the rest.
        "shared_buffers": "32MB",
        # Reserved huge pages would be taken from others on the machine for nothing.
        "huge_pages": "off",
        # Checkpoints by time, not by volume, at our write rates; and the disk use is bounded.
        "max_wal_size": "256MB",
        # Every query is a look-up by index: compiling or spreading it costs more than running it.
        "jit": "off",
        "max_parallel_workers_per_gather": "0",
        # Saves the launcher process; nobody subscribes to this cluster.
        "max_logical_replication_workers": "0",
        "log_destination": "stderr",
        "logging_collector": "off",
        "log_timezone": "UTC",
        "timezone": "UTC",
        # The log is bounded; every five minutes a checkpoint would push out what matters.
        "log_checkpoints": "off",
    }
    if major >= _IO_METHOD_SINCE:
        # Saves three processes; reads come from the cache.
        settings["io_method"] = "sync"
    # Said in full, so that no file of the cluster can take away what a stored token relies on.
    on = "on" if durable else "off"
    return settings | dict.fromkeys(("fsync", "synchronous_commit", "full_page_writes"), on)


def server_command(
    binaries: Binaries, data: Path, settings: Mapping[str, str]
) -> Sequence[str | Path]:
    """Return the command that becomes the postmaster."""
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    return [binaries.program("postgres"), "-D", data, *options]


async def make(
    layout: Layout,
    *,
    binaries: Binaries,
    identity: Identity,
    password: str,
    durable: bool,
    clock: Clock,
) -> None:
    """Make the cluster: initdb, the role and the database, then the rename.

    Raises StorageError; what it began is then removed by the next attempt.
    """
    shutil.rmtree(layout.partial, ignore_errors=True)
    layout.partial.mkdir(mode=0o700)
    secret = layout.partial / layout.password.name
    write_private(secret, password)
    take_over(layout.partial, identity)
    data = layout.partial / layout.data.name
    initdb = _initdb(binaries, data, secret, durable=durable)
    await _run(initdb, layout, identity=identity, clock=clock)
    single = _single(binaries, data, durable=durable)
    await _run(single, layout, identity=identity, clock=clock, statements=_PROVISION)
    layout.partial.rename(layout.cluster)
    if durable:
        sync(layout.root)


def _initdb(
    binaries: Binaries, data: Path, password: Path, *, durable: bool
) -> Sequence[str | Path]:
    return [
        *(binaries.program("initdb"), "--pgdata", data),
        *(f"--username={SUPERUSER}", f"--pwfile={password}"),
        *("--auth-local=scram-sha-256", "--auth-host=reject"),
        # Byte order sorts alike everywhere and needs no locale of the machine.
        *("--encoding=UTF8", "--locale=C", "--data-checksums", "--no-instructions"),
        *(() if durable else ("--no-sync",)),
    ]


def _single(binaries: Binaries, data: Path, *, durable: bool) -> Sequence[str | Path]:
    options = {"exit_on_error": "true", "fsync": "on" if durable else "off"}
    words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    return [binaries.program("postgres"), "--single", "-D", data, *words, SUPERUSER]


async def _run(
    command: Sequence[str | Path],
    layout: Layout,
    *,
    identity: Identity,
    clock: Clock,
    statements: str = "",
) -> None:
    """Run a program to its end; it does not outlive this coroutine."""
    since = log_size(layout)
    with open_log(layout) as log, tempfile.TemporaryFile() as stdin:
        stdin.write(statements.encode())
        stdin.seek(0)
        process = spawn(
            command,
            identity=identity,
            directory=layout.root,
            death_signal=signal.SIGKILL,
            output=log,
            stdin=stdin,
        )
    try:
        while process.poll() is None:
            await clock.sleep(_POLL)
    finally:
        process.kill()
        process.wait()
    if process.returncode != 0:
        raise StorageError(
            f"a PostgreSQL cluster cannot be made in {layout.root}: "
            f"{complaint(layout, since=since)} (more in {layout.log})"
        )
