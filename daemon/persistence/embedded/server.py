"""The supervisor: one PostgreSQL as our own child, from the daemon's start to its end.

Nothing here hangs on one event loop: the process is a plain child, and every wait is a poll
through the clock.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from daemon.domain.clock import Clock, Entropy
from daemon.domain.errors import StorageError
from daemon.persistence.embedded import cluster, processes, unix_socket
from daemon.persistence.embedded.binaries import installed_directories
from daemon.persistence.embedded.identity import Identity, possible_identities, spawn
from daemon.persistence.embedded.installation import Installation, choose
from daemon.persistence.embedded.layout import (
    Layout,
    bound_log,
    complaint,
    lock_state,
    log_size,
    open_log,
    take_over,
)

log = structlog.get_logger()

# A start takes 50 ms; a poll costs two system calls.
_POLL = 0.01
# How long the death of the postmaster may go unnoticed; its clients notice at once.
_WATCH_INTERVAL = 0.2
# Crash recovery reads at most `max_wal_size`, 256 MB: seconds, or minutes on a starved disk.
_START_PATIENCE = 300.0
# A fast shutdown writes one checkpoint; an immediate one only ends processes.
_SHUTDOWN: Sequence[tuple[signal.Signals, float]] = (
    (signal.SIGINT, 20.0),
    (signal.SIGQUIT, 5.0),
    (signal.SIGKILL, 5.0),
)
_FIRST_DELAY = 0.1
_LONGEST_DELAY = 30.0
# A server that stood this long died of something new.
_STABLE_AFTER = 60.0
# Weeks of ordinary messages; an error in a loop must not fill the disk that holds the tokens.
_LOG_LIMIT = 4 * 1024 * 1024
# 256 bits, so that the hash of it need not be slow.
_PASSWORD_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What tests change. ``durable=False`` trades safety against power loss for speed."""

    durable: bool = True
    settings: Mapping[str, str] = field(default_factory=dict)
    directories: Callable[[], Iterable[Path]] = installed_directories
    identities: Callable[[], Sequence[Identity]] = possible_identities


def restart_delay(restarts: int) -> float:
    """Return the seconds to wait before a restart that ``restarts`` others went before."""
    return float(min(_LONGEST_DELAY, _FIRST_DELAY * 2 ** min(restarts, 16)))


class EmbeddedPostgres:
    """PostgreSQL under ``{state_dir}/postgres``, reachable through a private Unix socket only.

    ``start``, ``watch`` and ``stop`` belong to the main thread: the kernel ends the server when
    the thread that started it ends. One state directory serves one daemon at a time.
    """

    def __init__(
        self, state_dir: Path, *, entropy: Entropy, clock: Clock, options: Options | None = None
    ) -> None:
        self._layout = Layout(state_dir.expanduser().resolve())
        self._entropy = entropy
        self._clock = clock
        self._options = options or Options()
        self._lock: int | None = None
        self._installation: Installation | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = False
        self._log_start = 0

    async def __aenter__(self) -> Self:
        """Start; see ``start``."""
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop; see ``stop``."""
        await self.stop()

    @property
    def pid(self) -> int | None:
        """The postmaster's pid, ``None`` while none was started."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> str:
        """Start the server, making its cluster first where there is none; return its URL.

        The URL holds a password and stays valid through restarts. Ends what a killed daemon left
        running. Raises StorageError, then everything is as if it had not been called.
        """
        if self._runs():
            return self.url()
        self._wanted = True
        try:
            if self._lock is None:
                self._lock = lock_state(self._layout)
            await self._prepare()
            self._spawn()
            await self._ready()
        except OSError as error:
            await self.stop()
            raise StorageError(
                f"PostgreSQL cannot be kept in {self._layout.root}: {error} "
                "(look at its owner and at the free space)"
            ) from error
        except BaseException:
            await self.stop()
            raise
        return self.url()

    async def stop(self) -> None:
        """End the server: fast, then immediately, then by force, 30 s in all. May be repeated.

        Cancel ``watch`` first where the state directory is to be used by somebody else at once.
        """
        self._wanted = False
        try:
            await self._end_process()
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    async def watch(self) -> None:
        """Restart the server whenever it dies, with backoff, until ``stop`` or cancellation.

        Nothing that happens to the server ends this coroutine, only what is a fault of ours.
        """
        restarts, standing_since = 0, self._clock.boottime()
        while self._wanted:
            if self._runs():
                if self._clock.boottime() - standing_since >= _STABLE_AFTER:
                    restarts = 0
                bound_log(self._layout, _LOG_LIMIT)
                await self._clock.sleep(_WATCH_INTERVAL)
                continue
            delay = restart_delay(restarts)
            self._tell_death(delay)
            await self._clock.sleep(delay)
            await self._revive()
            restarts, standing_since = restarts + 1, self._clock.boottime()

    def url(self, database: str = cluster.DATABASE, *, role: str = cluster.ROLE) -> str:
        """Return the URL of a database of this server; it holds the password."""
        return unix_socket.connection_url(
            role=role,
            password=self._layout.read_password(),
            database=database,
            sockets=self._sockets(),
        )

    async def _prepare(self) -> None:
        layout, major = self._layout, self._layout.major()
        if major is not None:
            layout.read_password()
            await self._clear()
        self._installation = installation = choose(
            self._options.directories(),
            self._options.identities(),
            root=layout.root,
            major=major,
        )
        unix_socket.renew(self._sockets(), installation.identity)
        if major is not None:
            take_over(layout.cluster, installation.identity)
            return
        await cluster.make(
            layout,
            binaries=installation.binaries,
            identity=installation.identity,
            password=self._entropy(_PASSWORD_BYTES).hex(),
            durable=self._options.durable,
            clock=self._clock,
        )

    def _spawn(self) -> None:
        installation = self._installation
        if installation is None:
            raise StorageError("PostgreSQL was not started")
        settings = cluster.server_settings(
            major=installation.binaries.major,
            name=processes.cluster_name(self._layout.data),
            sockets=self._sockets(),
            durable=self._options.durable,
        )
        command = cluster.server_command(
            installation.binaries, self._layout.data, {**settings, **self._options.settings}
        )
        bound_log(self._layout, _LOG_LIMIT)
        self._log_start = log_size(self._layout)
        with open_log(self._layout) as output:
            # A fast shutdown, so that a killed daemon costs the next one no crash recovery.
            self._process = spawn(
                command,
                identity=installation.identity,
                directory=self._layout.root,
                death_signal=signal.SIGINT,
                output=output,
            )

    async def _ready(self) -> None:
        deadline = self._clock.boottime() + _START_PATIENCE
        while True:
            file = processes.read_pid_file(self._layout.data)
            if file is not None and file.ready and file.pid == self.pid:
                return
            if not self._runs():
                raise StorageError(
                    f"PostgreSQL does not start: {self._complaint()} (more in {self._layout.log})"
                )
            if self._clock.boottime() >= deadline:
                raise StorageError(f"PostgreSQL is not ready in time: see {self._layout.log}")
            await self._clock.sleep(_POLL)

    def _tell_death(self, delay: float) -> None:
        status = self._process.returncode if self._process is not None else None
        log.warning(
            "embedded_postgres_died",
            exit_status=status,
            last_message=self._complaint(),
            restart_in=delay,
        )

    async def _revive(self) -> None:
        try:
            await self._clear()
            if not self._wanted:
                return
            self._spawn()
            await self._ready()
        except (StorageError, OSError) as error:
            if self._wanted:
                log.warning("embedded_postgres_restart_failed", reason=str(error))
        else:
            log.warning("embedded_postgres_restarted", pid=self.pid)

    async def _end_process(self) -> None:
        if self._process is None:
            return
        for number, patience in _SHUTDOWN:
            deadline = self._clock.boottime() + patience
            if self._runs():
                self._process.send_signal(number)
            while self._runs() and self._clock.boottime() < deadline:
                await self._clock.sleep(_POLL)
        if self._runs():
            raise StorageError(f"PostgreSQL, process {self.pid}, cannot be ended: end it")
        if self._process.returncode != 0:
            await self._clear()
        self._process = None
        # PostgreSQL has removed its socket; an empty directory in a shared place helps nobody.
        with contextlib.suppress(OSError):
            self._sockets().rmdir()

    async def _clear(self) -> None:
        socket_lock = unix_socket.socket_lock(self._sockets())
        await processes.clear(self._layout.data, socket_lock=socket_lock, clock=self._clock)

    def _runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _complaint(self) -> str:
        return complaint(self._layout, since=self._log_start)

    def _sockets(self) -> Path:
        runtime = unix_socket.runtime_directories(os.environ, privileged=os.geteuid() == 0)
        return unix_socket.socket_directory(self._layout.root, runtime)
