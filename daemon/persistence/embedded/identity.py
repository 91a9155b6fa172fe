"""As whom PostgreSQL runs: it refuses uid 0, and the daemon may well be root.

In order of preference, for root: a user namespace in which root looks like somebody else (needs
no account and no change of owner), then an account of this machine, then that account with the
right to pass through directories, for state that lies in a home directory closed to others.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO

from daemon.domain.errors import StorageError

# The overflow id of the kernel; its account `nobody` exists on practically every Linux.
_NOBODY = 65534
_LAUNCH = Path(__file__).with_name("launch.py")
# The daemon's environment may hold secrets, and PG* variables would steer initdb and the server.
_ENVIRONMENT: Mapping[str, str] = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


class RunAs(StrEnum):
    """How a process becomes one that PostgreSQL accepts; ``launch`` knows these words."""

    SELF = "self"
    NAMESPACE = "namespace"
    ACCOUNT = "account"
    SEARCHING_ACCOUNT = "searching_account"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who PostgreSQL will be.

    ``uid`` and ``gid`` are what the process sees; ``owner`` and ``owner_group`` are what its
    files belong to, seen from here (in a namespace these differ).
    """

    run_as: RunAs
    uid: int
    gid: int
    owner: int
    owner_group: int

    def __str__(self) -> str:
        """Return the words an operator needs."""
        words = {
            RunAs.SELF: "this user",
            RunAs.NAMESPACE: f"uid {self.owner} in a user namespace",
            RunAs.ACCOUNT: f"uid {self.uid}",
            RunAs.SEARCHING_ACCOUNT: f"uid {self.uid} with the right to search directories",
        }
        return words[self.run_as]


def possible_identities() -> tuple[Identity, ...]:
    """Return whom PostgreSQL may run as here, the best first. Whether it works shows in trying."""
    uid, gid = os.geteuid(), os.getegid()
    namespace = Identity(
        run_as=RunAs.NAMESPACE, uid=_NOBODY, gid=_NOBODY, owner=uid, owner_group=gid
    )
    if uid != 0:
        myself = Identity(run_as=RunAs.SELF, uid=uid, gid=gid, owner=uid, owner_group=gid)
        # initdb wants a name for its user, which the arbitrary uids of some platforms lack.
        return (myself,) if _has_name(uid) else (namespace, myself)
    account = _account()
    return (
        namespace,
        _as_account(RunAs.ACCOUNT, *account),
        _as_account(RunAs.SEARCHING_ACCOUNT, *account),
    )


def spawn(
    command: Sequence[str | Path],
    *,
    identity: Identity,
    directory: Path,
    death_signal: signal.Signals,
    output: int | IO[bytes],
    stdin: int | IO[bytes] = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start ``command`` as ``identity``, to receive ``death_signal`` when this process ends.

    Must run in the main thread: the kernel sends the signal when the *thread* that forked ends.
    A session of its own keeps a terminal's Ctrl-C and hang-up away from it. Raises StorageError.
    """
    if threading.current_thread() is not threading.main_thread():
        raise StorageError("PostgreSQL must be started from the main thread, or it ends with it")
    trampoline = (
        *(sys.executable, "-I", "-S", "-B", str(_LAUNCH)),
        *(str(os.getpid()), str(int(death_signal))),
        *(identity.run_as, str(identity.uid), str(identity.gid), str(directory)),
    )
    try:
        return subprocess.Popen(  # noqa: S603 - a list of arguments, no shell
            [*trampoline, *map(str, command)],
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(_ENVIRONMENT),
            start_new_session=True,
        )
    except OSError as error:
        raise StorageError(f"cannot start PostgreSQL: {error.strerror}") from error


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _as_account(run_as: RunAs, uid: int, gid: int) -> Identity:
    return Identity(run_as=run_as, uid=uid, gid=gid, owner=uid, owner_group=gid)


def _account() -> tuple[int, int]:
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    return _NOBODY, _NOBODY
