"""systemd: what it passes at the start (sd_listen_fds(3)), what it is told later (sd_notify(3)).

The hard idea: the watchdog is fed by a task of the event loop and by nothing else. A loop that
hangs feeds it no more, and systemd then starts the daemon again. Without ``$NOTIFY_SOCKET``
nothing here does anything.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from daemon.domain.clock import Clock
from daemon.domain.errors import ConfigurationError, Finding
from daemon.wiring.health import DaemonHealth

log = structlog.get_logger()

# SD_LISTEN_FDS_START of sd-daemon.h.
_FIRST_DESCRIPTOR = 3
# How old the line in `systemctl status` may be where no watchdog asks for more, in seconds.
_STATUS_EVERY = 10.0
# What a start asks for each time: one message may be late, two mean that the loop hangs.
_STARTING_TURNS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervision:
    """What the service manager has passed to this process.

    ``address`` is of a Unix datagram socket, abstract where it begins with NUL. ``watchdog`` is in
    seconds. ``descriptors`` are open sockets.
    """

    address: str | None = None
    watchdog: float | None = None
    descriptors: tuple[int, ...] = ()


NO_SUPERVISION = Supervision()


def supervision(environ: Mapping[str, str], *, pid: int) -> Supervision:
    """Return what ``environ`` tells the process ``pid``; what is meant for another is left out."""
    address = environ.get("NOTIFY_SOCKET", "")
    known = address.startswith(("/", "@")) and len(address) > 1
    mine = environ.get("WATCHDOG_PID", str(pid)) == str(pid)
    microseconds = _number(environ.get("WATCHDOG_USEC")) if mine else 0
    listens = environ.get("LISTEN_PID") == str(pid)
    count = _number(environ.get("LISTEN_FDS")) if listens else 0
    return Supervision(
        address=address.replace("@", "\0", 1) if known else None,
        watchdog=microseconds / 1e6 if microseconds else None,
        descriptors=tuple(range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + count)),
    )


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdecimal() else 0


def status_of(health: DaemonHealth, *, cached: int) -> str:
    """Return one line for ``systemctl status``."""
    reasons = health.ready()
    if reasons:
        text = "; ".join(reasons)
        return text[:1].upper() + text[1:]
    return f"Ready: {cached} tokens in memory"


class ServiceManager:
    """Tells the service manager how things are. Its being away is no error of ours."""

    def __init__(
        self,
        told: Supervision,
        *,
        clock: Clock,
        monotonic: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._descriptors = told.descriptors
        self._address = told.address
        self._interval = told.watchdog / 2 if told.watchdog else _STATUS_EVERY
        self._clock = clock
        self._monotonic = monotonic
        self._started = self._stopping = self._complained = False

    def socket_at(self, path: Path | None) -> socket.socket | None:
        """Return the listening Unix socket that was passed; ``None`` where none was.

        Raises:
            ConfigurationError: it is not at ``path``. Its callers would wait for ever.
        """
        found = None
        for descriptor in self._descriptors:
            found = socket.socket(fileno=descriptor)
            place = found.getsockname()
            # The embedded database is no heir.
            found.set_inheritable(False)
            found.setblocking(False)  # noqa: FBT003 - the socket's own signature
            if found.family != socket.AF_UNIX or place != str(path):
                message = (
                    f"is {path}, and the service manager has passed a socket at {place}; write the "
                    "same path here and in the .socket unit"
                )
                found.close()
                raise ConfigurationError([Finding("listen.api.unix_socket", message)])
        return found

    def started(self) -> None:
        """Say that the first full start is done."""
        self._started = True
        self._tell("READY=1", "STATUS=Ready")

    def stopping(self) -> None:
        """Say that the stop has begun."""
        self._stopping = True
        self._tell("STOPPING=1", "STATUS=Stopping: what is in flight ends and is stored")

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Say when a reload begins and ends. One within the start or the stop is not told."""
        told = self._started and not self._stopping
        if told:
            # Type=notify-reload (systemd 253) wants the time at which the signal had arrived.
            self._tell("RELOADING=1", f"MONOTONIC_USEC={self._monotonic() // 1000}")
        try:
            yield
        finally:
            if told and not self._stopping:
                self._tell("READY=1")

    async def run(self, health: DaemonHealth, cached: Sized) -> None:
        """Feed the watchdog at half of its time, and keep the status line; until cancelled."""
        while self._address is not None:
            said = ["WATCHDOG=1", f"STATUS={status_of(health, cached=len(cached))}"]
            if not self._started:
                # A database that is away is waited for; a start that hangs is not.
                longer = int(self._interval * _STARTING_TURNS * 1e6)
                said.append(f"EXTEND_TIMEOUT_USEC={longer}")
            self._tell(*said)
            await self._clock.sleep(self._interval)

    def _tell(self, *assignments: str) -> None:
        """Send one datagram. Never waits: the manager's queue may be full."""
        if self._address is None:
            return
        lines = (assignment.replace("\n", " ") for assignment in assignments)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)  # noqa: FBT003 - the socket's own signature
                sock.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            if not self._complained:
                self._complained = True
                log.warning("service_manager_not_told", error=error.strerror or str(error))
