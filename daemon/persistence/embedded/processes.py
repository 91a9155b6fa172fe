"""What runs on our data directory, found in /proc: pid files outlive processes, pids are reused.

Every process of a cluster carries the cluster's name in its command line: the postmaster (and the
trampoline before it) as an argument, its children in the title that PostgreSQL gives them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from daemon.domain.clock import Clock
from daemon.domain.errors import StorageError

# PostgreSQL's children notice the postmaster's death by themselves, mostly at once.
_GRACE_OF_CHILDREN = 2.0
# A fast shutdown is bounded by a checkpoint of at most `max_wal_size`.
_GRACE_OF_POSTMASTER = 20.0
_GRACE_OF_KILL = 5.0
_POLL = 0.02
_STATUS_LINE = 7
_READY = "ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class PidFile:
    """What ``postmaster.pid`` says: the postmaster's pid, and whether it takes connections."""

    pid: int
    ready: bool


def parse_pid_file(text: str) -> PidFile | None:
    """Read ``postmaster.pid``; ``None`` where it is empty, cut or foreign: it grows by lines."""
    lines = text.splitlines()
    if not lines or not lines[0].strip().isdigit():
        return None
    status = lines[_STATUS_LINE].strip() if len(lines) > _STATUS_LINE else ""
    return PidFile(pid=int(lines[0]), ready=status == _READY)


def read_pid_file(data: Path) -> PidFile | None:
    """Return what the data directory's pid file says, ``None`` where there is none."""
    try:
        return parse_pid_file((data / "postmaster.pid").read_text("utf-8", "replace"))
    except FileNotFoundError:
        return None


def cluster_name(data: Path) -> str:
    """Name a cluster after its directory's place on its file system.

    Unlike a path this tells apart two containers that see each other's processes and have the
    same paths, and survives a renamed parent.
    """
    status = data.stat()
    return f"tokenward-{status.st_dev:x}-{status.st_ino:x}"


def is_ours(command_line: bytes, name: str) -> bool:
    """Tell whether a process with this ``/proc/PID/cmdline`` was started for the cluster by us."""
    words = command_line.rstrip(b"\0").split(b"\0")
    # A title replaces the arguments: one string, padded with NUL bytes.
    return words[0].startswith(f"postgres: {name}: ".encode()) or (
        f"cluster_name={name}".encode() in words
    )


def is_foreign(command_line: bytes, name: str, data: Path) -> bool:
    """Tell whether somebody else, an operator with ``pg_ctl`` say, runs PostgreSQL on ``data``."""
    words = command_line.rstrip(b"\0").split(b"\0")
    program = words[0].rpartition(b"/")[2]
    serves = program in {b"postgres", b"postmaster"} and os.fsencode(data) in words
    return serves and not is_ours(command_line, name)


def running(name: str) -> list[int]:
    """Return the pids of the cluster's processes; dead ones that nobody has reaped do not count."""
    return [pid for pid, command_line in _command_lines() if is_ours(command_line, name)]


async def clear(data: Path, *, socket_lock: Path, clock: Clock) -> None:
    """End what still runs on the data directory and remove the lock files that it left.

    The caller holds the state directory's lock, so whatever we started there has no daemon any
    more. A live postmaster is asked to shut down fast; a dead one's children are given a moment,
    then killed: until the last is gone, PostgreSQL rightly refuses to start. Raises StorageError
    where a process is not ours to end, or does not end.
    """
    name = cluster_name(data)
    for pid, command_line in _command_lines():
        if is_foreign(command_line, name, data):
            raise StorageError(f"process {pid} serves {data}: stop it first")
    if pids := running(name):
        await _end(pids, name, data, clock)
    # PostgreSQL takes a lock file for valid if any process of its user has the pid it names.
    for lock_file in (data / "postmaster.pid", socket_lock):
        lock_file.unlink(missing_ok=True)


async def _end(pids: Sequence[int], name: str, data: Path, clock: Clock) -> None:
    file = read_pid_file(data)
    if file is not None and file.pid in pids:
        _send(signal.SIGINT, [file.pid])
        patience = _GRACE_OF_POSTMASTER
    else:
        patience = _GRACE_OF_CHILDREN
    if await _gone(name, clock, patience):
        return
    _send(signal.SIGKILL, running(name))
    if not await _gone(name, clock, _GRACE_OF_KILL):
        left = ", ".join(map(str, running(name)))
        raise StorageError(f"processes {left} still use {data} and cannot be ended: end them")


async def _gone(name: str, clock: Clock, patience: float) -> bool:
    deadline = clock.boottime() + patience
    while running(name):
        if clock.boottime() >= deadline:
            return False
        await clock.sleep(_POLL)
    return True


def _send(number: signal.Signals, pids: Sequence[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
        except PermissionError as error:
            raise StorageError(
                f"process {pid} of another user serves this data directory: stop it first"
            ) from error


def _command_lines() -> Iterator[tuple[int, bytes]]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command_line = (entry / "cmdline").read_bytes()
        except OSError:  # It has ended meanwhile, or is hidden from us.
            continue
        if command_line:
            yield int(entry.name), command_line
