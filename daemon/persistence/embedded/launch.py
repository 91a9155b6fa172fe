"""Become a process that PostgreSQL accepts, tied to the daemon's life, then become PostgreSQL.

Run as a file by a bare interpreter (``-I -S``) and imports nothing of ours: between fork and exec
of a process with threads hardly anything is safe, in a fresh process everything is.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

# Constants of the kernel's interface; none of them is in the standard library of Python 3.11.
_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_SET_SECUREBITS = 28
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_DAC_OVERRIDE = 1
_CAP_DAC_READ_SEARCH = 2
_CAP_SETPCAP = 8

EXIT_REFUSED = 126
"""What the shell answers for "found, but cannot be run": here, the identity cannot be taken."""


def main(arguments: list[str]) -> None:
    """Take ``PARENT SIGNAL RUN_AS UID GID DIRECTORY PROGRAM ARGUMENT…`` and never return.

    ``SIGNAL`` is sent to the program when the thread that started this process ends. ``RUN_AS``
    is a value of ``identity.RunAs``. ``DIRECTORY`` becomes the working directory *as* the new
    identity, so that a place it cannot reach is found before the program is.
    """
    parent, death_signal, run_as, uid, gid, directory, *program = arguments
    try:
        _take_identity(run_as, int(uid), int(gid))
        os.umask(0o077)
        os.chdir(directory)
        # After the identity: the kernel forgets the signal when the credentials change.
        _call("prctl", _PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != int(parent):
            raise ProcessLookupError("the daemon ended while its PostgreSQL was starting")
        # The interpreter ignores these two, and an ignored signal stays ignored through exec.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        os.execv(program[0], program)  # noqa: S606 - a list of arguments, no shell
    except OSError as error:
        sys.stderr.write(f"cannot run {program[0]} as {run_as} {uid}: {error}\n")
        sys.exit(EXIT_REFUSED)


def _take_identity(run_as: str, uid: int, gid: int) -> None:
    if run_as == "namespace":
        _enter_namespace(uid, gid)
    elif run_as == "account":
        _become_account(uid, gid)
    elif run_as == "searching_account":
        _become_searching_account(uid, gid)


def _enter_namespace(uid: int, gid: int) -> None:
    """Make our own user id look like ``uid`` from inside; outside we stay who we are."""
    outside_uid, outside_gid = os.geteuid(), os.getegid()
    _call("unshare", _CLONE_NEWUSER)
    # Without "deny" the kernel lets nobody map groups: dropping one could open a file to us.
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {outside_uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {outside_gid} 1")


def _become_account(uid: int, gid: int) -> None:
    os.setgroups([gid])
    os.setgid(gid)
    os.setuid(uid)


def _become_searching_account(uid: int, gid: int) -> None:
    """Become ``uid`` but keep the right to pass through directories, for this is root's home.

    That is less than root without capabilities in a namespace may do, and it spares us from
    opening any directory. Containers often lack the right that only reads, but have the other.
    """
    held = _effective_capabilities()
    kept = next((c for c in (_CAP_DAC_READ_SEARCH, _CAP_DAC_OVERRIDE) if held >> c & 1), None)
    if kept is None:
        raise PermissionError("neither CAP_DAC_READ_SEARCH nor CAP_DAC_OVERRIDE is held")
    _call("prctl", _PR_SET_KEEPCAPS, 1, 0, 0, 0)
    _become_account(uid, gid)
    if held >> _CAP_SETPCAP & 1:
        # PostgreSQL asks access(2) about its own programs, which counts a user's capabilities
        # only with this bit. It matters where the programs, too, lie in root's home.
        _hold(1 << kept | 1 << _CAP_SETPCAP)
        _call("prctl", _PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
    _hold(1 << kept)
    _call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, kept, 0, 0)


def _hold(capabilities: int) -> None:
    """Have these capabilities and no others."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    # Effective, permitted and inheritable; then the same for capabilities from 32 upwards.
    sets = (ctypes.c_uint32 * 6)(capabilities, capabilities, capabilities, 0, 0, 0)
    _call("capset", header, sets)


def _effective_capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _call(name: str, *arguments: object) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


if __name__ == "__main__":
    main(sys.argv[1:])
