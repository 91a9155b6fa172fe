"""Tells an application that its file has changed: a command, or a signal to a process.

The one hard idea: a process number is not a process. It is held by a pidfd before anything is
checked, so that the one that was looked at is the one that is signalled.
"""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from daemon.domain.clock import Clock
from daemon.domain.errors import TokenwardError
from daemon.domain.sink import PidFileSignal, Sink

# Longer than any reload that is worth waiting for; it holds up this one sink only.
_COMMAND_LIMIT = 30.0
# A process number and a line break.
_LONGEST_PID = 32
# Process start times count in ticks, and the clock may have been corrected a little since.
_SLOP = 5.0
# What is found at the usual places; nothing of the daemon's own environment is passed on.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Not 1: that is init, or the pod's pause container. The last is the kernel's PID_MAX_LIMIT.
_PIDS = range(2, 2**22 + 1)
_STARTTIME_FIELD = 19


class NoticeError(TokenwardError):
    """An application could not be told; the text says why."""


class Notices:
    """Runs commands and sends signals."""

    def __init__(self, *, clock: Clock, limit: float = _COMMAND_LIMIT) -> None:
        self._clock = clock
        self._limit = limit

    async def tell(self, sink: Sink, *, is_there: bool) -> None:
        """Tell of a change; ``is_there`` says whether there is a file now.

        Cancelling it ends the command.

        Raises:
            NoticeError: nobody was told, or the command failed or took too long.
        """
        if sink.command:
            await self._run(sink, is_there=is_there)
        elif sink.signal is not None:
            send_signal(sink.signal, now=self._clock.now().timestamp(), up=self._clock.boottime())

    async def _run(self, sink: Sink, *, is_there: bool) -> None:
        try:
            process = await asyncio.create_subprocess_exec(
                *sink.command,
                stdin=asyncio.subprocess.DEVNULL,
                # What a command prints may be the token: nobody reads it.
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                env=environment(sink, is_there=is_there),
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            why = (error.strerror or "").lower()
            raise NoticeError(f"{sink.command[0]} cannot be run: {why}.") from error
        try:
            async with asyncio.timeout(self._limit):
                code = await process.wait()
        except TimeoutError:
            raise NoticeError(
                f"{sink.command[0]} ran longer than {self._limit:g} s and was killed."
            ) from None
        finally:
            await _end(process)
        if code != 0:
            how = f"status {code}" if code > 0 else f"signal {-code}"
            raise NoticeError(f"{sink.command[0]} ended with {how}.")


def environment(sink: Sink, *, is_there: bool) -> Mapping[str, str]:
    """Return all that a command finds in its environment. Pure."""
    return {
        "PATH": _PATH,
        "TOKENWARD_SINK_PATH": str(sink.path),
        "TOKENWARD_SINK_CONNECTION": sink.connection,
        "TOKENWARD_SINK_CHANGE": "written" if is_there else "removed",
    }


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill a command that still runs, with all that it started in its session."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def send_signal(wanted: PidFileSignal, *, now: float, up: float) -> None:
    """Signal the process that a pid file names; ``now`` is epoch time, ``up`` boot time, in s.

    Raises:
        NoticeError: the file cannot be trusted, or names no process that is older than itself.
    """
    pid, written_at = _read_pid(wanted.pid_file)
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        raise NoticeError(f"{wanted.pid_file} names no process that runs.") from None
    except OSError as error:
        why = (error.strerror or "").lower()
        raise NoticeError(f"processes cannot be told by a signal here: {why}.") from error
    try:
        if _started_at(pid) + (now - up) > written_at + _SLOP:
            raise NoticeError(
                f"{wanted.pid_file} is older than the process that has its number now; start "
                "the application anew, so that it writes the file again."
            )
        signal.pidfd_send_signal(process, getattr(signal, wanted.signal.value))
    except OSError as error:
        why = (error.strerror or "").lower()
        raise NoticeError(f"the process in {wanted.pid_file} cannot be told: {why}.") from error
    finally:
        os.close(process)


def _read_pid(path: Path) -> tuple[int, float]:
    """Return the process number in a pid file, and when that was written (epoch seconds)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise NoticeError(f"{path} cannot be read: {(error.strerror or '').lower()}.") from error
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_mode & stat.S_IWOTH:
            raise NoticeError(f"{path} must be a regular file that not everybody may write.")
        text = file.read(_LONGEST_PID).strip()
    if not text.isdigit() or int(text) not in _PIDS or int(text) == os.getpid():
        raise NoticeError(f"{path} does not hold the number of an application's process.")
    return int(text), found.st_mtime


def _started_at(pid: int) -> float:
    """Return when a process started, in seconds since boot (proc(5), field 22)."""
    line = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    # The second field is the program's name, in parentheses that may hold anything.
    fields = line.rpartition(")")[2].split()
    return int(fields[_STARTTIME_FIELD]) / os.sysconf("SC_CLK_TCK")
